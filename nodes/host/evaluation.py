"""One sampling run with a LoRA for some rows: which rows of the network's batch are with it, in how many calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from .adapter_parts import Patch
from .adapters import Rows, RowsNotSeparable, exchanged
from .notices import say_once
from .self_check import check_base_rows

_INDICES = "dco_indices"  # the host's own condition indices, where third parties are shown others

# (conds) -> predictions: the host's evaluation with everything else given, options apart
Evaluate = Callable[[list, dict[str, Any]], list[Tensor]]


def say_two_calls(why: str) -> None:
    say_once(f"the LoRA's row runs in a call of its own, which is slower, because {why}.")


@dataclass
class Run:
    """State of one sampling run. `lora_rows` says, during a call of the network, which of the host's condition indices
    carry the LoRA and how strongly; `shown` as which index the network should see them."""

    guider: Any  # the host's CFGGuider or one like it
    rows: Rows
    patches: Sequence[Patch]
    low_memory: bool
    unchecked: bool  # the self-check is still to come
    one_call: bool = True  # False once a module could not tell the rows apart
    lora_rows: dict[int, float] = field(default_factory=dict)
    shown: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.rows.whole:
            self.one_call = False
            say_two_calls("it changes parameters that belong to no layer")

    def evaluate(
        self, host: Evaluate, conds: list, strengths: Mapping[int, float], options: dict, shown: Mapping[int, int]
    ) -> list[Tensor]:  # fmt: skip
        """Predictions of `conds`, those in `strengths` with the LoRA: in one batched call where the network keeps
        rows apart, else in two, or one by one to save memory. shown: for conditions that were added, the index under
        which third parties know what they are."""
        options = {k: v for k, v in options.items() if k != "multigpu_clones"}  # their modules have no hooks
        strengths = {i: s for i, s in strengths.items() if s != 0 and conds[i] is not None}
        if not strengths:
            return host(conds, options)
        options = _remapped(options, shown) if shown else options

        def call(wanted: Sequence[int], on: Mapping[int, float]) -> list[Tensor]:
            """One call of the host; conditions that are not wanted are None, so that indices stay."""
            self.lora_rows, self.shown = dict(on), dict(shown)
            try:
                return host([cond if i in wanted else None for i, cond in enumerate(conds)], options)
            finally:
                self.lora_rows, self.shown = {}, {}
                self.rows.clear()

        everything = range(len(conds))
        if self.one_call and not self.low_memory:
            try:
                if self.unchecked:
                    self.unchecked = False
                    return check_base_rows(self.rows, lambda on: call(everything, on), strengths)
                return call(everything, strengths)
            except RowsNotSeparable:
                self.one_call = False
                say_two_calls("a layer mixes the rows of a batch")
        outputs: list[Tensor] = [None] * len(conds)  # type: ignore[list-item]
        base = [i for i in everything if i not in strengths]
        for group in [[i] for i in base] if self.low_memory else [base]:
            if group:
                found = call(group, {})
                for i in group:
                    outputs[i] = found[i]
        for i, strength in strengths.items():
            with exchanged(self.guider.model_patcher, self.patches, strength):
                outputs[i] = call([i], {i: strength})[i]
        return outputs

    def enter_network(self, transformer_options: dict) -> dict:
        """Set the rows of the batch that is about to enter the network; the options it should see."""
        if not self.lora_rows and not self.shown:
            return transformer_options
        indices = transformer_options.get(_INDICES) or transformer_options["cond_or_uncond"]
        self.rows.chunks = len(indices)
        self.rows.chosen = tuple(row for row, i in enumerate(indices) if i in self.lora_rows)
        self.rows.strengths = tuple(self.lora_rows[i] for i in indices if i in self.lora_rows)
        # Third-party patches know the indices 0 (positive) and 1 (negative) only.
        return {**transformer_options, "cond_or_uncond": [self.shown.get(i, i) for i in indices]}


def _remapped(options: dict, shown: Mapping[int, int]) -> dict:
    """A third-party function around the model call, too, knows the indices 0 and 1 only."""
    function = options.get("model_function_wrapper")
    if function is None:
        return options

    def with_known_indices(apply_model: Callable, args: dict) -> Tensor:
        indices = args["cond_or_uncond"]
        visible = [shown.get(i, i) for i in indices]
        inner = {**args["c"]["transformer_options"], "cond_or_uncond": visible, _INDICES: indices}
        return function(
            apply_model, {**args, "cond_or_uncond": visible, "c": {**args["c"], "transformer_options": inner}}
        )

    return {**options, "model_function_wrapper": with_known_indices}
