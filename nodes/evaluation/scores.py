"""Scores of images: likeness to references, and alignment with prompts (App. D.4)."""

from __future__ import annotations

import torch
from comfy_api.latest import io
from torch import Tensor

from ...dco_core.captions.markers import base_caption
from ...dco_core.errors import DCOError
from ...dco_core.evidence.score_table import ALIGNMENT, LIKENESS, STYLE_LIKENESS
from ...dco_core.metrics import load_image_encoder, load_siglip, mean_cosine_similarity
from ...dco_core.toy_world import scorer
from ...dco_core.toy_world.references import to_cells
from ...dco_core.toy_world.renderer import PIXELS_PER_CELL, SIZE
from ..host import vision
from ..host.progress import NodeText, raise_if_interrupted
from . import inputs as shared

SUBJECT, STYLE = "subject", "style"
COLUMNS = {SUBJECT: LIKENESS, STYLE: STYLE_LIKENESS}
SIGLIP = "google/siglip-base-patch16-224"
MODELS = {SUBJECT: "facebook/dinov2-base", STYLE: SIGLIP}  # the paper's models


class DCOImageSimilarity(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DCOImageSimilarity", display_name="DINO / SigLIP Image Similarity (DCO)",
            category="image/scores",
            description="How much images look like reference images: the mean cosine similarity of their embeddings. "
            "With DINOv2 it is the paper's score of a subject, with SigLIP that of a style (App. D.4).",
            search_aliases=[
                "image similarity score", "dinov2", "dino score", "likeness", "subject fidelity", "clip-i",
                "metric", "evaluate", "dco",
            ],
            is_input_list=True, is_output_node=True,
            inputs=[
                shared.IMAGES,
                io.Image.Input("references", tooltip="The images that the subject or style was learned from."),
                io.Combo.Input(
                    "what", options=list(COLUMNS), default=SUBJECT,
                    tooltip="What likeness it is: subject goes into the column likeness, style into style_likeness.",
                ),
                io.String.Input(
                    "model", default="",
                    tooltip="A vision model of the library transformers: a folder, or a name on the Hugging Face hub, "
                    "which is downloaded once. Empty: facebook/dinov2-base for a subject, "
                    "google/siglip-base-patch16-224 for a style. Not used where clip_vision is connected.",
                ),
                io.ClipVision.Input(
                    "clip_vision", optional=True,
                    tooltip="DINOv2 or CLIP from core's Load CLIP Vision, instead of `model`. SigLIP does not work "
                    "here: ComfyUI leaves its pooling out.",
                ),
                shared.LABELS, shared.SCORES,
            ],
            outputs=shared.outputs(), hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, images, references, what, model, clip_vision=None, labels=None, scores=None
    ) -> io.NodeOutput:
        pictures, _ = shared.flattened(images)
        originals, _ = shared.flattened(references, "reference images")
        if clip_vision and clip_vision[0] is not None:
            embedded = [
                vision.clip_vision_embeddings(clip_vision[0], group, raise_if_interrupted)
                for group in (pictures, originals)
            ]
        else:
            name, text = model[0].strip() or MODELS[what[0]], NodeText(cls)
            text.progress(f"Loading {name} ...")
            with vision.on_device(load_image_encoder(name)) as encoder:
                text.progress(f"Comparing {len(pictures)} images with {len(originals)} references ...")
                embedded = [encoder.embed(group, raise_if_interrupted) for group in (pictures, originals)]
        return shared.scored(COLUMNS[what[0]], mean_cosine_similarity(*embedded), labels, scores)


