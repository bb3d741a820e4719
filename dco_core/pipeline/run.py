"""From a folder of pictures with captions to a LoRA file, without any host."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ..captions.check import check_captions, report
from ..captions.markers import markers
from ..data.buckets import MIN_SIDE
from ..data.pixels import as_uint8
from ..drawing.preview_sheet import preview_sheet
from ..errors import DCOError
from ..files.atomic import whole_file
from ..files.content_key import content_key
from ..lora import LoraWeights, bundled, write_embedding, write_lora
from ..lora.started import check_start
from ..models.image_model import ImageModel
from ..network.lora_layers import AdapterConfig
from ..training.calibration import identity
from ..training.checkpoints import Checkpoints
from ..training.memory import PeakMemory, estimate, streaming
from ..training.previews import Preview
from ..training.processes import ALONE, Processes
from ..training.reference_ahead import OFF, reference_ahead
from ..training.reference_cache import ReferenceCache
from ..training.step_report import StepReport
from ..training.trainer import Training
from .examples import SIZES, Preparation, PreparedPictures
from .file_header import TrainedHeader
from .output_files import RUN, check_replaceable, embedding_files, preview_folder
from .pictures import TrainingPictures
from .previews import TrainingPreviews
from .vocabulary import TokenConfig, kept_vocabulary, learned_vocabulary

GENERATED = "generated.safetensors"  # beside the checkpoints: what the base model made for an objective


NO_TOKENS = TokenConfig()


class FolderTraining:
    """A Training on a folder's pictures, encoded once, with the file it is to become.

    resolution: in pixels, None for the model's own. square: a centred square of each picture instead of aspect-ratio
    buckets. compiled, gradient_checkpointing: of the network's blocks. size_conditioning: see Preparation. overwrite:
    whether `output` may be replaced where it is not of this run. preview_every: pictures in preview_folder(output)
    after this many steps and in the end, 0 for none; preview_prompts: of what, left out the first caption. tokens:
    whether markers become tokens of their own. start: a LoRA to go on from, whose tensors that are no layers (learned
    tokens) are carried over. stream_weights: see network/weight_stream.py. reference_device: see
    training/reference_ahead.py. reference_folder: where the base model's errors are kept for further runs, None for
    nowhere. processes: those that make this run together; the first alone writes. on_message: told what takes time
    before the run. words: what the captions' markers stand for. notes: what to tell the user before the run; memory:
    its peak, after it. Raises DCOError for what cannot be trained, before anything is written.
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
        tokens: TokenConfig = NO_TOKENS,
        start: LoraWeights | None = None,
        stream_weights: str = "auto",
        reference_device: str = OFF,
        reference_folder: Path | None = None,
        on_message: Callable[[str], None] = lambda text: None,
        processes: Processes = ALONE,
    ):
        self._model, self._output, self._learning = model, output, tokens
        if start is not None:
            check_start(start, tokens.alone)
        self._adapter = None if tokens.alone else _going_on(adapter, model, start)
        self._carried = {} if start is None else start.other
        self._processes = processes
        config = folder.config
        tokens.check()
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
        self.words = (
            learned_vocabulary(model, folder.captions, config.seed, tokens.initializers, tokens.vectors, start)
            if tokens.on
            else kept_vocabulary(folder.captions, start)
        )
        self._data = PreparedPictures(model, folder, how, self.words)
        content = content_key(model.content(), self._adapter, self._data.content, compiled)
        if self._carried:
            content = content_key(content, self._carried)
        model.offload_encoders(texts=not tokens.on, images=not shown)
        denoiser = model.denoiser(self._adapter, self._data.step_shape, stream_weights)
        rows = None if self.words.tokens is None else self.words.tokens.tensors()
        self._run = content_key(content, identity(config, denoiser), rows)[:16]
        for path in (output, *self._embeddings().values()):
            check_replaceable(path, overwrite, self._run)
        if compiled:
            denoiser.compile_blocks()
        kept = checkpoints.folder / GENERATED if checkpoints is not None else None
        examples = self._data.examples(denoiser, kept, on_message)
        device = examples[0].latent.device
        self.memory = PeakMemory(device)
        if gradient_checkpointing:
            denoiser.checkpoint_blocks()
        self.training = Training(
            denoiser,
            examples,
            config,
            self.words.tokens,
            checkpoints=checkpoints,
            content=content,
            reference_cache=self._reference_cache(reference_folder, compiled),
            reference=reference_ahead(denoiser, reference_device, device, processes.count),
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
            *filter(None, [streaming(denoiser.weight_stream, stream_weights, device)]),
            *([] if tokens.on else _markers_as_words(self._data.captions, self.words.fixed)),
            *self.training.notes,
        ]

    def _reference_cache(self, folder: Path | None, compiled: bool) -> ReferenceCache | None:
        return None if folder is None else ReferenceCache(folder, content_key(self._model.content(), compiled))

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
        pictures = [as_uint8(image) for image in self._model.decode_latents([p.latent for p in taken])]
        image = Image.fromarray(preview_sheet(taken, pictures, f"step {step}"))
        path = preview_folder(self._output) / f"step-{step:08d}.png"
        with whole_file(path) as temporary:
            image.save(temporary, "PNG")

    def save(self) -> list[str]:
        """Write the LoRA as it is now, whole or not at all, and an embedding file for each learned token; the same run
        writes the same bytes. What was written, as sentences. Raises DCOError where it cannot be written."""
        tokens, adapter = self.words.tokens, self._adapter
        with self.training.result():
            layers = self.training.denoiser.lora()
            rows = {} if tokens is None else tokens.tensors()
        settings: dict[str, Any] = {
            "resolution": self._resolution,
            "square": self._square,
            **({"layer_filter": adapter.name_filter, "dropout": adapter.dropout} if adapter else {}),
            **({"learned_tokens": self._learning.learned_tokens} if rows else {}),
            **({"size_conditioning": self._size_conditioning} if self._model.reads_sizes else {}),
            **self._data.settings,
        }
        header = TrainedHeader(
            config=self.training.config,
            rank=adapter.size[0] if adapter else 0,
            alpha=adapter.size[1] if adapter else 0.0,
            layers=adapter.layers if adapter else "",
            family=self._model.family,
            prediction=self._model.prediction,
            captions=self._data.captions,
            other=settings,
        )
        entries = header.entries(
            self._output.stem, self.training.step, self.words.initializers, dated=False, layers=layers.values()
        )
        entries |= {RUN: self._run}
        weights = LoraWeights(
            {self._model.canonical(name): layer for name, layer in layers.items()},
            self._carried | bundled(rows), entries,
        )  # fmt: skip
        write_lora(self._output, weights, keys=dict(self._model.kohya_names()) or "kohya")
        written = [f"Saved {self._output} after {self.training.step} steps."]
        for name, path in self._embeddings().items():
            write_embedding(path, rows[name], entries)
            written.append(
                f'The token <{name}> is also in {path}: in ComfyUI\'s folder models/embeddings it works in any prompt '
                f'as "embedding:{path.stem}".'
            )
        return written

    def _embeddings(self) -> dict[str, Path]:
        tokens = self.words.tokens
        return embedding_files(self._output, [] if tokens is None else list(tokens.rows()))


def check_resolution(resolution: int | None) -> None:
    """Raise DCOError for a resolution that no picture could be trained at; None is the model's own."""
    if resolution is not None and resolution < MIN_SIDE:
        raise DCOError(
            f"The resolution is {resolution} px: use at least {MIN_SIDE}, or leave it out for the model's own."
        )


def _going_on(adapter: AdapterConfig, model: ImageModel, start: LoraWeights | None) -> AdapterConfig:
    """From the layers of a LoRA, where it has any."""
    if start is None or not start.layers:
        return adapter
    return dataclasses.replace(adapter, start=model.started_layers(start))


def _markers_as_words(captions: Sequence[str], known: Collection[str]) -> list[str]:
    """known: markers that a LoRA to go on from has rows for."""
    names = list(dict.fromkeys(name for text in captions for name in markers(text) if name not in known))
    if not names:
        return []
    return [
        f'The model reads <{names[0]}> as the word "{names[0]}". To learn a new token for it, add --learned-tokens '
        "with-lora."
    ]
