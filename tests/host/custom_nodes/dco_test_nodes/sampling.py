"""Oracles and comparisons of guided sampling."""

import hashlib
import json

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.sd
import folder_paths
import torch

from .pack import pack


class _TwoModels(comfy.samplers.CFGGuider):
    """phi0 + w_text (phi_c - phi0) + w_rg (theta_c - phi_c), every term from a plain evaluation of its own model."""

    def predict_noise(self, x, timestep, model_options={}, seed=None):
        positive, negative = self.conds["positive"], self.conds["negative"]
        evaluate = comfy.samplers.calc_cond_batch
        phi_c, phi_0 = evaluate(self.inner_model, [positive, negative], x, timestep, model_options)
        comfy.model_management.load_models_gpu([self.theta])
        self.theta.pre_run()
        own = self.conds.get("personalized", positive)
        (theta_c,) = evaluate(self.theta.model, [own], x, timestep, model_options)
        return self.w_rg * (theta_c - phi_c) + self.w_text * (phi_c - phi_0) + phi_0


class SecondModel:
    """A model loaded a second time: two equal loader nodes would share one cached model."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {"family": ("STRING", {})}})
    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL",), "run", "test"

    def run(self, family):
        if family == "toy":
            return (pack("nodes.host.toy_world").load(None, "flow")[0],)
        path = folder_paths.get_full_path("checkpoints", f"tiny_{family}.ckpt")
        return (comfy.sd.load_checkpoint_guess_config(path, output_vae=False, output_clip=False)[0],)


class OracleSampler:
    INPUT_TYPES = classmethod(
        lambda cls: {
            "required": {
                "phi": ("MODEL",), "theta": ("MODEL",), "positive": ("CONDITIONING",), "negative": ("CONDITIONING",),
                "latent": ("LATENT",), "seed": ("INT", {"default": 0}), "steps": ("INT", {"default": 4}),
                "w_rg": ("FLOAT", {"default": 3.0}), "w_text": ("FLOAT", {"default": 7.5}),
            },
            "optional": {"personalized": ("CONDITIONING",)},
        }
    )  # fmt: skip
    RETURN_TYPES, FUNCTION, CATEGORY = ("LATENT",), "run", "test"

    def run(self, phi, theta, positive, negative, latent, seed, steps, w_rg, w_text, personalized=None):
        assert phi.model is not theta.model, "the oracle needs two separately loaded models"
        guider = _TwoModels(phi)
        guider.theta, guider.w_rg, guider.w_text = theta, w_rg, w_text
        guider.set_conds(positive, negative)
        if personalized is not None:
            guider.inner_set_conds({"personalized": personalized, "positive": positive, "negative": negative})
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
        adapters = pack("nodes.host.guidance.adapter_hooks")
        TwoCalls.original = original = TwoCalls.original or adapters.BatchRows.indices

        def refuse(rows, batch):
            if rows.chunks > 1:
                raise adapters.RowsNotSeparable
            return original(rows, batch)

        adapters.BatchRows.indices = refuse if on else original
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
