"""From a folder of pictures with captions to a LoRA file, without any host."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .adapters import AdapterConfig
from .caption_check import check_captions, report
from .checkpoints import Checkpoints
from .config import TrainingConfig
from .content import content_key
from .errors import DCOError
from .folder_examples import FolderExamples
from .generation import GenerationConfig
from .image_model import ImageModel
from .lora import LoraWeights, write_lora
from .memory import PeakMemory, estimate
from .trained_header import TrainedHeader
from .trainer import Training

GENERATED = "generated.safetensors"  # beside the checkpoints: what the base model made for an objective


class FolderTraining:
    """A Training on a folder's pictures, encoded once, with the file it is to become.

    resolution: in pixels, None for the model's own. square: a centred square of each picture instead of
    aspect-ratio buckets. compiled, gradient_checkpointing: of the network's blocks. generation, class_data: see
    FolderExamples. say: told what takes time before the run. notes: what to tell the user before the run; memory: its
    peak, after it. Raises DCOError for what cannot be trained, before anything is written.
    """

    def __init__(
        self,
        model: ImageModel,
        data: Path,
        output: Path,
        config: TrainingConfig,
        adapter: AdapterConfig,
        checkpoints: Checkpoints | None = None,
        resolution: int | None = None,
        square: bool = False,
        compiled: bool = False,
        gradient_checkpointing: bool = False,
        generation: GenerationConfig | None = None,
        class_data: Path | None = None,
        say: Callable[[str], None] = lambda text: None,
    ):
        self._model, self._adapter, self._output = model, adapter, output
        self._resolution = resolution or model.default_resolution
        self._square = square or model.square
        if model.square and self._resolution != model.default_resolution:
            raise DCOError(
                f"This model draws {model.default_resolution} px, not {self._resolution}: leave the resolution out."
            )
        self._data = FolderExamples(
            model, data, config, generation or GenerationConfig(), class_data, self._resolution, self._square
        )
        content = content_key(model.content(), adapter, self._data.content, compiled)
        model.offload_encoders()
        denoiser = model.denoiser(adapter)
        if compiled:
            denoiser.compile_blocks()
        kept = checkpoints.folder / GENERATED if checkpoints is not None else None
        examples = self._data.examples(denoiser, kept, say)
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
        )
        self.notes = [
            f"{len(self._data)} pictures, {self._resolution} px. A step needs {estimate(denoiser, examples, config)}.",
            report(check_captions(self._data.captions, kind="auto"), self._data.captions),
            *self.training.notes,
        ]

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
                **self._data.settings,
            },
        )
        entries = header.entries(
            self._output.stem, self.training.step, {}, dated=False, layers=layers.values()
        )
        weights = LoraWeights(
            {self._model.canonical(name): layer for name, layer in layers.items()}, {}, entries
        )
        write_lora(self._output, weights, keys=dict(self._model.kohya_names()) or "kohya")


def checkpoint_folder(output: Path) -> Path:
    """Where the checkpoints of a run lie: beside the file it is to become."""
    return output.with_name(output.name + ".checkpoints")
