"""What the score nodes share: their inputs and outputs, and how images, prompts and labels belong together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ...dco_core.errors import DCOError, printable_lines
from ...dco_core.evidence.score_table import ScoreTable

Scores = io.Custom("DCO_SCORES")

IMAGES = io.Image.Input("images", tooltip="What to score: a batch, or a list of batches as a sweep gives it.")
LABELS = io.String.Input(
    "labels", optional=True, force_input=True,
    tooltip="A label for each image, from a sweep: images of one label become one point of a Pareto plot. Not "
    "connected: all images are one point.",
)  # fmt: skip
SCORES = Scores.Input(
    "scores",
    optional=True,
    tooltip="Scores of the same images from another score node, to go on with: likeness and alignment together make "
    "a Pareto plot.",
)


def outputs() -> list[Any]:
    return [
        Scores.Output(
            display_name="scores", tooltip="All scores of the images, for a plot or a next score node."
        ),
        io.Float.Output(display_name="mean", tooltip="The mean of this score over all images."),
        io.String.Output(display_name="table", tooltip="Mean scores for each label, as a Markdown table."),
    ]


def flattened(batches: Sequence[Tensor | None], what: str = "images") -> tuple[list[Tensor], list[int]]:
    """A list of IMAGE batches -> single images [H, W, C], and which batch each is of. DCOError for none."""
    pairs = [(image, i) for i, batch in enumerate(batches) if batch is not None for image in batch]
    if not pairs:
        raise DCOError(f"There are no {what} to score: connect at least one.")
    return [image for image, _ in pairs], [i for _, i in pairs]


def prompt_of_each(prompts: Sequence[str], batch_of: Sequence[int]) -> list[str]:
    """One prompt an image: a list, or one text with a prompt a line. One prompt is for all images, as many as there are
    batches for a batch each, as many as there are images for one each. DCOError otherwise."""
    texts = [
        line.strip() for text in prompts for line in (text.splitlines() if len(prompts) == 1 else [text])
    ]
    texts = [text for text in texts if text]
    if not texts:
        raise DCOError("There is no prompt to score with: write what the images should show.")
    batches = max(batch_of) + 1
    if len(texts) == 1:
        return texts * len(batch_of)
    if len(texts) == batches:
        return [texts[i] for i in batch_of]
    if len(texts) == len(batch_of):
        return texts
    raise DCOError(
        f"There are {len(batch_of)} images in {batches} batches and {len(texts)} prompts: give one prompt for all, one "
        "for each batch or one for each image."
    )


def scored(
    name: str,
    values: Tensor,
    labels: Sequence[str] | None,
    scores: Sequence[ScoreTable | None] | None,
) -> io.NodeOutput:
    """The outputs of a score node: the values [B] as the column `name`, after the scores there are."""
    given = [table for table in scores or [] if table is not None]
    texts = [label for label in labels or [] if label is not None]
    if len(given) > 1:
        raise DCOError(f"There are {len(given)} tables of scores to go on with: connect a single one.")
    if texts and len(texts) not in (1, len(values)):
        raise DCOError(
            f"There are {len(values)} images and {len(texts)} labels: give one label for each image."
        )
    if len(texts) == 1:
        texts *= len(values)
    if given:
        table = given[0]
        if texts and tuple(texts) != table.labels:
            raise DCOError(
                f"The scores to go on with have other labels ({table.labels[0]!r} ...) than these images "
                f"({texts[0]!r} ...): score the same images, or leave labels unconnected."
            )
    else:
        table = ScoreTable(tuple(texts or [""] * len(values)))
    table = table.with_column(name, values.tolist())
    mean = torch.as_tensor(values).double().mean().item()
    lines = [f"{name}: mean {mean:.3f} of {len(values)} images", "", table.text()]
    return io.NodeOutput(table, mean, table.text(), ui={"text": [printable_lines("\n".join(lines))]})
