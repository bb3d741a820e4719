"""Guidance with a LoRA inside the host's sampling loop, for any sampler.

A MODEL patch: wherever the sampler asks for the predictions of [positive, negative], rows with the LoRA on run in the
same batch. For reward guidance that is one more row of the positive prompt, and the positive prediction becomes

    phi(c) + (w_rg / w_text) (theta(c) - phi(c))

so that the sampler's own classifier-free guidance at w_text gives the formula of the paper (Sec. 4.2):
phi(0) + w_text (phi(c) - phi(0)) + w_rg (theta(c) - phi(c)). Predictions here are denoised images; the coefficients
sum to 1, so the formula is the same as for eps. With learned tokens theta reads a prompt of its own: it is handed
to the guider as one more kind of conditioning, which the host prepares like the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import comfy.patcher_extension
import comfy.sampler_helpers
from torch import Tensor

from ....dco_core.guidance import autoguidance, reward_guidance, scheduled
from .adapter_hooks import Reserve, attached
from .adapter_parts import Patch
from .conditioning_check import check_conditioning
from .evaluation import Run, told_apart

_KEY = "dco_reward_guidance"
_PERSONALIZED = "dco_personalized"  # theta's conditioning among the guider's conds
_BISECTIONS = 30  # to 1e-9
_Wrappers = comfy.patcher_extension.WrappersMP


@dataclass(frozen=True)
class GuidanceMethod:
    """How LoRA rows enter a step. kind: "reward" (scale is w_rg), "auto" (AutoGuidance, scale is w), "personalization"
    (Steering Guidance, scale is the LoRA's share in the weak model) or "negative" (LoRA on the negative only, as
    Diffusion-NPO, Wang et al., arXiv 2505.11245, samples).
    start, end, schedule: where in the noise schedule w_rg or w holds."""

    kind: str = "reward"
    scale: float = 3.0
    start: float = 0.0
    end: float = 1.0
    schedule: str = "constant"
    low_memory: bool = False
    self_check: bool = True

    @property
    def off(self) -> bool:
        """Whether the sampler's own evaluation is all there is to do."""
        return (self.kind, self.scale) in (("reward", 0), ("auto", 1))


