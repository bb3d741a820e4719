"""Photos that were dropped on the node in the browser, and captioned there."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ...dco_core.captions.check import by_caption, check_captions, report
from ...dco_core.captions.draft import CONCEPTS, instruction
from ...dco_core.data.folders import read_picture
from ...dco_core.errors import DCOError, parsed_json, printable_lines, shortened
from ..host import files
from ..host.progress import NodeText
from ..host.training.previews import NOTHING
from .captions import drafts


class DCOPhotos(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DCOPhotos",
            display_name="Photos and Captions (DCO)",
            category="model/training",
            description="Drop your photos on it and write a caption beside each. Run drafts the captions that are "
            "missing, with a vision-language model where one is connected, and says beside each photo what to mend.",
            search_aliases=[
                "upload images", "photos", "dataset", "caption", "load images", "dco",
            ],
            inputs=[
                io.String.Input(
                    "photos",
                    default="",
                    socketless=True,
                    extra_dict={"hidden": True},  # web/dco_photos.js draws it
                    tooltip='The photos as JSON, which the node writes itself: [{"file": "dco_photos/rex.jpg", '
                    '"caption": "a photo of a <dog> on a ledge"}]. Files are in ComfyUI\'s input folder.',
                ),
                io.Combo.Input("kind", options=list(CONCEPTS), default="subject", tooltip="What you teach."),
                io.String.Input(
                    "name",
                    default="dog",
                    tooltip="The subject's plain word (dog), or the style in words (flat cartoon illustration).",
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="A vision-language model, loaded with a CLIP loader: it drafts captions that are empty.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="images", is_output_list=True, tooltip="The photos, in their order."),
                io.String.Output(display_name="captions", is_output_list=True, tooltip="One caption a photo."),
                io.Mask.Output(
                    display_name="masks",
                    is_output_list=True,
                    tooltip="What is not transparent, for `masks` of DCO Data Options.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, photos: str, **_) -> str:
        try:
            return files.state_of(files.input_file(name) for name, _ in _rows(photos))
        except (DCOError, OSError):  # for execute to tell
            return "unknown"

    @classmethod
    def execute(cls, photos: str, kind: str, name: str, clip=None) -> io.NodeOutput:
        rows = _rows(photos)
        if not rows:
            raise DCOError("There are no photos yet: drop some on the node, or choose files with its button.")
        read = [read_picture(files.input_file(file)) for file, _ in rows]
        texts = [caption for _, caption in rows]
        bare = [i for i, text in enumerate(texts) if not text]
        pictures = [read[i][0] for i in bare]
        written = drafts(NodeText(cls), clip, pictures, kind, name, instruction(kind, name))
        for i, text in zip(bare, written, strict=True):
            texts[i] = text
        notes = check_captions(texts, kind=kind)
        drafted = f"Drafted {len(bare)} of {len(rows)} captions: read them, change what is not so, and press Run again."
        shown = printable_lines("\n".join([*([drafted] if bare else []), report(notes, texts)]))
        told = {"text": [shown], "dco_captions": by_caption(notes, texts), "dco_photos": texts}
        if bare:  # nothing is trained on captions that nobody has read
            return io.NodeOutput(NOTHING, NOTHING, NOTHING, ui=told)
        masks = [torch.ones(image.shape[:2]) if alpha is None else alpha for image, alpha, _ in read]
        return io.NodeOutput([image[None] for image, _, _ in read], texts, [mask[None] for mask in masks], ui=told)


def _rows(photos: str) -> list[tuple[str, str]]:
    """[(file, caption)] of the JSON that the node's list is; "" is none. DCOError for anything else."""
    try:
        rows = parsed_json(photos or "[]")
        return [(str(row["file"]), " ".join(str(row.get("caption", "")).split())) for row in rows]
    except (ValueError, TypeError, KeyError, AttributeError):
        raise DCOError(
            f"photos is {shortened(photos)}: write a list such as "
            '[{"file": "rex.jpg", "caption": "a photo of a <dog>"}].'
        ) from None


NODES = [DCOPhotos]
