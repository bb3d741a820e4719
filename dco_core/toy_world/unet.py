"""The Toy World's UNet: a small latent-diffusion UNet with cross-attention over caption tokens.

It works on 2x2 pixel blocks (16x16x12) and has three levels. Attention layers carry the names that LoRA
trainers know (`attn1.to_q`, `attn2.to_out.0`, ...). It predicts the flow-matching velocity v = eps - x0 of
x_t = (1 - t) x0 + t eps, preconditioned as in Karras et al. (2022), Sec. 5, so that the network's own output
has unit variance at every noise level.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .text_encoder import WIDTH as CONTEXT_WIDTH

SIGMA_DATA = 0.66  # standard deviation of rendered images
WIDTHS = (48, 96, 160)
HEAD_DIM = 32


def timestep_embedding(t: Tensor, width: int) -> Tensor:
    """Sinusoids of t in 0..1, [B] -> [B, width]."""
    frequencies = torch.exp(torch.linspace(0, math.log(1000.0), width // 2, device=t.device))
    angles = t.float()[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], 1)


class ResBlock(nn.Module):
    def __init__(self, inner: int, outer: int, time_width: int):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, inner), nn.GroupNorm(8, outer)
        self.conv1, self.conv2 = nn.Conv2d(inner, outer, 3, padding=1), nn.Conv2d(outer, outer, 3, padding=1)
        self.time_proj = nn.Linear(time_width, 2 * outer)
        self.shortcut = nn.Conv2d(inner, outer, 1) if inner != outer else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.time_proj(time)[:, :, None, None].chunk(2, 1)
        h = self.conv2(F.silu(self.norm2(h) * (1 + scale) + shift))
        return self.shortcut(x) + h


class Attention(nn.Module):
    def __init__(self, width: int, context_width: int):
        super().__init__()
        self.heads = width // HEAD_DIM
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context_width, width, bias=False)
        self.to_v = nn.Linear(context_width, width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(width, width))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        def split(y: Tensor) -> Tensor:
            return y.unflatten(-1, (self.heads, HEAD_DIM)).transpose(1, 2)

        h = F.scaled_dot_product_attention(
            split(self.to_q(x)), split(self.to_k(context)), split(self.to_v(context))
        )
        return self.to_out(h.transpose(1, 2).flatten(2))


class TransformerBlock(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn1, self.attn2 = Attention(width, width), Attention(width, CONTEXT_WIDTH)
        self.ff = nn.Sequential(nn.Linear(width, 3 * width), nn.GELU(), nn.Linear(3 * width, width))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        h = self.norm1(x)
        x = x + self.attn1(h, h)
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class SpatialBlock(nn.Module):
    """A residual block followed by a transformer block over its pixels."""

    def __init__(self, inner: int, outer: int, size: int, time_width: int):
        super().__init__()
        self.res = ResBlock(inner, outer, time_width)
        self.position = nn.Parameter(torch.randn(1, size * size, outer) * 0.02)
        self.transformer = TransformerBlock(outer)

    def forward(self, x: Tensor, time: Tensor, context: Tensor) -> Tensor:
        x = self.res(x, time)
        b, c, h, w = x.shape
        y = x.flatten(2).transpose(1, 2) + self.position
        return self.transformer(y, context).transpose(1, 2).reshape(b, c, h, w)


class UNet(nn.Module):
    """x_t [B, 3, 32, 32], t [B] in 0..1, context [B, n, 128] -> velocity [B, 3, 32, 32]."""

    base = "flow"  # which of bases.py it is

    def __init__(self):
        super().__init__()
        a, b, c = WIDTHS
        time = 4 * a
        self.time_embed = nn.Sequential(nn.Linear(a, time), nn.SiLU(), nn.Linear(time, time), nn.SiLU())
        self.conv_in = nn.Conv2d(12, a, 3, padding=1)
        self.down0 = ResBlock(a, a, time)
        self.downsample0 = nn.Conv2d(a, b, 3, stride=2, padding=1)
        self.down1 = SpatialBlock(b, b, 8, time)
        self.downsample1 = nn.Conv2d(b, c, 3, stride=2, padding=1)
        self.down2 = SpatialBlock(c, c, 4, time)
        self.middle = SpatialBlock(c, c, 4, time)
        self.up2 = SpatialBlock(2 * c, c, 4, time)
        self.upsample1 = nn.Conv2d(c, b, 3, padding=1)
        self.up1 = SpatialBlock(2 * b, b, 8, time)
        self.upsample0 = nn.Conv2d(b, a, 3, padding=1)
        self.up0 = ResBlock(2 * a, a, time)
        self.norm_out = nn.GroupNorm(8, a)
        self.conv_out = nn.Conv2d(a, 12, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)

    def network(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        """The bare network F on a unit-variance input, [B, 3, 32, 32] -> [B, 3, 32, 32]."""
        time = self.time_embed(timestep_embedding(t, WIDTHS[0]).to(x.dtype))
        h0 = self.down0(self.conv_in(F.pixel_unshuffle(x, 2)), time)
        h1 = self.down1(self.downsample0(h0), time, context)
        h2 = self.down2(self.downsample1(h1), time, context)
        h = self.middle(h2, time, context)
        h = self.up2(torch.cat([h, h2], 1), time, context)
        h = self.upsample1(F.interpolate(h, scale_factor=2.0))
        h = self.up1(torch.cat([h, h1], 1), time, context)
        h = self.upsample0(F.interpolate(h, scale_factor=2.0))
        h = self.up0(torch.cat([h, h0], 1), time)
        return F.pixel_shuffle(self.conv_out(F.silu(self.norm_out(h))), 2)

    def forward(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        s, at = t.to(x.dtype)[:, None, None, None], SIGMA_DATA
        variance = (1 - s) ** 2 * at**2 + s**2
        f = self.network(x * variance.rsqrt(), t, context)
        return (s - (1 - s) * at**2) / variance * x - at * variance.rsqrt() * f
