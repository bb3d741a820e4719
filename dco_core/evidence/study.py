"""What a study compares: methods, subjects and styles, seeds, guidance. Plain data, readable from a JSON file."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import DCOError
from ..network.lora_layers import AdapterConfig
from ..pipeline.vocabulary import TokenConfig
from ..training.config import TrainingConfig
from .toy_prompts import eligible_subjects

BUILT_IN = Path(__file__).with_name("studies")
BASE = "base model"  # without any LoRA
CAPTIONS = ("comprehensive", "compact")
CEILING = "true renders"  # of the prompts, with what is to be learned: what a perfect model would draw (Toy World)
STOPPED = "stopped"  # the checkpoint with the highest validation margin
PLAIN = "plain"  # classifier-free guidance of the fine-tuned model, the diamond of the paper's figures


@dataclass(frozen=True)
class StudyMethod:
    """A way to train. training, adapter: fields of TrainingConfig and AdapterConfig that differ from the study's.
    beta_factor: times the study's beta. steps_factor: times the study's steps. captions: "comprehensive" or "compact"
    (Sec. 4.3). bases: of the study, on which it is trained; empty for all. masks: with a mask of the object in each
    reference, which the Toy World can make."""

    training: Mapping[str, Any] = field(default_factory=dict)
    adapter: Mapping[str, Any] = field(default_factory=dict)
    beta_factor: float = 1.0
    steps_factor: float = 1.0
    captions: str = "comprehensive"
    bases: tuple[str, ...] = ()
    masks: bool = False


_DREAMBOOTH = {"objective": "dreambooth"}
_PRIOR = {"objective": "dreambooth-prior"}
METHODS = {
    "DreamBooth": StudyMethod(_DREAMBOOTH),
    "DreamBooth, compact captions": StudyMethod(_DREAMBOOTH, captions="compact"),
    "DreamBooth, half the steps": StudyMethod(_DREAMBOOTH, steps_factor=0.5),
    "DreamBooth + prior 0.5": StudyMethod({**_PRIOR, "prior_weight": 0.5}),
    "DreamBooth + prior 1": StudyMethod({**_PRIOR, "prior_weight": 1.0}),
    "DCO": StudyMethod(),
    "DCO, half beta": StudyMethod(beta_factor=0.5),
    "DCO, double beta": StudyMethod(beta_factor=2.0),
    "DCO, compact captions": StudyMethod(captions="compact"),
    "DCO, half the steps": StudyMethod(steps_factor=0.5),
    "MaPO": StudyMethod({"objective": "mapo"}),
    "output preservation": StudyMethod({"objective": "output-preservation"}),
}
# Table 1: the method of both LoRAs, how they become one, and the weight of both.
MERGES = {
    "DreamBooth merge": ("DreamBooth", "exact", 1.0),
    "DreamBooth merge, 0.6": ("DreamBooth", "exact", 0.6),
    "DreamBooth ZipLoRA": ("DreamBooth", "zip-lora", 1.0),
    "DCO merge": ("DCO", "exact", 1.0),
    "DCO merge, 0.6": ("DCO", "exact", 0.6),
    "DCO ZipLoRA": ("DCO", "zip-lora", 1.0),
}


@dataclass(frozen=True)
class Study:
    """model: as --model of the command line. subjects, styles: what is taught: names of the Toy World (toy, toy-1,
    print) or folders of pictures with captions. categories: {subject: "object" or "live subject"} for the choice of
    prompts; left out: object.

    methods: names of METHODS for the subjects; style_methods: for the styles. own_methods: {name: fields of
    StudyMethod} of the study's own, which they may name too. merges: names of MERGES, of every subject with the style
    at the same place.

    training, adapter: fields of TrainingConfig and AdapterConfig; style_training, style_adapter: what is different for
    styles. seeds: of training and of the pictures' noise, so that the methods are compared in pairs.

    w_text, w_rg, sampling_steps: of the pictures; each method is also sampled with plain guidance at w_text. prompts:
    at most so many; pictures: of each prompt. class_images: of prior preservation. zip_steps: of ZipLoRA.
    likeness_model, text_model: folders or hub names of DINOv2 and SigLIP (metrics/); judge_model: of a vision-language
    model that scores too, "" for none; the Toy World has scorers of its own. prompt_files: {subject or style: a text
    file of its prompts, one a line} in place of the paper's. resolution: in pixels, None for the model's own;
    precision: of its weights.

    distance_draws: noises at each of distance_timesteps for the noise distance, which is taken on the references and on
    as many prompts beyond them as `distance_prompts` says.

    learned_tokens: the subjects' markers become tokens of their own, trained beside the LoRA as in Sec. 5.1 of the
    paper; styles have none.

    bases: {name: model} where the same is done on several models; left out: `model` alone. checkpoints: steps at
    which a training is kept and scored too, besides its end; a method that is scored on validation draws
    (validation_steps) also has the checkpoint "stopped". checkpoint: the one that merges are made of and noise
    distances taken at; left out: the end. w_rg_at: the checkpoints that are sampled over w_rg, w_rg_methods: the
    methods; left out: the end of all. others: so many prompts without what was learned, which tell collateral damage.
    ceiling: score true renders too (Toy World). one_seed_each: each subject (and each style) has the seed at its
    place alone, in place of all of them. pictures_at_once: in one call of the network. side_by_side: units that are
    trained in one call where they can be. contrasts: what is to be tested (contrasts.py).
    """

    model: str
    subjects: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    training: Mapping[str, Any]
    adapter: Mapping[str, Any]
    w_text: float
    w_rg: tuple[float, ...]
    styles: tuple[str, ...] = ()
    style_methods: tuple[str, ...] = ()
    merges: tuple[str, ...] = ()
    own_methods: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    categories: Mapping[str, str] = field(default_factory=dict)
    style_training: Mapping[str, Any] = field(default_factory=dict)
    style_adapter: Mapping[str, Any] = field(default_factory=dict)
    sampling_steps: int = 50
    prompts: int = 8
    pictures: int = 4
    class_images: int = 16
    zip_steps: int = 100
    distance_timesteps: int = 10
    distance_draws: int = 100
    resolution: int | None = None
    precision: str = "fp32"
    likeness_model: str = "facebook/dinov2-base"
    text_model: str = "google/siglip-base-patch16-224"
    judge_model: str = ""
    prompt_files: Mapping[str, str] = field(default_factory=dict)
    distance_prompts: int = 0
    bases: Mapping[str, str] = field(default_factory=dict)
    checkpoints: tuple[int, ...] = ()
    checkpoint: int | None = None
    w_rg_at: tuple[int | str, ...] = ()
    w_rg_methods: tuple[str, ...] = ()
    others: int = 0
    ceiling: bool = False
    one_seed_each: bool = False
    pictures_at_once: int = 4
    side_by_side: int = 1
    learned_tokens: bool = False
    contrasts: tuple[Mapping[str, Any], ...] = ()

    def models(self) -> Mapping[str, str]:
        """{base: model}; one without a name where the study has no bases."""
        return self.bases or {"": self.model}

    @property
    def on_toy_world(self) -> bool:
        return all(model.partition(":")[0] == "toy-world" for model in self.models().values())

    def methods_on(self, base: str, style: bool = False) -> list[str]:
        """The methods that are trained on a base."""
        names = self.style_methods if style else self.methods
        return [name for name in names if base in (self.method(name).bases or (base,))]

    def units(self) -> list[tuple[int, int]]:
        """(place of the subject or style, seed) of each unit, seed by seed."""
        count = max(len(self.subjects), len(self.styles))
        if self.one_seed_each:
            return list(enumerate(self.seeds[:count]))
        return [(place, seed) for seed in self.seeds for place in range(count)]

    def checkpoints_of(self, method: str, seed: int, style: bool = False) -> list[int]:
        """The steps at which a training is kept, its end last."""
        steps = self.config(method, seed, style).steps
        return [*(c for c in sorted(self.checkpoints) if c < steps), steps]

    def main_checkpoint(self, method: str, seed: int, style: bool = False) -> int:
        """The one that merges are made of."""
        kept = self.checkpoints_of(method, seed, style)
        return self.checkpoint if self.checkpoint in kept else kept[-1]

    def check(self) -> None:
        """Raise DCOError for what cannot be run, before anything is."""
        methods = {**METHODS, **self.own_methods}
        for name, known in (("methods", methods), ("style_methods", methods), ("merges", MERGES)):
            for value in getattr(self, name):
                if value not in known:
                    raise DCOError(f'The study\'s {name} have "{value}": use some of {", ".join(known)}.')
        if not all(self.models().values()):
            raise DCOError("The study names no model: give one, as --model diffusers:FOLDER.")
        if not (self.subjects or self.styles) or not self.seeds:
            raise DCOError(
                "The study needs at least one subject or style and one seed: give folders, as --subjects DOG CAT."
            )
        shown = max(len(self.subjects), len(self.styles))
        if self.one_seed_each and len(self.seeds) < shown:
            raise DCOError(
                f"one_seed_each needs a seed for each of {shown} subjects or styles; the study has {len(self.seeds)}."
            )
        for name in self.w_rg_methods:
            if name not in (*self.methods, *self.style_methods, *self.merges):
                raise DCOError(f'w_rg_methods has "{name}", which is none of the study\'s methods.')
        for method in (*self.methods, *self.style_methods):
            others = [name for name in self.models().values() if name.partition(":")[0] != "toy-world"]
            if self.method(method).masks and others:
                raise DCOError(f'"{method}" asks for masks, which only the Toy World can make, not {others[0]}.')
            if strange := set(self.method(method).bases) - set(self.models()):
                raise DCOError(f'"{method}" is for the base "{min(strange)}", which the study has not.')
        if strange := set(self.prompt_files) - {*self.subjects, *self.styles}:
            raise DCOError(f'prompt_files has "{min(strange)}", which is none of the study\'s subjects and styles.')
        if self.on_toy_world and (self.judge_model or self.prompt_files):
            raise DCOError("judge_model and prompt_files are for models of one's own: the Toy World has its scorers.")
        # imported here: contrasts read tables by the names above
        from .contrasts import contrasts_from

        contrasts_from(self.contrasts)
        for name in ("subjects", "styles", "methods", "seeds", "w_rg"):
            values = getattr(self, name)
            if len(set(values)) != len(values):
                raise DCOError(f"The study names one of its {name} twice: {', '.join(map(str, values))}.")
        for name in (
            "prompts", "pictures", "sampling_steps", "class_images", "zip_steps", "distance_timesteps",
            "distance_draws", "pictures_at_once", "side_by_side",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise DCOError(f"The study's {name} is {getattr(self, name)}: it must be at least 1.")
        if self.merges and len(self.subjects) != len(self.styles):
            raise DCOError(
                f"Merges join each subject with the style at its place, but there are {len(self.subjects)} subjects "
                f"and {len(self.styles)} styles: give as many (a style may be named again as print-1, print-2)."
            )
        for merge in self.merges:
            needed = MERGES[merge][0]
            if needed not in self.methods or needed not in self.style_methods:
                raise DCOError(f'"{merge}" needs "{needed}" among methods and style_methods.')
        for style in (False, True):
            for method in self.style_methods if style else self.methods:
                self.config(method, self.seeds[0], style).check()
                self.adapter_config(method, self.seeds[0], style)

    def method(self, name: str) -> StudyMethod:
        if name not in self.own_methods:
            return METHODS[name]
        try:
            values = dict(self.own_methods[name])
            method = StudyMethod(**values | {"bases": tuple(values.get("bases", ()))})
        except TypeError as error:
            raise DCOError(f'The method "{name}" is not understood: {error}.') from None
        if method.captions not in CAPTIONS:
            raise DCOError(f'The captions of "{name}" are {method.captions!r}: use {" or ".join(CAPTIONS)}.')
        return method

    def tokens(self, style: bool = False) -> TokenConfig:
        """What the markers of a subject (or a style) become."""
        return TokenConfig("with-lora") if self.learned_tokens and not style else TokenConfig()

    def adapter_config(self, method: str, seed: int, style: bool = False) -> AdapterConfig:
        """The LoRA of a method."""
        values = {
            **self.adapter,
            **(self.style_adapter if style else {}),
            **self.method(method).adapter,
            "seed": seed,
        }
        try:
            return AdapterConfig(**values)
        except TypeError as error:
            raise DCOError(f"The study's adapter is not understood: {error}.") from None

    def config(self, method: str, seed: int, style: bool = False) -> TrainingConfig:
        """The training of a method. A beta that the study leaves automatic stays so only where its factor is 1."""
        m = self.method(method)
        values = {**self.training, **(self.style_training if style else {}), **m.training, "seed": seed}
        try:
            config = TrainingConfig(**values)
        except TypeError as error:
            raise DCOError(f"The study's training is not understood: {error}.") from None
        if config.beta is None and m.beta_factor != 1:
            raise DCOError(
                f'"{method}" needs a number for beta in the study\'s training, not an automatic one.'
            )
        beta = None if config.beta is None else config.beta * m.beta_factor
        if not config.is_dco:
            beta = TrainingConfig.beta  # has no effect there
        return dataclasses.replace(config, steps=math.ceil(config.steps * m.steps_factor), beta=beta)


def load_study(name: str, changes: Mapping[str, Any] | None = None) -> Study:
    """A study by name (a file in studies/) or from a JSON file of the fields of Study. changes: in place of its own.
    DCOError for what is neither, and for a study that cannot be run."""
    path = BUILT_IN / f"{name}.json" if (BUILT_IN / f"{name}.json").is_file() else Path(name)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        known = ", ".join(sorted(p.stem for p in BUILT_IN.glob("*.json")))
        raise DCOError(f"--study {name} is no file and none of {known}.") from None
    except ValueError as error:
        raise DCOError(f"{path} is no JSON file ({error}).") from None
    if isinstance(values, dict) and values.get("bases") and "model" in (changes or {}):
        raise DCOError(f"{path.stem} is a study of {', '.join(values['bases'])}: leave --model out.")
    return study_from(values | dict(changes or {}) if isinstance(values, dict) else values, str(path))


def _chosen(rule: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """The subjects of a rule {"from": "toy-101", "count": 20, "true_renders": 0.9}: the first so many by number whose
    own true renders have at least that likeness."""
    if set(rule) != {"from", "count", "true_renders"}:
        raise DCOError(f"{where} chooses subjects by {', '.join(rule)}: give from, count and true_renders.")
    return tuple(eligible_subjects(rule["from"], int(rule["count"]), float(rule["true_renders"])))


def study_from(values: Any, where: str) -> Study:
    """A Study from JSON values."""
    fields = {f.name for f in dataclasses.fields(Study)}
    if not isinstance(values, dict) or (unknown := sorted(set(values) - fields)):
        found = f"{', '.join(unknown)}" if isinstance(values, dict) else "no mapping"
        raise DCOError(f"{where} has {found}, which a study has not: use {', '.join(sorted(fields))}.")
    values = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    subjects = values.get("subjects")
    if isinstance(subjects, dict):
        values["subjects"] = _chosen(subjects, where)
    try:
        study = Study(**values)
    except TypeError as error:
        raise DCOError(f"{where} is no complete study: {error}.") from None
    study.check()
    return study
