"""A host MODEL as the trainer's Denoiser (its weights: shared_weights.py)."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import comfy.conds
import comfy.model_management
import comfy.sampler_helpers
import comfy.samplers
import torch
from comfy.ldm.modules.attention import attention_pytorch
from torch import Tensor

from ....dco_core.lora import LoraWeights
from ....dco_core.network.denoiser import NetworkDenoiser
from ....dco_core.network.lora_layers import AdapterConfig
from ....dco_core.network.out_of_place import KeptCopies, out_of_place
from ....dco_core.network.weight_stream import Copies, move_to
from ..layer_names import canonical, family
from .frozen_layers import use_frozen_layers
from .fused_rope import differentiable_rope
from .noise import NativeSampling, latent_scale, noise_of
from .shared_weights import network_on_same_storage
from .weight_stream import move_to_main_memory, step_bytes, stream_offloaded, streams


def _torch_attention(_chosen_by_host, *args, **kwargs):
    """Attention with a gradient, always computed alike: the host's choice may lack a backward pass (sage, flash) or
    cut its chunks by the free memory, which differs when checkpointed blocks run again."""
    return attention_pytorch(*args, **kwargs)


_ATTENTION = {"optimized_attention_override": _torch_attention}


TRAINING_PRECISIONS = ("auto", "model's own", "bf16")


def _autocast_dtype(model, precision: str) -> torch.dtype | None:
    """bf16 where it is asked for, or where the host computes in half precision on a GPU that knows bf16: fp32
    LoRA layers then do not slow the network down, and small gradients do not vanish as in fp16."""
    if precision == "bf16":
        return torch.bfloat16
    half = model.model.get_dtype_inference() in (torch.float16, torch.bfloat16)
    on_gpu = model.load_device.type == "cuda"
    return (
        torch.bfloat16 if precision == "auto" and half and on_gpu and torch.cuda.is_bf16_supported() else None
    )


class HostDenoiser(NetworkDenoiser):
    """One conditioning is the host's model conditions of one caption, {name: comfy.conds object}. precision: one of
    TRAINING_PRECISIONS. Weights that the host left in main memory are streamed; copies: to stream all with. device:
    another one than MODEL's, for a copy of all weights."""

    def __init__(
        self, model, config: AdapterConfig | None, precision: str = "auto", copies: Copies | None = None,
        device: torch.device | None = None,
    ):  # fmt: skip
        base = model.model
        self.device, self.family = device or model.load_device, family(model)
        self._made_of = model, precision
        self._autocast = _autocast_dtype(model, precision)
        self._copies = KeptCopies()
        self._base = copy.copy(base)  # shallow: shares everything but what is replaced below
        self._base._modules = dict(base._modules)
        self._base.current_patcher = model
        sampling = model.get_model_object("model_sampling")
        network = use_frozen_layers(network_on_same_storage(base.diffusion_model).eval())
        self._base._modules["diffusion_model"] = network
        self._base._modules.pop("model_sampling", None)
        noise = noise_of(sampling)
        self._base.__dict__["model_sampling"] = NativeSampling(sampling, noise.sign)
        sigmas = sampling.sigmas.detach().cpu()
        self._sigmas = torch.empty_like(sigmas).copy_(sigmas)
        super().__init__(self._base._modules["diffusion_model"], noise.schedule, config)
        if device is None:
            self.weight_stream = stream_offloaded(self.network, self.device, copies)  # moves the injected LoRA too
        else:
            move_to(self.network, device)

    def forward(self, x_t: Tensor, t: Tensor, conditioning: Sequence[dict[str, Any]]) -> Tensor:
        sigma = self._sigmas[t.cpu()].to(self.device)
        conds = _on(self.device, comfy.samplers.cond_cat(list(conditioning)))
        autocast = nullcontext() if self._autocast is None else torch.autocast(self.device.type, self._autocast)

        def call() -> Tensor:
            return self._base._apply_model(x_t.clone(), sigma, transformer_options=dict(_ATTENTION), **conds)

        with out_of_place(), autocast:
            return self._copies.run(call)

    def phi_on(self, device: torch.device) -> HostDenoiser:
        """From the weights in memory. (The host's own way to a MODEL on another GPU, ModelPatcher.deepclone_multigpu,
        reads the checkpoint again, and only loaders of files know how.)"""
        model, precision = self._made_of
        return HostDenoiser(model, None, precision, device=device)

    def free_memory(self) -> int:
        """Bytes free on the device."""
        return int(comfy.model_management.get_free_memory(self.device))

    def rows_at_once(self, latent_shape: Sequence[int]) -> int:
        """How many samples the network can look at in one call without gradient, by the host's own estimate and with
        half of the free memory."""
        one = self._base.memory_required([1, *latent_shape])
        return max(1, int(self.free_memory() / 2 / max(1, one)))

    def conditioning_content(self, conditioning: dict[str, Any]) -> dict[str, Any]:
        return {name: (type(cond).__name__, cond.cond) for name, cond in conditioning.items()}

    def weights(self) -> LoraWeights:
        """The LoRA by canonical keys."""
        return LoraWeights({canonical(name): layer for name, layer in self.lora().items()})

    def model_conditions(self, conditioning: list, latent: Tensor) -> dict[str, Any]:
        """What the network takes besides x and t for a host CONDITIONING, for an image of the latent's size [C, H, W]
        and without crop: SDXL's size and crop embedding among it, and an inpainting model's mask and masked image.
        Where the CONDITIONING has none, these say that nothing is given and all is to be painted."""
        conds = comfy.sampler_helpers.convert_cond(conditioning[:1])
        empty = torch.zeros_like(
            latent[None]
        )  # families that show the network a latent must not show the answer
        encoded = comfy.samplers.encode_model_conds(
            self._base.extra_conds, conds, empty, self.device, "positive", latent_image=empty
        )
        return {
            name: _outside_inference(cond.process_cond(batch_size=1, area=None, device=self.device))
            for name, cond in encoded[0]["model_conds"].items()
        }


