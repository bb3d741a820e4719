"""The strength of LoRAs that peft and diffusers write: their files hold no alpha beside the tensors, but a
configuration, in the header (`lora_adapter_metadata`, diffusers) or in adapter_config.json beside the file (peft)."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import DCOError

HEADER = "lora_adapter_metadata"
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
        component = module.split(".")[0]
        prefix = f"{component}." if f"{component}.lora_alpha" in self._config else ""
        alpha = self._config.get(f"{prefix}lora_alpha", self._config.get(f"{prefix}alpha"))
        if alpha is None or (component in _COMPONENTS and not prefix and self._has_components()):
            return None
        patterns = self._config.get(f"{prefix}alpha_pattern") or {}
        name = module.removeprefix(f"{component}." if component in _COMPONENTS else "")
        name = name.removeprefix("base_model.model.")
        if isinstance(patterns, dict):
            found = [p for p in patterns if re.match(rf"(.*\.)?({re.escape(p)})$", name)]
            alpha = patterns[found[0]] if found else alpha
        if not isinstance(alpha, (int, float)) or not math.isfinite(alpha):
            raise DCOError(
                f"{self._source}: its peft configuration has alpha {alpha!r} for {module}: no number."
            )
        return float(alpha) * (math.sqrt(rank) if self._config.get(f"{prefix}use_rslora") else 1.0)

    def _has_components(self) -> bool:
        return any(f"{c}.lora_alpha" in self._config for c in _COMPONENTS)


def _parsed(text: str, source: str) -> dict[str, Any]:
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DCOError(
            f"{source}: its peft configuration cannot be read ({error}): save it again."
        ) from error
    return config if isinstance(config, dict) else {}
