"""What every guidance node does with its inputs: LoRAs resolved against MODEL, a guided model, a report."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from comfy_api.latest import io

from ...dco_core.errors import DCOError, printable
from ...dco_core.lora import from_bundle
from ..host.guidance import engine
from ..host.guidance.masks import checked_mask
from ..host.guidance.resolve import resolve
from .inputs import MOST_LORAS, guidance_options
from .regions import RegionalLoRA
from .report import method_report, reward_report


class Guided:
    """MODEL with one LoRA or several and what the options node says (`inputs.guidance_options`). mask: where they act,
    None: everywhere; regions: more LoRAs, each in its own place.

    DCOError for a LoRA of another model and for what is no mask."""

    def __init__(
        self, model, lora: Any, personalized=None, options: Mapping[str, Any] | None = None, mask=None,
        regions: Sequence[RegionalLoRA] | None = None,
    ):  # fmt: skip
        values = {i.id: i.default for i in guidance_options() if hasattr(i, "default")} | dict(options or {})
        self._model, self._lora, self._personalized = model, lora, personalized
        self.strength = values.pop("lora_strength")
        self._more = values.pop("more_loras", None) or {}
        self._options = values
        self._mask, self._more_regions = None if mask is None else checked_mask(mask), regions or ()
        self._regions: dict[float, list[engine.Region]] = {}

    def skip_self_check(self) -> None:
        """For more pictures of what has been checked already."""
        self._options["self_check"] = False

    def patched(self, kind: str, scale: float, strength: float | None = None):
        """A clone of MODEL with guidance of a kind (host/guidance/engine.py). strength: of the first LoRA, where it is
        not the options'. DCOError for an interval without length."""
        chosen = self._options
        if not chosen["start_percent"] < chosen["end_percent"]:
            raise DCOError(
                f"The interval of w_rg is empty: start_percent {chosen['start_percent']:g} is not below end_percent "
                f"{chosen['end_percent']:g}."
            )
        names = ("start_percent", "end_percent", "w_rg_schedule", "low_memory", "self_check")
        method = engine.GuidanceMethod(kind, scale, *(chosen[name] for name in names))
        return engine.patch(self._model, self._all_regions(strength), method)

    def adds(self, strength: float | None = None) -> bool:
        """Whether the LoRAs or a personalised prompt change anything."""
        return any(region.adds for region in self._all_regions(strength))

    def reward_report(self, w_rg: float, w_text: float | None, strength: float | None = None) -> str:
        """w_text: None where the sampler decides (its cfg)."""
        return reward_report(w_rg, w_text, self._all_regions(strength), **self._options)

    def method_report(self, kind: str, scale: float) -> str:
        return method_report(kind, scale, self.adds(), **self._options)

    def replaced(self) -> str:
        """What the report says of guidance that MODEL has already, which the node at hand takes the place of; the log
        is told as well. "" for a model without."""
        if not engine.is_guided(self._model):
            return ""
        text = (
            "This model already had guidance from another DCO node; this node takes its place, and the other one has "
            "no effect. To follow several LoRAs, connect them to more_loras of one Reward Guidance Options, or each "
            "with a mask to regions."
        )
        logging.warning("DCO: %s", text)
        return f"\n{text}"

    def output(self, result: Any, report: str) -> io.NodeOutput:
        """A guidance node's outputs; the report stands on the node as well."""
        text = report + self.replaced()
        return io.NodeOutput(result, text, ui={"text": [text]})

    def _all_regions(self, strength: float | None) -> list[engine.Region]:
        """The stack of LoRAs in its order, as what acts where the mask says, and the other regions."""
        strength = self.strength if strength is None else strength
        if strength not in self._regions:
            stack = [(self._lora, strength)]
            for n in range(2, MOST_LORAS + 1):
                if self._more.get(f"lora_{n}") is not None:
                    stack.append((self._more[f"lora_{n}"], self._more.get(f"strength_{n}", 1.0)))
            if not self._regions:
                _tell_of_tokens([lora for lora, _ in stack], self._personalized)
                for r in self._more_regions:
                    _tell_of_tokens([r.lora], r.personalized)
            patches = [p for lora, s in stack for p in resolve(self._model, lora, s)]
            self._regions[strength] = [
                engine.Region(patches, self._personalized, self._mask),
                *(
                    engine.Region(resolve(self._model, r.lora, r.strength), r.personalized, r.mask, r.factor)
                    for r in self._more_regions
                ),
            ]
        return self._regions[strength]


def _tell_of_tokens(loras: list[Any], personalized) -> None:
    tokens = sorted({name for lora in loras for name in from_bundle(lora)})
    if tokens and personalized is None:
        logging.warning(
            "DCO: this LoRA has learned tokens (%s), but reward guidance got no personalized prompt for it: make it "
            "with Encode DCO Prompt.",
            printable(", ".join(f"<{name}>" for name in tokens)),
        )