class DCOImageTextScore(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DCOImageTextScore", display_name="Image-Text Score (DCO)", category="image/scores",
            description="Does an image show what its prompt says? SigLIP's score in 0 to 1, with its learned scale and "
            "bias, as the paper measures prompt alignment (App. D.4).",
            search_aliases=["siglip", "clip score", "prompt alignment", "text alignment", "metric", "evaluate", "dco"],
            is_input_list=True, is_output_node=True,
            inputs=[
                shared.IMAGES,
                io.String.Input(
                    "prompts", multiline=True, default="",
                    tooltip="What the images should show, one prompt a line or a list: one for all images, one for "
                    "each batch, or one for each image. <dog> reads as dog.",
                ),
                io.String.Input(
                    "model", default=SIGLIP,
                    tooltip="A SigLIP model (image and text) of the library transformers: a folder, or a name on the "
                    "Hugging Face hub, which is downloaded once.",
                ),
                shared.LABELS, shared.SCORES,
            ],
            outputs=shared.outputs(), hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def execute(cls, images, prompts, model, labels=None, scores=None) -> io.NodeOutput:
        pictures, batch_of = shared.flattened(images)
        texts = [base_caption(text) for text in shared.prompt_of_each(prompts, batch_of)]
        text = NodeText(cls)
        text.progress(f"Loading {model[0]} ...")
        with vision.on_device(load_siglip(model[0])) as siglip:
            text.progress(f"Scoring {len(pictures)} images ...")
            values = siglip.score(pictures, texts, raise_if_interrupted)
        return shared.scored(ALIGNMENT, values, labels, scores)


TOY_SCORES = {"subject likeness": LIKENESS, "style likeness": STYLE_LIKENESS, "prompt alignment": ALIGNMENT}


class DCOToyWorldScore(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DCOToyWorldScore", display_name="Toy World Score (DCO)", category="image/scores",
            description="Scores images of the Toy World with its own scorers, which know its renderer: likeness to the "
            "subject or the style in 0 to 1, or whether an image obeys all of its prompt, 0 or 1.",
            search_aliases=["toy", "likeness", "prompt alignment", "metric", "evaluate", "dco"],
            is_input_list=True, is_output_node=True,
            inputs=[
                shared.IMAGES,
                io.Combo.Input(
                    "what", options=list(TOY_SCORES), default="subject likeness",
                    tooltip="subject likeness: colours, ears and build. style likeness: a print in these inks, or a "
                    "sketch where the references are sketches. prompt "
                    "alignment: shape, colour, size, position, background and style, 1 where all are as asked.",
                ),
                io.String.Input(
                    "prompts", multiline=True, default="",
                    tooltip="For prompt alignment: one prompt a line or a list, one for all images, one for each "
                    "batch, or one for each image.",
                ),
                io.Image.Input(
                    "references", optional=True,
                    tooltip="What likeness is measured against. Not connected: what Toy World References teaches.",
                ),
                shared.LABELS, shared.SCORES,
            ],
            outputs=shared.outputs(),
        )  # fmt: skip

    @classmethod
    def execute(cls, images, what, prompts, references=None, labels=None, scores=None) -> io.NodeOutput:
        pictures, batch_of = shared.flattened(images)
        cells, column = _cells(pictures), TOY_SCORES[what[0]]
        if column == ALIGNMENT:
            values = scorer.prompt_alignment(cells, shared.prompt_of_each(prompts, batch_of))
        else:
            likeness = scorer.subject_likeness if column == LIKENESS else scorer.style_likeness
            values = likeness(cells, _truth(references, "toy" if column == LIKENESS else "print"))
        return shared.scored(column, values, labels, scores)


def _truth(batches, what: str) -> str | Tensor:
    if not any(batch is not None for batch in batches or []):
        return what
    return _cells(shared.flattened(batches)[0])


def _cells(pictures: list[Tensor]) -> Tensor:
    """Images [256, 256, C] -> the scorers' canvas. DCOError for other sizes."""
    side = SIZE * PIXELS_PER_CELL
    for i, picture in enumerate(pictures):
        if picture.shape[:2] != (side, side):
            height, width = picture.shape[:2]
            raise DCOError(
                f"Image {i + 1} is {width} x {height} pixels, but the Toy World's are {side} x {side}: score images of "
                "the Toy World here, and others with DINO / SigLIP Image Similarity and Image-Text Score."
            )
        if not torch.isfinite(picture).all():
            raise DCOError(
                f"Image {i + 1} holds NaN or infinity and cannot be scored: look at how it was made."
            )
    return to_cells(torch.stack([picture[..., :3] for picture in pictures]).float().cpu())


NODES = [DCOImageSimilarity, DCOImageTextScore, DCOToyWorldScore]
