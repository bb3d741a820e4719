"""The DCO LoRA Trainer."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from comfy_api.latest import io

from ..dco_core.adapters import AdapterConfig
from ..dco_core.calibration import resolved
from ..dco_core.config import TrainingConfig
from ..dco_core.errors import DCOError
from ..dco_core.lora import LoraWeights, from_tensors
from ..dco_core.plot import loss_plot
from ..dco_core.trainer import StepReport, train
from . import trained_lora, trainer_inputs, training_data
from .captions import check
from .host import files, learned_tokens, training
from .host.progress import progress_bar, raise_if_interrupted, show_text
from .references import distinct, gather
from .trainer_inputs import OBJECTIVES, TOKENS_ALONE, TOKENS_OFF, TOKENS_WITH_LORA


class DCOLoRATrainer(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DCOLoRATrainer",
            display_name="DCO LoRA Trainer",
            category="model/training",
            description="Teaches a model your subject or your style from 1 to 20 images with Direct Consistency "
            "Optimization: it learns what the images show and stops where it would drift from the base model. The "
            "LoRA is saved when training ends, and also when you cancel it.",
            search_aliases=[
                "train lora",
                "dreambooth",
                "textual inversion",
                "dco",
                "personalization",
                "fine-tune",
                "lora trainer",
            ],
            is_input_list=True,
            is_output_node=True,
            inputs=trainer_inputs.inputs(),
            outputs=trainer_inputs.outputs(),
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, images, captions, masks=None, class_images=None, **single) -> io.NodeOutput:
        values = _unwrapped(single) | {"class_images": class_images}
        config, options = _training_config(values)
        token_options = _chosen(values["learned_tokens"], "learned_tokens")
        start = values["start_from"] and from_tensors(values["start_from"], "The LoRA to start from")
        model, clip, vae = values["model"], values["clip"], values["vae"]
        references = gather(images, captions, masks)
        texts = [r.caption for r in references]
        path = files.new_lora_path(values["filename_prefix"])
        adapter = _adapter_config(values, model, start, token_options["learned_tokens"])

        words = training_data.vocabulary(clip, texts, token_options, start, config.seed)
        said = check([r.caption for r in distinct(references)], clip=clip, initializers=words.initializers)
        show_text(cls.hidden.unique_id, said)  # before training, while there is time to mend captions
        encoded = training_data.encode(model, clip, vae, references, words, config, values, options)
        reports: list[StepReport] = []
        bar = progress_bar(config.steps)

        def on_step(report: StepReport) -> None:
            reports.append(report)
            bar.update_absolute(report.step)
            raise_if_interrupted()

        with training.training_session(model, adapter, clip if words.tokens else None) as denoiser:
            encoder = learned_tokens.TrainingTextEncoder(clip, words.tokens) if words.tokens else None
            examples = training_data.examples(model, denoiser, encoded, encoder)
            config = resolved(config, denoiser, examples, words.tokens, raise_if_interrupted)
            run = _run(path, config, adapter, model, denoiser, texts, values)
            carried = start.other if start else {}
            initializers = dict(words.initializers)

            def lora_so_far() -> LoraWeights:
                weights = LoraWeights(denoiser.weights().layers, carried)
                return trained_lora.finished(run, weights, words.tokens, initializers, len(reports))

            started = time.monotonic()
            try:
                train(denoiser, examples, config, on_step, tokens=words.tokens)
            except BaseException:
                if reports:  # nothing that was learned is lost: cancel and errors save it too
                    trained_lora.save(run, lora_so_far(), words.tokens)
                raise
            seconds = time.monotonic() - started
            lora = lora_so_far()
        saved = trained_lora.save(run, lora, words.tokens)
        report = "\n".join([_summary(reports, seconds, config), *saved, said])
        plot = torch.tensor(loss_plot(reports)).float()[None] / 255
        loss_map = {"loss": [r.loss for r in reports]}
        return io.NodeOutput(
            trained_lora.lora_model(run, lora), loss_map, plot, report, ui={"text": [report]}
        )


def _unwrapped(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """One value an input: is_input_list wraps each in a list. What a prompt leaves out has its default."""
    values = {"start_from": None, "learned_tokens": {"learned_tokens": [TOKENS_OFF]}, "objective": None}
    values |= trainer_inputs.defaults()
    for name, value in inputs.items():
        if isinstance(value, dict):
            if value.get(name):
                values[name] = value
        elif value:
            values[name] = value[0]
    return values


def _chosen(dynamic: Mapping[str, Any] | None, name: str) -> dict[str, Any]:
    """The choice of a DynamicCombo and its options, unwrapped."""
    given = {key: value[0] for key, value in (dynamic or {}).items() if value}
    return {name: None} | given


def _training_config(values: Mapping[str, Any]) -> tuple[TrainingConfig, dict[str, Any]]:
    options = _chosen(values["objective"], "objective")
    chosen = options.pop("objective")
    if chosen not in OBJECTIVES:
        raise DCOError(f"objective {chosen!r} is unknown: choose one of {', '.join(OBJECTIVES)}.")
    tokens = _chosen(values["learned_tokens"], "learned_tokens")
    if tokens["learned_tokens"] not in (TOKENS_OFF, TOKENS_WITH_LORA, TOKENS_ALONE):
        raise DCOError(
            f"learned_tokens {tokens['learned_tokens']!r} is unknown: choose {TOKENS_OFF}, {TOKENS_WITH_LORA} or "
            f"{TOKENS_ALONE}."
        )
    fields = TrainingConfig.__dataclass_fields__
    taken = {name: value for name, value in options.items() if name in fields}
    if "beta" in taken:
        taken["beta"] = taken["beta"] or None  # 0 is automatic
    for name in (
        "steps",
        "learning_rate",
        "batch_size",
        "offset_noise",
        "seed",
        "caption_dropout",
        "accumulation",
    ):
        taken[name] = values[name]
    if "token_learning_rate" in tokens:
        taken["token_learning_rate"] = tokens["token_learning_rate"]
    config = TrainingConfig(objective=OBJECTIVES[chosen], **taken)
    config.check()
    return config, options


def _adapter_config(
    values: Mapping[str, Any], model, start: LoraWeights | None, tokens: str
) -> AdapterConfig | None:
    if tokens == TOKENS_ALONE:
        if start is not None and start.layers:
            raise DCOError(
                "start_from has LoRA layers, but tokens are to be learned alone: disconnect it, or learn tokens "
                "with the LoRA."
            )
        return None
    layers = training.started_layers(model, start) if start is not None and start.layers else None
    return AdapterConfig(
        values["rank"], values["alpha"] or None, values["layers"], values["seed"], values["layer_filter"],
        values["dropout"], layers,
    )  # fmt: skip


def _run(
    path, config: TrainingConfig, adapter: AdapterConfig | None, model, denoiser, texts, values
) -> trained_lora.Run:
    layers = adapter.start if adapter else None
    first = next(iter(layers.values()), None) if layers else None
    rank = first.rank if first else (adapter.rank if adapter else 0)
    alpha = first.rank * first.scale if first else (adapter.effective_alpha if adapter else 0.0)
    names = ("resolution", "crop", "size_conditioning", "dropout", "layer_filter")
    return trained_lora.Run(
        path=path, config=config, rank=rank, alpha=alpha, layers=values["layers"], family=training.family(model),
        prediction=denoiser.schedule.prediction, captions=texts, kohya_names=training.kohya_names(model),
        other_settings={name: values[name] for name in names}
        | {"learned_tokens": _chosen(values["learned_tokens"], "learned_tokens")["learned_tokens"]},
    )  # fmt: skip


def _summary(reports: Sequence[StepReport], seconds: float, config: TrainingConfig) -> str:
    last = reports[-max(1, len(reports) // 10) :]
    mean = {name: sum(getattr(r, name) for r in last) / len(last) for name in ("loss", "margin", "gate")}
    beta = f", beta {config.beta:.4g}" if config.objective == "dco" else ""
    return (
        f"{len(reports)} steps in {seconds:.0f} s ({seconds / len(reports):.2f} s a step){beta}. "
        f"Mean of the last {len(last)}: "
        f"loss {mean['loss']:.4f}, margin {mean['margin']:.3f}, gate {mean['gate']:.2f}."
    )


NODES = [DCOLoRATrainer]
