"""The DCO LoRA Trainer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from comfy_api.latest import io, ui

from ...dco_core.data.pixels import as_image
from ...dco_core.drawing import figure as charts
from ...dco_core.drawing.training_plot import loss_plot
from ...dco_core.errors import printable_lines
from ...dco_core.files.content_key import content_key
from ...dco_core.lora import LoraWeights, from_tensors
from ...dco_core.network.lora_layers import AdapterConfig
from ...dco_core.pipeline.examples import PreparedPictures
from ...dco_core.pipeline.file_header import TrainedHeader
from ...dco_core.pipeline.pictures import TrainingPictures
from ...dco_core.training import validation
from ...dco_core.training.checkpoints import Checkpoints
from ...dco_core.training.config import TrainingConfig
from ...dco_core.training.memory import PeakMemory, estimate, megabytes, streaming
from ...dco_core.training.reference_ahead import reference_ahead
from ...dco_core.training.reference_cache import ReferenceCache
from ...dco_core.training.step_report import StepReport
from ...dco_core.training.tensorboard import EventLog
from ...dco_core.training.trainer import Training
from ..host import files
from ..host.node_choices import check_choices
from ..host.progress import NodeText
from ..host.training.image_model import HostImageModel
from ..host.training.network import HostDenoiser
from . import inputs, recipes, trained_lora
from .captions import check
from .option_groups import OFFLOADED
from .previews import NodePreviews
from .progress import TrainerProgress
from .references import distinct, gather, given_class_images
from .settings import (
    adapter_config,
    generation_config,
    preparation,
    settled,
    steps_between_previews,
    token_choice,
    training_config,
    vocabulary,
)


class DCOLoRATrainer(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DCOLoRATrainer", display_name="DCO LoRA Trainer", category="model/training",
            description="Teaches a model your subject or your style from 1 to 20 images with Direct Consistency "
            "Optimization: it learns what the images show and stops where it would drift from the base model. The "
            "LoRA is saved when training ends; when you cancel it, what was learned is, under a name that says so.",
            search_aliases=[
                "train lora", "lora training", "lora trainer", "dreambooth", "prior preservation",
                "textual inversion", "direct consistency optimization", "dco", "personalization", "fine-tune",
                "train a style", "train a subject",
            ],
            is_input_list=True, is_output_node=True, inputs=inputs.own(), outputs=inputs.outputs(),
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
        )  # fmt: skip

    @classmethod
    def execute(cls, images, captions, options=None, **single) -> io.NodeOutput:
        check_choices(cls)
        charts.available()  # not after an hour of training
        values = settled(single, options[0] if options else None)
        config, objective_options = training_config(values)
        start = values["start_from"] and from_tensors(values["start_from"], "The LoRA to start from")
        model, clip = values["model"], values["clip"]
        text = NodeText(cls)
        image_model = HostImageModel(model, clip, values["vae"], text.progress)
        settings = recipes.told(values["recipe"], values) + _resolution(values, image_model)
        references = gather(images, captions, values["masks"])
        texts = [r.caption for r in references]
        path = files.new_lora_path(values["name"])
        adapter = adapter_config(values, image_model, start)

        words = vocabulary(image_model, texts, values, start, config.seed)
        caption_notes = check(
            [r.caption for r in distinct(references)], clip=clip, initializers=words.initializers,
            vectors=words.vectors,
        )  # fmt: skip
        text.message(caption_notes)  # before training, while there is time to mend captions
        text.message(settings)
        pictures = TrainingPictures(
            references, config, generation_config(objective_options), given_class_images(values["class_images"])
        )
        text.progress("Encoding the captions ...")
        prepared = PreparedPictures(image_model, pictures, preparation(values, texts), words)
        progress = TrainerProgress(text, config.steps)
        previews = NodePreviews(model, steps_between_previews(values), config.seed)

        text.progress("Preparing the model ...")
        session = image_model.training(
            adapter, words.tokens is not None, values["precision"], values["stream_weights"], prepared.step_shape
        )
        with session as denoiser:
            memory = PeakMemory(denoiser.device)
            examples = prepared.examples(denoiser)
            if values["compile"]:
                denoiser.compile_blocks()
            needed = _make_room(denoiser, examples, config, values)
            text.message(needed)
            content = _content(image_model, prepared, values, adapter)
            run = Training(
                denoiser, examples, config, words.tokens, checkpoints=_checkpoints(values), content=content,
                reference_cache=_reference_cache(image_model, values),
                reference=reference_ahead(denoiser, values["reference_device"], denoiser.device),
                callback=progress.on_trial_step, watch_speed=True,
            )  # fmt: skip
            target = _target(path, run, adapter, image_model, prepared, values, content)
            carried = start.other if start else {}

            def lora_so_far(target: trained_lora.Target) -> LoraWeights:
                with run.result():
                    weights = LoraWeights(denoiser.weights().layers, carried)
                    return trained_lora.finished(target, weights, words.tokens, words.initializers, run.step)

            def save(target: trained_lora.Target, lora: LoraWeights) -> list[str]:
                saved_lines = trained_lora.save(target, lora, words.tokens)
                trained_lora.remove_stopped(target, lora)
                return saved_lines

            log = _event_log(run, path, values)

            def on_step(report: StepReport) -> None:
                if log is not None:
                    log(report)
                progress.on_step(report)
                previews.on_step(report)

            progress.begin(run)
            previews.begin(run, progress, prepared)
            try:
                run.run(on_step)
                previews.last()
            except BaseException:
                if run.learned:  # nothing that was learned is lost: cancel and errors save it too
                    part = trained_lora.stopped(target, run.step) if run.step < config.steps else target
                    kept = save(part, lora_so_far(part))
                    text.progress(_stopped(run, values))
                    text.message("\n".join(kept))
                raise
            finally:
                if log is not None:
                    log.close()
            text.progress("Saving ...")
            lora = lora_so_far(target)
            used = f"{needed} Peak: {memory}."
        saved = save(target, lora)
        report = printable_lines("\n".join([_summary(run), settings, used, *run.notes, *saved, caption_notes]))
        plot = as_image(loss_plot([r for r in run.history if not r.skipped], run.scores))[None]
        loss_map = {"loss": [r.loss for r in run.history if not r.skipped]}
        sheets = previews.images(image_model)
        shown = [*([sheets[-1:]] if torch.is_tensor(sheets) else []), plot]  # on the node: web/dco_report.js
        files_of_pictures = [file for p in shown for file in ui.PreviewImage(p).as_dict()["images"]]
        return io.NodeOutput(
            trained_lora.lora_model(target, lora), loss_map, plot, report, sheets,
            ui={"text": [report], "dco_pictures": files_of_pictures},
        )  # fmt: skip


def _resolution(values: dict[str, Any], model: HostImageModel) -> str:
    """Put the model's own resolution in the place of 0, and say which it is."""
    if values["resolution"]:
        return f" Resolution {values['resolution']}."
    values["resolution"] = model.default_resolution
    return f" Resolution {model.default_resolution}, the model's own."


