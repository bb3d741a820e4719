"""Nodes for the tests of previews: pictures against the host's own, and what reaches the browser."""

import copy
import importlib
import json
import sys
from pathlib import Path

import comfy.utils
import folder_paths
import latent_preview
import numpy as np
import torch
from comfy.cli_args import LatentPreviewMethod, args
from comfy.taesd.taesd import TAESD
from PIL import Image
from safetensors.torch import save_file


def pack(module):
    """A module of the pack under test, whatever name the host loaded it by."""
    prefix = next(name for name in sys.modules if name.endswith("ComfyUI-DCO.nodes")).removesuffix("nodes")
    return importlib.import_module(prefix + module)


def _difference(picture, other):
    return float(np.abs(picture.astype(float) - other).mean())


class Pictures:
    """Previews of a latent by every method of the host, and through the VAE."""

    INPUT_TYPES = classmethod(
        lambda cls: {"required": {"model": ("MODEL",), "vae": ("VAE",), "image": ("IMAGE",)}}
    )
    RETURN_TYPES, FUNCTION, OUTPUT_NODE, CATEGORY = (), "run", True, "test"

    def run(self, model, vae, image):
        preview, conditioning = pack("nodes.host.training.previews"), pack("nodes.host.training.conditioning")
        ((latent, _),) = conditioning.encode_images(vae, [image[0]])
        x0, _ = pack("nodes.host.training.network").native_latent(model, latent)
        ours = pack("nodes.host.training.image_model").HostImageModel(model, None, vae)
        (image,) = ours.decode_latents([x0.cpu()])
        decoded = pack("dco_core.data.pixels").as_uint8(image)
        expected = vae.decode(latent[None]).reshape(-1, *decoded.shape)[0].float().cpu().numpy() * 255
        scales = pack("dco_core.suggested_scales").suggested_scales(ours.family, ours.prediction)
        asked, pictures, kept = args.preview_method, [], []
        try:
            for args.preview_method in LatentPreviewMethod:
                pictures.append(preview.live(model)(x0.cpu()))
                kept.append(args.preview_method)
            args.preview_method = LatentPreviewMethod.Latent2RGB
            by_host = latent_preview.get_previewer(model.load_device, model.model.latent_format)
        finally:
            args.preview_method = asked
        rgb = by_host.decode_latent_to_preview(x0[None]).resize(
            pictures[0].shape[1::-1], Image.Resampling.BICUBIC
        )
        with_taesd = self._with_taesd(model, x0, preview)
        facts = {
            "shape": list(pictures[0].shape),
            "image": list(image.shape),
            "dtype": str(pictures[0].dtype),
            "spread": float(pictures[0].std()),
            "methods": max(_difference(p, pictures[0]) for p in pictures),
            "methods_kept": kept == list(LatentPreviewMethod),
            "host": _difference(pictures[0], np.asarray(rgb)),
            "to_image": _difference(pictures[0], image.numpy() * 255),
            "decoded": _difference(decoded, expected),
            "decoded_dtype": str(decoded.dtype),
            "taesd": with_taesd,
            "scales": [scales.w_rg, scales.w_text],
        }
        return {"ui": {"text": [json.dumps(facts)]}}

    def _with_taesd(self, model, x0, preview):
        """How far the preview is from what a decoder in models/vae_approx says; None for formats without one."""
        name = model.model.latent_format.taesd_decoder_name
        if name is None:
            return None
        with torch.inference_mode(False):
            torch.manual_seed(0)
            decoder = TAESD().taesd_decoder
            weights = {
                k: torch.randn_like(v) * (0.05 if v.ndim > 1 else 0.2)
                for k, v in decoder.state_dict().items()
            }
            decoder.load_state_dict(weights)
        folder = Path(folder_paths.get_folder_paths("vae_approx")[0])
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{name}.safetensors"
        save_file(weights, path)
        folder_paths.filename_list_cache.clear()
        try:
            picture = preview.live(model)
            with torch.inference_mode(False), torch.enable_grad():  # as in a training session
                found = picture(x0.clone())
        finally:
            path.unlink()
            folder_paths.filename_list_cache.clear()
        with torch.no_grad():
            pixels = decoder(x0[None].cpu())[0].movedim(0, -1).clamp(0, 1) * 255
        assert found.shape == tuple(pixels.shape) and pixels.std() > 1
        return _difference(found, pixels.numpy())


class NoFormat:
    """A latent format without linear factors and without a decoder has no live pictures."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {"model": ("MODEL",)}})
    RETURN_TYPES, FUNCTION, OUTPUT_NODE, CATEGORY = (), "run", True, "test"

    def run(self, model):
        base = model.model
        own = base.latent_format
        base.latent_format = copy.copy(own)
        base.latent_format.latent_rgb_factors = base.latent_format.taesd_decoder_name = None
        try:
            found = pack("nodes.host.training.previews").live(model)
        finally:
            base.latent_format = own
        return {"ui": {"text": [json.dumps({"none": found is None})]}}


class Show:
    """A bar that goes to 9, with a picture at 3 and 6."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {}})
    RETURN_TYPES, FUNCTION, OUTPUT_NODE, CATEGORY = (), "run", True, "test"
    IS_CHANGED = classmethod(lambda cls: float("nan"))

    def run(self):
        bar = comfy.utils.ProgressBar(9)
        for step in range(1, 10):
            bar.update_absolute(step)
            if step in (3, 6):
                picture = np.zeros((300, 800, 3), np.uint8)
                picture[:, : 100 * step] = (255, 0, 0)
                pack("nodes.host.training.previews").show(bar, step, 9, picture)
        return {"ui": {"text": ["done"]}}


NODE_CLASS_MAPPINGS = {f"DCOTestPreview{cls.__name__}": cls for cls in (Pictures, NoFormat, Show)}
