"""Prompts for the host tests, built node by node."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

SNAPSHOT = Path(__file__).with_name("snapshot.json")
TRAINER_OPTIONS = ("DCOTrainingOptions", "DCOLoRAOptions", "DCODataOptions", "DCORunOptions")


@functools.cache
def input_names(node: str) -> set[str]:
    """Of a node's inputs, without those inside of its choices."""
    inputs = json.loads(SNAPSHOT.read_text(encoding="utf-8"))[node]["inputs"]
    return {name for section, name, *_ in inputs if section in ("required", "optional")}


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

    def toy(self, base: str = "flow") -> dict[str, Any]:
        """A base of the Toy World: {"model", "clip", "vae"} links. flow: the checkpoints of the tests are no such
        models."""
        node = self.add("DCOToyWorldLoader", base=base)
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
        } | changes  # fmt: skip
        return [
            self.guidance(
                "DCORewardGuidanceSampler", model=model, lora=lora, positive=positive, negative=negative,
                latent_image=latent, w_rg=w_rg, w_text=w_text, **values,
            ),
            0,
        ]  # fmt: skip

    def with_options(self, node: str, values: dict[str, Any], *options_nodes: str) -> dict[str, Any]:
        """The node's own inputs among the values; what belongs to its options nodes goes to one of each that is
        needed, connected to `options`. None: left out of the prompt."""
        own: dict[str, Any] = {}
        given: dict[str, dict[str, Any]] = {options_node: {} for options_node in options_nodes}
        for name, value in values.items():
            if value is None:
                continue
            top = name.split("__")[0]
            homes = [n for n in options_nodes if top in input_names(n) - {"options"}]
            (given[homes[0]] if homes else own)[name] = value
        for options_node, inputs in given.items():
            if inputs:
                before = {"options": own["options"]} if "options" in own else {}
                own["options"] = [self.add(options_node, **inputs, **before), 0]
        assert {name.split("__")[0] for name in own} <= input_names(node)
        return own

    def trainer(self, base: dict[str, Any], images: list, captions: Any, **changes: Any) -> str:
        """A trainer and the options nodes that the changes need. objective__beta: a number is a value of one's own,
        0 is auto. previews: a number is the steps between them, 0 is off."""
        values = {
            "recipe": "custom", "recipe__learning_rate": 1e-3, "recipe__offset_noise": 0.0, "steps": 12, "rank": 4,
            "objective": "DCO", "objective__beta": 0.03, "resolution": 256, "name": "test", "batch_size": 2,
            "previews": 0,
            "resume": False,  # each run on its own: test_resume.py is about going on
            "validation_steps": 0,  # the score after the last step costs more than a short training
        } | changes  # fmt: skip
        for name in ("learning_rate", "offset_noise"):
            if name in values:
                values[f"recipe__{name}"] = values.pop(name)
        if "DCO" not in str(values["objective"]):
            values = {name: value for name, value in values.items() if not name.startswith("objective__beta")}
        elif isinstance(beta := values["objective__beta"], (int, float)):
            values |= {"objective__beta": "own value", "objective__beta__value": beta} if beta else {
                "objective__beta": "auto"
            }  # fmt: skip
        if isinstance(every := values["previews"], int):
            values |= {"previews": "every so many steps", "previews__preview_every": every} if every else {
                "previews": "off"
            }  # fmt: skip
        inputs = self.with_options("DCOLoRATrainer", values, *TRAINER_OPTIONS)
        return self.add("DCOLoRATrainer", **base, images=images, captions=captions, **inputs)

    def toy_trainer(self, base: dict[str, Any], what: str = "subject", **changes: Any) -> str:
        references = self.add("DCOToyWorldReferences", what=what)
        return self.trainer(base, [references, 0], [references, 1], **changes)

    def guidance(self, class_type: str, /, **values: Any) -> str:
        """A guidance node, and the options node that the values need."""
        return self.add(class_type, **self.with_options(class_type, values, "DCORewardGuidanceOptions"))

    def merge(self, loras: list[Any], **changes: Any) -> str:
        """A merge of links to LoRAs, and the options node that the changes need."""
        links = {f"loras__lora_{i}": link for i, link in enumerate(loras)}
        inputs = self.with_options("DCOLoRAArithmeticMerge", changes, "DCOMergeOptions")
        return self.add("DCOLoRAArithmeticMerge", **links, **inputs)

    def compare(self, a: list, b: list) -> str:
        return self.add("DCOTestCompareLatents", a=a, b=b)


def facts(outputs: dict[str, Any], node: str) -> dict[str, Any]:
    """What a test node reported."""
    return json.loads(outputs[node]["text"][0])


def saved_file(outputs: dict[str, Any], node: str) -> str:
    """The file that a trainer or merge node says it saved, relative to the output folder."""
    return outputs[node]["text"][0].split("Saved ")[1].split(". Press")[0]