def _on(device: torch.device, value: Any) -> Any:
    """Tensors in dictionaries and lists, on a device."""
    if isinstance(value, dict):
        return {name: _on(device, inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_on(device, inner) for inner in value)
    return value.to(device) if torch.is_tensor(value) else value


def _outside_inference(cond):
    """The host's tensors were made in inference mode and cannot be saved for backward: clone what it holds."""
    if torch.is_tensor(cond.cond):
        return cond._copy_with(cond.cond.clone())
    if isinstance(cond.cond, list):
        return cond._copy_with([c.clone() for c in cond.cond])
    return cond


def load_for_training(
    model, config: AdapterConfig | None, clip=None, precision: str = "auto", stream_weights: str = "auto",
    step_shape: Sequence[int] = (), copies: Copies | None = None,
) -> HostDenoiser:  # fmt: skip
    """Load MODEL (and CLIP, where tokens train) and send every other model off the device. Call it where the host's
    in_training is on, outside of inference mode. stream_weights: see weight_stream.py; step_shape: of the latents
    [B, C, ...] of a step, where that is to be decided. copies: on the CPU, in place of those to a device."""
    if model.is_dynamic():  # weights in evictable memory must not be aliased
        model = model.get_non_dynamic_delegate()
    needed = [model] if clip is None else [model, clip.patcher]
    keep = [comfy.model_management.LoadedModel(m) for m in needed]
    comfy.model_management.free_memory(1e30, model.load_device, keep_loaded=keep)
    streamed = streams(model, stream_weights, list(step_shape), stand_in=copies is not None)
    if streamed:  # what is on the device already may be more than is to stay there
        comfy.model_management.free_memory(1e30, model.load_device)
    comfy.model_management.load_models_gpu(
        needed,
        memory_required=step_bytes(model, list(step_shape)) if streamed else 0,
        force_full_load=not streamed,
    )
    if streamed and stream_weights == "on":  # the host's loader leaves there only what does not fit
        move_to_main_memory(model)
    differentiable_rope()
    return HostDenoiser(model, config, precision, copies if streamed else None)


@contextmanager
def training_session(model, *arguments: Any, **options: Any) -> Iterator[HostDenoiser]:
    """`load_for_training` inside of a prompt: with autograd on, and nothing left behind. Neither gradients nor LoRA nor
    memory stay, whether training ends, fails or is interrupted."""
    was_training = comfy.model_management.in_training
    comfy.model_management.in_training = True  # the host's fused kernels (rope, int8) have no gradient
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield load_for_training(model, *arguments, **options)
    finally:
        comfy.model_management.in_training = was_training
        comfy.model_management.soft_empty_cache()


def native_latent(model, latent: Tensor, std: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """A VAE latent [C, H, W] and its posterior's std as x0 of the network's noise (noise.py), on its device, free of
    inference mode."""
    scale = latent_scale(model)
    mean = model.model.process_latent_in(latent[None].float())[0]
    if std is not None:  # the scaling is affine: shift out, scale in
        std = (model.model.process_latent_in((latent + std)[None].float())[0] - mean).abs()
    return tuple(  # type: ignore[return-value]
        None if x is None else x.to(model.load_device, torch.float32).clone() / scale for x in (mean, std)
    )


def host_latent(model, x0: Tensor) -> Tensor:
    """native_latent undone: a latent [..., C, H, W] as MODEL's VAE and previewers take it."""
    return model.model.process_latent_out(latent_scale(model) * x0.float())
