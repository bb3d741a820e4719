"""LoRAs of a few layers of UNets without two blocks per level, which nothing in the block numbers tells."""

import pytest
import torch

from dco_core.errors import DCOError
from dco_core.lora import from_tensors, merge, to_tensors

TO_Q = "transformer_blocks_0_attn1_to_q"
SDXS = ["lora_unet_input_blocks_1_1_" + TO_Q, "lora_unet_output_blocks_5_1_" + TO_Q]  # blocks that SD1.5 has too
SDXL = ["lora_unet_input_blocks_4_1_" + TO_Q, "lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q"]


def lora(names, down="lora_down", up="lora_up"):
    return from_tensors(
        {f"{n}.{p}.weight": torch.ones(s) for n in names for p, s in ((down, (1, 8)), (up, (6, 1)))}
    )


def modules(tensors):
    return {key.rsplit(".lora_", 1)[0].removesuffix(".alpha") for key in tensors}


def test_they_are_written_as_they_were_read():
    read = lora(SDXS)
    assert modules(to_tensors(read)) == set(SDXS)
    assert modules(to_tensors(merge([read, read], [1.0, 0.5]))) == set(SDXS)
    with pytest.raises(DCOError, match="without two blocks per level"):
        to_tensors(read, keys="diffusers")


def test_they_are_not_summed_with_names_that_count_otherwise():
    other = lora(["unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"], "lora_A", "lora_B")
    with pytest.raises(DCOError, match="cannot be matched"):
        merge([lora(SDXS), other], [1.0, 1.0])


def test_those_of_known_layouts_are_still_translated():
    dotted = "transformer_blocks.0.attn1.to_q"  # ComfyUI's own trainer on SD1.5
    comfyui = lora([f"diffusion_model.{block}.1.{dotted}" for block in ("input_blocks.1", "output_blocks.5")])
    assert modules(to_tensors(comfyui)) == {
        f"lora_unet_down_blocks_0_attentions_0_{TO_Q}", f"lora_unet_up_blocks_1_attentions_2_{TO_Q}"
    }  # fmt: skip
    assert modules(to_tensors(lora(SDXL))) == set(SDXL)
    assert modules(to_tensors(lora(SDXL), keys="diffusers")) == {
        f"unet.down_blocks.1.attentions.0.transformer_blocks.{i}.attn1.to_q" for i in (0, 1)
    }


@pytest.mark.parametrize("prefix", ["unet.", "base_model.model.", "lora_unet_"])
def test_blocks_that_sd15_has_not_are_named_as_all_others(prefix):
    """Of a UNet with three layers per block; ComfyUI knows attention layers by the names with underscores alone."""
    paths = [f"up_blocks.1.attentions.{i}.transformer_blocks.0.attn1.to_q" for i in (0, 3)]
    names = [prefix + (p.replace(".", "_") if prefix == "lora_unet_" else p) for p in paths]
    read = lora(names, "lora_A", "lora_B")
    assert modules(to_tensors(read)) == {"lora_unet_" + p.replace(".", "_") for p in paths}
    assert modules(to_tensors(read, keys="diffusers")) == {"unet." + p for p in paths}
