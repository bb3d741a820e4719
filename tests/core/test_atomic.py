"""What a writer that is killed in the middle leaves behind, and what one that lives is left alone with."""

import os
import subprocess
import sys
import textwrap
import time

import pytest
import torch
from safetensors.torch import load_file

from dco_core.files.atomic import remove_abandoned, save_tensors
from dco_core.training.checkpoints import Checkpoints

pytestmark = pytest.mark.skipif(os.name != "posix", reason="locks that a kill lets go of")

KEY = "0123456789abcdef"
WRITER = """
    import sys
    sys.path[:0] = {path!r}
    import time, torch
    import dco_core.files.atomic as atomic

    def half(tensors, path, metadata):
        path.write_bytes(b"half a file")
        print("writing", flush=True)
        time.sleep(600)

    atomic.save_file = half
    atomic.save_tensors({target!r}, {{"x": torch.zeros(1)}}, {{}})
"""


@pytest.fixture
def writer(tmp_path):
    """A process in the middle of writing the second checkpoint of a run."""
    target = str(tmp_path / f"{KEY}-00000002.safetensors")
    code = textwrap.dedent(WRITER.format(path=sys.path, target=target))
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "writing\n"
        yield process
        process.kill()


def strays(folder):
    return [path.name for path in folder.iterdir() if path.name.endswith(".tmp")]


def test_what_a_killed_writer_left_is_gone_at_the_next_look(tmp_path, writer):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.open(KEY * 4, 9)
    assert len(strays(tmp_path)) == 1  # it lives, and is not disturbed
    writer.kill()
    writer.wait()
    checkpoints.open(KEY * 4, 9)
    assert strays(tmp_path) == []


def test_a_writer_clears_up_after_a_killed_one_of_the_same_file_alone(tmp_path, writer):
    target, other = tmp_path / f"{KEY}-00000002.safetensors", tmp_path / "other.safetensors"
    writer.kill()
    writer.wait()
    save_tensors(other, {"x": torch.ones(2)}, {})
    assert len(strays(tmp_path)) == 1
    save_tensors(target, {"x": torch.ones(2)}, {})
    assert strays(tmp_path) == []
    assert torch.equal(load_file(target)["x"], torch.ones(2))


def test_where_there_are_no_locks_an_hour_tells(tmp_path, monkeypatch):
    monkeypatch.setattr("dco_core.files.atomic.fcntl", None)
    young, old = (tmp_path / f".{name}.safetensors.01234567.tmp" for name in ("young", "old"))
    for path, age in ((young, 60), (old, 7200)):
        path.write_bytes(b"")
        os.utime(path, (time.time() - age,) * 2)
    remove_abandoned(tmp_path)
    assert strays(tmp_path) == [young.name]
    save_tensors(tmp_path / "young.safetensors", {"x": torch.ones(1)}, {})
    assert (tmp_path / "young.safetensors").exists()
