"""What training sees, and what comes out of it."""

import copy
import json

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.sd
import folder_paths
import torch

from .models import ClipHash
from .pack import pack


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
