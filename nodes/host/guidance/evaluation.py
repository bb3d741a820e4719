"""One sampling run with a LoRA for some rows: which rows of the network's batch are with it, in how many calls."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .adapter_hooks import BatchRows, Dose, RowsNotSeparable, swapped
from .adapter_parts import Patch
from .known_rows import KnownRows, host_indices, shown_to_wrappers
from .notices import say_once
from .random_draws import Draws
from .self_check import base_rows_leak, prediction_differs

# (conds, options) -> predictions: the host's evaluation with everything else given
Host = Callable[[list, dict[str, Any]], list[Tensor]]
_NAME = "dco_told_apart"
_DEVICE = "multigpu_thread_device"  # the host's key for the device that a batch runs on
_NONE = Dose(0.0)


def say_two_calls(why: str) -> None:
    say_once(f"the LoRA's row runs in a call of its own, which is slower, because {why}.")


def told_apart(prompt: list[dict], lora: int = 0, name: str = _NAME) -> list[dict]:
    """A prompt's entries under ids of their own, the same in every step: step caches (the host's EasyCache) keep what
    the network gave by the id of an entry, and several rows read the same one."""
    name = f"{name} {lora}" if lora else name
    return [
        {**entry, "uuid": uuid.uuid5(entry["uuid"], name)} if "uuid" in entry else entry for entry in prompt
    ]


@dataclass
class Run:
    """State of one sampling run. `lora_rows` says, during a call of the network, which of the host's condition indices
    carry a LoRA, which and how strongly; `visible` turns the host's indices into what third parties should see."""

    guider: Any  # the host's CFGGuider or one like it
    rows: BatchRows
    loras: Sequence[Sequence[Patch]]  # those that rows may carry
    low_memory: bool
    unchecked: bool  # the self-check is still to come
    shape: Sequence[int] = ()  # of the latent
    masks: Sequence[Tensor | None] = ()  # of the LoRAs, at its size
    entries: Mapping[str, Set] = field(default_factory=dict)  # ids of each kind of conditioning's own entries
    one_call: bool = True  # False once a module could not tell the rows apart
    in_pairs: bool = False  # True once third-party code related the rows of a batch to each other
    lora_rows: dict[int, Dose] = field(default_factory=dict)
    visible: Callable[[list[int]], list[int]] | None = None
    counted: set[int] = field(default_factory=set)  # rows in which the LoRA has made a difference
    others: Mapping[torch.device, BatchRows] = field(default_factory=dict)  # of the host's copies on further devices

    def __post_init__(self) -> None:
        if not self.rows.whole:
            self.one_call = False
            say_two_calls("it changes parameters that belong to no layer")

    def evaluate(
        self, host: Host, conds: list, doses: Mapping[int, Dose], options: dict, shown: Mapping[int, int], x: Tensor,
    ) -> list[Tensor]:  # fmt: skip
        """Predictions of `conds`, those in `doses` with a LoRA: in one batched call where the network keeps rows
        apart, else in two, or one by one to save memory; and in pairs, as the host alone would make them, where
        third-party code relates rows to each other. shown: for conditions that were added, the index under which
        third parties know what they are. x: the latent that the predictions are of."""
        if self.unchecked or not self.splits:  # the host then has all rows on one device
            options = {k: v for k, v in options.items() if k != "multigpu_clones"}
        doses = {i: dose for i, dose in doses.items() if dose.strength != 0 and conds[i] is not None}
        if not doses:
            return host(conds, options)
        evaluation = _Evaluation(self, host, conds, doses, options, shown, x)
        outputs = None if self.in_pairs else evaluation.by_rows()
        if outputs is None:
            if not self.in_pairs:
                self.in_pairs = True
                say_once(
                    "a patch on the model relates the rows of a batch to each other, as NAGuidance does: the base "
                    "model and the LoRA each run on the positive and the negative prompt together, which is slower "
                    "(low_memory cannot split them)."
                )
            outputs = evaluation.in_pairs()
        evaluation.check_caches(outputs)
        return outputs

    @property
    def splits(self) -> bool:
        """Whether the host may share the rows out among its devices: each tells its own apart."""
        return self.one_call and not self.low_memory and not self.in_pairs

    def rows_at(self, transformer_options: Mapping[str, Any]) -> BatchRows:
        """Of the device that a batch is for: each has a thread of its own."""
        device: Any = transformer_options.get(_DEVICE)
        return self.others.get(device, self.rows)

    def enter_network(self, transformer_options: dict) -> dict:
        """Set the rows of the batch that is about to enter the network; the options it should see."""
        if not self.lora_rows and self.visible is None:
            return transformer_options
        indices = host_indices(transformer_options)
        doses = [self.lora_rows[i] for i in indices if i in self.lora_rows]
        rows = self.rows_at(transformer_options)
        if len(doses) == len(indices) and len(set(doses)) == 1:  # all alike: nothing to tell apart
            rows.chunks, rows.chosen, rows.doses = 1, (0,), (doses[0],)
        else:
            rows.chunks = len(indices)
            rows.chosen = tuple(row for row, i in enumerate(indices) if i in self.lora_rows)
            rows.doses = tuple(doses)
        if self.visible is None:
            return transformer_options
        return {**transformer_options, "cond_or_uncond": self.visible(indices)}


