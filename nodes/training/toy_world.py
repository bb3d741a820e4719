"""Nodes of the Toy World: its model, and what to personalise it with."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ...dco_core.toy_world.bases import BASES, DEFAULT_BASE
from ...dco_core.toy_world.references import another_subject_references
from ...dco_core.toy_world.renderer import PIXELS_PER_CELL, render
from ...dco_core.toy_world.world import sketch_references, style_reference, subject_references
from ..host import files, toy_world

SETS = {
    "subject": subject_references, "style": style_reference, "sketch": sketch_references,
    "another subject": another_subject_references,
}  # fmt: skip


class DCOToyWorldLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DCOToyWorldLoader", display_name="Load Toy World (DCO)", category="model/loaders",
            description="A small text-to-image model that ships with this pack: try training, reward guidance and "
            "merging in minutes on a CPU, without any download. It draws 256 x 256 pixels and reads captions such as "
            '"a large red star on the left, at night, in neon style".',
            search_aliases=["toy", "tiny model", "demo model", "dco"],
            inputs=[
                io.Combo.Input(
                    "base", options=list(BASES), default=DEFAULT_BASE, optional=True,
                    tooltip="What the model predicts. epsilon: the noise, as SD1.5 and SDXL do, which the paper is "
                    "about. flow: the velocity, as SD3 and Flux do. Both draw the same pictures.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The Toy World's diffusion model."),
                io.Clip.Output(display_name="clip", tooltip="Its text encoder, one token a word."),
                io.Vae.Output(display_name="vae", tooltip="Its pixel autoencoder."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, base: str = DEFAULT_BASE) -> io.NodeOutput:
        return io.NodeOutput(*toy_world.load(files.embedding_folders(), base))


class DCOToyWorldReferences(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DCOToyWorldReferences", display_name="Toy World References (DCO)",
            category="model/training",
            description="Reference images of the Toy World with comprehensive captions: a novel subject (four images, "
            "all on one beach), a novel style (one image), or a style that keeps colours, a sketch (four images). None "
            "was seen when the model was trained. Another subject is for pictures of two.",
            search_aliases=["toy", "demo dataset", "dco"],
            inputs=[
                io.Combo.Input(
                    "what", options=list(SETS), default="subject",
                    tooltip="subject: a teal toy with orange ears. style: a print in violet ink on golden paper. "
                    "sketch: things in their own colours, with an outline in dark red, on patterned mint paper. "
                    "another subject: a red toy with pointed lime ears.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="images", tooltip="The reference images, 256 x 256."),
                io.String.Output(
                    display_name="captions", is_output_list=True,
                    tooltip="One caption an image; <toy>, <print> and <sketch> mark what is to be learned.",
                ),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, what: str) -> io.NodeOutput:
        scenes, captions = SETS[what]()
        images = (render(scenes).movedim(1, -1) + 1) / 2
        cells = PIXELS_PER_CELL
        images = torch.repeat_interleave(torch.repeat_interleave(images, cells, 1), cells, 2)
        return io.NodeOutput(images, captions)


NODES = [DCOToyWorldLoader, DCOToyWorldReferences]
