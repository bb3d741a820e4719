"""Nodes for the score tests: a small CLIP_VISION of the host's own class, and what a table of scores holds."""

import json
from pathlib import Path

import comfy.clip_vision
from safetensors.torch import load_file


class SmallClipVision:
    """What core's Load CLIP Vision returns, for weights too small for it to recognise: the host's class with a
    configuration of its own."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {"folder": ("STRING", {})}})
    RETURN_TYPES, FUNCTION, CATEGORY = ("CLIP_VISION",), "run", "test"

    def run(self, folder):
        config = json.loads((Path(folder) / "config.json").read_text())
        weights = load_file(Path(folder) / "model.safetensors")
        if config["model_type"] == "siglip":
            config = {"num_channels": 3, "hidden_act": "gelu_pytorch_tanh"} | config["vision_config"]
            config["model_type"] = "siglip_vision_model"
            weights = {k: v for k, v in weights.items() if k.startswith("vision_model.")}
        else:
            config |= {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
        model = comfy.clip_vision.ClipVisionModel(config)
        missing, _ = model.load_sd(weights)
        assert not missing, missing
        return (model,)


class ShowScores:
    """Labels and scores of a table."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {"scores": ("DCO_SCORES",)}})
    RETURN_TYPES, FUNCTION, OUTPUT_NODE, CATEGORY = (), "run", True, "test"

    def run(self, scores):
        facts = {"labels": scores.labels, **scores.columns}
        return {"ui": {"text": [json.dumps(facts)]}}


class Labels:
    """A list of strings, from one with commas."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {"text": ("STRING", {})}})
    RETURN_TYPES, OUTPUT_IS_LIST, FUNCTION, CATEGORY = ("STRING",), (True,), "run", "test"

    def run(self, text):
        return (text.split(","),)


class Pair:
    """Two batches as a list."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {"a": ("IMAGE",), "b": ("IMAGE",)}})
    RETURN_TYPES, OUTPUT_IS_LIST, FUNCTION, CATEGORY = ("IMAGE",), (True,), "run", "test"

    def run(self, a, b):
        return ([a, b],)


NODE_CLASS_MAPPINGS = {f"DCOTest{cls.__name__}": cls for cls in (SmallClipVision, ShowScores, Labels, Pair)}
