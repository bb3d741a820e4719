"""docs/families.md: what is tested on which family of the host, from the tests themselves.

    .dev/venv/bin/python -m devtools.families

Runs the tests of tests/engine that go over all families, on small random models of the host's own classes, and writes
what passed, and what a step of the family's real size holds at once (family_memory.py). A quarter of an hour.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path

from . import environment, in_process_host
from .environment import ROOT
from .family_memory import RANK, measured
from .real_sizes import NOT_COUNTED, REAL_SIZES

PAGE = ROOT / "docs" / "families.md"
COLUMNS = {
    "trains": "tests/engine/test_training_families.py::test_every_family_has_the_gradient_of_its_finite_differences",
    "its file loads": "tests/engine/test_files_of_families.py::test_every_file_loads_as_it_was_trained",
    "guidance": "tests/engine/test_guidance_families.py::test_every_family_matches_two_models",
    "streams": "tests/engine/test_streamed_families.py::test_every_family_streams_to_the_same_bits",
}
HEAD = """# Families

What is tested on which family, written by `python -m devtools.families` from small random models of the host's own
classes (ComfyUI {version}). *Trains*: gradients agree with finite differences, with and without gradient
checkpointing. *Its file loads*: every layer of the LoRA arrives in the host's LoraLoader as it was trained.
*Guidance*: reward guidance agrees with two separately patched models. *Streams*: weights in main memory give the
same bits as weights on the device. *Tokens*: `<dog>` can be learned, which needs CLIP text encoders; on other
families the trainer says so, and the LoRA learns the subject without. Downloaded checkpoints are not part of these
tests.

*Smallest memory*: of a step on one picture, for the family in the size of the published checkpoint that stands beside
it: with all weights on the card, and with `stream_weights` on. It is counted, not measured: on torch's meta device,
where tensors have sizes and no memory. In it are the weights in bf16 (streamed: what lies outside of the blocks, and
the three largest blocks), a LoRA of rank {rank} on the attention with its gradient and AdamW's states in fp32, and
whatever tensors the operations of a step with gradient checkpointing hold at once, in bf16, with attention as GPUs fuse
it. Not in it are CUDA's own memory, the allocator's gaps, work space inside of operations, and the text encoders and
the VAE, which leave the card before training. The base model's look-ahead takes no more than the step. Weights in fp8
take half of the bytes of bf16.

| family | prediction | trains | its file loads | guidance | streams | tokens | checkpoint | smallest memory |
|---|---|---|---|---|---|---|---|---|
"""
_CLIP = ("sd1_clip", "sdxl_clip", "text_encoders.sd2_clip")  # modules of the host with CLIP text encoders alone


def main() -> int:
    host = environment.comfyui_path()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "tests.xml"
        command = [sys.executable, "-m", "pytest", *COLUMNS.values(), "-q", "-p", "no:cacheprovider"]
        subprocess.run([*command, f"--junitxml={report}"], cwd=ROOT, check=False)
        passed = results_of(report)
    families = list(dict.fromkeys(family for _, family in passed))
    rows = [
        f"| {family} | {prediction} | "
        + " | ".join(_MARKS[passed.get((column, family))] for column in COLUMNS)
        + f" | {'yes' if tokens else 'no'} | {memory} |"
        for family, (prediction, tokens), memory in zip(families, _facts(families), _memory(families), strict=True)
    ]
    version = (host / "comfyui_version.py").read_text(encoding="utf-8").split('"')[-2]
    page = HEAD.format(version=version, rank=RANK) + "\n".join(rows) + "\n" + _foot(families)
    PAGE.write_text(page, encoding="utf-8")
    print(f"Written {PAGE.relative_to(ROOT)}")
    return 0 if rows and all(passed.values()) else 1


_MARKS = {True: "yes", False: "**no**", None: "not tested"}


def results_of(report: Path) -> dict[tuple[str, str], bool]:
    """{(column, family): whether all of its tests passed} of a junit file, in the order of the tests."""
    found: dict[tuple[str, str], bool] = {}
    for case in ET.parse(report).iter("testcase"):
        test, _, ids = (case.get("name") or "").partition("[")
        family = ids.rstrip("]").removesuffix("-True").removesuffix("-False")  # with checkpointing, and without
        bad = any(case.find(tag) is not None for tag in ("failure", "error", "skipped"))
        for column, name in COLUMNS.items():
            if name.endswith(f"::{test}"):
                found[column, family] = found.get((column, family), True) and not bad
    return found


def _foot(families: list[str]) -> str:
    lines = [f"- {family}: {why}." for family, why in NOT_COUNTED.items() if family in families]
    return "\nNot counted:\n\n" + "\n".join(lines) + "\n" if lines else ""


def _memory(families: list[str]) -> list[str]:
    """The last two columns."""
    from small_models import FAMILIES

    columns = []
    for family in families:
        size = REAL_SIZES.get(family)
        if size is None:
            columns.append("- | -")
            continue
        parameters, whole, streamed = measured(FAMILIES[family].supported, size)
        columns.append(
            f"{size.checkpoint}, {parameters / 1e9:.2f} B, {size.pixels} | {whole / 1e9:.1f} GB, streamed "
            f"{streamed / 1e9:.1f} GB"
        )
        print(family, columns[-1])
    return columns


def _facts(families: list[str]) -> list[tuple[str, bool]]:
    """(prediction, whether tokens can be learned) of each family."""
    in_process_host.start()
    sys.path.insert(0, str(ROOT / "tests" / "engine"))
    import comfy.supported_models
    from small_models import FAMILIES, small_model

    noise_of = in_process_host.pack("nodes.host.training.noise").noise_of
    facts = []
    for family in families:
        config = getattr(comfy.supported_models, FAMILIES[family].supported)(dict(FAMILIES[family].config))
        tokenizer = config.clip_target(state_dict={}).tokenizer
        module = getattr(tokenizer, "__module__", "").removeprefix("comfy.")
        prediction = noise_of(small_model(family).get_model_object("model_sampling")).schedule.prediction
        facts.append((prediction, module in _CLIP))
    return facts


if __name__ == "__main__":
    sys.exit(main())
