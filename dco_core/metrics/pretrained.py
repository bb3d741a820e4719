"""Vision models of the library transformers, from a folder or the Hugging Face hub, as encoders of images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from ..data.pixels import as_uint8
from ..errors import DCOError
from ..network.library_import import without_broken_torchvision

BATCH = 8  # images a call


class ImageEncoder(nn.Module):
    """Images -> embeddings, with the model's own preprocessing. model, processor: of transformers."""

    def __init__(self, model: Any, processor: Any):
        super().__init__()
        self.model, self.processor = model, processor

    @torch.no_grad()
    def embed(self, images: Sequence[Tensor], callback: Callable[[], None] = lambda: None) -> Tensor:
        """Images [H, W, C] in 0..1, of any sizes (a fourth channel is not looked at) -> fp32 [B, D] on the CPU, not
        normalised. callback: called before each batch. DCOError for what is no image."""
        if not len(images):
            raise DCOError("There are no images to score: give at least one.")
        pictures = [as_picture(image, i) for i, image in enumerate(images)]
        found = []
        for i in range(0, len(pictures), BATCH):
            callback()
            found.append(self._embedded(pictures[i : i + BATCH]))
        return torch.cat(found).float().cpu()

    def _embedded(self, pictures: list[Image.Image]) -> Tensor:
        inputs = self.processor(images=pictures, return_tensors="pt").to(self._device())
        if hasattr(self.model, "get_image_features"):  # SigLIP, CLIP: of the space shared with text
            return pooled(self.model.get_image_features(**inputs))
        output = self.model(**inputs)
        # a model whose pooler is a layer of its own (DINOv1's ViT) comes without weights for it: its class token
        if getattr(self.model, "pooler", None) is not None or output.get("pooler_output") is None:
            return output.last_hidden_state[:, 0]
        return output.pooler_output  # DINOv2: the class token after the last norm

    def _device(self) -> torch.device:
        return next(self.model.parameters()).device


def pooled(output: Any) -> Tensor:
    """The embeddings [B, D] in what get_image_features and get_text_features return: a tensor, or since
    transformers 5 an output that holds it."""
    return output if isinstance(output, Tensor) else output.pooler_output


def as_picture(image: Tensor, i: int) -> Image.Image:
    """Image number i, [H, W, C] in 0..1, as eight-bit RGB. DCOError for what is none."""
    if image.ndim != 3 or image.shape[-1] < 3:
        raise DCOError(f"Image {i + 1} has the shape {list(image.shape)}: give images [height, width, 3].")
    if not torch.isfinite(image).all():
        raise DCOError(f"Image {i + 1} holds NaN or infinity and cannot be scored: look at how it was made.")
    return Image.fromarray(as_uint8(image))


def load_image_encoder(source: str | Path, device: torch.device | str = "cpu") -> ImageEncoder:
    """The vision model in a folder (config.json, preprocessor_config.json, weights) or of that name on the hub, such as
    "facebook/dinov2-base", in fp32. Raises DCOError without transformers, and where no model can be had."""
    model, processor = load_pretrained(source, "AutoModel", "AutoImageProcessor")
    return ImageEncoder(model.to(device), processor).eval()


def load_pretrained(
    source: str | Path, model_class: str, processor_class: str, dtype: torch.dtype = torch.float32
) -> tuple[Any, Any]:
    """A model in that precision, frozen, and its processor, by the names of transformers' classes. Every weight must be
    there: the library fills in random ones with no more than a warning."""
    source = str(source).strip()
    if not source:
        raise DCOError(
            'No model is named: give a folder, or a name on the Hugging Face hub such as "facebook/dinov2-base".'
        )
    with without_broken_torchvision():
        try:
            import transformers
        except ImportError as error:
            raise DCOError(
                f'"{source}" needs the package transformers ({error}): run `pip install transformers sentencepiece` '
                "with the same Python."
            ) from None
        try:
            processor = getattr(transformers, processor_class).from_pretrained(source)
            model, info = getattr(transformers, model_class).from_pretrained(
                source, output_loading_info=True, dtype=dtype
            )
        except Exception as error:  # damaged files raise whatever their readers do
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise DCOError(
                f'No model could be loaded from "{source}" ({reason}): give a folder that transformers has saved '
                "(config.json, preprocessor_config.json, model.safetensors), or a name on the Hugging Face hub."
            ) from error
    missing = sorted(key for key in info["missing_keys"] if not key.startswith("pooler."))
    if missing or info["mismatched_keys"]:
        wrong = ", ".join([*missing, *(str(m[0]) for m in info["mismatched_keys"])][:3])
        raise DCOError(
            f'The weights of "{source}" do not fit its config.json (missing or of another shape: {wrong}, ...): '
            "download the model again."
        )
    return model.to(dtype).eval().requires_grad_(False), processor
