"""Reward guidance inside the host's sampling loop, for any sampler.

A MODEL patch: wherever the sampler asks for the predictions of [positive, negative], one more row of the positive
prompt runs with the LoRA on, and the positive prediction is replaced by

    phi(c) + (w_rg / w_text) (theta(c) - phi(c))

so that the sampler's own classifier-free guidance at w_text gives the formula of the paper (Sec. 4.2):
phi(0) + w_text (phi(c) - phi(0)) + w_rg (theta(c) - phi(c)). Predictions here are denoised images; the coefficients
sum to 1, so the formula is the same as for eps. With learned tokens theta reads a prompt of its own: it is handed
to the guider as one more kind of conditioning, which the host prepares like the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import comfy.patcher_extension
import comfy.sampler_helpers
from torch import Tensor

from ...dco_core.guidance import reward_guidance
from .adapters import LowRank, Rows, RowsNotSeparable, attached

_KEY = "dco_reward_guidance"
_PERSONALIZED = "dco_personalized"  # theta's conditioning among the guider's conds
_Wrappers = comfy.patcher_extension.WrappersMP


@dataclass
class _Run:
    """State of one sampling run. `lora_rows` says, during a batched call, which of the host's condition indices
    carry the LoRA, and as which index the network should see them."""

    guider: object
    rows: Rows
    lora_rows: dict[int, int] = field(default_factory=dict)
    one_call: bool = True  # False once a module could not tell the rows apart

    @property
    def w_text(self) -> float:
        return float(getattr(self.guider, "cfg", 1.0))

    @property
    def personalized(self) -> list | None:
        """theta's prepared conditioning, where it is not phi's."""
        return getattr(self.guider, "conds", {}).get(_PERSONALIZED)

    def index_of_positive(self, conds: list) -> int | None:
        """Where the guider's positive conditioning is among `conds`; entries keep their uuid through the host's
        copies (context windows, regional prompts)."""
        positive = {entry["uuid"] for entry in getattr(self.guider, "conds", {}).get("positive", ())}
        for i, cond in enumerate(conds):
            if cond and any(entry.get("uuid") in positive for entry in cond):
                return i
        return None


class _RewardGuidance:
    """The wrappers that make up the patch. `adapters` are resolved when the patch is made; they are hooked to
    modules only while a run lasts."""

    def __init__(self, adapters: Sequence[LowRank], w_rg: float, personalized: list | None):
        self.adapters, self.w_rg = adapters, w_rg
        self.personalized = personalized  # CONDITIONING
        self.runs: list[_Run] = []

    def outer_sample(self, executor, *args, **kwargs):
        guider = executor.class_obj
        if self.personalized is not None and self.w_rg != 0:
            guider.conds[_PERSONALIZED] = _beside(guider.conds.get("positive", []), self.personalized)
        with attached(guider.model_patcher, self.adapters) as rows:
            self.runs.append(_Run(guider, rows))
            try:
                return executor(*args, **kwargs)
            finally:
                self.runs.pop()

    def calc_cond_batch(
        self, executor: Callable, model, conds: list, x: Tensor, timestep: Tensor, options: dict
    ):
        index = self.runs[-1].index_of_positive(conds) if self.runs and self.w_rg != 0 else None
        if index is None:  # off, or an evaluation that does not look at the positive prompt
            return executor(model, conds, x, timestep, options)
        run = self.runs[-1]
        w_text = run.w_text
        prompt = run.personalized or conds[index]
        if w_text == self.w_rg:  # phi(c) has coefficient 0: theta takes its place
            conds = [*conds[:index], prompt, *conds[index + 1 :]]
            return self._evaluate(run, {index: index}, executor, model, conds, x, timestep, options)
        extra = len(conds)
        outputs = self._evaluate(run, {extra: index}, executor, model, [*conds, prompt], x, timestep, options)
        theta, phi = outputs.pop(), outputs[index]
        if w_text != 0:
            outputs[index] = reward_guidance(theta, phi, None, self.w_rg / w_text, 1.0)
        else:  # the sampler returns the negative prediction alone
            outputs[1 - index] = outputs[1 - index] + self.w_rg * (theta - phi)
        return outputs

    def _evaluate(
        self,
        run: _Run,
        lora_rows: dict[int, int],
        executor: Callable,
        model,
        conds: list,
        x: Tensor,
        timestep,
        options,
    ) -> list[Tensor]:
        """Predictions of `conds`, those in lora_rows with the LoRA: in one batched call where the network keeps
        rows apart, else in two."""
        if run.one_call:
            run.lora_rows = lora_rows
            try:
                return executor(model, conds, x, timestep, options)
            except RowsNotSeparable:
                run.one_call = False
            finally:
                run.lora_rows = {}
                run.rows.chosen = ()
        without = [None if i in lora_rows else cond for i, cond in enumerate(conds)]
        outputs = executor(model, without, x, timestep, options)
        run.rows.chunks, run.rows.chosen = 1, (0,)
        try:
            with_lora = executor(model, [conds[i] for i in lora_rows], x, timestep, options)
        finally:
            run.rows.chosen = ()
        for i, output in zip(lora_rows, with_lora, strict=True):
            outputs[i] = output
        return outputs

    def apply_model(
        self, executor: Callable, x: Tensor, t: Tensor, c_concat=None, c_crossattn=None, control=None,
        transformer_options: dict = {}, **kwargs,
    ):  # fmt: skip
        run = self.runs[-1] if self.runs else None
        if run and run.lora_rows:
            indices = transformer_options["cond_or_uncond"]
            run.rows.chunks = len(indices)
            run.rows.chosen = tuple(row for row, i in enumerate(indices) if i in run.lora_rows)
            # Third-party patches know the indices 0 (positive) and 1 (negative) only.
            shown = [run.lora_rows.get(i, i) for i in indices]
            transformer_options = {**transformer_options, "cond_or_uncond": shown}
        return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)


def _beside(positive: list[dict], personalized: list) -> list[dict]:
    """theta's conditioning in the host's inner form. What was set on a single positive prompt (ControlNet, area,
    timestep range, ...) holds for theta's single prompt too, unless it says otherwise."""
    own = comfy.sampler_helpers.convert_cond(personalized)
    if len(own) == len(positive) == 1:
        text = ("cross_attn", "pooled_output", "model_conds", "uuid")
        shared = {key: value for key, value in positive[0].items() if key not in text}
        own = [shared | own[0]]
    return own


def patch(model, adapters: Sequence[LowRank], w_rg: float, personalized: list | None = None):
    """A clone of MODEL with reward guidance; the one given is not changed. A second patch replaces the first.
    personalized: the CONDITIONING that theta reads, where it is not the sampler's positive one."""
    guidance = _RewardGuidance(adapters, w_rg, personalized)
    model = model.clone()
    for kind, wrapper in (
        (_Wrappers.OUTER_SAMPLE, guidance.outer_sample),
        (_Wrappers.CALC_COND_BATCH, guidance.calc_cond_batch),
        (_Wrappers.APPLY_MODEL, guidance.apply_model),
    ):
        model.remove_wrappers_with_key(kind, _KEY)
        model.add_wrapper_with_key(kind, _KEY, wrapper)
    return model
