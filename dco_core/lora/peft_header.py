"""The strength of LoRAs that peft and diffusers write: their files hold no alpha beside the tensors, but a
configuration, in the header (`lora_adapter_metadata`, diffusers) or in adapter_config.json beside the file (peft)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import DCOError, parsed_json, shortened

HEADER = "lora_adapter_metadata"
_ALPHAS = ("lora_alpha", "alpha")
_MOST = 1e14  # as of the values of a LoRA
_REPEATS = re.compile(r"[*+{?]")
_SLOW = re.compile(r"\)\s*[*+{?]|\\[1-9]")  # repeated groups and back references take exponential time
_COMPONENTS = ("unet", "text_encoder", "text_encoder_2", "transformer")


class PeftHeader:
    """alpha of the modules of one file."""

    def __init__(self, config: Mapping[str, Any], source: str):
        self._config, self._source = config, source

    @classmethod
    def of(cls, metadata: Mapping[str, str], source: str) -> PeftHeader:
        """From a file's header. Raises DCOError if it is there and not readable."""
        return cls(_parsed(metadata.get(HEADER, "{}"), source), source)

    @classmethod
    def beside(cls, path: Path) -> PeftHeader | None:
        """From the adapter_config.json of a folder that peft saved; None if `path` is no such file."""
        config = path.with_name("adapter_config.json")
        if path.stem != "adapter_model" or not config.is_file():
            return None
        return cls(_parsed(config.read_text(encoding="utf-8", errors="replace"), str(config)), str(config))

    def alpha(self, module: str, rank: int) -> float | None:
        """alpha for a pair of this rank; None where the file says nothing. peft: dW = alpha / r up down, with rsLoRA
        alpha / sqrt(r); the first name in alpha_pattern that the module ends with goes before lora_alpha."""
        alpha = self._setting(module, _ALPHAS, "alpha_pattern")
        if alpha is None:
            return None
        return alpha * (math.sqrt(rank) if self._config.get(f"{self._prefix(module)}use_rslora") else 1.0)

    def scale(self, module: str) -> float | None:
        """alpha / r of a module whose tensors do not tell r; None where the file says nothing."""
        alpha = self._setting(module, _ALPHAS, "alpha_pattern")
        rank = self._setting(module, ("r",), "rank_pattern")
        if alpha is None or rank is None:
            return None
        if rank <= 0:
            raise DCOError(
                f"{self._source}: its peft configuration has r {rank:g} for {module}: save it again."
            )
        return alpha / rank

    def _setting(self, module: str, names: Sequence[str], pattern: str) -> float | None:
        """A number of the configuration for one module, from `pattern` or else from the first of `names` there is."""
        prefix, component = self._prefix(module), module.split(".")[0]
        value = next((v for n in names if (v := self._config.get(f"{prefix}{n}")) is not None), None)
        if value is None or (component in _COMPONENTS and not prefix and self._has_components()):
            return None
        by_name = self._config.get(f"{prefix}{pattern}") or {}
        if isinstance(by_name, dict):
            name = module.removeprefix(f"{component}." if component in _COMPONENTS else "")
            name = name.removeprefix("base_model.model.")
            value = next((by_name[p] for p in by_name if self._fits(p, name)), value)
        # a larger integer than a float holds is no number either
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= _MOST:
            raise DCOError(
                f"{self._source}: its peft configuration has {names[0].removeprefix('lora_')} {shortened(value)} for "
                f"{module}: no number. Save it again."
            )
        return float(value)

    def _prefix(self, module: str) -> str:
        component = module.split(".")[0]
        return f"{component}." if any(f"{component}.{name}" in self._config for name in _ALPHAS) else ""

    def _fits(self, pattern: str, name: str) -> bool:
        """As peft matches the names in its patterns, which may be regular expressions."""
        if pattern == re.escape(pattern).replace(r"\.", ".").replace(r"\-", "-"):
            return name == pattern or name.endswith(f".{pattern}")
        if len(name) > 300 or _SLOW.search(pattern) or len(_REPEATS.findall(pattern)) > 2:
            raise DCOError(
                f"{self._source}: its peft configuration has the pattern {shortened(pattern)}, which would take too "
                "long to match: name the modules instead."
            )
        try:
            return bool(re.match(rf"(.*\.)?({pattern})$", name))
        except (re.error, OverflowError, RecursionError) as error:
            raise DCOError(
                f"{self._source}: its peft configuration has the pattern {shortened(pattern)}, which is none "
                f"({error}): save it again."
            ) from error

    def _has_components(self) -> bool:
        return any(f"{c}.{name}" in self._config for c in _COMPONENTS for name in _ALPHAS)


def _parsed(text: str, source: str) -> dict[str, Any]:
    try:
        config = parsed_json(text)
    except ValueError as error:
        raise DCOError(
            f"{source}: its peft configuration cannot be read ({error}): save it again."
        ) from error
    return config if isinstance(config, dict) else {}
