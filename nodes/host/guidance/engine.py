"""Guidance with a LoRA inside the host's sampling loop, for any sampler.

A MODEL patch: wherever the sampler asks for the predictions of [positive, negative], rows with the LoRA on run in the
same batch. For reward guidance that is one more row of the positive prompt, and the positive prediction becomes

    phi(c) + (w_rg / w_text) (theta(c) - phi(c))

so that the sampler's own classifier-free guidance at w_text gives the formula of the paper (Sec. 4.2):
phi(0) + w_text (phi(c) - phi(0)) + w_rg (theta(c) - phi(c)). Predictions here are denoised images; the coefficients
sum to 1, so the formula is the same as for eps. With learned tokens theta reads a prompt of its own: it is handed
to the guider as one more kind of conditioning, which the host prepares like the others.

Several LoRAs may act, each where its mask says (Region): then each has a row of its own, and the positive prediction
becomes phi(c) + sum_k (w_rg_k / w_text) M_k (theta_k(c_k) - phi(c)).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from contextlib import ExitStack
from dataclasses import dataclass, replace

import comfy.patcher_extension
import comfy.sampler_helpers
from torch import Tensor

from ....dco_core.guidance import autoguidance, regional_guidance, scheduled
from .adapter_hooks import Dose, Reserve, attached
from .adapter_parts import Patch
from .conditioning_check import check_conditioning
from .evaluation import Run, told_apart
from .masks import fitted_mask, in_window

_KEY = "dco_reward_guidance"
_PERSONALIZED = (
    "dco_personalized"  # theta's conditioning among the guider's conds, with a number from the second on
)
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


@dataclass(frozen=True)
class Region:
    """A LoRA (or a stack that acts as one), and where it acts.

    patches: resolved against the MODEL. personalized: the CONDITIONING that it reads, None: the sampler's positive one.
    mask: [N, H, W] as `checked_mask` makes it, None: everywhere. factor: its w_rg as a share of the method's.
    """

    patches: Sequence[Patch]
    personalized: list | None = None
    mask: Tensor | None = None
    factor: float = 1.0

    @property
    def adds(self) -> bool:
        """Whether it changes anything."""
        shown = self.mask is None or bool((self.mask > 0).any())
        return shown and self.factor != 0 and (bool(self.patches) or self.personalized is not None)

    @property
    def everywhere(self) -> bool:
        return self.mask is None or bool((self.mask == 1).all())


def acting(regions: Sequence[Region]) -> list[Region]:
    """Those that change anything, without masks that are 1 everywhere."""
    return [replace(r, mask=None) if r.everywhere else r for r in regions if r.adds]


class _Guidance:
    """The wrappers that make up the patch. Patches are resolved when it is made; they are hooked to modules only while
    a run lasts."""

    def __init__(self, regions: Sequence[Region], method: GuidanceMethod):
        self.regions, self.method = acting(regions), method
        self.off = method.off or not self.regions
        self.runs: list[Run] = []

    def outer_sample(self, executor, noise: Tensor, *args, **kwargs):
        if self.off:
            return executor(noise, *args, **kwargs)
        guider = executor.class_obj
        for k, region in enumerate(self.regions):
            if region.personalized is not None:
                positive = guider.conds.get("positive", [])
                guider.conds[_personalized(k)] = _beside(positive, region.personalized)
        check_conditioning(guider)
        masks = [None if r.mask is None else fitted_mask(r.mask, noise.shape) for r in self.regions]
        loras, method = [region.patches for region in self.regions], self.method
        # before the host gives every kind of conditioning copies of the entries of others that have an area
        entries = {kind: {entry["uuid"] for entry in conds or ()} for kind, conds in guider.conds.items()}
        with ExitStack() as hooked:
            rows = hooked.enter_context(attached(guider.model_patcher, loras))
            others = {  # the host's copies of MODEL on further GPUs, among which it splits the rows
                clone.load_device: hooked.enter_context(attached(clone, loras))
                for clone in guider.model_patcher.get_additional_models_with_key("multigpu")
            }
            self.runs.append(
                Run(
                    guider, rows, loras, method.low_memory, method.self_check, noise.shape, masks, entries,
                    others=others,
                )  # fmt: skip
            )
            try:
                return executor(noise, *args, **kwargs)
            finally:
                self.runs.pop()

    def prepare_sampling(self, executor, model, noise_shape, conds, **kwargs):
        """Ask the host for the LoRAs' own memory and for the rows that are added."""
        if not self.runs:
            return executor(model, noise_shape, conds, **kwargs)
        patches = [p for region in self.regions for p in region.patches]
        more = {_KEY: [{"control": Reserve(patches, model.model.get_dtype_inference())}]}
        added = (
            len(self.regions) if self.method.kind in ("reward", "auto") and not self.method.low_memory else 0
        )
        shape = [-(-noise_shape[0] * (2 + added) // 2), *noise_shape[1:]]
        real, found, models = executor(model, shape, conds | more, **kwargs)
        return real, {k: v for k, v in found.items() if k != _KEY}, models

    def calc_cond_batch(
        self, executor: Callable, model, conds: list, x: Tensor, timestep: Tensor, options: dict
    ):
        if not self.runs:
            return executor(model, conds, x, timestep, options)
        run, method = self.runs[-1], self.method
        ours = [run.entries.get(_personalized(k), set()) for k in range(len(self.regions))]
        conds = [_without(cond, *ours) for cond in conds]
        positive, negative = (
            _index_of(run.entries.get(kind, set()), conds) for kind in ("positive", "negative")
        )

        def evaluate(
            conds: list, doses: dict[int, Dose], shown: dict[int, int] | None = None
        ) -> list[Tensor]:
            def host(conds: list, options: dict) -> list[Tensor]:
                return executor(model, conds, x, timestep, options)

            return run.evaluate(host, conds, doses, options, shown or {}, x)

        if method.kind == "negative":
            return evaluate(conds, {} if negative is None else {negative: Dose(1.0)})
        weak = (
            {negative: Dose(method.scale)}
            if method.kind == "personalization" and negative is not None
            else {}
        )
        if positive is None:  # an evaluation that does not look at the positive prompt
            return evaluate(conds, weak)
        own = getattr(run.guider, "conds", {})
        prompts = [
            _without(own.get(_personalized(k)), *ours[:k], *ours[k + 1 :]) or conds[positive]
            for k in range(len(self.regions))
        ]
        as_theta_reads = [*conds[:positive], prompts[0], *conds[positive + 1 :]]
        if method.kind == "personalization":
            return evaluate(as_theta_reads, {positive: Dose(1.0)} | weak)

        share = scheduled(1.0, _progress(run.guider, timestep), method.start, method.end, method.schedule)
        if share == 0:
            return evaluate(conds, {})
        w_text, scales = _w_text(run.guider), [method.scale * share * r.factor for r in self.regions]
        masks = [None if m is None else in_window(m, run.shape, x, options) for m in run.masks]
        if method.kind == "reward" and scales == [w_text] and masks[0] is None:
            return evaluate(
                as_theta_reads, {positive: Dose(1.0)}
            )  # phi(c) has coefficient 0: theta takes its place
        added = range(len(conds), len(conds) + len(prompts))
        outputs = evaluate(
            [*conds, *(told_apart(prompt, k) for k, prompt in enumerate(prompts))],
            {i: Dose(1.0, k) for k, i in enumerate(added)},
            dict.fromkeys(added, positive),
        )
        outputs, thetas = outputs[: len(conds)], outputs[len(conds) :]
        phi = outputs[positive]
        if method.kind == "auto":
            outputs[positive] = autoguidance(phi, thetas[0], 1 + (method.scale - 1) * share)
        elif w_text != 0:
            outputs[positive] = regional_guidance(thetas, phi, masks, [w_rg / w_text for w_rg in scales])
        elif negative is not None:  # the sampler returns the negative prediction alone
            for theta, mask, w_rg in zip(thetas, masks, scales, strict=True):
                change = w_rg * (theta - phi)
                outputs[negative] = outputs[negative] + (change if mask is None else mask.to(change) * change)
        return outputs

    def apply_model(
        self, executor: Callable, x: Tensor, t: Tensor, c_concat=None, c_crossattn=None, control=None,
        transformer_options: dict = {}, **kwargs,
    ):  # fmt: skip
        if self.runs:
            transformer_options = self.runs[-1].enter_network(transformer_options)
        return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)


def _personalized(k: int) -> str:
    """The kind of conditioning that the k-th LoRA reads."""
    return f"{_PERSONALIZED} {k + 1}" if k else _PERSONALIZED


def _w_text(guider) -> float:
    """The coefficient of the positive prediction in the guider's formula: cfg; in the host's DualCFG guiders, cfg1
    (times cfg2 where they are nested)."""
    if hasattr(guider, "cfg1"):
        return float(guider.cfg1) * (float(guider.cfg2) if getattr(guider, "nested", False) else 1.0)
    return float(getattr(guider, "cfg", 1.0))


def _index_of(entries: Set, conds: list) -> int | None:
    """Where the conditioning of these entries is among `conds`. They keep their ids through the host's copies (context
    windows, regional prompts), and stand before the copies that the host makes of other kinds' entries."""
    for i, cond in enumerate(conds):
        if cond and cond[0].get("uuid") in entries:
            return i
    return None


def _without(cond: list[dict] | None, *entries: Set) -> list[dict] | None:
    """A conditioning without the copies of what LoRAs read that the host has put beside it: so that every kind of
    conditioning has the areas of the others."""
    if cond is None or not any(entries):
        return cond
    return [entry for entry in cond if not any(entry.get("uuid") in of_one for of_one in entries)]


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


def patch(model, regions: Sequence[Region], method: GuidanceMethod):
    """A clone of MODEL with guidance; the one given is not changed. A second patch replaces the first. regions: several
    of them, and masks, for reward guidance only."""
    guidance = _Guidance(regions, method)
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
