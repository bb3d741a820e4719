"""The templates run as they are, with few steps; those for SDXL on a small checkpoint."""

from __future__ import annotations

import io
import json
import shutil

import numpy as np
from host_graph import Graph
from PIL import Image

from dco_core.drawing.figure import COLOURS
from devtools.demo_graph import find
from devtools.environment import ROOT
from devtools.workflow_prompt import to_prompt

PHOTOS = json.dumps([
    {"file": f"photos/0{i}.jpg", "caption": f"a photo of a <dog> in front of wall {i}"} for i in range(2)
])  # fmt: skip
SMALL = {
    "photos": PHOTOS, "ckpt_name": "tiny_sdxl.ckpt", "image": "photos/00.jpg", "resolution": 64, "width": 64,
    "height": 64, "steps": 2,
}  # fmt: skip


FEW = {"steps": 2, "count": 2}


def small_prompt(name, settings=SMALL):
    """The template's prompt with these settings and 4 steps of training, and nothing else changed."""
    prompt = to_prompt(json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8")))
    for content in prompt.values():
        content["inputs"] |= {k: v for k, v in settings.items() if k in content["inputs"]}
        if content["class_type"] == "DCOLoRATrainer":
            content["inputs"]["steps"] = 4
    return prompt


def test_subject_guidance_and_merge_templates_run_one_after_the_other(host, sdxl, photos):
    loras = host.base_dir / "output" / "loras"
    for name in ("1_DCO_LoRA_training_SDXL_subject", "2_DCO_reward_guidance", "3_DCO_my_subject_in_my_style"):
        prompt = small_prompt(name)
        outputs = host.client.run(prompt)
        saves = [n for n, content in prompt.items() if content["class_type"] == "SaveImage"]
        assert saves
        assert all(outputs[n]["images"] for n in saves), name
    for stem in ("my_subject", "my_style", "my_subject_my_style"):
        assert list(loras.glob(f"{stem}_0*.safetensors")), stem
    shutil.rmtree(host.base_dir / "output" / "dco")


def test_the_template_for_z_image_runs_with_another_model_in_its_place(host, sdxl, photos):
    prompt = small_prompt("5_DCO_LoRA_training_Z_Image")
    checkpoint = Graph()
    base = checkpoint.checkpoint(sdxl)
    (loader,) = checkpoint.prompt
    prompt["base"] = checkpoint.prompt[loader]
    instead = {
        node: ["base", base[part][1]]
        for part, kind in (("model", "UNETLoader"), ("clip", "CLIPLoader"), ("vae", "VAELoader"))
        for node in find(prompt, kind)
    }
    assert len(instead) == 3
    for content in prompt.values():
        for name, value in content["inputs"].items():
            if isinstance(value, list) and value[0] in instead:
                content["inputs"][name] = instead[value[0]]
    outputs = host.client.run({node: content for node, content in prompt.items() if node not in instead})
    (saved,) = find(prompt, "SaveImage")
    assert outputs[saved]["images"]
    (trainer,) = find(prompt, "DCOLoRATrainer")
    assert prompt[trainer]["inputs"]["objective.beta"] == "auto"
    shutil.rmtree(host.base_dir / "output" / "dco")


def of_type(prompt, class_type):
    return [prompt[node]["inputs"] for node in find(prompt, class_type)]


def test_two_toys_are_trained_and_drawn_in_one_picture(host):
    """Each with its LoRA and token; outside of the masks no LoRA, here: at w_rg 0 nowhere."""
    prompt = small_prompt("6_DCO_two_subjects_in_one_picture_Toy_World", FEW)
    (sweep,) = find(prompt, "DCORewardGuidanceSweep")
    left, right = find(prompt, "DCOLoRATrainer")
    (region,) = of_type(prompt, "DCORegionalLoRA")
    assert prompt[sweep]["inputs"]["lora"] == [left, 0] and region["lora"] == [right, 0]
    assert prompt[sweep]["inputs"]["mask"] != region["mask"]
    prompt["report"] = {"class_type": "PreviewAny", "inputs": {"source": [sweep, 3]}}
    prompt["masks"] = {"class_type": "MaskToImage", "inputs": {"mask": prompt[sweep]["inputs"]["mask"]}}
    prompt["mask of the left"] = {"class_type": "PreviewImage", "inputs": {"images": ["masks", 0]}}
    outputs = host.client.run(prompt)
    (saved,) = find(prompt, "SaveImage")
    assert outputs[saved]["images"]
    assert "LoRA 1 on the prompt, LoRA 2 on the prompt" in outputs["report"]["text"][0]
    for node in (left, right):
        assert "<toy>" in outputs[node]["text"][0]  # its learned token
    mask = np.asarray(
        Image.open(io.BytesIO(host.client.download(**outputs["mask of the left"]["images"][0])))
    )
    row = mask[128, :, 0].astype(int)
    assert row[0] == 255 and row[-1] == 0 and abs(row[128] - 127) < 12
    assert (np.diff(row) <= 0).all() and 20 < ((row > 0) & (row < 255)).sum() < 40  # a soft edge
    shutil.rmtree(host.base_dir / "output" / "dco")


def test_two_subjects_of_a_checkpoint_are_drawn_in_one_picture(host, sdxl, photos):
    """With LoRAs that template 1 has trained."""
    host.client.run(small_prompt("1_DCO_LoRA_training_SDXL_subject"))
    settings = SMALL | {"x": 0, "right": 8}
    prompt = small_prompt("7_DCO_two_subjects_in_one_picture_SDXL", settings)
    for inputs in of_type(prompt, "SolidMask"):
        inputs |= {"height": 64, "width": 36 if inputs["value"] else 64}
    (sampler,) = find(prompt, "DCORewardGuidanceSampler")
    prompt["report"] = {"class_type": "PreviewAny", "inputs": {"source": [sampler, 1]}}
    outputs = host.client.run(prompt)
    (saved,) = find(prompt, "SaveImage")
    assert outputs[saved]["images"]
    assert outputs["report"]["text"][0].startswith("4 UNet rows a step: LoRA 1 on the prompt, LoRA 2 on")
    shutil.rmtree(host.base_dir / "output" / "dco")


def test_the_comparison_ends_in_a_plot_with_a_curve_a_method(host):
    prompt = small_prompt("4_DCO_and_DreamBooth_compared", FEW)

    def only(class_type):
        (node,) = find(prompt, class_type)
        return node

    trainers = [prompt[n]["inputs"] for n in find(prompt, "DCOLoRATrainer")]
    assert [inputs["objective"] for inputs in trainers] == ["DreamBooth", "DCO"]
    dreambooth, dco = (
        {k: v for k, v in i.items() if not k.startswith("objective") and k != "name"} for i in trainers
    )
    assert dreambooth == dco  # nothing else differs
    sweeps = [prompt[n]["inputs"] for n in find(prompt, "DCORewardGuidanceSweep")]
    assert [i["lora"] for i in sweeps] == [[n, 0] for n in find(prompt, "DCOLoRATrainer")]
    assert {**sweeps[0], "lora": None} == {**sweeps[1], "lora": None}
    values = [f"w_rg {value.strip()}" for value in sweeps[0]["w_rg_values"].split(",")]

    prompt["report"] = {"class_type": "PreviewAny", "inputs": {"source": [only("DCOParetoPlot"), 1]}}
    outputs = host.client.run(prompt)
    (saved,) = outputs[only("SaveImage")]["images"]
    plot = np.asarray(Image.open(io.BytesIO(host.client.download(**saved))).convert("RGB")).reshape(-1, 3)
    for colour in COLOURS[:2]:  # both curves, at least in the legend: after four steps they may coincide
        assert (np.abs(plot.astype(int) - colour).max(1) < 30).sum() > 20
    assert not (np.abs(plot.astype(int) - COLOURS[2]).max(1) < 30).any()
    text = outputs[only("PreviewAny")]["text"][0]
    dreambooth, dco = text.removeprefix("DreamBooth\n\n").split("\n\nDCO\n\n")
    batch = prompt[only("EmptyLatentImage")]["inputs"]["batch_size"]
    for table in (dreambooth, dco):
        head, _, *lines = [
            [cell.strip() for cell in line.strip("| ").split("|")] for line in table.splitlines()
        ]
        assert head == ["label", "pictures", "likeness", "alignment"]
        assert [line[:2] for line in lines] == [[value, str(2 * batch)] for value in values]
        assert all(0 <= float(cell) <= 1 for line in lines for cell in line[2:])
    shutil.rmtree(host.base_dir / "output" / "dco")
