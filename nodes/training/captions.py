"""Captions in the graph: drafting and checking them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from comfy_api.latest import io
from torch import Tensor

from ...dco_core.captions.check import CaptionNote, by_caption, check_captions, report
from ...dco_core.captions.draft import CONCEPTS, clean_answer, instruction, plain_draft
from ...dco_core.errors import printable_lines
from ..host import vision_language
from ..host.progress import NodeText, progress_bar, raise_if_interrupted
from ..host.training import learned_tokens
from .references import flatten_images, split_captions


class DCOComprehensiveCaption(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DCOComprehensiveCaption", display_name="Comprehensive Caption (DCO)",
            category="model/training",
            description="Drafts comprehensive captions for reference images: subject, background, view and style "
            "(paper, Sec. 4.3). With a vision-language model it looks at the pictures; without one it gives you a form "
            "to fill in. Copy the drafts into `captions` and edit them: what stands there is used.",
            search_aliases=["caption", "captioning", "vlm", "describe image", "dataset", "dco"],
            is_input_list=True, is_output_node=True,
            inputs=[
                io.Image.Input("images", tooltip="Reference images: a batch, or the list of a dataset node."),
                io.Combo.Input("kind", options=list(CONCEPTS), default="subject", tooltip="What you teach."),
                io.String.Input(
                    "name", default="dog",
                    tooltip="The subject's plain word (dog), or the style in words (flat cartoon illustration).",
                ),
                io.String.Input(
                    "captions", multiline=True, default="",
                    tooltip="Your own captions, one a line. Empty: the drafts are used as they are.",
                ),
                io.Clip.Input(
                    "clip", optional=True,
                    tooltip="A vision-language model, loaded with a CLIP loader (what core's Generate Text takes).",
                ),
                io.String.Input(
                    "instruction", multiline=True, default="", optional=True, advanced=True,
                    tooltip="What to ask the model. Empty: the built-in instruction, which the output shows.",
                ),
                io.Int.Input(
                    "max_length", default=256, min=8, max=4096, optional=True, advanced=True,
                    tooltip="Longest answer of the model, in tokens.",
                ),
            ],
            outputs=[
                io.String.Output(
                    display_name="captions", is_output_list=True,
                    tooltip="One caption an image, for the trainer.",
                ),
                io.String.Output(
                    display_name="instruction",
                    tooltip="What the model was asked; you can ask any other model the same.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def execute(cls, images, kind, name, captions, clip=None, **optional) -> io.NodeOutput:
        pictures = flatten_images(images)
        what, word = kind[0], name[0]
        prompt = (optional.get("instruction") or [""])[0].strip() or instruction(what, word)
        if any(text.strip() for text in captions):
            texts = split_captions(captions, len(pictures))
        else:
            length = (optional.get("max_length") or [256])[0]
            texts = drafts(NodeText(cls), clip[0] if clip else None, pictures, what, word, prompt, length)
        notes = check_captions(texts, kind=what)
        shown = printable_lines("\n".join([*texts, "", report(notes, texts)]))
        return io.NodeOutput(texts, prompt, ui=_ui(shown, notes, texts))


class DCOCheckCaptions(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DCOCheckCaptions", display_name="Check Captions (DCO)", category="model/training",
            description="Reads captions as the trainer will, and says what to mend: a missing marker, rare-token "
            "identifiers, captions that leave out background, view or style, too long ones, duplicates. Each with a "
            "suggestion.",
            search_aliases=["caption", "lint", "dataset", "dco"], is_input_list=True, is_output_node=True,
            inputs=[
                io.String.Input(
                    "captions", multiline=True, default="",
                    tooltip="One caption a line, or the list of a dataset node.",
                ),
                io.Combo.Input(
                    "kind", options=["auto", *CONCEPTS], default="auto",
                    tooltip="What you teach. auto: told from the captions.",
                ),
                io.Clip.Input(
                    "clip", optional=True,
                    tooltip="The text encoder, to find captions that are too long for it.",
                ),
            ],
            outputs=[io.String.Output(display_name="report", tooltip="What to mend, with suggestions.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, captions, kind, clip=None) -> io.NodeOutput:
        texts = list(captions)
        if len(texts) == 1:
            texts = texts[0].splitlines() or [""]
        notes = _notes(texts, kind[0], clip[0] if clip else None)
        shown = printable_lines(report(notes, texts))
        return io.NodeOutput(shown, ui=_ui(shown, notes, texts))


def drafts(
    text: NodeText, clip, pictures: Sequence[Tensor], kind: str, name: str, prompt: str, max_length: int = 256
) -> list[str]:
    """A caption for each image [H, W, C], by a vision-language model; without one (None), a form to fill in."""
    if clip is None:
        return [plain_draft(kind, name)] * len(pictures)
    found, bar = [], progress_bar(len(pictures))
    for i, picture in enumerate(pictures):
        raise_if_interrupted()
        text.progress(f"Describing image {i + 1} of {len(pictures)} ...")
        answer = vision_language.describe(clip, prompt, picture, max_length, 0)
        found.append(clean_answer(answer, kind, name))
        bar.update(1)
    return found


def check(
    texts: list[str], kind: str = "auto", clip=None, initializers: Mapping[str, str] | None = None,
    vectors: Mapping[str, int] | None = None,
) -> str:  # fmt: skip
    """The caption check as text, with the length limit of a CLIP. initializers: what learned tokens start from;
    vectors: how many tokens each of them counts for."""
    return printable_lines(report(_notes(texts, kind, clip, initializers, vectors), texts))


def _notes(texts: list[str], kind: str, clip, initializers=None, vectors=None) -> list[CaptionNote]:
    limit = learned_tokens.prompt_limit(clip) if clip is not None else None
    return check_captions(
        texts,
        kind=kind,
        count_tokens=(lambda text: learned_tokens.prompt_length(clip, text, vectors)) if limit else None,
        max_tokens=limit or 75,
        initializers=initializers,
    )


def _ui(shown: str, notes: list[CaptionNote], texts: list[str]) -> dict[str, list]:
    """The text on the node, and its notes caption by caption for whoever shows them beside the pictures."""
    return {"text": [shown], "dco_captions": by_caption(notes, texts)}


NODES = [DCOComprehensiveCaption, DCOCheckCaptions]
