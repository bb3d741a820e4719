"""Nodes for the host tests only: oracles, comparisons, faults."""

import hashlib
import json
import sys

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.sd
import folder_paths
import torch


def pack(module):
    """A module of the pack under test, whatever name the host loaded it by."""
    return next(m for name, m in sys.modules.items() if name.endswith(f"ComfyUI-DCO.{module}"))


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


class _TwoModels(comfy.samplers.CFGGuider):
    """phi0 + w_text (phi_c - phi0) + w_rg (theta_c - phi_c), every term from a plain evaluation of its own model."""

    def predict_noise(self, x, timestep, model_options={}, seed=None):
        positive, negative = self.conds["positive"], self.conds["negative"]
        evaluate = comfy.samplers.calc_cond_batch
        phi_c, phi_0 = evaluate(self.inner_model, [positive, negative], x, timestep, model_options)
        comfy.model_management.load_models_gpu([self.theta])
        self.theta.pre_run()
        (theta_c,) = evaluate(self.theta.model, [positive], x, timestep, model_options)
        return self.w_rg * (theta_c - phi_c) + self.w_text * (phi_c - phi_0) + phi_0


class SecondModel:
    """A model loaded a second time: two equal loader nodes would share one cached model."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {"family": ("STRING", {})}})
    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL",), "run", "test"

    def run(self, family):
        if family == "toy":
            return (pack("nodes.host.toy_world").load(None)[0],)
        path = folder_paths.get_full_path("checkpoints", f"tiny_{family}.ckpt")
        return (comfy.sd.load_checkpoint_guess_config(path, output_vae=False, output_clip=False)[0],)


class OracleSampler:
    INPUT_TYPES = classmethod(
        lambda cls: {
            "required": {
                "phi": ("MODEL",), "theta": ("MODEL",), "positive": ("CONDITIONING",), "negative": ("CONDITIONING",),
                "latent": ("LATENT",), "seed": ("INT", {"default": 0}), "steps": ("INT", {"default": 4}),
                "w_rg": ("FLOAT", {"default": 3.0}), "w_text": ("FLOAT", {"default": 7.5}),
            }
        }
    )  # fmt: skip
    RETURN_TYPES, FUNCTION, CATEGORY = ("LATENT",), "run", "test"

    def run(self, phi, theta, positive, negative, latent, seed, steps, w_rg, w_text):
        assert phi.model is not theta.model, "the oracle needs two separately loaded models"
        guider = _TwoModels(phi)
        guider.theta, guider.w_rg, guider.w_text = theta, w_rg, w_text
        guider.set_conds(positive, negative)
        samples = comfy.sample.fix_empty_latent_channels(
            phi, latent["samples"], latent.get("downscale_ratio_spacial")
        )
        noise = comfy.sample.prepare_noise(samples, seed)
        sigmas = comfy.samplers.calculate_sigmas(phi.get_model_object("model_sampling"), "normal", steps)
        sampler = comfy.samplers.sampler_object("euler")
        return ({"samples": guider.sample(noise, samples, sampler, sigmas, seed=seed)},)


class CompareLatents:
    INPUT_TYPES = classmethod(lambda cls: {"required": {"a": ("LATENT",), "b": ("LATENT",)}})
    RETURN_TYPES, FUNCTION, OUTPUT_NODE, CATEGORY = (), "run", True, "test"

    def run(self, a, b):
        a, b = a["samples"].double(), b["samples"].double()
        facts = {
            "relative": ((a - b).norm() / b.norm()).item(),
            "equal": torch.equal(a, b),
            "finite": bool(a.isfinite().all()),
            "sha256": hashlib.sha256(a.contiguous().numpy().tobytes()).hexdigest(),
        }
        return {"ui": {"text": [json.dumps(facts)]}}


class TwoCalls:
    """Make the network's modules refuse to tell rows apart, as a module without a batch dimension would."""

    INPUT_TYPES = classmethod(
        lambda cls: {"required": {"model": ("MODEL",), "on": ("BOOLEAN", {"default": True})}}
    )
    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL",), "run", "test"
    original = None

    def run(self, model, on):
        adapters = pack("nodes.host.adapters")
        TwoCalls.original = original = TwoCalls.original or adapters.Rows.indices

        def refuse(rows, batch):
            if rows.chunks > 1:
                raise adapters.RowsNotSeparable
            return original(rows, batch)

        adapters.Rows.indices = refuse if on else original
        return (model.clone(),)


