"""What a training step of a family holds at once, counted without a GPU: on torch's meta device, where tensors have
sizes and no memory.

Counted are all tensors that operations make in one step with checkpointed blocks, from when they are made until they
are let go, forward and backward. Attention counts as GPUs fuse it: its inputs and its output. Everything computes in
bf16, as training does there.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from . import in_process_host
from .real_sizes import RealSize

RANK = 16
_META = torch.device("meta")


class _Living(TorchDispatchMode):
    """Bytes of meta tensors that are alive, those in `known` left out."""

    def __init__(self, known: set[int]):
        super().__init__()
        self._known, self._now, self.most = known, 0, 0
        self._living: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if torch.is_tensor(tensor) and tensor.device.type == "meta":
                storage = tensor.untyped_storage()
                key, size = storage._cdata, storage.nbytes()
                if key not in self._known and key not in self._living:
                    self._living.add(key)
                    self._now += size
                    self.most = max(self.most, self._now)
                    weakref.finalize(storage, self._gone, key, size)
        return out

    def _gone(self, key: int, size: int) -> None:
        self._living.discard(key)
        self._now -= size


class _FusedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Any, k: Any, v: Any) -> Any:
        out = q.new_empty(*q.shape[:-1], v.shape[-1])
        ctx.save_for_backward(q, k, v, out)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


def _attention(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> Any:
    return _FusedAttention.apply(q, k, v)


@contextmanager
def _training() -> Iterator[None]:
    """The host's networks for autograd, as in a training session."""
    import comfy.model_management

    in_process_host.pack("nodes.host.training.fused_rope").differentiable_rope()
    with (
        mock.patch.object(comfy.model_management, "in_training", True),
        mock.patch.object(torch.nn.functional, "scaled_dot_product_attention", _attention),
    ):
        yield


def measured(supported: str, size: RealSize) -> tuple[int, int, int]:
    """(parameters, bytes with all weights on the card, bytes with streamed weights) of a step on one picture with a
    LoRA of RANK on the attention. supported: the class in comfy.supported_models. Raises whatever the host does for
    a family that meta tensors cannot go through."""
    import comfy.supported_models
    from comfy.model_patcher import ModelPatcher

    network, lora, streaming, memory = map(
        in_process_host.pack,
        ("nodes.host.training.network", "dco_core.network.lora_layers", "dco_core.network.weight_stream",
         "dco_core.training.memory"),
    )  # fmt: skip
    config = getattr(comfy.supported_models, supported)(dict(size.config))
    config.unet_config.update(size.config)
    config.set_inference_dtype(torch.bfloat16, None)
    model = config.get_model({}, "", device=_META)
    model.diffusion_model.to(_META).eval().requires_grad_(False)
    parameters = sum(p.numel() for p in model.diffusion_model.parameters())
    with _training():
        adapter = lora.AdapterConfig(rank=RANK)
        denoiser = network.HostDenoiser(ModelPatcher(model, _META, _META), adapter, "model's own")
        whole, streamed = _weights(denoiser.network, streaming)
        trained = memory.training_bytes(denoiser.trainable().values(), "adamw")
        for parameter in denoiser.trainable().values():  # its products are computed in bf16
            parameter.data = parameter.data.bfloat16()
        denoiser._base.model_sampling.timestep = torch.empty_like  # looks into the CPU's table
        denoiser.checkpoint_blocks()
        beside = {"pooled_output": torch.zeros(1, size.pooled)}
        beside |= {"attention_mask": torch.ones(1, size.text[0])} if size.mask else {}
        prompt = [[torch.zeros(1, *size.text).bfloat16(), beside]]
        conditions = denoiser.model_conditions(prompt, torch.zeros(size.latent))
        known = {tensor.untyped_storage()._cdata for tensor in denoiser.network_tensors()}
        with _Living(known) as living:
            x_t = torch.empty(1, *size.latent, device=_META)
            out = denoiser.predict(x_t, torch.tensor([500]), [conditions], adapter=True)
            out.float().square().mean().backward()
    step = living.most + trained
    return parameters, whole + step, streamed + step


def _weights(network: Any, streaming: Any) -> tuple[int, int]:
    """Bytes of all frozen weights, and of those that lie on the card at once where all blocks are streamed."""
    frozen = [p for p in network.parameters() if not p.requires_grad]
    units = [
        sum(t.nbytes for layer in streaming.streamable(block) for t in (layer.weight, layer.bias) if t is not None)
        for block in in_process_host.pack("dco_core.network.gradient_checkpointing").blocks(network)
    ]
    whole = sum(p.nbytes for p in frozen)
    return whole, whole - sum(units) + sum(sorted(units, reverse=True)[: streaming.AHEAD + 1])
