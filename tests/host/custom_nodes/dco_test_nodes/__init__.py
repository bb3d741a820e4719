"""Nodes for the host tests only: oracles, comparisons, faults."""

import copy
import hashlib
import importlib
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
        own = self.conds.get("personalized", positive)
        (theta_c,) = evaluate(self.theta.model, [own], x, timestep, model_options)
        return self.w_rg * (theta_c - phi_c) + self.w_text * (phi_c - phi_0) + phi_0


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


class TokenGradient:
    """The training text encoder against the host's own encoding and central differences of it."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {"clip": ("CLIP",), "text": ("STRING", {})}})
    RETURN_TYPES, FUNCTION, OUTPUT_NODE, CATEGORY = (), "run", True, "test"

    def run(self, clip, text):
        learned = pack("nodes.host.training.learned_tokens")
        tokens_module = pack("dco_core.training.learned_tokens")
        before = ClipHash().run(clip)
        # the text's own marker is a word of every vocabulary
        table = learned.start(clip, tokens_module.token_specs([text]), 0)
        (plain,) = pack("nodes.host.training.conditioning").encode_captions(
            clip, [text.replace("<", "").replace(">", "")]
        )

        def values(conditioning):
            ((cond, options),) = conditioning
            pooled = options.get("pooled_output")
            return torch.cat(
                [cond.double().flatten(), torch.zeros(0) if pooled is None else pooled.double().flatten()]
            )

        def by_host(rows):
            reader = learned.PromptReader(clip, rows)
            return values(
                clip.encode_from_tokens_scheduled(reader.filled(reader.tokens(text, disable_weights=True)))
            )

        start = by_host(table.tensors())
        at_start = ((start - values(plain)).norm() / start.norm()).item()
        random = torch.Generator().manual_seed(1)
        with torch.inference_mode(False), torch.enable_grad():
            for p in table.parameters().values():
                p.data += 0.1 * p.data.abs().mean() * torch.randn(p.shape, generator=random).to(p)
            encoder = learned.TrainingTextEncoder(clip, table)
            mine = values(encoder.encode(encoder.tokens(text)))
            probe = torch.randn(mine.shape, generator=random, dtype=torch.float64)
            (mine * probe).sum().backward()
            grads = {name: p.grad.clone() for name, p in table.parameters().items()}
        rows = table.tensors()
        oracle = by_host(rows)
        step = 1e-2 * min(r.abs().mean().item() for by in rows.values() for r in by.values())

        def moved(directions, by):
            moved_rows = {
                n: {e: r + by * directions[n][e] for e, r in entries.items()} for n, entries in rows.items()
            }
            return (by_host(moved_rows) * probe).sum().item()

        # several directions together: a single one may lie across the gradient, where nothing is left to compare
        numeric, exact = [], []
        for _ in range(8):
            directions = {
                n: {e: torch.randn(r.shape, generator=random).to(r) for e, r in by.items()}
                for n, by in rows.items()
            }
            numeric.append((moved(directions, step) - moved(directions, -step)) / (2 * step))
            exact.append(
                sum(
                    (grads[f"{n}.{e}"].cpu() * d).sum().item()
                    for n, by in directions.items()
                    for e, d in by.items()
                )
            )
        numeric, exact = torch.tensor(numeric), torch.tensor(exact)
        facts = {
            "at_start": at_start,
            "encoding": ((mine.detach() - oracle).norm() / oracle.norm()).item(),
            "gradient": ((numeric - exact).norm() / numeric.norm()).item(),
            "untouched": ClipHash().run(clip) == before,
        }
        return {"ui": {"text": [json.dumps(facts)]}}


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


class ValidationLoss:
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
        training, conditioning = pack("nodes.host.training.network"), pack("nodes.host.training.conditioning")
        core, buckets = pack("dco_core"), pack("dco_core.data.buckets")
        (condition,) = conditioning.encode_captions(clip, [caption])
        pictures = [buckets.fit(i, (resolution, resolution)).image for i in image]
        latents = conditioning.encode_images(vae, pictures)
        with training.training_session(model, core.AdapterConfig(rank=rank)) as denoiser:
            examples = []
            for latent, std in latents:
                x0, std = training.native_latent(model, latent, std)
                examples.append(core.Example(x0, denoiser.model_conditions(condition, x0), std=std))
            config = core.TrainingConfig(beta=beta, seed=12345)
            stream = core.random_draws(examples, len(denoiser.schedule), config)
            draws = [next(stream) for _ in range(24)]
            before = core.evaluate(denoiser, examples, config, draws)
            layer_names = pack("nodes.host.layer_names")
            names = layer_names.kohya_names(model)
            for name, parameter in denoiser.trainable().items():
                module, part = name.rsplit(".", 1)
                key = f"{names[layer_names.canonical(module)]}.lora_{part}.weight"
                parameter.data.copy_(lora[key])
            after = core.evaluate(denoiser, examples, config, draws)
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
            pack("nodes.host.training.network").network_on_same_storage(layer)
        except ValueError as error:
            return {"ui": {"text": [str(error)]}}
        return {"ui": {"text": ["accepted"]}}


class ShowDataset:
    """What lists of images, captions and masks hold."""

    INPUT_TYPES = classmethod(
        lambda cls: {
            "required": {"images": ("IMAGE",), "captions": ("STRING", {"forceInput": True})},
            "optional": {"masks": ("MASK",)},
        }
    )
    RETURN_TYPES, FUNCTION, OUTPUT_NODE, CATEGORY, INPUT_IS_LIST = (), "run", True, "test", True

    def run(self, images, captions, masks=()):
        pictures = [image for batch in images for image in batch]
        facts = {
            "captions": list(captions),
            "sizes": [list(i.shape[:2]) for i in pictures],
            # red of the upper half, red of the left half, blue of the right half
            "means": [
                [i[: len(i) // 2, :, 0].mean().item(), i[:, : i.shape[1] // 2, 0].mean().item(),
                 i[:, i.shape[1] // 2 :, 2].mean().item()]
                for i in pictures
            ],
            "mean": [i.mean().item() for i in pictures],
            "masks": [m.mean().item() for batch in masks for m in batch],
        }  # fmt: skip
        return {"ui": {"text": [json.dumps(facts)]}}


class Posterior:
    """A small KL autoencoder in the host's VAE: what the pack keeps of its posterior."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {}})
    RETURN_TYPES, FUNCTION, OUTPUT_NODE, CATEGORY = (), "run", True, "test"

    def run(self):
        from comfy.ldm.models.autoencoder import AutoencoderKL

        dd = {"double_z": True, "z_channels": 4, "resolution": 64, "in_channels": 3, "out_ch": 3, "ch": 32,
              "ch_mult": [1, 1, 1, 1], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0}  # fmt: skip
        config = {"params": {"ddconfig": dd, "embed_dim": 4}}
        torch.manual_seed(0)
        weights = {
            k: torch.randn_like(v) * 0.1 for k, v in AutoencoderKL(**config["params"]).state_dict().items()
        }
        vae = comfy.sd.VAE(sd=weights, config=config)
        conditioning, training = pack("nodes.host.training.conditioning"), pack("nodes.host.training.network")
        one, two = torch.rand(64, 96, 3), torch.rand(64, 64, 3)
        calls, encode = [], vae.encode
        vae.encode = lambda pixels: calls.append(1) or encode(pixels)
        (mean, std), _, again = conditioning.encode_images(vae, [one, two, one.clone()])
        assert torch.equal(again[0], mean)
        pixels = vae.process_input(one[None].movedim(-1, 1)).to(vae.vae_dtype)
        net = vae.first_stage_model
        moments = net.quant_conv(net.encoder(pixels))[0].float()
        expected_mean, log_variance = moments.chunk(2)
        expected_std = torch.exp(0.5 * log_variance.clamp(-30, 20))

        def relative(a, b):
            return ((a.float() - b).norm() / b.norm()).item()

        path = folder_paths.get_full_path("checkpoints", "tiny_sd15.ckpt")
        if path is None:
            model = pack("nodes.host.toy_world").load(None)[0]
            scale = 1.0
        else:
            model = comfy.sd.load_checkpoint_guess_config(path, output_vae=False, output_clip=False)[0]
            scale = model.model.latent_format.scale_factor
        x0, native = training.native_latent(model, mean, std)
        facts = {
            "encoded": len(calls),
            "mean": relative(mean, expected_mean),
            "std": relative(std, expected_std),
            "native_std": relative(native, expected_std * scale),
            "spread": std.std().item(),
            "hooks": len(net.regularization._forward_pre_hooks),
        }
        return {"ui": {"text": [json.dumps(facts)]}}


