"""From references to the trainer's examples: what every network reads and sees, encoded once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from ...dco_core.captions.markers import base_caption, class_prompt, markers
from ...dco_core.data.buckets import Fitted, bucket_size, bucket_step, fit, latent_mask
from ...dco_core.data.folders import MAX_PICTURES
from ...dco_core.errors import DCOError
from ...dco_core.files.fingerprints import memory_of
from ...dco_core.lora import LoraWeights, from_bundle, initializers_in
from ...dco_core.training.config import TrainingConfig
from ...dco_core.training.examples import Example
from ...dco_core.training.learned_tokens import LearnedTokens, token_specs
from ..host import toy_world
from ..host.training import conditioning, generation, inpainting, learned_tokens, network
from .choices import TOKENS_OFF
from .inputs import BUCKETS, FIXED_SIZES, SQUARE
from .references import Reference


@dataclass(frozen=True)
class Vocabulary:
    """What the markers of the captions stand for. tokens: the rows in training, or None. fixed: rows that a LoRA
    to go on from brought along and that do not train. initializers: what the base model reads for each of them."""

    tokens: LearnedTokens | None = None
    fixed: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    initializers: Mapping[str, str] = field(default_factory=dict)

    @property
    def vectors(self) -> dict[str, int]:
        """Vectors per token."""
        rows = self.fixed if self.tokens is None else self.tokens.rows()
        return {name: max(map(len, by_encoder.values())) for name, by_encoder in rows.items()}


def vocabulary(
    clip, captions: Sequence[str], options: Mapping[str, Any], start: LoraWeights | None, seed: int
) -> Vocabulary:
    """The Vocabulary for the node's `learned_tokens` choice."""
    known = from_bundle(start.other) if start else {}
    words = initializers_in(start.metadata, list(known)) if start else {}
    if options["learned_tokens"] == TOKENS_OFF:
        used = {name for text in captions for name in markers(text)} & set(known)
        return Vocabulary(None, {n: known[n] for n in used}, {n: words[n] for n in used})
    specs = token_specs(captions, options.get("initializers", ""), options.get("vectors", 0), words)
    tokens = learned_tokens.start(clip, specs, seed, known)
    return Vocabulary(tokens, {}, tokens.initializers)


def fit_all(references: Sequence[Reference], resolution: int, crop: str, what: str = "Image") -> list[Fitted]:
    """Every picture at its bucket's size, or as a centred square; repeats share one. what: its name in errors."""
    fitted: dict[Any, Fitted] = {}
    keys = [(memory_of(r.image), None if r.mask is None else memory_of(r.mask)) for r in references]
    for i, (key, reference) in enumerate(zip(keys, references, strict=True)):
        if key in fitted:
            continue
        height, width = reference.image.shape[:2]
        if crop == BUCKETS:
            size = bucket_size(width, height, resolution)
        else:
            size = (resolution, resolution)
        try:
            fitted[key] = fit(reference.image.cpu().float(), size, reference.mask)
        except DCOError as error:
            raise DCOError(f"{what} {i + 1}: {error}") from None
    return [fitted[key] for key in keys]


@dataclass(frozen=True)
class Encoded:
    """One reference, encoded by the host: own is None while tokens train; base is None where it is the same. inpaint:
    what an inpainting model is given of it; empty where nothing is and all of it is to be painted."""

    latent: Tensor
    std: Tensor | None
    mask: Tensor | None
    sizes: dict[str, int]
    caption: str
    own: list | None
    base: list | None = None
    class_: list | None = None
    empty: list | None = None
    rejected: tuple[Tensor, ...] = ()
    prior: bool = False
    inpaint: Mapping[str, Any] = field(default_factory=dict)


def encode(
    model, clip, vae, references: Sequence[Reference], words: Vocabulary, config: TrainingConfig,
    values: Mapping[str, Any], options: Mapping[str, Any],
    told: Callable[[str], None] = lambda _: None,
) -> list[Encoded]:  # fmt: skip
    """Encode pictures and texts by the host's VAE and CLIP, and let the base model make the images that an
    objective needs. options: the values of the chosen objective. told: called with lines of progress."""
    fitted = fit_all(references, values["resolution"], values["crop"])
    toy_world.check_sizes(model, [f.target_size for f in fitted], values["resolution"], SQUARE)
    captions = [r.caption for r in references]
    plain = [base_caption(text, words.initializers) for text in captions]
    base = conditioning.encode_captions(clip, plain)
    own: list[list | None]
    if words.tokens is not None:
        own = [None] * len(captions)
    elif words.fixed:
        reader = learned_tokens.PromptReader(clip, words.fixed, words.initializers)
        read = {text: reader.encode(text, disable_weights=True) for text in dict.fromkeys(captions)}
        own = [read[text] for text in captions]
    else:
        own = [*base]
    (empty,) = conditioning.encode_captions(clip, [""]) if config.caption_dropout else (None,)
    class_ = None
    if config.objective == "output-preservation":
        (class_,) = conditioning.encode_captions(clip, [_class_prompt(options, captions, words)])
    latents = conditioning.encode_images(vae, [f.image for f in fitted], told)
    made: dict[Any, Encoded] = {}  # repeats share one
    encoded = []
    for (latent, std), f, text, mine, its_base in zip(latents, fitted, captions, own, base, strict=True):
        key = (id(f), text)
        if key not in made:
            inpaint: dict[str, Any] = {}
            if f.mask is not None and inpainting.takes_mask(model, latent):
                inpaint = inpainting.entries(vae, f.image, f.mask)
            rejected: list[Tensor] = []
            if config.objective == "mapo":
                prompts = [base_caption(text, words.initializers)] * _count(options, 1)
                rejected = _generate(
                    model, clip, prompts, f, config, options, told, seed=len(made), inpaint=inpaint
                )
            made[key] = Encoded(
                latent, std, latent_mask(f.mask, latent), _sizes(f, values), text, mine,
                None if mine is its_base else its_base, class_, empty, tuple(rejected), inpaint=inpaint,
            )  # fmt: skip
        encoded.append(made[key])
    if config.with_prior:
        prompt = _class_prompt(options, captions, words)
        encoded += _class_images(model, clip, vae, prompt, empty, config, values, options, told)
    return encoded


