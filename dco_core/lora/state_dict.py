"""LoRAs as dictionaries of tensors: the contents of a file, and what goes through LORA_MODEL sockets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from ..errors import DCOError
from ..files.safetensors_file import TensorFile
from .adapter_types import VECTORS, adapter_type_of, layer_of, part_name, refuse_unsupported, with_kernel
from .embeddings import BUNDLE, from_bundle
from .keys import canonical_keys, diffusers_names, kernel_of, kohya_names, names_ldm_block, split_key
from .peft_header import PeftHeader
from .tensors import LazyLayers, LoraLayer, LoraTensors, LoraWeights, in_range, is_finite, module_of

_T = TypeVar("_T")

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def from_tensors(
    tensors: Mapping[str, Tensor],
    source: str = "The LoRA",
    metadata: Mapping[str, str] | None = None,
    peft: PeftHeader | None = None,
) -> LoraWeights:
    """A LoRA from the tensors of a file, in any of the spellings of keys.py; pairs keep their dtype, and other
    adapter types become pairs of the same dW in fp32 (adapter_types.py), made when they are asked for. alpha comes from
    the `.alpha` keys, else from the configuration that peft and diffusers write (peft_header.py), and is None without
    either (scale 1). `source` begins the error messages: a path, or the name of an input.
    metadata: the header; by default the one that LoraTensors carry. peft: goes before what the header says. Learned
    tokens alone are a LoRA without layers.

    Raises DCOError for tensors without an adapter, for adapter types that have no dW of their own (DoRA, OFT, ...), and
    for layers that are incomplete, misshapen, or not finite (of a TensorFile, the last is seen when a layer is read).
    """
    if metadata is None:
        metadata = getattr(tensors, "metadata", {})
    refuse_unsupported(source, tensors)
    modules: dict[str, dict[str, str]] = {}  # {module: {part: key}}
    other: list[str] = []
    for key in tensors:
        parsed = None if key.startswith(BUNDLE) else split_key(key)
        if parsed is None:
            other.append(key)
            continue
        parts = modules.setdefault(parsed[0], {})
        if parsed[1] in parts:
            raise DCOError(
                f"{source} holds two LoRAs for {parsed[0]} ({key} is the second): save them as two files."
            )
        parts[parsed[1]] = key
    others = {key: tensors[key] for key in other}
    tokens_alone = not modules and bool(from_bundle(others))
    if not tokens_alone and not any(set(parts) - {"alpha"} for parts in modules.values()):
        example = next(iter(tensors), "no tensors at all")
        raise DCOError(
            f"{source} is no LoRA: none of its {len(tensors)} keys is one ({example}, ...): choose a LoRA."
        )
    return _Reader(tensors, source, modules, peft or PeftHeader.of(metadata, source)).weights(
        others, metadata
    )


class _Reader:
    """Makes the layers of one file from its tensors."""

    def __init__(
        self, tensors: Mapping[str, Tensor], source: str, modules: dict[str, dict[str, str]], peft: PeftHeader
    ):
        self._tensors, self._source, self._modules, self._peft = tensors, source, modules, peft
        self._names: dict[str, str] = {}  # {canonical key: module}
        for name, key in canonical_keys(modules).items():
            if key in self._names:
                raise DCOError(
                    f"{source} holds two LoRAs for one module, as {self._names[key]} and as {name}: remove one."
                )
            self._names[key] = name

    def weights(self, other: dict[str, Tensor], metadata: Mapping[str, str]) -> LoraWeights:
        paths = {key: name for key, name in self._names.items() if name != key or names_ldm_block(name)}
        vectors: dict[str, Tensor] = {}
        layered, lazy = [], isinstance(self._tensors, TensorFile)
        for key, name in self._names.items():
            vectors |= self._vectors(key, name)
            parts = self._parts(name)
            kind = self._checked(name, partial(adapter_type_of, parts))
            if not kind and "alpha" not in parts:
                continue
            layered.append(key)
            lazy |= kind != "LoRA" or "mid" in parts
            self._layer_of(name, {part: self._meta(k) for part, k in parts.items()}, key)
        layers: Mapping[str, LoraLayer] = LazyLayers(layered, self._layer)
        if not isinstance(self._tensors, TensorFile):
            for key in layered if lazy else ():
                self._values(self._names[key])
        return LoraWeights(layers if lazy else dict(layers), other, dict(metadata or {}), paths, vectors)

    def _parts(self, name: str) -> dict[str, str]:
        """The parts that make the layer: all but those of biases and norms."""
        parts = {part: key for part, key in self._modules[name].items() if part not in VECTORS}
        return {} if set(parts) == {"diff"} and self._meta(parts["diff"]).dim() == 1 else parts

    def _meta(self, key: str) -> Tensor:
        tensors = self._tensors
        return tensors.meta(key) if isinstance(tensors, TensorFile) else tensors[key].to("meta")

    def _layer(self, key: str) -> LoraLayer:
        name = self._names[key]
        layer = self._layer_of(name, self._values(name), key)
        if not in_range(layer):
            raise DCOError(
                f"{self._source}: {name} reaches beyond 1e14, as no LoRA does: the file is damaged."
            )
        return layer

    def _values(self, name: str) -> dict[str, Tensor]:
        return {part: self._value(name, part, key) for part, key in self._parts(name).items()}

    def _value(self, name: str, part: str, key: str) -> Tensor:
        tensor = self._tensors[key]
        if not is_finite(tensor):
            raise DCOError(
                f"{self._source}: {part} of {name} holds NaN or infinity: training diverged, use an earlier save."
            )
        return tensor

    def _layer_of(self, name: str, parts: Mapping[str, Tensor], key: str) -> LoraLayer:
        for part, tensor in parts.items():
            if part != "alpha" and not tensor.is_floating_point():
                raise DCOError(
                    f"{self._source}: {part} of {name} is {tensor.dtype}, quantised: use a LoRA in fp32, fp16 or bf16."
                )

        def made() -> LoraLayer:
            layer = layer_of(parts, lambda rank: self._peft.alpha(name, rank), lambda: self._peft.scale(name))
            return with_kernel(layer, kernel_of(key)) if adapter_type_of(parts) in ("LoHa", "LoKr") else layer

        return self._checked(name, made)

    def _vectors(self, key: str, name: str) -> dict[str, Tensor]:
        """{canonical key and suffix: change of the bias or norm}."""
        suffixes = {part: VECTORS[part] for part in self._modules[name] if part in VECTORS}
        if not self._parts(name) and "diff" in self._modules[name]:
            suffixes["diff"] = "diff"
        found: dict[str, Tensor] = {}
        for part, suffix in suffixes.items():
            spelled = self._modules[name][part]
            meta = self._meta(spelled)
            if meta.dim() != 1 or not meta.is_floating_point() or f"{key}.{suffix}" in found:
                raise DCOError(
                    f"{self._source}: {spelled} ({part_name(part)}) is {list(meta.shape)}, {meta.dtype}: each module "
                    "has one list of numbers for its bias, save it again."
                )
            vector = self._value(name, part, spelled)
            if part == "up_bias":  # peft scales it as it scales the pair
                vector = vector.float() * self._layer(key).scale
            found[f"{key}.{suffix}"] = vector
        return found

    def _checked(self, name: str, make: Callable[[], _T]) -> _T:
        try:
            return make()
        except DCOError as error:
            link = " " if str(error).startswith(("has ", "is ")) else ": "
            keys = ", ".join(self._modules[name].values())
            raise DCOError(f"{self._source}: {name}{link}{error} ({keys})") from None


def to_tensors(
    weights: LoraWeights, *, keys: str | Mapping[str, str] = "kohya", dtype: torch.dtype | str | None = None
) -> LoraTensors:
    """The tensors of a LoRA file; `other` is among them, the header beside them.

    keys: 'kohya' (`.lora_down.weight`, `.lora_up.weight`, `.alpha`; the most tools read it; diffusers does
        too, but loses alphas that differ between layers, as they do in a sum of LoRAs) or 'diffusers'
        (`unet.down_blocks...lora_A.weight`; for diffusers alone, ComfyUI does not find attention layers under
        these names). There alpha is not read from tensors, and older versions of
        diffusers take one rank of the file as the alpha of all layers. So alpha / rank is folded into lora_B,
        and layers of a smaller rank are padded with zeros to the largest rank of their network: scale 1 for
        every reader.
        Or a table {canonical key: base name} for kohya's form, where the model itself tells the names.
    dtype: of down and up: a torch dtype, 'fp32', 'fp16' or 'bf16'; None keeps theirs, but for an up that would not
        hold alpha / rank times its values exactly: it becomes fp32. alpha is fp32.

    Raises DCOError for modules that have no name in `keys` and for values beyond the range of `dtype`.
    """
    stream = stream_of(weights, keys, dtype)
    return LoraTensors(stream.wide() | dict(stream.tensors()), weights.metadata)


class KohyaStream:
    """The tensors of a kohya file one by one, as LazyLayers are made; `other` and vectors among them."""

    def __init__(self, weights: LoraWeights, keys: str | Mapping[str, str], dtype: torch.dtype | str | None):
        self._weights, self._dtype = weights, _dtype(dtype)
        names = [*weights.layers, *(module_of(key) for key in weights.vectors)]
        found = kohya_names(names, weights.paths) if keys == "kohya" else keys
        if not isinstance(found, Mapping):
            raise DCOError(f"keys is {keys!r}: use kohya or diffusers.")
        self._names = {key: found.get(key, key) for key in names}

    def names(self) -> list[str]:
        layers = [
            f"{self._names[key]}.{part}"
            for key in self._weights.layers
            for part in ("lora_down.weight", "lora_up.weight", "alpha")
        ]
        return [*layers, *self._singles()]

    def numbers(self) -> list[str]:
        """Those that are one fp32 number."""
        return [f"{self._names[key]}.alpha" for key in self._weights.layers]

    def wide(self) -> dict[str, Tensor]:
        """Those of types wider than fp32."""
        return {name: t for name, t in self._singles().items() if t.element_size() > 4}

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """All but the wide ones; wider types first, if all layers are of one dtype."""
        singles = self._singles()
        yield from ((name, t) for name, t in singles.items() if t.element_size() == 4)
        for key, layer in self._weights.layers.items():
            name = self._names[key]
            alpha = float(layer.rank if layer.alpha is None else layer.alpha)
            yield f"{name}.lora_down.weight", cast(layer.down, self._dtype, key)
            yield f"{name}.lora_up.weight", cast(layer.up, self._dtype, key)
            yield f"{name}.alpha", torch.tensor(alpha)
        yield from ((name, t) for name, t in singles.items() if t.element_size() < 4)

    def _singles(self) -> dict[str, Tensor]:
        vectors = {
            f"{self._names[module_of(key)]}.{key.rpartition('.')[2]}": tensor
            for key, tensor in self._weights.vectors.items()
        }
        both = vectors | self._weights.other
        return dict(sorted(both.items(), key=lambda item: (-item[1].element_size(), item[0])))


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    if isinstance(dtype, str):
        if dtype not in DTYPES:
            raise DCOError(f"dtype is {dtype!r}: use one of {', '.join(DTYPES)}.")
        return DTYPES[dtype]
    return dtype


def stream_of(
    weights: LoraWeights, keys: str | Mapping[str, str], dtype: torch.dtype | str | None
) -> KohyaStream | DiffusersStream:
    """The tensors of to_tensors, one by one."""
    return (
        DiffusersStream(weights, _dtype(dtype)) if keys == "diffusers" else KohyaStream(weights, keys, dtype)
    )


class DiffusersStream:
    """The tensors of a file with diffusers keys one by one, as KohyaStream. Layers that are made when they are asked
    for are all held once, since the largest rank is known last, and let go of as they are written."""

    def __init__(self, weights: LoraWeights, dtype: torch.dtype | None):
        if weights.vectors:
            raise DCOError(
                f"Cannot write {next(iter(weights.vectors))} with diffusers keys, which have none for biases and "
                "norms: write kohya keys instead."
            )
        self._weights, self._dtype = weights, dtype
        self._names = diffusers_names(weights.layers, weights.paths)

    def names(self) -> list[str]:
        layers = [f"{name}.lora_{part}.weight" for name in self._names.values() for part in "AB"]
        return [*layers, *self._weights.other]

    def numbers(self) -> list[str]:
        return []

    def wide(self) -> dict[str, Tensor]:
        return {name: t for name, t in self._weights.other.items() if t.element_size() > 4}

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        singles = sorted(self._weights.other.items(), key=lambda item: (-item[1].element_size(), item[0]))
        yield from ((name, t) for name, t in singles if t.element_size() == 4)
        layers = dict(self._weights.layers)
        ranks: dict[str, int] = {}
        for key, name in self._names.items():
            component = name.split(".")[0]
            ranks[component] = max(ranks.get(component, 0), layers[key].rank)
        for key, name in self._names.items():
            layer = layers.pop(key)
            padding = ranks[name.split(".")[0]] - layer.rank
            down = torch.cat([layer.down, layer.down.new_zeros(padding, *layer.down.shape[1:])])
            up = layer.up if layer.scale == 1 else _scaled(layer.up, layer.scale)
            up = torch.cat([up, up.new_zeros(up.shape[0], padding, *up.shape[2:])], dim=1)
            yield f"{name}.lora_A.weight", cast(down, self._dtype, key)
            yield f"{name}.lora_B.weight", cast(up, self._dtype, key)
        yield from ((name, t) for name, t in singles if t.element_size() < 4)


def _scaled(up: Tensor, scale: float) -> Tensor:
    """scale * up, in the dtype of up where it holds that as exactly as fp32."""
    exact = up.float() * scale
    kept = exact.to(up.dtype)
    return kept if torch.equal(kept.float(), exact) else exact


def cast(tensor: Tensor, dtype: torch.dtype | None, key: str) -> Tensor:
    """`tensor` in another dtype; DCOError that names the module for values beyond its range."""
    if dtype is None or tensor.dtype == dtype:
        return tensor
    cast = tensor.to(dtype)
    if not is_finite(cast):
        raise DCOError(
            f"{key} reaches {tensor.abs().max().item():g}, beyond the range of {dtype}: use fp32 or bf16."
        )
    return cast
