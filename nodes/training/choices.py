"""Inputs of training that are a choice of several with options of their own: objectives, beta, tokens, previews."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..options import dynamic

OBJECTIVES = {
    "DCO": "dco",
    "DreamBooth": "dreambooth",
    "DreamBooth + prior preservation": "dreambooth-prior",
    "MaPO": "mapo",
    "Output preservation": "output-preservation",
    "DCO + prior preservation": "dco-prior",
}
BETA_AUTO, BETA_FOUND, BETA_OWN = "auto", "found on my images", "own value"
TOKENS_OFF, TOKENS_WITH_LORA, TOKENS_ALONE = "off", "with the LoRA", "alone (Textual Inversion)"
PRESERVE_NONE, PRESERVE_PROMPTS = "none", "prompts"
PREVIEWS_AUTO, PREVIEWS_EVERY, PREVIEWS_OFF = "auto", "every so many steps", "off"


def _prior_weight(maximum: float, tooltip: str) -> io.Float.Input:
    return io.Float.Input(
        "prior_weight", default=1.0, min=0.0, max=maximum, step=0.1, optional=True, tooltip=tooltip
    )


def _class_prompt() -> io.String.Input:
    return io.String.Input(
        "class_prompt", default="", optional=True,
        tooltip="The prompt of the subject's class, such as \"a photo of a dog\". Empty: from the captions' marker.",
    )  # fmt: skip


def _generation(count: int, what: str) -> list[Any]:
    return [
        io.Int.Input(
            "generated_images", default=count, min=1, max=1000, optional=True, tooltip=f"How many {what}.",
        ),
        io.Int.Input(
            "generation_steps", default=30, min=1, max=1000, optional=True,
            tooltip="Sampling steps for these images.",
        ),
        io.Float.Input(
            "generation_w_text", default=7.5, min=0.0, max=100.0, step=0.1, optional=True,
            tooltip="Text guidance (cfg) for these images; 2 for the Toy World.",
        ),
    ]  # fmt: skip


def _beta() -> io.DynamicCombo.Input:
    found = io.Float.Input(
        "target_gate", default=0.3, min=0.01, max=0.49, step=0.01,
        tooltip="What the beta aims at: how far gates stand open, on average, after a tenth of the run. "
        "0.5 is where they begin; lower stays closer to the base model.",
    )  # fmt: skip
    own = io.Float.Input(
        "value", default=1.0, min=0.0001, max=1000.0, step=0.01, round=0.0001,
        tooltip="The paper's is 1 (beta*T = 1000 on the element mean of the squared error of the noise).",
    )  # fmt: skip
    return dynamic(
        "beta", {BETA_AUTO: [], BETA_FOUND: [found], BETA_OWN: [own]}, optional=True,
        tooltip="How strongly to stay close to the base model. auto: the paper's 1, on errors of the noise, whatever "
        "the model predicts. Or found on your images before training, on the model's own errors, or a value of your "
        "own.",
    )  # fmt: skip


def objectives() -> io.DynamicCombo.Input:
    dco = [_beta()]
    prior = [
        _prior_weight(100.0, "lambda, the weight of the class images' loss."),
        _class_prompt(),
        *_generation(50, "class images the base model makes first, where none are connected"),
    ]  # fmt: skip
    mapo = [
        io.Float.Input(
            "mapo_beta", default=0.1, min=0.0, max=100.0, step=0.01, optional=True,
            tooltip="Weight of the margin over the rejected image (MaPO's authors: 0.1).",
        ),
        *_generation(1, "rejected images the base model makes of every caption first"),
    ]  # fmt: skip
    preservation = [
        io.Float.Input(
            "preservation_weight", default=1.0, min=0.0, max=100.0, step=0.1, optional=True,
            tooltip="Weight of the drift from the base model on the class prompt.",
        ),
        _class_prompt(),
    ]  # fmt: skip
    options = {
        "DCO": dco,
        "DreamBooth": [],
        "DreamBooth + prior preservation": prior,
        "MaPO": mapo,
        "Output preservation": preservation,
        "DCO + prior preservation": [
            *dco,
            _prior_weight(
                100000.0,
                "lambda, the weight of the class images' loss. DCO's own follows errors up to beta*T (1000) times as "
                "strongly, so that the authors' 1 holds the class but gently.",
            ),
            *prior[1:],
        ],
    }
    return dynamic(
        "objective", {name: options[name] for name in OBJECTIVES},
        "DCO: Direct Consistency Optimization. The others are baselines to compare with.",
    )  # fmt: skip


def preservation() -> io.DynamicCombo.Input:
    inputs = [
        io.String.Input(
            "preservation_prompts", default="bundled", multiline=True,
            tooltip="One a line: prompts of your own, or blank (the empty prompt), class (of the captions' marker), "
            "bundled (forty everyday ones).",
        ),
        io.Float.Input(
            "preservation_weight", default=500.0, min=0.001, max=100000.0, step=1.0, round=0.001,
            tooltip="How strongly. 500 (beta*T/2) holds as strongly as DCO's open gate learns at beta 1; for "
            "DreamBooth, whose loss is that much smaller, 1.",
        ),
        io.Float.Input(
            "preservation_share", default=1.0, min=0.01, max=1.0, step=0.05,
            tooltip="In which share of the batches; each of them takes about twice as long.",
        ),
    ]  # fmt: skip
    return dynamic(
        "preservation", {PRESERVE_NONE: [], PRESERVE_PROMPTS: inputs}, optional=True,
        tooltip="Prompts on which the LoRA is held to the base model, so that words that are not the subject keep "
        "their meaning. Beside any objective.",
    )  # fmt: skip


def tokens() -> io.DynamicCombo.Input:
    inputs = [
        io.Float.Input(
            "token_learning_rate", default=5e-4, min=1e-7, max=1.0, step=1e-6, round=1e-7,
            tooltip="Learning rate of the tokens. The paper: 5e-4; the authors' code: 5e-6.",
        ),
        io.String.Input(
            "initializers", default="", multiline=True,
            tooltip="What markers start from, where it is not their own words, one a line: <my_dog> = dog. The base "
            "model reads these words.",
        ),
        io.Int.Input(
            "vectors", default=0, min=0, max=32,
            tooltip="Vectors per token. 0: as many as the initialiser has.",
        ),
    ]  # fmt: skip
    return dynamic(
        "learned_tokens", {TOKENS_OFF: [], TOKENS_WITH_LORA: inputs, TOKENS_ALONE: inputs}, optional=True,
        tooltip="Learn what <dog> means as a new token of the text encoder, from the word dog: with the LoRA (the "
        "paper, for subjects), or alone. Needs CLIP text encoders (SD1.5, SDXL) or the Toy World.",
    )  # fmt: skip


def previews() -> io.DynamicCombo.Input:
    every = io.Int.Input(
        "preview_every", default=250, min=1, max=100000,
        tooltip="Steps between previews; there is one in the end too. Each costs about 100 evaluations of the model a "
        "prompt.",
    )  # fmt: skip
    return dynamic(
        "previews", {PREVIEWS_AUTO: [], PREVIEWS_EVERY: [every], PREVIEWS_OFF: []}, optional=True,
        tooltip="Show what the model makes while it trains: base model, trained, and reward guidance, from the same "
        "noise each time. Training is not changed by it. auto: about four times in a run.",
    )  # fmt: skip
