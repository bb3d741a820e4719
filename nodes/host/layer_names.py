"""The layers of a host MODEL as LoRA files name them: the names to write, and the layers that a file's names mean.

Files for SD UNets may name blocks as diffusers does (down_blocks.1.attentions.0), counted within each level. Which
block of the host that is depends on how many blocks MODEL has per level, so these names are read by MODEL's own
table, never by that of SD1.5.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import comfy.utils

from ...dco_core.errors import DCOError
from ...dco_core.lora import LoraLayer, LoraWeights, canonical_keys, started
from ...dco_core.lora.keys import UNET, underscored

_BLOCK = re.compile(r"lora_unet_(down|up)_blocks_")
_FAMILIES = {  # the host's model class: kohya's name of the base
    "SDXL": "sdxl_base_v1-0",
    "SD15": "sd_v1",
    "SD20": "sd_v2",
    "SD21UnclipL": "sd_v2",
    "SD21UnclipH": "sd_v2",
    "SD3": "sd3",
    "Flux": "flux1",
    "FluxSchnell": "flux1",
}


def family(model) -> str:
    """The base model version for the file's header: kohya's name, or the host's class name where kohya has none."""
    config = type(model.model.model_config)
    return next(
        (_FAMILIES[c.__name__] for c in config.__mro__ if c.__name__ in _FAMILIES), config.__name__.strip("_")
    )


def canonical(module: str) -> str:
    """`a.b.c` of the diffusion model -> `lora_unet_a_b_c`."""
    return UNET + module.replace(".", "_")


def kohya_names(model) -> dict[str, str]:
    """{canonical key: kohya base name} for every module of MODEL, as trainers write it for its family.

    SD1.5 and SD2 files use diffusers block names (A1111 and Forge read only those); every other family the names
    of the checkpoint's own modules, which are the canonical ones. So do SD files of a UNet with another number of
    blocks per level, whose diffusers names would be read onto other blocks."""
    own = {
        canonical(key[: -len(".weight")]): tensor.dim()
        for key, tensor in model.model.diffusion_model.state_dict().items()
        if key.endswith(".weight")
    }
    names = {key: key for key in own}
    if family(model) not in ("sd_v1", "sd_v2") or not _is_even(model):
        return names
    table = _diffusers_table(model)
    names |= {canonical(module): name for name, module in table.items() if canonical(module) in own}
    layers = {key: name for key, name in names.items() if own[key] > 1}
    read = canonical_keys(layers.values())
    return names if all(read[name] == key for key, name in layers.items()) else {key: key for key in own}


def modules_of(model, weights: LoraWeights, what: str) -> dict[str, str]:
    """{key of a LoRA's layer: dotted name of MODEL's module} for the layers that MODEL has. what: names the LoRA in
    error messages. Raises DCOError as check_block_names does."""
    names = {canonical(name): name for name, _ in model.model.diffusion_model.named_modules()}
    table = _diffusers_table(model)
    check_block_names(model, (weights.paths.get(key, key) for key in weights.layers), what)
    found: dict[str, str] = {}
    modules: dict[str, str] = {}
    for key in weights.layers:
        path = weights.paths.get(key, key)
        spelled = underscored(path)
        name = table.get(spelled)
        if name is None and not (table and _BLOCK.match(spelled)):  # such a key may be of another layer here
            name = names.get(key)
        if name is None:
            continue
        if name in modules:
            raise DCOError(f"{what} holds two LoRAs for {name}, as {modules[name]} and as {path}: remove one.")
        found[key], modules[name] = name, path
    return found


def check_block_names(model, paths: Iterable[str], what: str) -> None:
    """Raise DCOError where a file names blocks as diffusers does and MODEL's levels differ in their numbers of blocks:
    the host's own table is wrong there. paths: of modules or tensors in the file; what: names the LoRA."""
    if not _blocks_per_level(model) or _is_even(model):
        return
    path = next((path for path in paths if _BLOCK.match(underscored(path))), None)
    if path is not None:
        raise DCOError(
            f"{what} names {path} as diffusers does, and the levels of this model have "
            f"{_blocks_per_level(model)} blocks: ComfyUI reads such names onto other layers. Use a LoRA with ComfyUI's "
            "own names (input_blocks, output_blocks)."
        )


def started_layers(model, weights: LoraWeights) -> dict[str, LoraLayer]:
    """The layers of a LoRA to go on from, by the dotted names of MODEL's modules. DCOError where it was trained
    for another model or changes the text encoder too."""
    return started.started_layers(weights, modules_of(model, weights, started.WHAT), type(model.model).__name__)


def _diffusers_table(model) -> dict[str, str]:
    """{`lora_unet_` and a diffusers name with underscores: dotted name of MODEL's module}; empty for other networks
    than SD UNets."""
    table = comfy.utils.unet_to_diffusers(model.model.model_config.unet_config)
    return {
        canonical(name.removesuffix(".weight")): module.removesuffix(".weight")
        for name, module in table.items()
        if name.endswith(".weight")
    }


def _blocks_per_level(model) -> list[int]:
    return list(model.model.model_config.unet_config.get("num_res_blocks", ()))


def _is_even(model) -> bool:
    """Whether all levels have one number of blocks; the host's table counts all blocks by that of the level at
    hand."""
    return len(set(_blocks_per_level(model))) == 1