class IndexingPatch:
    """An IPAdapter-style patch: looks its data up by cond_or_uncond, knowing 0 and 1 only, and changes the result."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {"model": ("MODEL",)}})
    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL",), "run", "test"

    def run(self, model):
        model = model.clone()

        def patch(q, k, v, extra_options):
            shift = torch.tensor([[0.01, 0.02][i] for i in extra_options["cond_or_uncond"]])
            return q + shift.repeat_interleave(len(q) // len(shift))[:, None, None].to(q), k, v

        model.set_model_attn2_patch(patch)
        return (model,)


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

    def tokenize(self, text):
        return text

    def encode_from_tokens_scheduled(self, tokens):
        return [[torch.full((1, 20, 128), float("nan")), {}]]


class HeldOutLoss:
    """The DCO loss of a trained LoRA on fixed draws that training did not use, with the LoRA and without it."""

    INPUT_TYPES = classmethod(
        lambda cls: {
            "required": {
                "model": ("MODEL",), "clip": ("CLIP",), "vae": ("VAE",), "image": ("IMAGE",), "lora": ("LORA_MODEL",),
                "caption": ("STRING", {}), "rank": ("INT", {}), "resolution": ("INT", {}), "beta": ("FLOAT", {}),
            }
        }
    )  # fmt: skip
    RETURN_TYPES, FUNCTION, OUTPUT_NODE, CATEGORY = (), "run", True, "test"

    def run(self, model, clip, vae, image, lora, caption, rank, resolution, beta):
        training, conditioning = pack("nodes.host.training"), pack("nodes.host.conditioning")
        trainer, adapters = pack("dco_core.trainer"), pack("dco_core.adapters")
        (condition,) = conditioning.encode_captions(clip, [caption])
        latents = conditioning.encode_images(vae, list(image), resolution)
        with training.training_session(model, adapters.AdapterConfig(rank=rank)) as denoiser:
            examples = []
            for latent in latents:
                x0 = training.native_latent(model, latent)
                examples.append(trainer.Example(x0, denoiser.model_conditions(condition, x0)))
            config = trainer.TrainingConfig(beta=beta, seed=12345)
            stream = trainer.random_draws(examples, len(denoiser.schedule), config)
            draws = [next(stream) for _ in range(24)]
            before = trainer.evaluate(denoiser, examples, config, draws)
            names = training.kohya_names(model)
            for name, parameter in denoiser.trainable().items():
                module, part = name.rsplit(".", 1)
                key = f"{names[training.canonical(module)]}.lora_{part}.weight"
                parameter.data.copy_(lora[key])
            after = trainer.evaluate(denoiser, examples, config, draws)
        return {"ui": {"text": [json.dumps({"before": before, "after": after})]}}


class RefusesQuantised:
    INPUT_TYPES = classmethod(lambda cls: {"required": {}})
    RETURN_TYPES, FUNCTION, OUTPUT_NODE, CATEGORY = (), "run", True, "test"

    def run(self):
        class Quantised(torch.Tensor):
            pass

        layer = torch.nn.Linear(2, 2)
        layer.register_buffer("packed", torch.zeros(2).as_subclass(Quantised))
        try:
            pack("nodes.host.training").network_on_same_storage(layer)
        except ValueError as error:
            return {"ui": {"text": [str(error)]}}
        return {"ui": {"text": ["accepted"]}}


NODE_CLASS_MAPPINGS = {
    f"DCOTest{cls.__name__}": cls
    for cls in (
        Modules, WeightHash, OracleSampler, CompareLatents, TwoCalls, IndexingPatch, BrokenImage,
        HeldOutLoss, RefusesQuantised, SecondModel, BrokenClip,
    )
}  # fmt: skip