class Counting:
    """CLIP and VAE that count what they encode. `run` makes each prompt a new one."""

    INPUT_TYPES = classmethod(
        lambda cls: {"required": {"clip": ("CLIP",), "vae": ("VAE",), "run": ("INT", {"default": 0})}}
    )
    RETURN_TYPES, FUNCTION, CATEGORY = ("CLIP", "VAE"), "count", "test"
    IS_CHANGED = classmethod(lambda cls, **_: float("nan"))

    def count(self, clip, vae, run):
        clip, vae = clip.clone(), copy.copy(vae)
        clip.calls, vae.calls = [], []
        encode_text, encode_image = clip.encode_from_tokens, vae.encode
        clip.encode_from_tokens = lambda *a, **k: clip.calls.append(1) or encode_text(*a, **k)
        vae.encode = lambda pixels: vae.calls.append(1) or encode_image(pixels)
        return clip, vae


class Counts:
    INPUT_TYPES = classmethod(lambda cls: {"required": {"clip": ("CLIP",), "vae": ("VAE",), "after": ("*",)}})
    RETURN_TYPES, FUNCTION, OUTPUT_NODE, CATEGORY = (), "run", True, "test"

    def run(self, clip, vae, after):
        return {"ui": {"text": [json.dumps({"text": len(clip.calls), "vae": len(vae.calls)})]}}


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


NODE_CLASS_MAPPINGS = {
    f"DCOTest{cls.__name__}": cls
    for cls in (
        Modules, WeightHash, OracleSampler, CompareLatents, TwoCalls, IndexingPatch, BrokenImage,
        ValidationLoss, RefusesQuantised, SecondModel, BrokenClip, ClipHash, TokenGradient, ShowDataset,
        Posterior, Counting, Counts, Offload, VisionLanguage, CompileEagerly, CompiledGraphs,
    )
}  # fmt: skip
