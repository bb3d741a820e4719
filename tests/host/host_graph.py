"""Prompts for the host tests, built node by node."""

from __future__ import annotations

import json
from typing import Any


class Graph:
    """An API prompt under construction: `g.add("Node", input=...)` returns the node's id."""

    def __init__(self):
        self.prompt: dict[str, Any] = {}

    def add(self, class_type: str, /, **inputs: Any) -> str:
        node = str(len(self.prompt) + 1)
        self.prompt[node] = {
            "class_type": class_type,
            "inputs": {name.replace("__", "."): value for name, value in inputs.items()},
        }
        return node

    def toy(self) -> dict[str, Any]:
        """The Toy World: {"model", "clip", "vae"} links."""
        node = self.add("DCOToyWorldLoader")
        return {"model": [node, 0], "clip": [node, 1], "vae": [node, 2]}

    def checkpoint(self, family: str) -> dict[str, Any]:
        node = self.add("CheckpointLoaderSimple", ckpt_name=f"tiny_{family}.ckpt")
        return {"model": [node, 0], "clip": [node, 1], "vae": [node, 2]}

    def text(self, clip: list, text: str) -> list:
        return [self.add("CLIPTextEncode", clip=clip, text=text), 0]

    def latent(self, size: int, batch: int = 1) -> list:
        return [self.add("EmptyLatentImage", width=size, height=size, batch_size=batch), 0]

    def ksample(
        self, model: list, positive: list, negative: list, latent: list, cfg: float, **changes: Any
    ) -> list:
        values = {
            "seed": 3,
            "steps": 4,
            "sampler_name": "euler",
            "scheduler": "normal",
            "denoise": 1.0,
        } | changes
        return [
            self.add(
                "KSampler",
                model=model,
                positive=positive,
                negative=negative,
                latent_image=latent,
                cfg=cfg,
                **values,
            ),
            0,
        ]

    def guided(
        self, model: list, lora: list, positive: list, negative: list, latent: list, w_rg: float, w_text: float,
        **changes: Any,
    ) -> list:  # fmt: skip
        values = {
            "seed": 3, "steps": 4, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0,
            "lora_strength": 1.0,
        } | changes  # fmt: skip
        return [
            self.add(
                "DCORewardGuidanceSampler", model=model, lora=lora, positive=positive, negative=negative,
                latent_image=latent, w_rg=w_rg, w_text=w_text, **values,
            ),
            0,
        ]  # fmt: skip

    def trainer(self, base: dict[str, Any], images: list, captions: Any, **changes: Any) -> str:
        values = {
            "steps": 12, "learning_rate": 1e-3, "rank": 4, "objective": "DCO", "objective__beta": 0.03,
            "objective__reduction": "per-sample", "resolution": 256, "seed": 0, "filename_prefix": "loras/test",
            "batch_size": 2, "offset_noise": 0.0, "alpha": 0.0, "layers": "attention",
            "resume": False,  # each run on its own: test_resume.py is about going on
            "validation_steps": 0,  # the score after the last step costs more than a short training
        } | changes  # fmt: skip
        return self.add("DCOLoRATrainer", **base, images=images, captions=captions, **values)

    def toy_trainer(self, base: dict[str, Any], what: str = "subject", **changes: Any) -> str:
        references = self.add("DCOToyWorldReferences", what=what)
        return self.trainer(base, [references, 0], [references, 1], **changes)

    def compare(self, a: list, b: list) -> str:
        return self.add("DCOTestCompareLatents", a=a, b=b)


def facts(outputs: dict[str, Any], node: str) -> dict[str, Any]:
    """What a test node reported."""
    return json.loads(outputs[node]["text"][0])


def saved_file(outputs: dict[str, Any], node: str) -> str:
    """The file that a trainer or merge node says it saved, relative to the output folder."""
    return outputs[node]["text"][0].split("Saved ")[1].split(". Press")[0]
