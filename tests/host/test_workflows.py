"""The SDXL templates run as they are, on a small checkpoint and few steps."""

from __future__ import annotations

import json
import shutil

from devtools.environment import ROOT
from devtools.workflow_prompt import to_prompt

SMALL = {
    "ckpt_name": "tiny_sdxl.ckpt", "folder": "photos", "image": "photos/00.jpg", "resolution": 64, "width": 64,
    "height": 64, "steps": 2,
}  # fmt: skip


def small_prompt(name):
    """The template's prompt with the settings of SMALL, and nothing else changed."""
    prompt = to_prompt(json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8")))
    for content in prompt.values():
        content["inputs"] |= {k: v for k, v in SMALL.items() if k in content["inputs"]}
        if content["class_type"] == "DCOLoRATrainer":
            content["inputs"]["steps"] = 4
    return prompt


def test_subject_guidance_and_merge_templates_run_one_after_the_other(host, sdxl, photos):
    loras = host.base_dir / "output" / "loras"
    for name in ("1 - Train a subject", "2 - Reward guidance", "3 - My subject in my style"):
        prompt = small_prompt(name)
        outputs = host.client.run(prompt)
        saves = [n for n, content in prompt.items() if content["class_type"] == "SaveImage"]
        assert saves
        assert all(outputs[n]["images"] for n in saves), name
    for stem in ("my_subject", "my_style", "my_subject_my_style"):
        assert list(loras.glob(f"{stem}_0*.safetensors")), stem
    shutil.rmtree(host.base_dir / "output" / "dco")