class _Guidance:
    """The wrappers that make up the patch. `patches` are resolved when the patch is made; they are hooked to modules
    only while a run lasts."""

    def __init__(self, patches: Sequence[Patch], method: GuidanceMethod, personalized: list | None):
        self.patches, self.method = patches, method
        self.personalized = personalized  # CONDITIONING
        self.off = method.off or (not patches and personalized is None)
        self.runs: list[Run] = []

    def outer_sample(self, executor, *args, **kwargs):
        if self.off:
            return executor(*args, **kwargs)
        guider = executor.class_obj
        if self.personalized is not None:
            guider.conds[_PERSONALIZED] = _beside(guider.conds.get("positive", []), self.personalized)
        check_conditioning(guider)
        with attached(guider.model_patcher, self.patches) as rows:
            self.runs.append(Run(guider, rows, self.patches, self.method.low_memory, self.method.self_check))
            try:
                return executor(*args, **kwargs)
            finally:
                self.runs.pop()

    def prepare_sampling(self, executor, model, noise_shape, conds, **kwargs):
        """Ask the host for the LoRA's own memory and for the row that is added."""
        if not self.runs:
            return executor(model, noise_shape, conds, **kwargs)
        more = {_KEY: [{"control": Reserve(self.patches, model.model.get_dtype_inference())}]}
        rows = 3 if self.method.kind in ("reward", "auto") and not self.method.low_memory else 2
        shape = [-(-noise_shape[0] * rows // 2), *noise_shape[1:]]
        real, found, models = executor(model, shape, conds | more, **kwargs)
        return real, {k: v for k, v in found.items() if k != _KEY}, models

    def calc_cond_batch(
        self, executor: Callable, model, conds: list, x: Tensor, timestep: Tensor, options: dict
    ):
        if not self.runs:
            return executor(model, conds, x, timestep, options)
        run, method = self.runs[-1], self.method
        positive, negative = (_index_of(run.guider, kind, conds) for kind in ("positive", "negative"))

        def evaluate(
            conds: list, strengths: dict[int, float], shown: dict[int, int] | None = None
        ) -> list[Tensor]:
            def host(conds: list, options: dict) -> list[Tensor]:
                return executor(model, conds, x, timestep, options)

            return run.evaluate(host, conds, strengths, options, shown or {}, x)

        if method.kind == "negative":
            return evaluate(conds, {} if negative is None else {negative: 1.0})
        weak = {negative: method.scale} if method.kind == "personalization" and negative is not None else {}
        if positive is None:  # an evaluation that does not look at the positive prompt
            return evaluate(conds, weak)
        prompt = getattr(run.guider, "conds", {}).get(_PERSONALIZED) or conds[positive]
        as_theta_reads = [*conds[:positive], prompt, *conds[positive + 1 :]]
        if method.kind == "personalization":
            return evaluate(as_theta_reads, {positive: 1.0} | weak)

        share = scheduled(1.0, _progress(run.guider, timestep), method.start, method.end, method.schedule)
        if share == 0:
            return evaluate(conds, {})
        w_text, w_rg = _w_text(run.guider), method.scale * share
        if method.kind == "reward" and w_rg == w_text:  # phi(c) has coefficient 0: theta takes its place
            return evaluate(as_theta_reads, {positive: 1.0})
        extra = len(conds)
        outputs = evaluate([*conds, told_apart(prompt)], {extra: 1.0}, {extra: positive})
        theta, phi = outputs.pop(), outputs[positive]
        if method.kind == "auto":
            outputs[positive] = autoguidance(phi, theta, 1 + (method.scale - 1) * share)
        elif w_text != 0:
            outputs[positive] = reward_guidance(theta, phi, None, w_rg / w_text, 1.0)
        elif negative is not None:  # the sampler returns the negative prediction alone
            outputs[negative] = outputs[negative] + w_rg * (theta - phi)
        return outputs

    def apply_model(
        self, executor: Callable, x: Tensor, t: Tensor, c_concat=None, c_crossattn=None, control=None,
        transformer_options: dict = {}, **kwargs,
    ):  # fmt: skip
        if self.runs:
            transformer_options = self.runs[-1].enter_network(transformer_options)
        return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)


def _w_text(guider) -> float:
    """The coefficient of the positive prediction in the guider's formula: cfg; in the host's DualCFG guiders, cfg1
    (times cfg2 where they are nested)."""
    if hasattr(guider, "cfg1"):
        return float(guider.cfg1) * (float(guider.cfg2) if getattr(guider, "nested", False) else 1.0)
    return float(getattr(guider, "cfg", 1.0))


def _index_of(guider, kind: str, conds: list) -> int | None:
    """Where the guider's "positive" or "negative" conditioning is among `conds`; entries keep their uuid through the
    host's copies (context windows, regional prompts)."""
    wanted = {entry["uuid"] for entry in getattr(guider, "conds", {}).get(kind) or ()}
    for i, cond in enumerate(conds):
        if cond and any(entry.get("uuid") in wanted for entry in cond):
            return i
    return None


def _progress(guider, timestep: Tensor) -> float:
    """The share of the noise schedule that lies behind: the inverse of the host's percent_to_sigma, which falls."""
    sigma = float(timestep.max())
    percent_to_sigma = guider.model_patcher.get_model_object("model_sampling").percent_to_sigma
    low, high = 0.0, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if float(percent_to_sigma(middle)) > sigma else (low, middle)
    return round(high, 6)  # so that both ends of an interval belong to it


def _beside(positive: list[dict], personalized: list) -> list[dict]:
    """theta's conditioning in the host's inner form. What was set on a single positive prompt (ControlNet, area,
    timestep range, ...) holds for theta's single prompt too, unless it says otherwise."""
    own = comfy.sampler_helpers.convert_cond(personalized)
    if len(own) == len(positive) == 1:
        text = ("cross_attn", "pooled_output", "model_conds", "uuid")
        shared = {key: value for key, value in positive[0].items() if key not in text}
        own = [shared | own[0]]
    return own


def is_guided(model) -> bool:
    """Whether MODEL has guidance of this pack already, which patch() would replace."""
    return bool(model.get_wrappers(_Wrappers.OUTER_SAMPLE, _KEY))


def patch(model, patches: Sequence[Patch], method: GuidanceMethod, personalized: list | None = None):
    """A clone of MODEL with guidance; the one given is not changed. A second patch replaces the first.
    personalized: the CONDITIONING that theta reads, where it is not the sampler's positive one."""
    guidance = _Guidance(patches, method, personalized)
    model = model.clone()
    for kind, wrapper in (
        (_Wrappers.OUTER_SAMPLE, guidance.outer_sample),
        (_Wrappers.PREPARE_SAMPLING, guidance.prepare_sampling),
        (_Wrappers.CALC_COND_BATCH, guidance.calc_cond_batch),
        (_Wrappers.APPLY_MODEL, guidance.apply_model),
    ):
        model.remove_wrappers_with_key(kind, _KEY)
        model.add_wrapper_with_key(kind, _KEY, wrapper)
    return model
