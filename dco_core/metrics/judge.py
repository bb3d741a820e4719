"""A vision-language model as judge of pictures, 0 to 4 points each, after the rubric of DreamBench++ (Peng et al. 2024,
arXiv 2406.16855, App. B): resemblance of the subject in shape, colour, texture and face, of a style in its means, and
how far the prompt is followed. The words are our own and the model is whichever is given, so that scores compare
methods of one study, not studies with the published ones, which are GPT-4o's.

Instead of an answer, which is drawn or is the likeliest, the expected number of points is taken: of the model's
probabilities of 0, 1, 2, 3 and 4 as the next token. It is the same in every run and tells apart what would be two equal
answers (Liu et al. 2023, arXiv 2303.16634).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from ..errors import DCOError
from .pretrained import as_picture, load_pretrained

POINTS = 4
SIDE = 512  # pixels of the longer side, as the benchmark shows pictures
_SCALE = {
    "subject": "0 nothing in common; 1 the same kind of thing, clearly another one; 2 alike, with notable differences; "
    "3 the same but for small things; 4 it cannot be told apart.",
    "style": "0 nothing in common; 1 the same medium at most; 2 alike, with notable differences; 3 the same but for "
    "small things; 4 it could be by the same hand.",
    "prompt": "0 nothing of it; 1 little of it; 2 some of it, with important parts missing or wrong; 3 nearly all of "
    "it; 4 all of it.",
}
_QUESTION = {
    "subject": "The first image is a reference, the second was generated. How much does the subject of the second "
    "resemble that of the first? Judge its shape (outline, proportions, parts), its colours and where they are, its "
    "texture and fine detail, and, of a person or an animal, its face. Do not judge pose, background or style.",
    "style": "The first image is a reference, the second was generated. How much does the style of the second resemble "
    "that of the first? Judge palette, brushwork or line, texture, light and degree of abstraction. Do not judge what "
    "is shown.",
    "prompt": 'The image was generated from this text: "{prompt}". How far does it follow the text? Judge whether what '
    "is named is there, whether details are as they are described, whether anything is missing, and whether setting "
    "and context are right.",
}


class Judge(nn.Module):
    """model, processor: of transformers, a chat model that reads several images."""

    def __init__(self, model: Any, processor: Any):
        super().__init__()
        self.model, self.processor = model, processor
        digits = [
            processor.tokenizer.encode(str(n), add_special_tokens=False)[-1:] for n in range(POINTS + 1)
        ]
        self._digits = [token for tokens in digits for token in tokens]
        if len(set(self._digits)) != POINTS + 1:
            raise DCOError("The judge's tokenizer has no token for each of 0 to 4: use another vision-language model.")

    def resemblance(
        self, images: Sequence[Tensor], references: Sequence[Tensor], kind: str = "subject",
        callback: Callable[[], None] = lambda: None,
    ) -> Tensor:  # fmt: skip
        """Images and references [H, W, 3] in 0..1, of any sizes -> how much each resembles the references, [B] in 0..1,
        the mean over them. kind: subject or style. callback: called before each image. DCOError without references."""
        if not len(references):
            raise DCOError("There are no reference images to compare with: give at least one.")
        shown = [_small(reference, i) for i, reference in enumerate(references)]
        found = []
        for i, image in enumerate(images):
            callback()
            picture = _small(image, i)
            points = [self._points(_asked(kind), [reference, picture]) for reference in shown]
            found.append(sum(points) / len(points))
        return torch.tensor(found)

    def follows(
        self, images: Sequence[Tensor], prompts: Sequence[str], callback: Callable[[], None] = lambda: None
    ) -> Tensor:
        """How far each image [H, W, 3] in 0..1 follows its own prompt, [B] in 0..1. DCOError unless there are as many
        prompts."""
        if len(images) != len(prompts):
            raise DCOError(f"{len(images)} images have {len(prompts)} prompts: give one prompt for each image.")
        found = []
        for i, (image, prompt) in enumerate(zip(images, prompts, strict=True)):
            callback()
            found.append(self._points(_asked("prompt", prompt), [_small(image, i)]))
        return torch.tensor(found)

    @torch.no_grad()
    def _points(self, question: str, pictures: list[Image.Image]) -> float:
        """The expected points, as a share of all."""
        content: list[dict[str, str]] = [{"type": "image"} for _ in pictures]
        message = {"role": "user", "content": [*content, {"type": "text", "text": question}]}
        text = self.processor.apply_chat_template([message], add_generation_prompt=True, tokenize=False) + "Score: "
        inputs = self.processor(text=[text], images=pictures, return_tensors="pt")
        first = next(self.model.parameters())
        inputs = {
            name: value.to(first.device, first.dtype) if value.is_floating_point() else value.to(first.device)
            for name, value in inputs.items()
        }
        logits = self.model(**inputs).logits[0, -1, self._digits].float()
        return float(logits.softmax(0).cpu() @ torch.arange(POINTS + 1.0)) / POINTS


def _asked(kind: str, prompt: str = "") -> str:
    if kind not in _QUESTION:
        raise DCOError(f'A judge knows no "{kind}": use {", ".join(_QUESTION)}.')
    # one pass: a prompt with braces stays as it is
    return f"{_QUESTION[kind].replace('{prompt}', prompt)} {_SCALE[kind]} Answer with the number alone."


def _small(image: Tensor, i: int) -> Image.Image:
    picture = as_picture(image, i)
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return picture


def load_judge(source: str | Path, device: torch.device | str = "cpu") -> Judge:
    """The vision-language model in a folder or of that name on the Hugging Face hub, such as
    "Qwen/Qwen2.5-VL-7B-Instruct": in bf16 on a GPU, in fp32 on the CPU. DCOError for a model that does not chat about
    images."""
    dtype = torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32
    model, processor = load_pretrained(source, "AutoModelForImageTextToText", "AutoProcessor", dtype)
    if not getattr(processor, "chat_template", None) or not hasattr(processor, "tokenizer"):
        raise DCOError(
            f'"{source}" has no chat template: give a vision-language model that was tuned to instructions, such as '
            '"Qwen/Qwen2.5-VL-7B-Instruct".'
        )
    return Judge(model.to(device), processor).eval()
