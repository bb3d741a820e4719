"""Files merged by the command, in the host's own loader: UNet, convolutions and text encoders, of mixed kinds."""

from __future__ import annotations

import checkpoints
import pytest
import torch
from host_graph import Graph, facts
from safetensors.torch import save_file

from dco_core.cli.commands import main

MODULES = {
    "lora_unet_": ("model.diffusion_model.", (r"attn1.to_q", r"attn2.to_v", r"ff.net.2", r"in_layers.2", r"0.op")),
    "lora_te1_": ("conditioner.embedders.0.transformer.", ("layers.0.self_attn.q_proj", "layers.1.mlp.fc1")),
    "lora_te_": ("cond_stage_model.transformer.", ("layers.0.self_attn.q_proj", "layers.1.mlp.fc1")),
}
SECOND = {"lora_te2_text_model_encoder_layers_1_mlp_fc2": (1280, 5120),
          "lora_te2_text_model_encoder_layers_0_self_attn_k_proj": (1280, 1280)}  # fmt: skip


def modules_of(family):
    """{kohya's name: shape} of some layers of the small checkpoint; SDXL's second encoder has other names in it."""
    tensors = checkpoints.sd15_tensors() if family == "sd15" else checkpoints.sdxl_tensors()
    found = dict(SECOND) if family == "sdxl" else {}
    for lora, (prefix, wanted) in MODULES.items():
        for key, tensor in tensors.items():
            name = key.removeprefix(prefix).removesuffix(".weight")
            if key.startswith(prefix) and key.endswith(".weight") and name.endswith(wanted):
                found[lora + name.replace(".", "_")] = tuple(tensor.shape)
    assert any(len(shape) == 4 for shape in found.values()) and any("lora_te" in key for key in found)
    return found


def lora(modules, kind, seed):
    """Tensors of a LoRA with LoCon, or a LoKr, of ranks and alphas that differ."""
    generator, tensors = torch.Generator().manual_seed(seed), {}

    def r(*shape):
        return torch.randn(*shape, generator=generator) * 0.1

    for i, (key, (out, inside, *kernel)) in enumerate(modules.items()):
        rank, ones = 1 + (i + seed) % 4, [1 for _ in kernel]
        if kind == "lokr":
            tensors[f"{key}.lokr_w1"] = r(2, 2) * 10
            tensors[f"{key}.lokr_w2"] = r(out // 2, inside // 2, *kernel) * 0.1
        else:
            tensors[f"{key}.lora_down.weight"] = r(rank, inside, *kernel).half()
            tensors[f"{key}.lora_up.weight"] = r(out, rank, *ones)
        if i % 3:
            tensors[f"{key}.alpha"] = torch.tensor(float(i % 5) + 0.5)
    return tensors


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_a_merged_file_draws_what_stacked_loaders_draw_text_encoders_too(host, request, family):
    request.getfixturevalue(family)
    folder = host.base_dir / "output" / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    modules, weights = modules_of(family), {"lora": 0.8, "lokr": -0.5, "locon": 1.2}
    for seed, kind in enumerate(weights):
        save_file(lora(modules, kind, seed), folder / f"stack_{family}_{kind}.safetensors")
    inputs = [f"{folder}/stack_{family}_{kind}.safetensors={weight}" for kind, weight in weights.items()]
    assert main(["merge", *inputs, "--output", str(folder / f"stack_{family}.safetensors")]) == 0

    g = Graph()
    base = g.checkpoint(family)

    def loaded(start, name, strength):
        node = g.add(
            "LoraLoader", model=start[0], clip=start[1], lora_name=f"{name}.safetensors", strength_model=strength,
            strength_clip=strength,
        )  # fmt: skip
        return [node, 0], [node, 1]

    def picture(loras):
        model, clip = loras
        return g.ksample(model, g.text(clip, "a toy"), g.text(clip, ""), g.latent(64), 2.0)

    plain = (base["model"], base["clip"])
    stacked = plain
    for kind, weight in weights.items():
        stacked = loaded(stacked, f"stack_{family}_{kind}", weight)
    merged = loaded(plain, f"stack_{family}", 1.0)
    by_stack, by_file = picture(stacked), picture(merged)
    by_file_and_stack, without_text = picture((merged[0], stacked[1])), picture((stacked[0], plain[1]))
    unet, both = g.compare(by_file_and_stack, by_stack), g.compare(by_file, by_stack)
    base_, text = g.compare(picture(plain), by_stack), g.compare(without_text, by_stack)
    mark = len(host.log())
    outputs = host.client.run(g.prompt)
    unet, both, base_, text = (facts(outputs, node)["relative"] for node in (unet, both, base_, text))
    print(family, "UNet", unet, "all", both, "base", base_, "without text", text)
    assert unet < 1e-5 and base_ > 1e-2
    # the host rounds text encoders to fp16, where the last bit of a sum can fall the other way
    assert both < 0.02 * text and text > 1e-2
    assert "lora key not loaded" not in host.log()[mark:]
