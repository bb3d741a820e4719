"""A node for the host tests only: what of a training is still in memory."""

import collections
import gc
import json
import sys

import torch


class LeftOver:
    """How many runs, denoisers, optimizers and adapted layers there are, and parameters that want gradients or have
    one. `run` makes each prompt a new one."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {"run": ("INT", {"default": 0})}})
    RETURN_TYPES, FUNCTION, OUTPUT_NODE, CATEGORY = (), "look", True, "test"

    def look(self, run):
        found = collections.Counter()
        gc.collect()
        layer = sys.modules["peft.tuners.lora"].LoraLayer if "peft.tuners.lora" in sys.modules else ()
        for thing in gc.get_objects():
            kind = type(thing)
            if kind.__name__ in ("Training", "HostDenoiser"):
                found[kind.__name__] += 1
            elif issubclass(kind, torch.optim.Optimizer):
                found["optimizers"] += 1
            elif layer and issubclass(kind, layer):
                found["adapted layers"] += 1
            elif kind is torch.nn.Parameter and (thing.requires_grad or thing.grad is not None):
                found["parameters in training"] += 1
        return {"ui": {"text": [json.dumps(found)]}}


NODE_CLASS_MAPPINGS = {"DCOTestLeftOver": LeftOver}
