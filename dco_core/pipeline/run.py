"""From a folder of pictures with captions to a LoRA file, without any host."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image
from safetensors import SafetensorError, safe_open

from ..captions.check import check_captions, report
from ..captions.markers import markers
from ..data.buckets import MIN_SIDE
from ..drawing.preview_sheet import preview_sheet
from ..errors import DCOError
from ..files.atomic import whole_file
from ..files.content_key import content_key
from ..lora import LoraWeights, write_lora
from ..models.image_model import ImageModel
from ..network.lora_layers import AdapterConfig
from ..training.calibration import identity
from ..training.checkpoints import Checkpoints
from ..training.memory import PeakMemory, estimate
from ..training.previews import Preview
from ..training.processes import ALONE, Processes
from ..training.step_report import StepReport
from ..training.trainer import Training
from .examples import SIZES, Preparation, PreparedPictures
from .file_header import TrainedHeader
from .pictures import TrainingPictures
from .previews import TrainingPreviews, as_pixels

RUN = "dco.run"  # in the header: which run the file is of
GENERATED = "generated.safetensors"  # beside the checkpoints: what the base model made for an objective


class FolderTraining:
    """A Training on a folder's pictures, encoded once, with the file it is to become.

    resolution: in pixels, None for the model's own. square: a centred square of each picture instead of
    aspect-ratio buckets. compiled, gradient_checkpointing: of the network's blocks. size_conditioning: see
    Preparation. overwrite: whether `output` may be replaced where it is not of this run. preview_every: pictures in
    preview_folder(output) after this many steps and in the end, 0 for none; preview_prompts: of what, left out the
    first caption. processes: those that make this run together; the first alone writes. on_message: told what takes
    time before the run. notes: what to tell the user before the run; memory: its peak, after it. Raises DCOError for
    what cannot be trained, before anything is written.
    """

    def __init__(
        self,
        model: ImageModel,
        folder: TrainingPictures,
        output: Path,
        adapter: AdapterConfig,
        checkpoints: Checkpoints | None = None,
        resolution: int | None = None,
        square: bool = False,
        compiled: bool = False,
        gradient_checkpointing: bool = False,
        size_conditioning: str = SIZES[0],
        overwrite: bool = False,
        preview_every: int = 0,
        preview_prompts: Sequence[str] = (),
        on_message: Callable[[str], None] = lambda text: None,
        processes: Processes = ALONE,
    ):
        self._model, self._adapter, self._output = model, adapter, output
        self._processes = processes
        config = folder.config
        self._size_conditioning = size_conditioning
        check_resolution(resolution)
        self._resolution = model.default_resolution if resolution is None else resolution
        self._square = square or model.square
        if model.square and self._resolution != model.default_resolution:
            raise DCOError(
                f"This model draws {model.default_resolution} px, not {self._resolution}: leave the resolution out."
            )
        if size_conditioning != SIZES[0] and not model.reads_sizes:
            raise DCOError("This model reads no sizes, as SDXL does: leave --size-conditioning out.")
        if preview_every < 0:
            raise DCOError(f"preview_every is {preview_every}: use a number of steps, or 0 for no previews.")
        shown = (list(preview_prompts) or folder.captions[:1]) if preview_every else []
        how = Preparation(self._resolution, self._square, size_conditioning, shown)
        self._data = PreparedPictures(model, folder, how)
        content = content_key(model.content(), adapter, self._data.content, compiled)
        model.offload_encoders(images=not shown)
        denoiser = model.denoiser(adapter)
        self._run = content_key(content, identity(config, denoiser))[:16]
        check_replaceable(output, overwrite, self._run)
        if compiled:
            denoiser.compile_blocks()
        kept = checkpoints.folder / GENERATED if checkpoints is not None else None
        examples = self._data.examples(denoiser, kept, on_message)
        self.memory = PeakMemory(examples[0].latent.device)
        if gradient_checkpointing:
            denoiser.checkpoint_blocks()
        self.training = Training(
            denoiser,
            examples,
            config,
            checkpoints=checkpoints,
            content=content,
            watch_speed=True,
            processes=processes,
        )
        self._previews = None
        if shown and processes.is_first:
            previews = self._data.previews(denoiser, config.seed)
            self._previews = TrainingPreviews(self.training, previews, preview_every, self._write_sheet)
        self.notes = [
            *folder.notes,
            f"{len(self._data)} pictures, {self._resolution} px. A step needs {estimate(denoiser, examples, config)}.",
            report(check_captions(self._data.captions, kind="auto"), self._data.captions),
            *_markers_as_words(self._data.captions),
            *self.training.notes,
        ]

    def run(self, on_step: Callable[[StepReport], None]) -> None:
        """Train to the last step, with previews; see Training.run."""

        def shown_and_told(report: StepReport) -> None:
            if self._previews is not None:
                self._previews.on_step(report)
            on_step(report)

        self.training.run(shown_and_told)
        if self._previews is not None:
            self._previews.last()

    def _write_sheet(self, step: int, taken: list[Preview]) -> None:
        pictures = as_pixels(self._model.decode_latents([p.latent for p in taken]))
        image = Image.fromarray(preview_sheet(taken, pictures, f"step {step}"))
        path = preview_folder(self._output) / f"step-{step:08d}.png"
        with whole_file(path) as temporary:
            image.save(temporary, "PNG")

    def save(self) -> None:
        """Write the LoRA as it is now, whole or not at all; the same run writes the same bytes. Raises DCOError where
        it cannot be written."""
        with self.training.result():
            layers = self.training.denoiser.lora()
        header = TrainedHeader(
            config=self.training.config,
            rank=self._adapter.rank,
            alpha=self._adapter.effective_alpha,
            layers=self._adapter.layers,
            family=self._model.family,
            prediction=self._model.prediction,
            captions=self._data.captions,
            other={
                "resolution": self._resolution,
                "square": self._square,
                "layer_filter": self._adapter.name_filter,
                "dropout": self._adapter.dropout,
                **({"size_conditioning": self._size_conditioning} if self._model.reads_sizes else {}),
                **self._data.settings,
            },
        )
        entries = header.entries(
            self._output.stem, self.training.step, {}, dated=False, layers=layers.values()
        )
        weights = LoraWeights(
            {self._model.canonical(name): layer for name, layer in layers.items()}, {}, entries | {RUN: self._run}
        )
        write_lora(self._output, weights, keys=dict(self._model.kohya_names()) or "kohya")


def check_resolution(resolution: int | None) -> None:
    """Raise DCOError for a resolution that no picture could be trained at; None is the model's own."""
    if resolution is not None and resolution < MIN_SIDE:
        raise DCOError(
            f"The resolution is {resolution} px: use at least {MIN_SIDE}, or leave it out for the model's own."
        )


