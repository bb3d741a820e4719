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

import bisect
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import comfy.patcher_extension
import comfy.sampler_helpers
from torch import Tensor

from ...dco_core.errors import DCOError
from ...dco_core.guidance import autoguidance, reward_guidance, scheduled
from .adapter_parts import Patch
from .adapters import Reserve, Rows, RowsNotSeparable, attached, exchanged
from .self_check import check_base_rows

_KEY = "dco_reward_guidance"
_PERSONALIZED = "dco_personalized"  # theta's conditioning among the guider's conds
_INDICES = "dco_indices"  # the host's own condition indices, where third parties are shown others
_Wrappers = comfy.patcher_extension.WrappersMP


@dataclass(frozen=True)
class Method:
    """How LoRA rows enter a step. kind: "reward" (scale is w_rg), "auto" (AutoGuidance, scale is w), "personalization"
    (Steering Guidance, scale is the LoRA's share in the weak model) or "negative" (LoRA on the negative only)."""

    kind: str = "reward"
    scale: float = 3.0
    start: float = 0.0
    end: float = 1.0
    schedule: str = "constant"
    low_memory: bool = False
    self_check: bool = True

    @property
    def plain(self) -> bool:
        """Whether the sampler's own evaluation is all there is to do."""
        return self.kind == "reward" and self.scale == 0 or self.kind == "auto" and self.scale == 1


@dataclass
class _Run:
    """State of one sampling run. `lora_rows` says, during a batched call, which of the host's condition indices
    carry the LoRA and how strongly; `shown` as which index the network should see them."""

    guider: Any  # the host's CFGGuider or one like it
    rows: Rows
    lora_rows: dict[int, float] = field(default_factory=dict)
    shown: dict[int, int] = field(default_factory=dict)
    one_call: bool = True  # False once a module could not tell the rows apart
    checked: bool = False
    percents: tuple[list[float], list[float]] | None = None

    @property
    def w_text(self) -> float:
        """The coefficient of the positive prediction in the guider's formula: cfg; in the host's DualCFG guiders, cfg1
        (times cfg2 where they are nested)."""
        if hasattr(self.guider, "cfg1"):
            return float(self.guider.cfg1) * (
                float(self.guider.cfg2) if getattr(self.guider, "nested", False) else 1.0
            )
        return float(getattr(self.guider, "cfg", 1.0))

    @property
    def personalized(self) -> list | None:
        """theta's prepared conditioning, where it is not phi's."""
        return getattr(self.guider, "conds", {}).get(_PERSONALIZED)

    def index_of(self, kind: str, conds: list) -> int | None:
        """Where the guider's "positive" or "negative" conditioning is among `conds`; entries keep their uuid through
        the host's copies (context windows, regional prompts)."""
        wanted = {entry["uuid"] for entry in getattr(self.guider, "conds", {}).get(kind) or ()}
        for i, cond in enumerate(conds):
            if cond and any(entry.get("uuid") in wanted for entry in cond):
                return i
        return None

    def progress(self, timestep: Tensor) -> float:
        """The share of the noise schedule that lies behind: the inverse of the host's percent_to_sigma."""
        if self.percents is None:
            sampling = self.guider.model_patcher.get_model_object("model_sampling")
            shares = [i / 1000 for i in range(1, 1001)]
            self.percents = ([-float(sampling.percent_to_sigma(p)) for p in shares], shares)
        sigma = -float(timestep.max())
        place = bisect.bisect_right(self.percents[0], sigma)
        return 0.0 if place == 0 else self.percents[1][place - 1]


