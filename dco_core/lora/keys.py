"""Names of modules in LoRA files.

Every tool spells the same module differently:

    kohya, SDXL        lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q
    kohya, SD1.5       lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q
    diffusers          unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q
    peft               base_model.model.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q
    ComfyUI's trainer  diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_q

The canonical key is the first: `lora_unet_` and the host's own module name with underscores (the LDM name in
an SD UNet), `lora_te_` or, where there are two text encoders, `lora_te1_` and `lora_te2_`. The host reads it
for every model whose file spelled its own names. Underscores lose the dots, so names are translated by
grammar: the module names of the SD1.5, SD2 and SDXL UNets (host: comfy/utils.py, unet_to_diffusers) and of
CLIP.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from ..errors import DCOError

# Suffixes of (down, up), the forms that the host reads (comfy/weight_adapter/lora.py).
PAIR_SUFFIXES = (
    (".lora_down.weight", ".lora_up.weight"),
    (".lora_A.weight", ".lora_B.weight"),
    (".lora_A.default.weight", ".lora_B.default.weight"),
    (".lora.down.weight", ".lora.up.weight"),
    (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
    ("_lora.down.weight", "_lora.up.weight"),
    (".lora_A", ".lora_B"),
)

# Other parts of a module: how the key ends, and the part (adapter_types.py says what they make).
_PART_SUFFIXES = {
    **{f".{part}": part for part in (
        "alpha", "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2", "lokr_w1", "lokr_w2",
        "lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b", "lokr_t2", "diff", "diff_b", "w_norm", "b_norm",
    )},
    ".lora_mid.weight": "mid",
    **{up.removesuffix("weight") + "bias": "up_bias" for _, up in PAIR_SUFFIXES if up.endswith(".weight")},
}  # fmt: skip

_ATTENTION = r"proj_in|proj_out|transformer_blocks_\d+_(?:attn[12]_to_(?:q|k|v|out_0)|ff_net_(?:0_proj|2))"
_RESNET = {  # diffusers: LDM
    "conv1": "in_layers_2",
    "conv2": "out_layers_3",
    "time_emb_proj": "emb_layers_1",
    "conv_shortcut": "skip_connection",
}
_RESNET_BACK = {ldm: diffusers for diffusers, ldm in _RESNET.items()}
_SINGLE = {  # diffusers: LDM
    "conv_in": "input_blocks_0_0",
    "conv_out": "out_2",
    "time_embedding_linear_1": "time_embed_0",
    "time_embedding_linear_2": "time_embed_2",
    "add_embedding_linear_1": "label_emb_0_0",
    "add_embedding_linear_2": "label_emb_0_2",
}
_SINGLE_BACK = {ldm: diffusers for diffusers, ldm in _SINGLE.items()}
_DIFFUSERS_BLOCK = re.compile(
    rf"(?P<side>down|up)_blocks_(?P<b>[0-3])_(?:resnets_(?P<r>[0-2])_(?P<resnet>{'|'.join(_RESNET)})"
    rf"|attentions_(?P<a>[0-2])_(?P<attention>{_ATTENTION})|(?P<sampler>downsamplers|upsamplers)_0_conv)"
    rf"|mid_block_(?:resnets_(?P<mr>[01])_(?P<mresnet>{'|'.join(_RESNET)})"
    rf"|attentions_0_(?P<mattention>{_ATTENTION}))"
)
_ANY_DIFFUSERS_BLOCK = re.compile(_DIFFUSERS_BLOCK.pattern.replace("[0-3]", r"\d+").replace("[0-2]", r"\d+"))
_LDM_BLOCK = re.compile(
    rf"(?P<side>input|output)_blocks_(?P<n>\d|1[01])_(?:0_(?P<resnet>{'|'.join(_RESNET_BACK)})"
    rf"|1_(?P<attention>{_ATTENTION})|(?P<sampler>0_op|[12]_conv))"
    rf"|middle_block_(?:(?P<m>[02])_(?P<mresnet>{'|'.join(_RESNET_BACK)})|1_(?P<mattention>{_ATTENTION}))"
)
_ANY_LDM_BLOCK = re.compile(
    rf"(?:input|output)_blocks_\d+_(?:0_(?:{'|'.join(_RESNET_BACK)})|1_(?:{_ATTENTION})|0_op|[12]_conv)"
)
# In diffusers names: a level with two blocks, one with more, and what is called alike however many there are.
_THIRD = re.compile(
    r"down_blocks_\d_(?:resnets|attentions)_[2-9]_|up_blocks_\d_(?:resnets|attentions)_[3-9]_"
)
_SECOND = re.compile(r"down_blocks_\d_(?:resnets|attentions)_1_|up_blocks_\d_(?:resnets|attentions)_2_")
_ANY_LAYOUT = re.compile(r"mid_block_|(?:down|up)_blocks_0_(?:resnets|attentions)_")
# Modules that only one of the two families of UNet has, as LDM names: where there is attention, and how deep.
_SDXL_ONLY = re.compile(
    r"(in|out)put_blocks_\d_1_transformer_blocks_[1-9].*|middle_block_1_transformer_blocks_[1-9].*"
    r"|output_blocks_[012]_1_(?!conv).*|output_blocks_2_2_conv|label_emb_0_[02]"
)
_SD1_ONLY = re.compile(
    r"input_blocks_[12]_1_.*|input_blocks_(9|1[01])_.*|output_blocks_(9|1[01])_.*"
    r"|output_blocks_[678]_1_(?!conv).*|output_blocks_2_1_conv|output_blocks_8_2_conv"
)
_CLIP = re.compile(r"text_model_encoder_layers_\d+_(self_attn_(q|k|v|out)_proj|mlp_fc[12])|text_projection")
# Component prefixes of dotted paths, and what stands in their place; the longer ones first.
_COMPONENTS = (
    ("unet.base_model.model.", "lora_unet_"),
    ("unet.", "lora_unet_"),
    ("diffusion_model.", "lora_unet_"),
    ("text_encoder_2.base_model.model.", "lora_te2_"),
    ("text_encoder_2.", "lora_te2_"),
    ("text_encoder.base_model.model.", "lora_te_"),
    ("text_encoder.", "lora_te_"),
    ("text_encoders.clip_l.transformer.", "lora_te1_"),
    ("text_encoders.clip_g.transformer.", "lora_te2_"),
    ("text_encoders.clip_h.transformer.", "lora_te_"),
    ("transformer.", "lora_transformer_"),
)
UNET = "lora_unet_"


def split_key(key: str) -> tuple[str, str] | None:
    """`key` of a file as (module path, part), part one of 'down', 'up', 'alpha', 'mid', 'up_bias' or the suffix of
    another kind ('lokr_w1', 'diff_b', ...); None if it is none of these."""
    for down, up in PAIR_SUFFIXES:
        if key.endswith(down):
            return key[: -len(down)], "down"
        if key.endswith(up):
            return key[: -len(up)], "up"
    for suffix, part in _PART_SUFFIXES.items():
        if key.endswith(suffix):
            return key[: -len(suffix)], part
    return None


def diffusers_to_ldm(name: str, family: str | None = None) -> str | None:
    """`down_blocks_1_attentions_0_...` -> `input_blocks_4_1_...` (no `lora_unet_`, underscores). None if
    `name` is not a diffusers name of an SD UNet, or if it needs the family ('sd1' or 'sdxl') and that is not
    known: the upsampler of the first up block stands behind an attention only in SDXL."""
    if name in _SINGLE:
        return _SINGLE[name]
    match = _DIFFUSERS_BLOCK.fullmatch(name)
    if match is None:
        return None
    if match["mresnet"]:
        return f"middle_block_{2 * int(match['mr'])}_{_RESNET[match['mresnet']]}"
    if match["mattention"]:
        return f"middle_block_1_{match['mattention']}"
    block, down = int(match["b"]), match["side"] == "down"
    if match["sampler"]:
        if down != (match["sampler"] == "downsamplers"):
            return None
        if down:
            return f"input_blocks_{3 * block + 3}_0_op"
        if block == 0 and family is None:
            return None
        return f"output_blocks_{3 * block + 2}_{1 if block == 0 and family == 'sd1' else 2}_conv"
    index = 3 * block + int(match["r"] or match["a"]) + down
    inner = f"0_{_RESNET[match['resnet']]}" if match["resnet"] else f"1_{match['attention']}"
    return f"{'input' if down else 'output'}_blocks_{index}_{inner}"


def ldm_to_diffusers(name: str) -> str | None:
    """The inverse of diffusers_to_ldm: `input_blocks_4_1_...` -> `down_blocks_1_attentions_0_...`, or
    None."""
    if name in _SINGLE_BACK:
        return _SINGLE_BACK[name]
    match = _LDM_BLOCK.fullmatch(name)
    if match is None:
        return None
    if match["mresnet"]:
        return f"mid_block_resnets_{int(match['m']) // 2}_{_RESNET_BACK[match['mresnet']]}"
    if match["mattention"]:
        return f"mid_block_attentions_0_{match['mattention']}"
    down = match["side"] == "input"
    block, index = divmod(int(match["n"]) - down, 3)
    if match["sampler"]:
        if block < 0 or index != 2 or down != (match["sampler"] == "0_op"):
            return None
        return f"{'down' if down else 'up'}_blocks_{block}_{'downsamplers' if down else 'upsamplers'}_0_conv"
    if block < 0 or (down and index == 2):
        return None
    resnet, attention = match["resnet"], match["attention"]
    inner = f"resnets_{index}_{_RESNET_BACK[resnet]}" if resnet else f"attentions_{index}_{attention}"
    return f"{'down' if down else 'up'}_blocks_{block}_{inner}"


def unet_family(keys: Iterable[str]) -> str | None:
    """'sd1' (SD1.5 and SD2, one layout) or 'sdxl', from modules that only one of them has; None if there are
    none or they disagree (the SDXL refiner). keys: `lora_unet_*`, in either naming."""
    names = [key.removeprefix(UNET) for key in keys if key.startswith(UNET)]
    ldm = [diffusers_to_ldm(n) or n for n in names]
    sdxl = any(ldm_to_diffusers(n) and _SDXL_ONLY.fullmatch(n) for n in ldm)
    sd1 = any(ldm_to_diffusers(n) and _SD1_ONLY.fullmatch(n) for n in ldm)
    if sdxl == sd1:
        return None
    return "sdxl" if sdxl else "sd1"


def underscored(path: str) -> str:
    """A module path of any spelling with its component prefix, before the grammar: `unet.a.b` ->
    `lora_unet_a_b`. A bare path that is neither UNet nor CLIP stays as it is, since nothing says which
    network it names."""
    if "." not in path and path.startswith(("lora_", "lycoris_")):
        name = path.removeprefix("lycoris_")
        return UNET + name if _ANY_DIFFUSERS_BLOCK.fullmatch(name) else path
    for prefix, component in _COMPONENTS:
        if path.startswith(prefix):
            return component + _plain(path.removeprefix(prefix))
    bare = _plain(path.removeprefix("base_model.model."))
    if (
        _ANY_DIFFUSERS_BLOCK.fullmatch(bare)
        or _LDM_BLOCK.fullmatch(bare)
        or bare in _SINGLE
        or bare in _SINGLE_BACK
    ):
        return UNET + bare
    return f"lora_te_{bare}" if _CLIP.fullmatch(bare) else path


def _plain(path: str) -> str:
    """Underscores for dots; the attention processors of early diffusers (`attn1.processor.to_out`) left
    out."""
    if ".processor." in path:
        path = re.sub(r"\.to_out$", ".to_out.0", path.replace(".processor.", "."))
    return path.replace(".", "_")


def canonical_keys(paths: Iterable[str]) -> dict[str, str]:
    """{module path as a file spells it: canonical key}, for all modules of a file or of several for one
    model: a few names can only be told from the others (which UNet it is, whether there is a second text
    encoder). Canonical keys map to themselves."""
    names = {path: underscored(path) for path in paths}
    is_sd = any(_is_sd_block(n) for n in names.values())
    family = unet_family(names.values())
    two_encoders = family == "sdxl" or any(n.startswith(("lora_te1_", "lora_te2_")) for n in names.values())
    result = {}
    for path, name in names.items():
        if name.startswith(UNET) and is_sd:  # without SD blocks, `conv_in` may be any network's
            ldm = diffusers_to_ldm(name.removeprefix(UNET), family)
            name = UNET + ldm if ldm else name
        elif name.startswith("lora_te_") and two_encoders:
            name = "lora_te1_" + name.removeprefix("lora_te_")
        result[path] = name
    return result


def _is_sd_block(key: str) -> bool:
    name = key.removeprefix(UNET)
    return key.startswith(UNET) and bool(_ANY_DIFFUSERS_BLOCK.fullmatch(name) or _LDM_BLOCK.fullmatch(name))


def kernel_of(key: str) -> tuple[int, int] | None:
    """The kernel of a convolution of the SD UNets by its canonical key; None for other modules. Files of LoHa and
    LoKr flatten it."""
    name = key.removeprefix(UNET)
    inner = re.search(r"(in_layers_2|out_layers_3|op|conv)$", ldm_to_diffusers(name) and name or "")
    return (3, 3) if inner or name in ("input_blocks_0_0", "out_2") else None


def kohya_names(keys: Iterable[str], paths: Mapping[str, str]) -> dict[str, str]:
    """{canonical key: base name as kohya's own scripts write it}. SD1.5 and SD2: diffusers names; SDXL and
    all
    others: the canonical key. A module outside the known grammars that a file spelled with dots (`paths`)
    keeps that
    spelling: the host knows some networks only by their dotted names."""
    keys = list(keys)
    family, unusual = unet_family(keys), has_unusual_blocks(keys, paths)
    named = [name for key in keys if (name := _spelled_as_diffusers(paths.get(key)))]
    # block numbers depend on the network: those of a known layout alone are translated, and all or none
    known = (family == "sdxl" and not any(map(_THIRD.search, [*keys, *named]))) and (
        any(map(_SECOND.search, named)) or all(_ANY_LAYOUT.match(name.removeprefix(UNET)) for name in named)
    )
    result = {}
    for key in keys:
        diffusers = ldm_to_diffusers(key.removeprefix(UNET)) if key.startswith(UNET) else None
        spelled = _spelled_as_diffusers(paths.get(key))
        if spelled:
            result[key] = key if known else spelled
        elif diffusers:
            as_diffusers = (family == "sd1" and not unusual) or (diffusers in _SINGLE and named and not known)
            # diffusers itself knows label_emb alone
            result[key] = UNET + diffusers if as_diffusers and not diffusers.startswith("add_") else key
        else:
            path = paths.get(
                key, key
            )  # the host knows lora_unet_ and underscores for each diffusion_model. path
            result[key] = key if key.startswith("lora_te") or path.startswith("diffusion_model.") else path
    return result


def names_ldm_block(path: str) -> bool:
    """Whether a kohya name counts the blocks of an SD UNet as the host does: SDXL's, and those of unusual UNets."""
    return path.startswith(UNET) and bool(_ANY_LDM_BLOCK.fullmatch(path.removeprefix(UNET)))


def has_unusual_blocks(keys: Iterable[str], paths: Mapping[str, str]) -> bool:
    """Whether the LDM names are of a UNet without two blocks per level, so that the numbers of none of its blocks can
    be translated: some are of no block of SD1.5 or SDXL, or kohya names of SD1.5's, whose kohya files have none.
    paths: as the file spelled them."""
    ldm = [key for key in keys if key.startswith(UNET) and not _spelled_as_diffusers(paths.get(key))]
    if unet_family(ldm) == "sd1" and any(paths.get(key) == key for key in ldm):
        return True
    names = [key.removeprefix(UNET) for key in ldm]
    return any(_ANY_LDM_BLOCK.fullmatch(name) and ldm_to_diffusers(name) is None for name in names)


def spells_diffusers(paths: Mapping[str, str]) -> bool:
    """Whether a file named blocks of an SD UNet as diffusers does."""
    return any(map(_spelled_as_diffusers, paths.values()))


def _spelled_as_diffusers(path: str | None) -> str | None:
    """`lora_unet_down_blocks_...` for a path of a file that has such a name."""
    name = underscored(path) if path else ""
    return name if name.startswith(UNET) and _ANY_DIFFUSERS_BLOCK.fullmatch(name.removeprefix(UNET)) else None


def diffusers_names(keys: Iterable[str], paths: Mapping[str, str]) -> dict[str, str]:
    """{canonical key: dotted path with component, `unet.down_blocks.1...`}. Raises DCOError for a module that
    is neither of an SD UNet nor of CLIP, unless its file spelled a `transformer.` path."""
    keys = list(keys)
    unusual = has_unusual_blocks(keys, paths)
    result = {}
    for key in keys:
        spelled = _spelled_as_diffusers(paths.get(key))
        if unusual and not spelled and ldm_to_diffusers(key.removeprefix(UNET)):
            raise DCOError(
                f"Cannot write {key} with diffusers keys: the LoRA is of a UNet without two blocks per level, whose "
                "block numbers are not known; write kohya keys instead."
            )
        name = dotted_path(spelled or key)
        if name is None and paths.get(key, "").startswith("transformer."):
            name = paths[key]
        if name is None:
            raise DCOError(
                f"Cannot write {key} with diffusers keys: it is no module of an SD1.5, SD2 or SDXL UNet or "
                "of CLIP, and its dots are not known; write kohya keys instead."
            )
        result[key] = name
    return result


def dotted_path(key: str) -> str | None:
    """The diffusers path of a canonical key, or None: `lora_te1_text_model_encoder_layers_0_mlp_fc1` ->
    `text_encoder.text_model.encoder.layers.0.mlp.fc1`."""
    if key.startswith(UNET):
        name = key.removeprefix(UNET)
        diffusers = name if _ANY_DIFFUSERS_BLOCK.fullmatch(name) or name in _SINGLE else ldm_to_diffusers(name)
        return f"unet.{_dots(diffusers)}" if diffusers else None
    match = re.fullmatch(r"lora_te([12]?)_(.+)", key)
    if match is None or not _CLIP.fullmatch(match[2]):
        return None
    return f"text_encoder{'_2' if match[1] == '2' else ''}.{_dots(match[2])}"


# Names with an underscore of their own inside the SD UNet and CLIP grammars, in diffusers spelling.
_WORDS = re.compile(
    r"down_blocks|up_blocks|mid_block|transformer_blocks|proj_in|proj_out|to_out|to_[qkv]|time_emb_proj"
    r"|conv_shortcut|conv_in|conv_out|time_embedding|add_embedding|linear_[12]|text_model"
    r"|text_projection|self_attn|(?:q|k|v|out)_proj|[a-z]+[12]?|\d+"
)


def _dots(name: str) -> str:
    return ".".join(_WORDS.findall(name))
