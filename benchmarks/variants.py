"""The training loops that step_cost.py compares, in a process where the host was started: ours, the host's own, and
the authors'. Each takes a Setting and a `callback`, builds what it needs, and calls `callback` once before the first
step and after every step."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from devtools import in_process_host as host

from . import networks

ROWS = 4  # pictures, each with its caption
TOO_MANY = 10_000  # steps: `callback` ends the loop


@dataclass(frozen=True)
class Setting:
    """pixels: side of the pictures. rank: of our LoRA and the authors'; the host's node keeps its own. blocks:
    gradient checkpointing for ours."""

    family: str = "sd15"
    width: float = 0.2
    pixels: int = 256
    rank: int = 32
    window: int = 8
    blocks: bool = False
    dtype: str = "float32"

    @property
    def shape(self) -> networks.Shape:
        return networks.shape_of(self.family, self.width)


Tick = Callable[[], None]


def _host_model(setting: Setting):
    unet = networks.diffusers_unet(setting.shape)
    return networks.host_model(setting.shape, unet.state_dict(), getattr(torch, setting.dtype))


def _host_data(setting: Setting) -> tuple[Tensor, list]:
    """Latents [ROWS, 4, h, w] in the VAE's scale, and a host CONDITIONING for each."""
    side, shape = setting.pixels // 8, setting.shape
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(ROWS, 4, side, side, generator=generator)
    sizes = {name: setting.pixels for name in ("width", "height", "target_width", "target_height")}
    conditioning = [
        [
            torch.randn(1, networks.TOKENS, shape.context, generator=generator),
            {"pooled_output": torch.randn(1, shape.pooled, generator=generator), **sizes},
        ]
        for _ in range(ROWS)
    ]
    return latents, conditioning


def ours(setting: Setting, callback: Tick, objective: str, window: int) -> None:
    """Our Training, as the DCO LoRA Trainer node runs it inside the host."""
    training, adapters = host.pack("nodes.host.training.network"), host.pack("dco_core.network.lora_layers")
    trainer, examples = host.pack("dco_core.training.trainer"), host.pack("dco_core.training.examples")
    config = host.pack("dco_core.training.config").TrainingConfig(
        steps=TOO_MANY, objective=objective, look_ahead=window
    )
    model = _host_model(setting)
    latents, conditioning = _host_data(setting)
    with training.training_session(model, adapters.AdapterConfig(rank=setting.rank)) as denoiser:
        if setting.blocks:
            denoiser.checkpoint_blocks()
        data = []
        for latent, text in zip(latents, conditioning, strict=True):
            x0, std = training.native_latent(model, latent, torch.full_like(latent, 0.1))
            data.append(examples.Example(x0, denoiser.model_conditions([text], x0), std=std))
        run = trainer.Training(denoiser, data, config)
        callback()
        run.run(lambda _report: callback())


def trainloranode(setting: Setting, callback: Tick, precision: str | None) -> None:
    """The host's TrainLoraNode with its defaults: rank 8 on every weight, a bias for every layer, the whole network
    checkpointed, a second copy of the network; precision None: bf16, as it ships."""
    import comfy_extras.nodes_train as node

    logging.getLogger().setLevel(logging.ERROR)

    class Bar:
        def __init__(self, total: int):
            callback()

        def update(self, _value: int) -> None:
            callback()

    node.ProgressBar = Bar
    node.comfy.utils.PROGRESS_BAR_ENABLED = False
    values = {i.id: i.default for i in node.TrainLoraNode.define_schema().inputs if hasattr(i, "default")}
    latents, conditioning = _host_data(setting)
    values |= {"model": _host_model(setting), "steps": TOO_MANY, "existing_lora": "[None]"}
    values |= {"training_dtype": precision} if precision else {}
    lists = {name: [value] for name, value in values.items()}
    lists |= {"latents": [{"samples": latents}], "positive": [[text] for text in conditioning]}
    node.TrainLoraNode.execute(**lists)


def authors(setting: Setting, callback: Tick) -> None:
    """The authors' loop (github.com/kyungmnlee/dco) with fixed captions: diffusers UNet with peft's LoRA on the
    attention; VAE and text encoders run in every step; phi is the same UNet at adapter scale 0."""
    import peft

    shape, side = setting.shape, setting.pixels // 8
    torch.manual_seed(0)
    unet = networks.diffusers_unet(shape)
    encoders, vae = networks.text_encoders(shape), networks.vae(shape)
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    unet.add_adapter(
        peft.LoraConfig(
            r=setting.rank, lora_alpha=setting.rank, target_modules=targets, init_lora_weights="gaussian"
        )
    )
    trained = [p for p in unet.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=5e-5, weight_decay=1e-4)
    pictures = torch.rand(ROWS, 3, setting.pixels, setting.pixels) * 2 - 1
    captions = torch.randint(0, 40_000, (ROWS, networks.TOKENS))
    cumulative = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0)
    sizes = torch.tensor([[setting.pixels, setting.pixels, 0, 0, setting.pixels, setting.pixels]]).float()

    def read(ids: Tensor) -> tuple[Tensor, dict]:
        with torch.no_grad():
            out = [encoder(ids, output_hidden_states=True) for encoder in encoders]
        text = torch.cat([o.hidden_states[-2] for o in out], -1)
        added = {"text_embeds": out[-1][0], "time_ids": sizes.to(text)} if shape.sdxl else None
        return text, {"added_cond_kwargs": added}

    callback()
    for step in itertools.count():
        i = step % ROWS
        with torch.no_grad():
            x0 = vae.encode(pictures[i : i + 1]).latent_dist.sample() * vae.config.scaling_factor
        assert x0.shape[-1] == side
        noise, t = torch.randn_like(x0), torch.randint(0, 1000, (1,))
        a = cumulative[t][:, None, None, None]
        x_t = a.sqrt() * x0 + (1 - a).sqrt() * noise
        text, added = read(captions[i : i + 1])
        theta = unet(x_t, t, text, cross_attention_kwargs={"scale": 1.0}, **added).sample
        with torch.no_grad():
            phi = unet(x_t, t, text, cross_attention_kwargs={"scale": 0.0}, **added).sample
        margin = (theta - noise).square().mean() - (phi - noise).square().mean()
        loss = -torch.nn.functional.logsigmoid(-1000 * margin)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()
        callback()


PLAIN, NAIVE, LOOK_AHEAD = "plain", "DCO, naive", "DCO, look-ahead"
AS_SHIPPED, NODE_FP32, AUTHORS = "TrainLoraNode", "TrainLoraNode, fp32", "authors' DCO"


def variants(setting: Setting) -> dict[str, Callable[[Setting, Tick], None]]:
    """Every loop by name."""
    return {
        PLAIN: partial(ours, objective="dreambooth", window=1),
        NAIVE: partial(ours, objective="dco", window=1),
        LOOK_AHEAD: partial(ours, objective="dco", window=setting.window),
        AS_SHIPPED: partial(trainloranode, precision=None),
        NODE_FP32: partial(trainloranode, precision="fp32"),
        AUTHORS: authors,
    }