class _Guidance:
    """The wrappers that make up the patch. `patches` are resolved when the patch is made; they are hooked to modules
    only while a run lasts."""

    def __init__(self, patches: Sequence[Patch], method: Method, personalized: list | None):
        self.patches, self.method = patches, method
        self.personalized = personalized  # CONDITIONING
        self.off = method.plain or (not patches and personalized is None)
        self.runs: list[_Run] = []

    def outer_sample(self, executor, *args, **kwargs):
        if self.off:
            return executor(*args, **kwargs)
        guider = executor.class_obj
        if self.personalized is not None:
            guider.conds[_PERSONALIZED] = _beside(guider.conds.get("positive", []), self.personalized)
        _check_conditioning(guider)
        with attached(guider.model_patcher, self.patches) as rows:
            run = _Run(guider, rows)
            self.runs.append(run)
            if not rows.whole:
                run.one_call = False
                _say_two_calls("it changes parameters that belong to no layer")
            try:
                return executor(*args, **kwargs)
            finally:
                self.runs.pop()

    def prepare_sampling(self, executor, model, noise_shape, conds, **kwargs):
        """Ask the host for the LoRA's own memory and for the row that is added."""
        if not self.runs:
            return executor(model, noise_shape, conds, **kwargs)
        more = {_KEY: [{"control": Reserve(self.patches, model.model_dtype())}]}
        rows = 3 if self.method.kind in ("reward", "auto") and not self.method.low_memory else 2
        shape = [-(-noise_shape[0] * rows // 2), *noise_shape[1:]]
        real, found, models = executor(model, shape, conds | more, **kwargs)
        return real, {k: v for k, v in found.items() if k != _KEY}, models

    def calc_cond_batch(
        self, executor: Callable, model, conds: list, x: Tensor, timestep: Tensor, options: dict
    ):
        run = self.runs[-1] if self.runs else None
        if run is None:
            return executor(model, conds, x, timestep, options)
        positive, negative = run.index_of("positive", conds), run.index_of("negative", conds)

        def evaluate(
            conds: list, strengths: dict[int, float], shown: dict[int, int] | None = None
        ) -> list[Tensor]:
            return self._evaluate(run, strengths, shown or {}, executor, model, conds, x, timestep, options)

        kind = self.method.kind
        if kind == "negative":
            return evaluate(conds, {} if negative is None else {negative: 1.0})
        if positive is None:  # an evaluation that does not look at the positive prompt
            return evaluate(
                conds,
                {negative: self.method.scale} if kind == "personalization" and negative is not None else {},
            )
        prompt = run.personalized or conds[positive]
        replaced = [*conds[:positive], prompt, *conds[positive + 1 :]]
        if kind == "personalization":
            weak = {} if negative is None else {negative: self.method.scale}
            return evaluate(replaced, {positive: 1.0} | weak)
        share = scheduled(
            1.0, run.progress(timestep), self.method.start, self.method.end, self.method.schedule
        )
        w_rg = self.method.scale * share if kind == "reward" else 1 - (1 + (self.method.scale - 1) * share)
        if w_rg == 0:
            return evaluate(conds, {})
        w_text = run.w_text
        if kind == "reward" and w_text == w_rg:  # phi(c) has coefficient 0: theta takes its place
            return evaluate(replaced, {positive: 1.0})
        extra = len(conds)
        outputs = evaluate([*conds, prompt], {extra: 1.0}, {extra: positive})
        theta, phi = outputs.pop(), outputs[positive]
        if kind == "auto":
            outputs[positive] = autoguidance(phi, theta, 1 - w_rg)
        elif w_text != 0:
            outputs[positive] = reward_guidance(theta, phi, None, w_rg / w_text, 1.0)
        elif negative is not None:  # the sampler returns the negative prediction alone
            outputs[negative] = outputs[negative] + w_rg * (theta - phi)
        return outputs

    def _evaluate(
        self, run: _Run, strengths: dict[int, float], shown: dict[int, int], executor: Callable, model, conds: list,
        x: Tensor, timestep: Tensor, options: dict,
    ) -> list[Tensor]:  # fmt: skip
        """Predictions of `conds`, those in `strengths` with the LoRA: in one batched call where the network keeps
        rows apart, else in two, or one by one to save memory."""
        options = {k: v for k, v in options.items() if k != "multigpu_clones"}  # their modules have no hooks
        strengths = {i: s for i, s in strengths.items() if s != 0 and i < len(conds) and conds[i] is not None}
        if not strengths:
            return executor(model, conds, x, timestep, options)

        def call(wanted: Sequence[int], on: Mapping[int, float]) -> list[Tensor]:
            """One executor call; conditions that are not wanted are None, so that indices stay."""
            run.lora_rows, run.shown = dict(on), shown
            try:
                some = [cond if i in wanted else None for i, cond in enumerate(conds)]
                return executor(model, some, x, timestep, _remapped(options, shown) if shown else options)
            finally:
                run.lora_rows, run.shown = {}, {}
                run.rows.clear()

        everything = range(len(conds))
        if run.one_call and not self.method.low_memory:
            try:
                if self.method.self_check and not run.checked:
                    run.checked = True
                    return check_base_rows(run.rows, lambda on: call(everything, on), strengths)
                return call(everything, strengths)
            except RowsNotSeparable:
                run.one_call = False
                _say_two_calls("a layer mixes the rows of a batch")
        base = [i for i in everything if i not in strengths]
        groups = [[i] for i in base] if self.method.low_memory else [base]
        outputs: list[Tensor] = [None] * len(conds)  # type: ignore[list-item]
        for group in groups:
            if group:
                found = call(group, {})
                for i in group:
                    outputs[i] = found[i]
        for i, strength in strengths.items():
            with exchanged(run.guider.model_patcher, self.patches, strength):
                outputs[i] = call([i], {i: strength})[i]
        return outputs

    def apply_model(
        self, executor: Callable, x: Tensor, t: Tensor, c_concat=None, c_crossattn=None, control=None,
        transformer_options: dict = {}, **kwargs,
    ):  # fmt: skip
        run = self.runs[-1] if self.runs else None
        if run and (run.lora_rows or run.shown):
            indices = transformer_options.get(_INDICES) or transformer_options["cond_or_uncond"]
            run.rows.chunks = len(indices)
            run.rows.chosen = tuple(row for row, i in enumerate(indices) if i in run.lora_rows)
            run.rows.strengths = tuple(run.lora_rows[i] for i in indices if i in run.lora_rows)
            # Third-party patches know the indices 0 (positive) and 1 (negative) only.
            visible = [run.shown.get(i, i) for i in indices]
            transformer_options = {**transformer_options, "cond_or_uncond": visible}
        return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)


def _remapped(options: dict, shown: Mapping[int, int]) -> dict:
    """A third-party function around the model call, too, knows the indices 0 and 1 only."""
    function = options.get("model_function_wrapper")
    if function is None:
        return options

    def with_known_indices(apply_model, args):
        indices = args["cond_or_uncond"]
        visible = [shown.get(i, i) for i in indices]
        inner = {**args["c"]["transformer_options"], "cond_or_uncond": visible, _INDICES: indices}
        return function(
            apply_model, {**args, "cond_or_uncond": visible, "c": {**args["c"], "transformer_options": inner}}
        )

    return {**options, "model_function_wrapper": with_known_indices}


_said: set[str] = set()


def _say_two_calls(why: str) -> None:
    if why not in _said:
        _said.add(why)
        logging.warning("DCO: the LoRA's row runs in a call of its own, which is slower, because %s.", why)


# what the families' configurations call the width of the text they read
_TEXT_WIDTHS = ("context_dim", "context_in_dim", "cap_feat_dim", "joint_attention_dim", "text_dim")


def _check_conditioning(guider) -> None:
    """Conditioning of another model is refused before anything runs."""
    config = guider.model_patcher.model.model_config.unet_config
    embedder = (config.get("context_embedder_config") or {}).get("params", {})  # SD3
    wanted = next((config[name] for name in _TEXT_WIDTHS if name in config), embedder.get("in_features"))
    for kind, conds in guider.conds.items():
        for cond in conds:
            width = cond["cross_attn"].shape[-1] if isinstance(cond.get("cross_attn"), Tensor) else None
            if isinstance(wanted, int) and width is not None and width != wanted:
                raise DCOError(
                    f"The {kind.removeprefix('dco_')} conditioning is {width} wide, this model "
                    f"({type(guider.model_patcher.model).__name__}) reads {wanted}: encode the prompt with the model's "
                    "own text encoder."
                )


def _beside(positive: list[dict], personalized: list) -> list[dict]:
    """theta's conditioning in the host's inner form. What was set on a single positive prompt (ControlNet, area,
    timestep range, ...) holds for theta's single prompt too, unless it says otherwise."""
    own = comfy.sampler_helpers.convert_cond(personalized)
    if len(own) == len(positive) == 1:
        text = ("cross_attn", "pooled_output", "model_conds", "uuid")
        shared = {key: value for key, value in positive[0].items() if key not in text}
        own = [shared | own[0]]
    return own


def patch(model, patches: Sequence[Patch], method: Method, personalized: list | None = None):
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