def check_replaceable(output: Path, overwrite: bool, run: str | None = None) -> None:
    """Raise DCOError where `output` is there, is not of this run, and may not be replaced. run: which run this is; None
    while it is not known yet, and then every run's file passes."""
    if overwrite or not output.exists():
        return
    found = _run_of(output)
    if found is None or run not in (None, found):
        what = "was not written by this command" if found is None else "is of another run"
        raise DCOError(
            f"{output} {what} and would be lost: choose another --output, or replace it with --overwrite."
        )


def _run_of(output: Path) -> str | None:
    """The run that a file is of, as its header says; None where it says nothing."""
    try:
        with safe_open(output, framework="pt") as file:
            return (file.metadata() or {}).get(RUN)
    except (SafetensorError, OSError, ValueError):
        return None


def _markers_as_words(captions: Sequence[str]) -> list[str]:
    names = list(dict.fromkeys(name for text in captions for name in markers(text)))
    if not names:
        return []
    return [
        f'The model reads <{names[0]}> as the word "{names[0]}": no new token is learned here (the trainer node in '
        "ComfyUI can)."
    ]


def preview_folder(output: Path) -> Path:
    """Where the previews of a run lie."""
    return output.with_name(output.name + ".previews")


def checkpoint_folder(output: Path) -> Path:
    """Where the checkpoints of a run lie: beside the file it is to become."""
    return output.with_name(output.name + ".checkpoints")
