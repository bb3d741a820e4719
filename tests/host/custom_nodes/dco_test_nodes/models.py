"""What models hold, and models that go wrong."""

import hashlib
import importlib
import json
import sys

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.sd
import torch

from .pack import pack


class Modules:
    """Which modules are imported; run before anything trains."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {"names": ("STRING", {})}})
    RETURN_TYPES, FUNCTION, OUTPUT_NODE, CATEGORY = (), "run", True, "test"

    def run(self, names):
        return {"ui": {"text": [json.dumps([name for name in names.split() if name in sys.modules])]}}


class WeightHash:
    """sha256 of all weights of a MODEL and the identity of its parameters. `after` only orders the nodes."""

    INPUT_TYPES = classmethod(
        lambda cls: {
            "required": {"model": ("MODEL",), "when": ("INT", {"default": 0})},
            "optional": {"after": ("*",)},
        }
    )
    RETURN_TYPES, FUNCTION, OUTPUT_NODE, CATEGORY = (), "run", True, "test"

    def run(self, model, when, after=None):
        comfy.model_management.load_models_gpu([model])
        digest = hashlib.sha256()
        for name, tensor in sorted(model.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
        identity = [id(p) for p in model.model.parameters()]
        hooks = sum(len(m._forward_hooks) + ("forward" in vars(m)) for m in model.model.modules())
        grads = sum(p.requires_grad for p in model.model.diffusion_model.parameters())
        facts = {"hash": digest.hexdigest(), "ids": hash(tuple(identity)), "hooks": hooks, "grads": grads}
        return {"ui": {"text": [json.dumps(facts)]}}


class ClipHash:
    """sha256 of all weights of a CLIP. `after` only orders the nodes."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {"clip": ("CLIP",)}, "optional": {"after": ("*",)}})
    RETURN_TYPES, FUNCTION, OUTPUT_NODE, CATEGORY = (), "run", True, "test"

    def run(self, clip, after=None):
        digest = hashlib.sha256()
        for name, tensor in sorted(clip.cond_stage_model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy())
        grads = sum(p.requires_grad for p in clip.cond_stage_model.parameters())
        return {"ui": {"text": [json.dumps({"hash": digest.hexdigest(), "grads": grads})]}}


class BrokenImage:
    INPUT_TYPES = classmethod(lambda cls: {"required": {}})
    RETURN_TYPES, FUNCTION, CATEGORY = ("IMAGE",), "run", "test"

    def run(self):
        return (torch.full((1, 256, 256, 3), float("nan")),)


class BrokenClip:
    """A text encoder whose conditioning is not finite, in the Toy World's shape."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {}})
    RETURN_TYPES, FUNCTION, CATEGORY = ("CLIP",), "run", "test"

    def run(self):
        return (self,)

    def tokenize(self, text, **_):
        return text

    def encode_from_tokens_scheduled(self, tokens):
        return [[torch.full((1, 20, 128), float("nan")), {}]]


class RefusesQuantised:
    INPUT_TYPES = classmethod(lambda cls: {"required": {}})
    RETURN_TYPES, FUNCTION, OUTPUT_NODE, CATEGORY = (), "run", True, "test"

    def run(self):
        class Quantised(torch.Tensor):
            pass

        layer = torch.nn.Linear(2, 2)
        layer.register_buffer("packed", torch.zeros(2).as_subclass(Quantised))
        try:
            pack("nodes.host.training.network").network_on_same_storage(layer)
        except ValueError as error:
            return {"ui": {"text": [str(error)]}}
        return {"ui": {"text": ["accepted"]}}


class Offload:
    """Which models are loaded while a training session is open."""

    INPUT_TYPES = classmethod(
        lambda cls: {"required": {"model": ("MODEL",), "clip": ("CLIP",), "vae": ("VAE",)}}
    )
    RETURN_TYPES, FUNCTION, OUTPUT_NODE, CATEGORY = (), "run", True, "test"

    def run(self, model, clip, vae):
        def loaded():
            return sorted(type(m.model.model).__name__ for m in comfy.model_management.current_loaded_models)

        training, config = pack("nodes.host.training.network"), pack("dco_core").AdapterConfig(rank=1)
        clip.encode_from_tokens(clip.tokenize("a dog"))
        vae.encode(torch.rand(1, 64, 64, 3))
        facts = {"before": len(loaded())}
        with training.training_session(model, config):
            facts["during"] = loaded()
        with training.training_session(model, config, clip):
            facts["with_tokens"] = loaded()
        return {"ui": {"text": [json.dumps(facts)]}}


class VisionLanguage:
    """A vision-language model with the host's interface that says what it is asked to and how bright a picture is."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {}})
    RETURN_TYPES, FUNCTION, CATEGORY = ("CLIP",), "run", "test"

    def run(self):
        return (self,)

    def tokenize(self, text, image=None, **_):
        assert image.ndim == 4 and len(image) == 1
        return {"prompt": text, "brightness": image.mean().item()}

    def generate(self, tokens, do_sample=True, max_length=256, **_):
        assert not do_sample and max_length > 0
        return tokens

    def decode(self, ids):
        if ids["prompt"].startswith("ECHO"):
            return f"a dog asked {ids['prompt'][5:]}"
        seen = f"A close-up photo of a dog on the beach, brightness {ids['brightness']:.2f}."
        return f'Sure! Here is a caption:\n"{seen}"'


class CompileEagerly:
    """From here on torch.compile only traces: compiling would take minutes."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {"model": ("MODEL",)}})
    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL",), "run", "test"

    def run(self, model):
        compiling = importlib.import_module(".network.compiling", pack("dco_core").__name__)
        compiling.compile_blocks.__defaults__ = ("eager",)
        return (model,)


class CompiledGraphs:
    """How many graphs torch.compile has traced."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {"after": ("*",)}})
    RETURN_TYPES, FUNCTION, OUTPUT_NODE, CATEGORY = (), "run", True, "test"

    def run(self, after):
        from torch._dynamo.utils import counters

        return {"ui": {"text": [json.dumps(counters["stats"]["unique_graphs"])]}}
