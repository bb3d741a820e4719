"""Options of a run in a TOML file, and the file that a run writes."""

import hashlib
from pathlib import Path

import pytest
from safetensors.torch import load_file

from dco_core.cli import commands
from dco_core.cli.config_file import read_options, write_options
from dco_core.toy_world.references import write_toy_references

OPTIONS = """
model = "toy-world"
data = "{data}"
output = "{output}"
steps = 4
learning-rate = 1e-3
rank = 2
beta = 0.1
seed = 3
square = true
preview-prompt = ["a <toy> on the beach", "a \\"red\\" <toy>"]
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_toy_references(tmp_path_factory.mktemp("references") / "subject", "toy")


@pytest.fixture
def file(data, tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(OPTIONS.format(data=data, output=tmp_path / "out" / "a.safetensors"))
    return path


def parser():
    commands_parser = commands._parser()
    return commands_parser._subparsers._group_actions[0].choices["train"]


def read(path, *arguments):
    options = parser()
    options.set_defaults(**read_options(path, options))
    return vars(options.parse_args(list(arguments)))


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_file_trains_and_the_file_that_the_run_writes_trains_again(file, data, tmp_path, monkeypatch, capsys):
    output = tmp_path / "out" / "a.safetensors"
    assert commands.main(["train", "--config", str(file)]) == 0
    first, written = digest(output), output.with_name("a.safetensors.toml")
    assert written.read_text().startswith("# python -m dco_core train --config a.safetensors.toml\n")
    by_hand = ["--model", "toy-world", "--data", str(data), "--steps", "4", "--learning-rate", "1e-3", "--rank", "2",
               "--beta", "0.1", "--seed", "3", "--square"]  # fmt: skip
    other = tmp_path / "other" / "a.safetensors"
    assert commands.main(["train", *by_hand, "--output", str(other)]) == 0
    assert digest(other) == first
    kept = written.read_bytes()
    output.unlink()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert commands.main(["train", "--config", str(written)]) == 0
    assert "Found the checkpoint of step 4: finished" in capsys.readouterr().out
    assert digest(output) == first and written.read_bytes() == kept
    assert commands.main(["train", "--config", str(written), "--rank", "3", "--overwrite"]) == 0
    downs = {t.shape[0] for key, t in load_file(output).items() if key.endswith("down.weight")}
    assert downs == {3}
    assert "rank = 3\n" in written.read_text() and "overwrite" not in written.read_text()


def test_every_option_comes_back_as_it_was(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("pictures").mkdir()
    Path("m.ckpt").touch()
    given = ["--model", "checkpoint:m.ckpt", "--data", "pictures", "--output", "ä \x7f\"\\.safetensors",
             "--clip", "m.ckpt", "--clip", "name.safetensors", "--resolution", "64", "--compile",
             "--no-reference-cache", "--threads", "2", "--preview-prompt", "a 🦦\n\tb", "--learning-rate", "1e-7",
             "--token-lr", "0.5", "--learned-tokens", "alone", "--initializer", "<a> = b, 2",
             "--beta", "1e30"]  # fmt: skip
    options = parser()
    values = vars(options.parse_args(given))
    write_options(tmp_path / "a.toml", options, values, "train")
    found = read(tmp_path / "a.toml")
    full = {
        "model": f"checkpoint:{tmp_path / 'm.ckpt'}", "data": tmp_path / "pictures",
        "clip": [str(tmp_path / "m.ckpt"), "name.safetensors"], "output": tmp_path / given[5],
    }  # fmt: skip
    assert {name: v for name, v in found.items() if " " not in name and name not in ("parser", "run")} == {
        name: full.get(name, v) for name, v in values.items() if " " not in name and name not in ("parser", "run")
    }


def test_names_of_models_are_no_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("toy-world").mkdir()
    Path("flow").mkdir()
    options = parser()
    for name in ("toy-world", "toy-world:flow", "checkpoint:none.safetensors"):
        write_options(tmp_path / "a.toml", options, vars(options.parse_args(["--model", name])), "train")
        assert read(tmp_path / "a.toml")["model"] == name


def test_the_command_line_wins_and_its_lists_replace_the_files(file):
    assert read(file)["preview_prompt"] == ["a <toy> on the beach", 'a "red" <toy>']
    found = read(file, "--preview-prompt", "x", "--preview-prompt", "y", "--steps", "9", "--token-lr", "0.1")
    assert found["preview_prompt"] == ["x", "y"] and found["steps"] == 9 and found["rank"] == 2
    assert found["token_learning_rate"] == 0.1
    file.write_text("token-lr = 0.2\nlearning_rate = 1\nreference-cache = false\n", encoding="utf-8-sig")
    found = read(file)
    assert found["token_learning_rate"] == 0.2 and found["learning_rate"] == 1.0 and found["reference_cache"] is False
    assert read(file, "--reference-cache")["reference_cache"] is True


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("steps = ", "is no TOML"),
        ("stepz = 4", "stepz is no option of this command: did you mean steps?"),
        ("qqq = 4", "qqq is no option of this command: --help lists all options"),
        ("config = 'b.toml'", "config is no option"),
        ("no-reference-cache = true", "no-reference-cache is no option of this command: did you mean reference-cache?"),
        ("[train]\nsteps = 4", "train is no option"),
        ("steps = '4'", "steps is '4': write a whole number."),
        ("steps = 4.5", "steps is 4.5: write a whole number."),
        ("steps = true", "steps is True: write a whole number."),
        ("rank = [4]", "rank is [4]: write one value."),
        ("learning-rate = 'fast'", "learning-rate is 'fast': write a number."),
        ("model = 3", "model is 3: write text in quotation marks."),
        ("square = 1", "square is 1: write true or false."),
        ("reference-cache = 'no'", "reference-cache is 'no': write true or false."),
        ("preview-prompt = 'a'", "preview-prompt is 'a': write a list."),
        ("size-conditioning = 'none'", "size-conditioning is 'none': use one of real, fixed."),
        ("steps = 4\nsteps = 5", "is no TOML"),
    ],
)
def test_what_does_not_fit_is_one_sentence(text, words, tmp_path, capsys):
    path = tmp_path / "run.toml"
    path.write_text(text)
    assert commands.main(["train", "--config", str(path)]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and words in printed and printed.count("\n") == 1 and str(path) in printed


def test_a_file_that_is_not_there_and_options_that_nobody_gave(tmp_path, capsys):
    assert commands.main(["train", "--config", str(tmp_path / "no.toml")]) == 1
    assert "no.toml cannot be read (No such file or directory): name a TOML file" in capsys.readouterr().err
    for given, missing in (([], "model"), (["--model", "toy-world"], "data"), (["--model=x", "--data=y"], "output")):
        assert commands.main(["train", *given]) == 1
        assert f"error: --{missing} is missing: name " in capsys.readouterr().err


def test_a_file_that_somebody_wrote_is_not_replaced(tmp_path):
    options = parser()
    values = vars(options.parse_args(["--model", "toy-world"]))
    path = tmp_path / "a.toml"
    path.write_text("# mine\nsteps = 4\n")
    write_options(path, options, values, "train")
    assert path.read_text() == "# mine\nsteps = 4\n"
