"""The DCO LoRA Trainer."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from comfy_api.latest import io
from torch import Tensor

from ..dco_core.adapters import LAYERS, AdapterConfig
from ..dco_core.captions import base_caption
from ..dco_core.errors import DCOError
from ..dco_core.lora import LoraWeights, to_tensors, training_metadata, write_lora
from ..dco_core.losses import REDUCTIONS
from ..dco_core.plot import loss_plot
from ..dco_core.trainer import Example, StepReport, TrainingConfig, train
from .host import conditioning, files, training
from .host.progress import progress_bar, raise_if_interrupted

_OBJECTIVES = {"DCO": "dco", "DreamBooth": "dreambooth"}


def flatten_images(images: Sequence[Tensor]) -> list[Tensor]:
    """A list of IMAGE batches [B, H, W, C] -> single images [H, W, C]."""
    singles = [image for batch in images if batch is not None for image in batch]
    if not singles:
        raise DCOError("There are no images to train on: connect at least one.")
    return singles


def split_captions(captions: Sequence[str], count: int) -> list[str]:
    """One caption an image. A single text is read as one caption a line. DCOError if the numbers differ or a
    caption is empty."""
    texts = list(captions)
    if len(texts) == 1:
        texts = [line for line in texts[0].splitlines() if line.strip()]
    if len(texts) != count:
        raise DCOError(
            f"There are {count} images and {len(texts)} captions: give one caption per image, "
            "one a line, in their order."
        )
    for i, text in enumerate(texts):
        if not text.strip():
            raise DCOError(
                f"The caption of image {i + 1} is empty: describe its subject, background, view and style."
            )
    return [text.strip() for text in texts]


class DCOLoRATrainer(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        dco = [
            io.Float.Input(
                "beta",
                default=1.0,
                min=0.0001,
                max=1000.0,
                step=0.01,
                round=0.0001,
                tooltip="How strongly to stay close to the base model. 1 is the paper's value for SD and SDXL "
                "(beta*T = 1000 on the element mean). Flow models have larger errors: 0.05 suits the Toy World.",
            ),
            io.Combo.Input(
                "reduction",
                options=list(REDUCTIONS),
                default="per-sample",
                advanced=True,
                tooltip="With batches: one gate per sample (the paper) or one for the batch (the authors' code).",
            ),
        ]
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
                "dco",
                "personalization",
                "fine-tune",
                "lora trainer",
            ],
            is_input_list=True,
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The base model. It is not changed and not copied."),
                io.Clip.Input("clip", tooltip="Its text encoder; the captions are encoded once."),
                io.Vae.Input("vae", tooltip="Its VAE; the images are encoded once."),
                io.Image.Input("images", tooltip="Reference images: a batch, or the list of a dataset node."),
                io.String.Input(
                    "captions",
                    multiline=True,
                    default="",
                    tooltip="One caption per line and image, or the list of a dataset node. Describe everything: "
                    "subject, background, view, style. Write the subject as <dog>.",
                ),
                io.Int.Input(
                    "steps",
                    default=1000,
                    min=1,
                    max=100000,
                    tooltip="Training steps. The paper: up to 2000 for a subject, 1000 for a style or a single image.",
                ),
                io.Float.Input(
                    "learning_rate",
                    default=5e-5,
                    min=1e-7,
                    max=1.0,
                    step=1e-6,
                    round=1e-7,
                    tooltip="Learning rate of AdamW; the paper uses 5e-5.",
                ),
                io.Int.Input(
                    "rank",
                    default=32,
                    min=1,
                    max=1024,
                    tooltip="Rank of the LoRA. The paper: 32 for a subject, 64 for a style.",
                ),
                io.DynamicCombo.Input(
                    "objective",
                    options=[io.DynamicCombo.Option("DCO", dco), io.DynamicCombo.Option("DreamBooth", [])],
                    tooltip="DCO: Direct Consistency Optimization. DreamBooth: the plain diffusion loss, to compare.",
                ),
                io.Int.Input(
                    "resolution",
                    default=1024,
                    min=64,
                    max=4096,
                    step=8,
                    tooltip="Images are resized on the shorter edge and cropped in the centre to this square. "
                    "1024 for SDXL, 512 for SD1.5, 256 for the Toy World.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=False,
                    tooltip="Seed of the LoRA's start, the noise, the timesteps and the order of the images.",
                ),
                io.String.Input(
                    "filename_prefix",
                    default="loras/dco",
                    tooltip="Where in the output folder the LoRA is saved; a number is added.",
                ),
                io.Int.Input(
                    "batch_size",
                    default=1,
                    min=1,
                    max=64,
                    advanced=True,
                    tooltip="Images per step; the paper uses 1.",
                ),
                io.Float.Input(
                    "offset_noise",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    advanced=True,
                    tooltip="Adds a constant per channel to the noise; the authors use 0.1 for styles.",
                ),
                io.Float.Input(
                    "alpha",
                    default=0.0,
                    min=0.0,
                    max=1024.0,
                    advanced=True,
                    tooltip="LoRA alpha: dW is scaled by alpha / rank. 0 means the same as rank, as in the paper.",
                ),
                io.Combo.Input(
                    "layers",
                    options=list(LAYERS),
                    default="attention",
                    advanced=True,
                    tooltip="Which layers get a LoRA. The paper adapts the attention projections.",
                ),
            ],
            outputs=[
                io.LoraModel.Output(
                    display_name="lora", tooltip="The LoRA, for guidance, merging or core nodes."
                ),
                io.LossMap.Output(display_name="loss", tooltip="Loss of every step, for Plot Loss Graph."),
                io.Image.Output(display_name="plot", tooltip="Loss, margin and gate over the steps."),
                io.String.Output(display_name="report", tooltip="What was trained and where it was saved."),
            ],
        )

    @classmethod
    def execute(cls, images, captions, objective=None, **single) -> io.NodeOutput:
        values = {
            name: value[0] for name, value in single.items()
        }  # is_input_list wraps every input in a list
        model, clip, vae = values["model"], values["clip"], values["vae"]
        config, adapter = cls._configs(objective, values)
        pictures = flatten_images(images)
        texts = split_captions(captions, len(pictures))
        path = files.new_lora_path(values["filename_prefix"])

        encoded = conditioning.encode_captions(clip, [base_caption(text) for text in texts])
        latents = conditioning.encode_images(vae, pictures, values["resolution"])
        reports: list[StepReport] = []
        bar = progress_bar(config.steps)

        def on_step(report: StepReport) -> None:
            reports.append(report)
            bar.update_absolute(report.step)
            raise_if_interrupted()

        with training.training_session(model, adapter) as denoiser:
            examples = []
            for latent, condition in zip(latents, encoded, strict=True):
                x0 = training.native_latent(model, latent)
                examples.append(Example(x0, denoiser.model_conditions(condition, x0)))
            started = time.monotonic()
            try:
                train(denoiser, examples, config, on_step)
            except BaseException:
                if reports:  # nothing that was learned is lost: cancel and errors save it too
                    cls._save(path, denoiser.weights(), config, adapter, texts, len(reports), values)
                raise
            seconds = time.monotonic() - started
            weights = denoiser.weights()
        cls._save(path, weights, config, adapter, texts, config.steps, values)
        report = cls._report(reports, seconds, path)
        plot = torch.tensor(loss_plot(reports)).float()[None] / 255
        loss_map = {"loss": [r.loss for r in reports]}
        lora = to_tensors(weights, keys=training.kohya_names(model))
        return io.NodeOutput(lora, loss_map, plot, report, ui={"text": [report]})

    @classmethod
    def _configs(cls, objective, values) -> tuple[TrainingConfig, AdapterConfig]:
        chosen = objective["objective"][0] if objective else None
        if chosen not in _OBJECTIVES:
            raise DCOError(f"objective {chosen!r} is unknown: choose one of {', '.join(_OBJECTIVES)}.")
        options = {name: value[0] for name, value in objective.items() if name != "objective"}
        names = ("steps", "learning_rate", "batch_size", "offset_noise", "seed")
        config = TrainingConfig(objective=_OBJECTIVES[chosen], **options, **{n: values[n] for n in names})
        config.check()
        adapter = AdapterConfig(values["rank"], values["alpha"] or None, values["layers"], values["seed"])
        return config, adapter

    @classmethod
    def _save(cls, path: Path, weights: LoraWeights, config: TrainingConfig, adapter: AdapterConfig,
              captions: list[str], steps: int, values) -> None:  # fmt: skip
        family = training.family(values["model"])
        everything = {
            **config.as_dict(),
            **asdict(adapter),
            "captions": captions,
            "resolution": values["resolution"],
        }
        metadata = training_metadata(
            title=path.stem, rank=adapter.rank, alpha=adapter.effective_alpha, steps=steps,
            learning_rate=config.learning_rate, seed=config.seed, config=everything,
            base_model_version=family, comment="Direct Consistency Optimization (ComfyUI-DCO)",
        )  # fmt: skip
        write_lora(
            path, LoraWeights(weights.layers, metadata=metadata), keys=training.kohya_names(values["model"])
        )

    @classmethod
    def _report(cls, reports: list[StepReport], seconds: float, path: Path) -> str:
        last = reports[-max(1, len(reports) // 10) :]
        mean = {name: sum(getattr(r, name) for r in last) / len(last) for name in ("loss", "margin", "gate")}
        return (
            f"{len(reports)} steps in {seconds:.0f} s ({seconds / len(reports):.2f} s a step). "
            f"Mean of the last {len(last)}: "
            f"loss {mean['loss']:.4f}, margin {mean['margin']:.3f}, gate {mean['gate']:.2f}.\n"
            f"Saved {files.shown_name(path)}. Press R to see it in the LoRA lists."
        )


NODES = [DCOLoRATrainer]