def _sizes(fitted: Fitted, values: Mapping[str, Any]) -> dict[str, int]:
    fixed = values["size_conditioning"] == FIXED_SIZES
    return conditioning.fixed_sizes(values["resolution"]) if fixed else conditioning.real_sizes(fitted)


def _class_prompt(options: Mapping[str, Any], captions: Sequence[str], words: Vocabulary) -> str:
    prompt = options.get("class_prompt", "").strip() or class_prompt(captions, words.initializers)
    if not prompt:
        raise DCOError(
            'class_prompt is empty and no caption marks the subject: write "a photo of a dog", or mark <dog>.'
        )
    return base_caption(prompt, words.initializers)


def _count(options: Mapping[str, Any], default: int) -> int:
    return options.get("generated_images", default)


def _generate(
    model, clip, prompts, fitted: Fitted, config: TrainingConfig, options, told: Callable[[str], None], seed: int,
    inpaint: Mapping[str, Any] = MappingProxyType({}),
) -> list[Tensor]:  # fmt: skip
    return generation.generate(
        model, clip, prompts, fitted.target_size, config.seed + 7919 * (seed + 1),
        options.get("generation_steps", 30), options.get("generation_w_text", 7.5), inpaint, told,
    )  # fmt: skip


def _class_images(
    model, clip, vae, prompt: str, empty: list | None, config: TrainingConfig, values, options,
    told: Callable[[str], None],
) -> list[Encoded]:  # fmt: skip
    (text,) = conditioning.encode_captions(clip, [prompt])
    given = [image for batch in values["class_images"] or [] if batch is not None for image in batch]
    if given:
        if len(given) > MAX_PICTURES:
            raise DCOError(f"There are {len(given)} class images: connect at most {MAX_PICTURES}.")
        references = [Reference(image, prompt) for image in given]
        fitted = fit_all(references, values["resolution"], values["crop"], "Class image")
        latents = conditioning.encode_images(vae, [f.image for f in fitted], told)
        return [
            Encoded(latent, std, None, _sizes(f, values), prompt, text, empty=empty, prior=True)
            for (latent, std), f in zip(latents, fitted, strict=True)
        ]
    side = values["resolution"] // bucket_step(values["resolution"]) * bucket_step(values["resolution"])
    square = Fitted(torch.zeros(side, side, 3), None, (side, side), (0, 0))
    prompts = [prompt] * _count(options, 50)
    made = _generate(model, clip, prompts, square, config, options, told, seed=0)
    return [
        Encoded(latent, None, None, _sizes(square, values), prompt, text, empty=empty, prior=True)
        for latent in made
    ]


def examples(
    model,
    denoiser: network.HostDenoiser,
    encoded: Sequence[Encoded],
    encoder: learned_tokens.TrainingTextEncoder | None,
) -> list[Example]:
    """The trainer's examples; call it inside the training session. encoder: reads captions anew in every step,
    while tokens train. Repeats share one."""
    made = {id(e): _example(model, denoiser, e, encoder) for e in {id(e): e for e in encoded}.values()}
    return [made[id(e)] for e in encoded]


def _example(model, denoiser: network.HostDenoiser, e: Encoded, encoder) -> Example:
    x0, std = network.native_latent(model, e.latent, e.std)
    # made in inference mode, where what they become could not be changed
    entries = e.sizes | {name: value.clone() for name, value in e.inpaint.items()}

    def conditions(text: list | None) -> Any:
        return None if text is None else denoiser.model_conditions(conditioning.with_size(text, entries), x0)

    def learned(tokens) -> Callable[[], Any]:
        return lambda: conditions(encoder.encode(tokens))

    own = conditions(e.own) if e.own is not None else learned(encoder.tokens(e.caption))
    return Example(
        x0,
        own,
        base_conditioning=conditions(e.base),
        std=std,
        class_conditioning=conditions(e.class_),
        empty_conditioning=conditions(e.empty),
        mask=None if e.mask is None else e.mask.to(x0).clone(),
        prior=e.prior,
        rejected=[network.native_latent(model, latent)[0] for latent in e.rejected],
    )