def _make_room(denoiser: HostDenoiser, examples, config: TrainingConfig, values: Mapping[str, Any]) -> str:
    """Switch gradient checkpointing on where it is wanted or needed, and report what a step will take."""
    checkpointing = values["gradient_checkpointing"]
    told = streaming(denoiser.weight_stream, values["stream_weights"], denoiser.device)
    streamed = f" {told}" if told else ""
    needed = estimate(denoiser, examples, config)
    free = denoiser.free_memory()
    if checkpointing in ("on", OFFLOADED) or (checkpointing == "auto" and needed.total > 0.9 * free):
        if denoiser.checkpoint_blocks(offload=checkpointing == OFFLOADED):
            needed = estimate(denoiser, examples, config)
            how = f"with gradient checkpointing{', offloaded' if checkpointing == OFFLOADED else ''}"
            return f"Memory of a step, {how}: {needed}; {megabytes(free)} are free.{streamed}"
    return f"Memory of a step: {needed}; {megabytes(free)} are free.{streamed}"


def _stopped(run: Training, values: Mapping[str, Any]) -> str:
    if run.step == run.config.steps:
        return "Stopped after the last step: training is complete."
    text = f"Stopped after step {run.step} of {run.config.steps}: what was learned is in a file that says so."
    return text + (" Run goes on from there, and removes it in the end." if values["resume"] else "")


def _event_log(run: Training, path: Path, values: Mapping[str, Any]) -> EventLog | None:
    folder = files.log_folder(values["name"]) / path.stem
    return EventLog(folder, run) if values["tensorboard"] else None


def _checkpoints(values: Mapping[str, Any]) -> Checkpoints | None:
    if not values["resume"]:
        return None
    folder = files.checkpoint_folder(values["name"])
    return Checkpoints(folder, values["checkpoint_every"], values["checkpoint_minutes"])


def _reference_cache(model: HostImageModel, values: Mapping[str, Any]) -> ReferenceCache | None:
    if not values["reference_cache"]:
        return None
    content = content_key(model.content(), values["precision"], values["compile"])
    return ReferenceCache(files.reference_folder(), content)


def _content(
    model: HostImageModel, prepared: PreparedPictures, values: Mapping[str, Any], adapter: AdapterConfig | None
) -> str:
    """What a run is made of, beside its configuration and start."""
    settings = [values[name] for name in ("gradient_checkpointing", "precision", "compile")]
    choices = (
        (adapter.layers, adapter.name_filter, adapter.dropout, adapter.effective_alpha) if adapter else None
    )
    texts = model.text_tokens(["", prepared.class_prompt, *prepared.captions])
    return content_key(model.content(), texts, prepared.content, settings, choices)


def _target(
    path: Path, run: Training, adapter: AdapterConfig | None, model: HostImageModel, prepared: PreparedPictures,
    values: Mapping[str, Any], content: str,
) -> trained_lora.Target:  # fmt: skip
    rank, alpha = adapter.size if adapter else (0, 0.0)
    names = ("resolution", "crop", "size_conditioning", "dropout", "layer_filter")
    header = TrainedHeader(
        config=run.config, rank=rank, alpha=alpha, layers=values["layers"], family=model.family,
        prediction=model.prediction, captions=prepared.captions,
        other={name: values[name] for name in names}
        | {"learned_tokens": token_choice(values), "recipe": values["recipe"], "content": content},
    )  # fmt: skip
    return trained_lora.Target(path, header, model.kohya_names())


def _summary(run: Training) -> str:
    history = [report for report in run.history if not report.skipped]
    last = history[-max(1, len(history) // 10) :]
    names = ("loss", "margin", "gate") if last[-1].has_margin else ("loss",)
    mean = ", ".join(
        f"{name} {sum(getattr(r, name) for r in last) / len(last):.{decimals}f}"
        for name, decimals in zip(names, (4, 3, 2), strict=False)
    )
    seconds = sum(report.seconds for report in run.history)
    beta = f", beta {run.config.beta:.4g}" if run.config.is_dco else ""
    text = (
        f"{run.step} steps in {seconds:.0f} s ({seconds / run.step:.2f} s a step){beta}. "
        f"Mean of the last {len(last)}: {mean}."
    )
    if len(history) < run.step:
        text += f" {run.step - len(history)} steps were skipped because their numbers were not finite."
    return f"{text} {validation.summary(run.scores)}".strip()


NODES = [DCOLoRATrainer]
