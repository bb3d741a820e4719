"""The configuration of a training run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..captions.preservation import CLASS, preservation_lines
from ..errors import DCOError
from ..losses import REDUCTIONS, WEIGHTINGS, T
from .optimizers import LR_SCHEDULERS, OPTIMIZERS

OBJECTIVE_NAMES = ("dco", "dreambooth", "dreambooth-prior", "mapo", "output-preservation", "dco-prior")
KEPT = ("last", "best")
AUTOMATIC_BETA = ("paper", "images")
AUTO_WEIGHTING = "auto"
_SILENT = ("mask_prior", "preservation_prompts", "preservation_share")
TIMESTEP_SAMPLINGS = ("uniform", "logit-normal", "sigmoid", "shifted", "family")


@dataclass(frozen=True)
class TrainingConfig:
    """objective: one of OBJECTIVE_NAMES. The optimiser is the authors': AdamW (0.9, 0.999), weight decay 1e-4,
    constant rate, gradients clipped at norm 1 over all trainable values.

    beta: 1.0 is beta*T = 1000, which suits errors of the noise; errors of v and flow predictions are larger and
        saturate the gate there. None: automatic (calibration.py).
    automatic_beta: "paper" takes the paper's 1.0 for epsilon prediction and for epsilon weighting, and finds beta on
        the images elsewhere; "images" always finds it.
    target_gate: the share of full rate that a beta found on the images aims at.
    gradient_accumulation_steps: micro-batches of batch_size per step.
    token_learning_rate: of learned tokens; the paper has 5e-4, the authors' code 5e-6.
    weighting: w(t): "uniform"; "min-snr" with snr_gamma, which weighs references alone, not class images; "epsilon",
        with which every objective compares errors of the noise whatever the model predicts, as the paper does, and beta
        means what it means there. "auto": see settled_weighting.
    prior_weight: lambda of prior preservation; beside DCO, whose loss follows errors up to beta*T (1000) times as
        strongly, 1 is little. preservation_weight: of output preservation and of preservation prompts.
    mapo_beta, mapo_snr: of MaPO, the values of its authors.
    optimizer, lr_scheduler, lr_warmup_steps: see optimizers.py.
    ema_decay: decay of an exponential moving average of what trains, which then is the result; 0 is none.
    look_ahead: batches that phi looks at in one call (reference_pass.py): 1 is one a step, 0 as many as there is room
        for.
    timestep_sampling: which noise levels are drawn, one of TIMESTEP_SAMPLINGS (noise_levels.py); the paper has uniform.
    validation_steps: score the adapter on validation draws after this many steps, 0 for never. keep: "last", or "best"
        for the adapter with the highest validation margin (at the steps that are scored).
    mask_prior: weight of |theta - phi|^2 outside of the pictures' masks (holding.py), 0 for none: what lies there then
        is free. As with prior_weight, 1 is little beside DCO: beta*T/2 (500) holds as strongly as an open gate learns.
    preservation_prompts: on which theta is held to phi with preservation_weight, as `preservation_lines` reads them; ""
        for none. preservation_share: in which share of the batches.
    """

    steps: int = 1000
    batch_size: int = 1
    learning_rate: float = 5e-5
    objective: str = "dco"
    beta: float | None = 1.0
    reduction: str = "per-sample"
    offset_noise: float = 0.0
    weight_decay: float = 1e-4
    max_grad_norm: float = 1.0
    seed: int = 0
    gradient_accumulation_steps: int = 1
    token_learning_rate: float = 5e-4
    weighting: str = "auto"
    snr_gamma: float = 5.0
    caption_dropout: float = 0.0
    target_gate: float = 0.3
    prior_weight: float = 1.0
    preservation_weight: float = 1.0
    mapo_beta: float = 0.1
    mapo_snr: float = 0.5
    optimizer: str = "adamw"
    lr_scheduler: str = "constant"
    lr_warmup_steps: int = 0
    ema_decay: float = 0.0
    look_ahead: int = 0
    validation_steps: int = 0
    keep: str = "last"
    automatic_beta: str = "paper"
    timestep_sampling: str = "uniform"
    mask_prior: float = 0.0
    preservation_prompts: str = ""
    preservation_share: float = 1.0

    def check(self) -> None:
        """Raise DCOError for a value that cannot train."""
        for name, known in (
            ("objective", OBJECTIVE_NAMES),
            ("reduction", REDUCTIONS),
            ("weighting", (AUTO_WEIGHTING, *WEIGHTINGS)),
            ("optimizer", OPTIMIZERS),
            ("lr_scheduler", LR_SCHEDULERS),
            ("keep", KEPT),
            ("automatic_beta", AUTOMATIC_BETA),
            ("timestep_sampling", TIMESTEP_SAMPLINGS),
        ):
            if getattr(self, name) not in known:
                raise DCOError(f"{name} {getattr(self, name)!r} is unknown: use one of {', '.join(known)}.")
        for name in (
            "steps", "batch_size", "learning_rate", "max_grad_norm", "gradient_accumulation_steps",
            "token_learning_rate", "snr_gamma", "mapo_snr",
        ):  # fmt: skip
            if not getattr(self, name) > 0:
                raise DCOError(f"{name} is {getattr(self, name)}: it must be greater than 0.")
        for name in (
            "offset_noise", "weight_decay", "prior_weight", "preservation_weight", "mapo_beta", "lr_warmup_steps",
            "look_ahead", "validation_steps", "mask_prior",
        ):  # fmt: skip
            if not getattr(self, name) >= 0:
                raise DCOError(f"{name} is {getattr(self, name):g}: it cannot be negative.")
        if self.is_dco and self.beta is not None and not self.beta > 0:
            raise DCOError(
                f'beta is {self.beta:g}: DCO needs more than 0; for the plain loss choose "dreambooth".'
            )
        preserved = preservation_lines(self.preservation_prompts)
        if not 0 < self.preservation_share <= 1:
            raise DCOError(
                f"preservation_share is {self.preservation_share:g}: it must be above 0 and at most 1, which is every "
                "batch; without preservation_prompts nothing is preserved."
            )
        if preserved and not self.preservation_weight > 0:
            raise DCOError(
                "preservation_weight is 0, so that preservation_prompts do nothing: raise it, or leave the prompts out."
            )
        if not 0 <= self.caption_dropout < 1:
            raise DCOError(f"caption_dropout is {self.caption_dropout:g}: it must be from 0 to below 1.")
        if not 0 <= self.ema_decay < 1:
            raise DCOError(f"ema_decay is {self.ema_decay:g}: it must be from 0 (none) to below 1, such as 0.99.")
        if self.keep == "best" and not self.validation_steps:
            raise DCOError("keep is best, but nothing is scored: set validation_steps, such as to 50 steps.")
        if not 0 < self.target_gate < 0.5:
            raise DCOError(
                f"target_gate is {self.target_gate:g}: it must lie between 0 and 0.5, where gates begin."
            )

    def check_masks(self, outside: bool) -> None:
        """Raise DCOError for a mask prior without anything to hold. outside: whether some mask leaves something out."""
        if self.mask_prior and not outside:
            raise DCOError(
                f"mask_prior is {self.mask_prior:g}, but no picture has anything outside of a mask: give masks (an "
                "alpha channel, a MASK, or a folder masks beside the pictures), or set mask_prior to 0."
            )

    @property
    def is_dco(self) -> bool:
        """Whether the loss is gated by a margin over phi, and beta counts."""
        return self.objective in ("dco", "dco-prior")

    @property
    def settled_weighting(self) -> str:
        """The weighting that counts. "auto" is "epsilon" for DCO, whose beta then is the paper's on every model, and
        "uniform" for a beta found on the images, in the space of the model's own errors, and for plain losses."""
        if self.weighting != AUTO_WEIGHTING:
            return self.weighting
        found = self.beta is None and self.automatic_beta == "images"
        return "epsilon" if self.is_dco and not found else "uniform"

    @property
    def with_prior(self) -> bool:
        """Whether class images are learned from beside the references."""
        return self.objective in ("dreambooth-prior", "dco-prior")

    @property
    def beta_T(self) -> float:
        if self.beta is None:
            raise DCOError("beta is automatic: calibrate it first (dco_core.training.calibration.with_beta).")
        return self.beta * T

    @property
    def reads_phi(self) -> bool:
        """Whether the loss asks what phi says about a draw."""
        return self.is_dco or self.mask_prior > 0 or bool(self.preservation_prompts)

    @property
    def reads_class_prompt(self) -> bool:
        """Whether the prompt of the subject's class is needed."""
        preserved = CLASS in preservation_lines(self.preservation_prompts)
        return self.with_prior or self.objective == "output-preservation" or preserved

    def as_dict(self) -> dict[str, Any]:
        """All values; those of _SILENT only where they are set, so that a run without them is told, and called, as it
        was before there were any."""
        return {k: v for k, v in asdict(self).items() if k not in _SILENT or v != getattr(TrainingConfig, k)}