class _Evaluation:
    """One evaluation of conditions; see Run.evaluate."""

    def __init__(
        self, run: Run, host: Host, conds: list, doses: Mapping[int, Dose], options: dict,
        shown: Mapping[int, int], x: Tensor,
    ):  # fmt: skip
        self.run, self.host, self.conds, self.doses = run, host, conds, doses
        self.options, self.shown, self.x = options, shown, x
        self.own = [i for i, cond in enumerate(conds) if cond is not None and i not in shown]  # the sampler's
        self.draws = Draws(x.device)
        self.looked_up = False

    def by_rows(self) -> list[Tensor] | None:
        """The predictions with the rows told apart; None where third-party code does not see what it should."""
        run = self.run
        try:
            if run.unchecked:
                run.unchecked = False
                outputs = self._checked()
            else:
                outputs = self._rows(self.doses)
        except Exception:
            if not self.looked_up:  # else it may be about rows that were not expected
                raise
            return None
        return None if self.looked_up else outputs

    def in_pairs(self) -> list[Tensor]:
        """All of the sampler's conditions in a call for each dose of a LoRA, that of the base model as the host
        alone would make it. The one that answers for the last condition (the negative) comes last: third-party code
        keeps what it saw last."""
        groups: dict[Dose, list[int]] = {}
        for i, cond in enumerate(self.conds):
            if cond is not None:
                groups.setdefault(self.doses.get(i, _NONE), []).append(i)

        def turn(dose: Dose) -> tuple:
            answered = [self.shown.get(i, i) for i in groups[dose]]
            return max(answered), len(answered), dose == _NONE

        outputs = [torch.zeros_like(self.x) for _ in self.conds]
        for dose in sorted(groups, key=turn):
            place = {self.shown.get(i, i): i for i in groups[dose]}
            conds: list = [None] * len(self.conds)
            for i in self.own:
                conds[i] = self.conds[place[i]] if i in place else self._companion(i, dose)
            found = self._alone(conds, self.own, dose, watched=False)
            for i, source in place.items():
                outputs[source] = found[i]
        return outputs

    def check_caches(self, outputs: list[Tensor]) -> None:
        """Tell the user of a cache of steps that cannot tell rows of one index apart: then the LoRA counts in some
        steps only."""
        for i, j in self.shown.items():
            if i in self.doses and self._same_prompt(i, j):
                equal = torch.equal(outputs[i], outputs[j])
                if equal and i in self.run.counted:
                    say_once(
                        "in some steps the LoRA made no difference at all. A cache of steps on the model (TeaCache) "
                        "keeps the base model's answer for the LoRA's row: take it off, or use ComfyUI's own "
                        "EasyCache, which keeps them apart."
                    )
                if not equal:
                    self.run.counted.add(i)

    def _companion(self, i: int, dose: Dose) -> list[dict]:
        """A prompt that is there because third-party code looks for it; its answer is of no use."""
        return told_apart(self.conds[i], dose.lora, f"{_NAME} {dose.strength:g}")

    def _same_prompt(self, i: int, j: int) -> bool:
        """Whether two conditions differ in nothing but their ids."""
        one, other = self.conds[i], self.conds[j]
        return len(one) == len(other) and all(
            a.keys() == b.keys() and all(a[key] is b[key] for key in a if key != "uuid")
            for a, b in zip(one, other, strict=True)
        )

    def _checked(self) -> list[Tensor] | None:
        """The first evaluation, with proof that third-party code and the base model's rows are not disturbed: None
        where the sampler's conditions come out otherwise than in the host's own call."""
        run, off = self.run, dict.fromkeys(self.doses, _NONE)
        whole = (
            not self.shown and run.one_call and not run.low_memory
        )  # the host's own call, but for the LoRA
        alone = None if whole else self._call(self.conds, self.own, {}, watched=False)
        plain = self._rows(off)
        if alone is not None:
            pairs = [(i, i) for i in self.own] + [
                (i, j) for i, j in self.shown.items() if self._same_prompt(i, j)
            ]
            if any(prediction_differs(plain[i], alone[j], self.x, run.rows.dtype) for i, j in pairs):
                return None
        # The real call last: whoever keeps the network's output (step caches) keeps that of the LoRA.
        outputs = self._rows(self.doses)
        if run.one_call and not run.low_memory and not self.looked_up:
            base = [i for i in self.own if i not in self.doses]
            base_rows_leak(run.rows, self._rows, self.doses, off, [(outputs[i], plain[i]) for i in base])
        return outputs

    def _rows(self, on: Mapping[int, Dose]) -> list[Tensor]:
        """The predictions at these doses: in one call, or each dose in one of its own, or one by one."""
        run, everything = self.run, range(len(self.conds))
        if run.one_call and not run.low_memory:
            try:
                return self._call(self.conds, everything, on)
            except RowsNotSeparable:
                run.one_call = False
                self.options = {k: v for k, v in self.options.items() if k != "multigpu_clones"}
                say_two_calls("a layer mixes the rows of a batch")
        outputs = [torch.zeros_like(self.x) for _ in self.conds]
        base = [i for i in everything if i not in on and self.conds[i] is not None]
        for group in [[i] for i in base] if run.low_memory else [base]:
            if group:
                found = self._call(self.conds, group, {})
                for i in group:
                    outputs[i] = found[i]
        for i, dose in on.items():
            outputs[i] = self._alone(self.conds, [i], dose)[i]
        return outputs

    def _alone(self, conds: list, wanted: Sequence[int], dose: Dose, watched: bool = True) -> list[Tensor]:
        """One call that has a LoRA on all rows, or none at strength 0."""
        on = dict.fromkeys(wanted, dose) if dose.strength != 0 else {}
        patches = self.run.loras[dose.lora]
        with swapped(self.run.guider.model_patcher, patches, dose.strength) if on else nullcontext():
            return self._call(conds, wanted, on, watched)

    def _call(
        self, conds: list, wanted: Sequence[int], on: Mapping[int, Dose], watched: bool = True
    ) -> list[Tensor]:
        """One call of the host; conditions that are not wanted are None, so that indices stay. watched: whether
        third-party code sees other rows than the host alone would have, and its look-ups are noticed."""
        run = self.run
        run.lora_rows, run.visible = dict(on), (self._visible(wanted) if watched else None)
        options = shown_to_wrappers(self.options, run.visible) if run.visible else self.options
        self.draws.rewind()
        try:
            return self.host([cond if i in wanted else None for i, cond in enumerate(conds)], options)
        finally:
            run.lora_rows, run.visible = {}, None
            for rows in (run.rows, *run.others.values()):
                rows.clear()

    def _visible(self, wanted: Sequence[int]) -> Callable[[list[int]], list[int]]:
        """What the host's indices look like to third parties in a call of `wanted`: they know 0 (positive) and 1
        (negative) only."""
        there = [i for i in wanted if self.conds[i] is not None]
        mixed = len({self.doses.get(i, _NONE) for i in there}) > 1
        ambiguous = {self.shown.get(i, i) for i in there if i in self.doses} if mixed else set()
        as_the_host = sorted(there) == self.own

        def visible(indices: list[int]) -> list[int]:
            rows = [self.shown.get(i, i) for i in indices]
            missing = set(self.own) - set(rows)

            def notice(value: int | None) -> None:
                self.looked_up |= not as_the_host if value is None else value in ambiguous or value in missing

            return KnownRows(rows, notice)

        return visible
