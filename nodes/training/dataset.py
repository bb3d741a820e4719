"""A folder of reference images with their captions."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from comfy_api.latest import io

from ...dco_core.data.folders import Picture, load_folder, made_smaller
from ...dco_core.errors import printable_lines
from ..host import files


class DCOLoadDataset(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DCOLoadDataset", display_name="Load Dataset Folder (DCO)", category="model/training",
            description="Reference images from a folder of the input folder, with captions from .txt files of the same "
            "name or a captions.json. Phone pictures come upright, transparency becomes white and a mask, and a "
            "subfolder such as 10_dog counts ten times.",
            search_aliases=["training images", "load folder", "dataset", "load images", "caption files", "dco"],
            inputs=[
                io.Combo.Input(
                    "folder", options=files.dataset_folders(),
                    tooltip="A folder inside ComfyUI's input folder. New ones appear after pressing R.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="images", is_output_list=True, tooltip="The images, in order of name.",
                ),
                io.String.Output(
                    display_name="captions", is_output_list=True,
                    tooltip='One caption an image; "" where there is none.',
                ),
                io.Mask.Output(
                    display_name="masks", is_output_list=True,
                    tooltip="From the folder `masks`, else what is not transparent, for `masks` of the trainer.",
                ),
            ],
            has_intermediate_output=True,
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, folder: str) -> str:
        found = sorted(files.dataset_folder(folder).rglob("*"))
        return str([(str(p), p.stat().st_mtime_ns, p.stat().st_size) for p in found if p.is_file()])

    @classmethod
    def execute(cls, folder: str) -> io.NodeOutput:
        images, captions, masks = [], [], []
        pictures = load_folder(files.dataset_folder(folder))
        notes = made_smaller(pictures)
        for line in notes:
            logging.info("DCO: %s", line)
        for picture in pictures:
            mask = torch.ones(picture.image.shape[:2]) if picture.mask is None else picture.mask
            images += [picture.image[None]] * picture.repeats  # the same memory, which the trainer reads once
            captions += [picture.caption] * picture.repeats
            masks += [mask[None]] * picture.repeats
        text = printable_lines("\n".join([_summary(folder, pictures, len(images)), *notes]))
        return io.NodeOutput(images, captions, masks, ui={"text": [text]})


def _summary(folder: str, pictures: Sequence[Picture], repeated: int) -> str:
    """What was found, in a line for the node."""
    without, masks = sum(not p.caption for p in pictures), sum(p.mask is not None for p in pictures)
    text = f"{len(pictures)} image{'s' * (len(pictures) != 1)} of {folder}"
    if repeated != len(pictures):
        text += f", {repeated} with repeats"
    text += f"; {without} without a caption" if without else "; all with captions"
    return text + (f"; {masks} with a mask." if masks else ".")


NODES = [DCOLoadDataset]
