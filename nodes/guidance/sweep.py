"""The paper's Fig. 13 for one's own subject: one picture a guidance scale, and a labelled sheet of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from comfy_api.latest import io

from ...dco_core.data.pixels import as_image, as_uint8
from ...dco_core.drawing.contact_sheet import contact_sheet
from ...dco_core.errors import DCOError
from ..host import sampling
from ..host.node_choices import check_choices
from ..host.progress import NodeText, raise_if_interrupted
from ..options import dynamic
from . import inputs as shared
from .guided import Guided

ALONE, BY_W_TEXT, BY_STRENGTH = "w_rg alone", "and w_text", "and LoRA strength"
MAX_PICTURES = 256


def parse_values(name: str, text: str) -> list[float]:
    """ "0, 1.5, 3" -> [0.0, 1.5, 3.0]; DCOError for anything else."""
    parts = [part.strip() for part in text.replace(";", ",").split(",") if part.strip()]
    values = []
    for part in parts:
        try:
            values.append(float(part))
        except ValueError:
            values.append(math.nan)
        if not math.isfinite(values[-1]):
            raise DCOError(
                f'{name} has "{part}", which is no number: write numbers with commas, like "0, 2, 4".'
            )
    if not values:
        raise DCOError(f'{name} is empty: write at least one number, like "0, 2, 4".')
    return values


class DCORewardGuidanceSweep(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        row = "One row of pictures for each."
        across = {
            ALONE: [],
            BY_W_TEXT: [io.String.Input("w_text_values", default="3, 5, 7.5", tooltip=row)],
            BY_STRENGTH: [io.String.Input("strength_values", default="0.6, 0.8, 1", tooltip=row)],
        }
        return io.Schema(
            node_id="DCORewardGuidanceSweep", display_name="Reward Guidance Sweep (DCO)",
            category="model/sampling",
            description="A grid of pictures over w_rg, from the same noise and prompts, with labels: which scale suits "
            "this subject? (The paper's Fig. 13.)",
            search_aliases=["reward guidance", "dco", "xyz plot", "xy plot", "grid", "sweep", "w_rg", "compare"],
            inputs=[
                shared.MODEL, shared.LORA, shared.POSITIVE, shared.NEGATIVE, shared.LATENT,
                io.Vae.Input("vae", tooltip="Decodes the pictures."),
                io.String.Input(
                    "w_rg_values", default="0, 1, 2, 3, 4, 5",
                    tooltip="Reward guidance scales, one column of pictures for each. 0 is the base model.",
                ),
                dynamic("across", across, "What else varies, one row of pictures for each value."),
                shared.SEED, shared.STEPS, shared.W_TEXT, shared.SAMPLER, shared.SCHEDULER, shared.DENOISE,
                shared.PERSONALIZED, shared.OPTIONS, shared.MASK, shared.REGIONS,
            ],
            outputs=[
                io.Image.Output(display_name="images", tooltip="All pictures, row by row; of videos, all frames."),
                io.Image.Output(display_name="sheet", tooltip="The pictures with their labels; of videos, frame 1."),
                io.String.Output(
                    display_name="labels", is_output_list=True,
                    tooltip="What each picture was made with, for score nodes and contact sheets.",
                ),
                shared.REPORT,
            ],
            hidden=shared.HIDDEN, has_intermediate_output=True,
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model, lora, positive, negative, latent_image, vae, w_rg_values, across: Mapping[str, Any], seed, steps,
        w_text, sampler_name, scheduler, denoise=1.0, personalized=None, options=None, mask=None, regions=None,
    ) -> io.NodeOutput:  # fmt: skip
        check_choices(cls)
        columns = parse_values("w_rg_values", w_rg_values)
        guided = Guided(model, lora, personalized, options, mask, regions)
        rows = _rows(across, w_text, guided.strength)
        batch = len(latent_image["samples"])
        count = len(columns) * len(rows)
        if count * batch > MAX_PICTURES:
            raise DCOError(
                f"The sweep is {len(columns)} x {len(rows)} x {batch} images of the batch = {count * batch} pictures, "
                f"more than {MAX_PICTURES}: use fewer values."
            )
        pictures: list[list[torch.Tensor]] = []
        text, lines = NodeText(cls), []
        for i, (label, cfg, strength) in enumerate(rows):
            pictures.append([])
            for j, w_rg in enumerate(columns):
                raise_if_interrupted()
                at = f"w_rg {w_rg:g}{label and ', ' + label}"
                text.progress(f"Picture {i * len(columns) + j + 1} of {count}: {at}")
                samples = sampling.ksample(
                    guided.patched("reward", w_rg, strength), seed, steps, cfg, sampler_name, scheduler, positive,
                    negative, latent_image, denoise,
                )  # fmt: skip
                pictures[-1].append(sampling.decode(vae, samples))
                lines.append(f"{at}: {guided.reward_report(w_rg, cfg, strength)}")
                if w_rg and guided.adds(strength):
                    guided.skip_self_check()  # one picture proves it for all
        report = "\n".join(lines) + guided.replaced()
        return io.NodeOutput(
            torch.cat(
                [picture[k : k + 1] for row in pictures for k in range(len(row[0])) for picture in row]
            ),
            _sheet(pictures, [label for label, _, _ in rows], columns, batch),
            [
                ", ".join(filter(None, (label, f"w_rg {value:g}")))
                for (label, _, _), row in zip(rows, pictures, strict=True)
                for _ in range(len(row[0]))  # images of the batch, or all frames of its videos
                for value in columns
            ],
            report,
            ui={"text": [report]},
        )


def _rows(across: Mapping[str, Any], w_text: float, strength: float) -> list[tuple[str, float, float]]:
    """(label, w_text, LoRA strength) of each row."""
    choice = across["across"]
    if choice == BY_W_TEXT:
        return [
            (f"w_text {v:g}", v, strength) for v in parse_values("w_text_values", across["w_text_values"])
        ]
    if choice == BY_STRENGTH:
        values = parse_values("strength_values", across["strength_values"])
        return [(f"strength {v:g}", w_text, v) for v in values]
    return [("", w_text, strength)]


def _sheet(pictures, labels: list[str], columns: list[float], batch: int) -> torch.Tensor:
    """IMAGE [1, H, W, 3]; a row for each image of the batch under each label. Of a video, its first frame."""
    rows, names = [], []
    for label, row in zip(labels, pictures, strict=True):
        frames = len(row[0]) // batch
        for k in range(batch):
            rows.append([as_uint8(picture[k * frames]) for picture in row])
            numbered = f"image {k + 1}" if batch > 1 else ""
            names.append(", ".join(filter(None, (label, numbered))))
    return as_image(contact_sheet(rows, names, [f"w_rg {value:g}" for value in columns]))[None]


NODES = [DCORewardGuidanceSweep]
