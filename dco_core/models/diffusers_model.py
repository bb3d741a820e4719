"""A Stable Diffusion 1, 2 or XL pipeline on disk, in the layout of the library diffusers, as an ImageModel."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.buckets import BucketedImage
from ..errors import DCOError
from ..files.fingerprints import network_fingerprint
from ..lora import LoraLayer, LoraWeights, canonical_keys
from ..lora.keys import kohya_names
from ..lora.started import started_layers
from ..network.denoiser import NetworkDenoiser
from ..network.library_import import without_broken_torchvision
from ..network.lora_layers import AdapterConfig
from ..network.weight_stream import Copies, check_streaming, resident_blocks, stream_blocks
from ..schedules import Schedule
from ..suggested_scales import PAPER
from ..training.memory import free_memory
from .diffusers_tokens import PipelineTokens

_PIPELINES = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
_PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v"}
_STEP_SHARE = 0.4  # of the free memory, for activations and the LoRA
_SD2_TEXT = 1024  # width of SD2's text encoder; SD1's is 768


def load(folder: str | Path, device: torch.device | str, dtype: torch.dtype) -> DiffusersModel:
    """The pipeline in `folder`, its UNet in `dtype` on `device`, from local files alone. Raises DCOError without
    diffusers and transformers, and for a folder that holds no such pipeline."""
    folder = Path(folder)
    kind = _kind(folder)
    with without_broken_torchvision():
        try:
            import diffusers
            import transformers  # noqa: F401
        except ImportError as error:
            raise DCOError(
                f"--model diffusers: needs the packages diffusers and transformers ({error}): run `pip install "
                "diffusers transformers` with the same Python."
            ) from None
        safety = {} if "XL" in kind else {"safety_checker": None, "requires_safety_checker": False}
        try:
            pipeline = getattr(diffusers, kind).from_pretrained(
                folder, torch_dtype=dtype, variant=_variant(folder), local_files_only=True, **safety
            )
        except Exception as error:  # damaged files raise whatever their readers do
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise DCOError(f"The pipeline in {folder} cannot be loaded: {reason}") from error
    channels = pipeline.unet.config.in_channels
    if channels != 4:
        raise DCOError(
            f"The UNet in {folder} reads {channels} channels, as for inpainting: use the model for text to image, "
            "which reads 4."
        )
    layers = pipeline.unet.config.layers_per_block
    if not isinstance(layers, int) and len(set(layers)) > 1:
        raise DCOError(
            f"The UNet in {folder} has {list(layers)} layers per block: ComfyUI reads LoRAs of such a UNet onto other "
            "layers, use one with the same number in all blocks."
        )
    return DiffusersModel(pipeline, torch.device(device))


def _kind(folder: Path) -> str:
    try:
        kind = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))["_class_name"]
    except OSError:
        raise DCOError(
            f"--model diffusers:{folder} holds no pipeline: name a folder with a model_index.json in it."
        ) from None
    except (ValueError, KeyError, TypeError):
        raise DCOError(f"{folder / 'model_index.json'} is damaged: download the pipeline again.") from None
    if kind not in _PIPELINES:
        raise DCOError(f"{folder} holds a {kind}: the command line trains {' and '.join(_PIPELINES)}.")
    return kind


def _variant(folder: Path) -> str | None:
    """`fp16` where the folder has the UNet in that file alone."""
    files = [path.name for path in (folder / "unet").glob("diffusion_pytorch_model*")]
    plain = [name for name in files if ".fp16" not in name and not name.endswith(".json")]
    return "fp16" if files and not plain else None


class DiffusersModel:
    """An ImageModel (image_model.py). A conditioning is a dictionary of one sample's tensors: `text` [77, D] and, for
    SDXL, `pooled` [1280] and `time_ids` [6]."""

    square = False
    sampler = None
    w_text = PAPER.w_text  # epsilon and v models alike

    def __init__(self, pipeline: Any, device: torch.device):
        unet, config = pipeline.unet, pipeline.scheduler.config
        self._xl = self.reads_sizes = hasattr(pipeline, "text_encoder_2")
        prediction = _PREDICTIONS.get(config.prediction_type)
        if prediction is None:
            raise DCOError(
                f"The scheduler predicts {config.prediction_type!r}: use a model for epsilon or v_prediction."
            )
        self.prediction = prediction
        version = "sd_v2" if unet.config.cross_attention_dim == _SD2_TEXT else "sd_v1"
        self.family = "sdxl_base_v1-0" if self._xl else version
        self.default_resolution = unet.config.sample_size * pipeline.vae_scale_factor
        self._pipeline, self._device = pipeline, device
        self._schedule = _schedule(config, prediction)
        names = canonical_keys(f"unet.{name}" for name, _ in unet.named_modules() if name)
        self._canonical = {path.removeprefix("unet."): key for path, key in names.items()}
        parts = ("unet", "vae", "text_encoder", "text_encoder_2")
        self._content = network_fingerprint(
            (f"{part}.{name}", p)
            for part in parts
            if getattr(pipeline, part, None) is not None
            for name, p in getattr(pipeline, part).named_parameters()
        )
        self.learned_tokens = PipelineTokens(pipeline, self._text_encoders(), self._read)
        pipeline.vae.to(torch.float32)  # SDXL's overflows in fp16
        for part in parts[1:]:  # the UNet is placed by what else is to be there
            if getattr(pipeline, part, None) is not None:
                getattr(pipeline, part).to(device)

    @torch.no_grad()
    def encode_images(self, images: Sequence[Tensor]) -> list[tuple[Tensor, Tensor | None]]:
        vae = self._pipeline.vae
        scale, shift = vae.config.scaling_factor, getattr(vae.config, "shift_factor", None) or 0.0
        encoded: list[tuple[Tensor, Tensor | None]] = []
        for image in images:
            pixels = image.movedim(-1, 0)[None].to(self._device, torch.float32) * 2 - 1
            found = vae.encode(pixels).latent_dist
            encoded.append(((found.mean[0] - shift) * scale, found.std[0] * scale))
        return encoded

    @torch.no_grad()
    def decode_latents(self, latents: Sequence[Tensor]) -> list[Tensor]:
        vae = self._pipeline.vae
        scale, shift = vae.config.scaling_factor, getattr(vae.config, "shift_factor", None) or 0.0
        images = (
            vae.decode(latent[None].to(self._device, torch.float32) / scale + shift).sample[0]
            for latent in latents
        )
        return [((image.clamp(-1, 1) + 1) / 2).movedim(0, -1).cpu() for image in images]

    @torch.no_grad()
    def encode_captions(self, captions: Sequence[str]) -> list[dict[str, Tensor]]:
        return [self._read(caption) for caption in captions]  # a batch of another size rounds differently

    def _read(self, caption: str) -> dict[str, Tensor]:
        text, _, *pooled = self._pipeline.encode_prompt(
            caption, device=self._device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        return {"text": text[0]} | ({"pooled": pooled[0][0]} if self._xl else {})

    def _text_encoders(self) -> dict[str, tuple[str, str]]:
        """{name in embedding files: (tokenizer, text encoder) of the pipeline}."""
        first = "clip_h" if self.family == "sd_v2" else "clip_l"
        found = {first: ("tokenizer", "text_encoder")}
        return found | ({"clip_g": ("tokenizer_2", "text_encoder_2")} if self._xl else {})

    def with_size(self, conditioning: dict[str, Tensor], bucketed: BucketedImage) -> dict[str, Tensor]:
        if not self._xl:
            return conditioning
        sizes = [*bucketed.original_size, *bucketed.crop, *bucketed.target_size]
        return conditioning | {"time_ids": torch.tensor(sizes, dtype=torch.float32, device=self._device)}

    def shown_beside(self, bucketed: BucketedImage, latent: Tensor) -> None:
        return None

    def network_input(self, conditioning: dict[str, Tensor], latent: Tensor, shown: object = None) -> dict[str, Tensor]:
        return conditioning

    def started_layers(self, start: LoraWeights) -> dict[str, LoraLayer]:
        return started_layers(start, {key: name for name, key in self._canonical.items()}, self.family)

    def denoiser(
        self, config: AdapterConfig | None, step_shape: Sequence[int] = (), stream_weights: str = "auto"
    ) -> NetworkDenoiser:
        denoiser = _UNetDenoiser(self._pipeline.unet, self._schedule, config, self.family)
        free = free_memory(self._device) if self._device.type == "cuda" else None
        denoiser.place(self._device, free, stream_weights)
        return denoiser

    def kohya_names(self) -> Mapping[str, str]:
        layers = self._pipeline.unet.config.layers_per_block
        if set([layers] if isinstance(layers, int) else layers) != {2}:
            # the names that diffusers and ComfyUI read with the network's own numbers of blocks
            paths = {key: f"unet.{path}" for path, key in self._canonical.items()}
            return kohya_names(self._canonical.values(), paths)
        return kohya_names(self._canonical.values(), {})

    def canonical(self, module: str) -> str:
        return self._canonical[module]

    def content(self) -> str:
        return self._content

    def offload_encoders(self, *, texts: bool = True, images: bool = True) -> None:
        """They are let go for good: nothing can be encoded afterwards."""
        for part in ["vae"] * images + ["text_encoder", "text_encoder_2"] * texts:
            if getattr(self._pipeline, part, None) is not None:
                setattr(self._pipeline, part, None)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


def _schedule(config: Any, prediction: str) -> Schedule:
    """The noise schedule that the pipeline's scheduler was made for."""
    from diffusers import DDPMScheduler

    signal = DDPMScheduler.from_config(config).alphas_cumprod.double()
    return Schedule(prediction, signal.sqrt().float(), (1 - signal).sqrt().float())


class _UNetDenoiser(NetworkDenoiser):
    def __init__(self, unet: Any, schedule: Schedule, config: AdapterConfig | None, family: str):
        self.family = family
        shared = {id(tensor): tensor for tensor in (*unet.parameters(), *unet.buffers())}
        network = copy.deepcopy(unet, shared)  # modules of its own on the same weights
        super().__init__(network.requires_grad_(False), schedule, config)
        self._device, self._dtype, self._frozen = unet.device, unet.dtype, unet

    def phi_on(self, device: torch.device) -> _UNetDenoiser:
        moved: dict[int, Any] = {
            id(p): torch.nn.Parameter(p.detach().to(device, copy=True), requires_grad=False)
            for p in self._frozen.parameters()
        }
        moved |= {id(buffer): buffer.to(device, copy=True) for buffer in self._frozen.buffers()}
        phi = _UNetDenoiser(copy.deepcopy(self._frozen, moved), self.schedule, None, self.family)
        phi._device = device
        return phi

    def place(
        self, device: torch.device, free: int | None, stream_weights: str = "auto", copies: Copies | None = None
    ) -> None:
        """Move the network to the device; the weights of blocks that do not fit into its `free` bytes beside a step
        stay in main memory and are streamed, with stream_weights "on" those of all blocks, with "off" none. free: None
        on a device that is main memory, where nothing is streamed. copies: see `stream_blocks`."""
        check_streaming(stream_weights)
        self._device = device
        room = None if free is None else int(free * (1 - _STEP_SHARE))
        fits = room is None or room >= sum(t.nbytes for t in self.network_tensors())
        if room is None or stream_weights == "off" or (stream_weights == "auto" and fits):
            self.network.to(device)
        else:
            kept = 0 if stream_weights == "on" else resident_blocks(self.network, room)
            self.weight_stream = stream_blocks(self.network, device, kept, copies=copies)

    def forward(self, x_t: Tensor, t: Tensor, conditioning: Sequence[dict[str, Tensor]]) -> Tensor:
        unet: Any = self.network
        device, dtype = self._device, self._dtype
        own = {name: torch.stack([c[name] for c in conditioning]).to(device) for name in conditioning[0]}
        added = {"text_embeds": own["pooled"], "time_ids": own["time_ids"]} if "pooled" in own else None
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            return unet(
                x_t.to(device), t.to(device), encoder_hidden_states=own["text"], added_cond_kwargs=added
            ).sample
