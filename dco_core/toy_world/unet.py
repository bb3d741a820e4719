"""The Toy World's UNet: a small diffusion UNet with cross-attention over caption tokens.

It works on 4x4 pixel blocks (16x16x48), has three levels and a refiner for what is finer than its blocks. Attention
layers carry the names that LoRA trainers know (`attn1.to_q`, `attn2.to_out.0`, ...). The same network serves two bases:
one predicts the noise (epsilon), as Stable Diffusion 1.5 and XL do, the other the flow-matching velocity eps - x0.

Both are preconditioned as in Karras et al. (2022), Sec. 5: of x_t = alpha x0 + sigma eps, with data of standard
deviation d, the bare network predicts

    F = (sigma x0 / d - alpha d eps) / sqrt(alpha^2 d^2 + sigma^2)

which has unit variance at every noise level and is what x_t itself does not tell; eps, x0 and eps - x0 are linear in
x_t and F.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import DCOError
from ..schedules import Schedule
from .canvas import SIZE
from .text_encoder import WIDTH as CONTEXT_WIDTH

BASES = ("epsilon", "flow")
# Noise schedule of the epsilon base: Stable Diffusion's, with a noisier end. At SD's own end (0.012) the mean
# brightness of a 64x64 picture still stands out of the noise by 2.9 standard deviations, and sampling, which begins
# with noise alone, would lead the network to grey pictures (Lin et al. 2024); here it is 0.6.
BETAS = (0.00085, 0.02)
SIGMA_DATA = 0.66  # standard deviation of rendered images
PATCH = 4
WIDTHS = (64, 96, 160)
HEAD_DIM = 32
REFINER_WIDTH = 40


def schedule_of(base: str) -> Schedule:
    """The noise schedule of a base, "epsilon" or "flow". DCOError for any other."""
    if base == "epsilon":
        return Schedule.stable_diffusion("epsilon", ends=BETAS)
    if base == "flow":
        return Schedule.flow()
    raise DCOError(f'The Toy World has no base "{base}": use {" or ".join(BASES)}.')


def noise_embedding(level: Tensor, width: int) -> Tensor:
    """Sinusoids of a noise level in 0..1, [B] -> [B, width]."""
    frequencies = torch.exp(torch.linspace(0, math.log(200.0), width // 2, device=level.device))
    angles = level.float()[:, None] * frequencies
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


def _interleaved(x: Tensor) -> Tensor:
    """[B, C, H, W] -> its four pictures of every other row and column, [4 B, C, H/2, W/2]."""
    b, c, h, w = x.shape
    return x.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4).reshape(4 * b, c, h // 2, w // 2)


def _joined(x: Tensor) -> Tensor:
    """What `_interleaved` took apart."""
    b, c, h, w = x.shape
    return x.reshape(b // 4, 2, 2, c, h, w).permute(0, 3, 4, 1, 5, 2).reshape(b // 4, c, 2 * h, 2 * w)


class Refiner(nn.Module):
    """What the UNet's 4x4 blocks are too coarse for: a correction of F, made on 2x2 blocks by plain convolutions.

    x_t brought to unit variance and F, both [B, 3, H, W], and the noise level in 0..1, [B] -> [B, 3, H, W]. It knows
    nothing of captions, and serves both bases."""

    def __init__(self):
        super().__init__()
        width = REFINER_WIDTH
        self.conv_in = nn.Conv2d(2 * 12, width, 3, padding=1)
        self.level_proj = nn.Linear(32, 2 * width)
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(4))
        self.conv_out = nn.Conv2d(width, 12, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)

    def forward(self, x: Tensor, bare: Tensor, level: Tensor) -> Tensor:
        scale, shift = self.level_proj(noise_embedding(level, 32).to(x.dtype))[:, :, None, None].chunk(2, 1)
        h = (
            self.conv_in(torch.cat([F.pixel_unshuffle(x, 2), F.pixel_unshuffle(bare, 2)], 1)) * (1 + scale)
            + shift
        )
        near, wide = self.convs[:2], self.convs[2:]
        h = h + near[1](F.silu(near[0](F.silu(h))))
        # every other row and column is dilation 2, which peft's adapters of convolutions do not know
        h = h + _joined(wide[1](F.silu(wide[0](F.silu(_interleaved(h))))))
        return F.pixel_shuffle(self.conv_out(F.silu(h)), 2)


class UNet(nn.Module):
    """x_t [B, 3, 64, 64], t [B], context [B, n, 128] -> what the base predicts, [B, 3, 64, 64].

    t is what models of the kind read: the timestep's index 0..999 for epsilon, the flow time 0..1 for flow."""

    table: Tensor

    def __init__(self, base: str):
        super().__init__()
        self.base = base
        schedule = schedule_of(base)
        levels = torch.stack([schedule.alpha, schedule.sigma])
        # as bits, which a cast of the network to half precision leaves alone
        self.register_buffer("table", levels.view(torch.int32), persistent=False)
        a, b, c = WIDTHS
        time, side = 4 * a, SIZE // PATCH
        self.time_embed = nn.Sequential(nn.Linear(a, time), nn.SiLU(), nn.Linear(time, time), nn.SiLU())
        self.position = nn.Parameter(torch.randn(1, a, side, side) * 0.02)
        self.conv_in = nn.Conv2d(3 * PATCH**2, a, 3, padding=1)
        self.down0 = ResBlock(a, a, time)
        self.downsample0 = nn.Conv2d(a, b, 3, stride=2, padding=1)
        self.down1 = SpatialBlock(b, b, side // 2, time)
        self.downsample1 = nn.Conv2d(b, c, 3, stride=2, padding=1)
        self.down2 = SpatialBlock(c, c, side // 4, time)
        self.middle = SpatialBlock(c, c, side // 4, time)
        self.up2 = SpatialBlock(2 * c, c, side // 4, time)
        self.upsample1 = nn.Conv2d(c, b, 3, padding=1)
        self.up1 = SpatialBlock(2 * b, b, side // 2, time)
        self.upsample0 = nn.Conv2d(b, a, 3, padding=1)
        self.up0 = ResBlock(2 * a, a, time)
        self.norm_out = nn.GroupNorm(8, a)
        self.conv_out = nn.Conv2d(a, 3 * PATCH**2, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)
        self.refiner = Refiner()

    def levels(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma [B, 1, 1, 1] of the times t [B]."""
        if self.base == "flow":
            sigma = t.float()
            alpha = 1 - sigma
        else:
            index = t.round().long() if t.is_floating_point() else t
            alpha, sigma = self.table.view(torch.float32)[:, index]
        return alpha[:, None, None, None], sigma[:, None, None, None]

    def bare(self, x_t: Tensor, alpha: Tensor, sigma: Tensor, context: Tensor) -> Tensor:
        """F [B, 3, 64, 64] of x_t [B, 3, 64, 64] at alpha and sigma [B, 1, 1, 1]."""
        level = torch.atan2(sigma, SIGMA_DATA * alpha).flatten() / (math.pi / 2)
        x = x_t * (alpha**2 * SIGMA_DATA**2 + sigma**2).rsqrt().to(x_t)
        time = self.time_embed(noise_embedding(level, WIDTHS[0]).to(x.dtype))
        h0 = self.down0(self.conv_in(F.pixel_unshuffle(x, PATCH)) + self.position, time)
        h1 = self.down1(self.downsample0(h0), time, context)
        h2 = self.down2(self.downsample1(h1), time, context)
        h = self.middle(h2, time, context)
        h = self.up2(torch.cat([h, h2], 1), time, context)
        h = self.upsample1(F.interpolate(h, scale_factor=2.0))
        h = self.up1(torch.cat([h, h1], 1), time, context)
        h = self.upsample0(F.interpolate(h, scale_factor=2.0))
        h = self.up0(torch.cat([h, h0], 1), time)
        bare = F.pixel_shuffle(self.conv_out(F.silu(self.norm_out(h))), PATCH)
        return bare + self.refiner(x, bare, level)

    def forward(self, x_t: Tensor, t: Tensor, context: Tensor) -> Tensor:
        alpha, sigma = self.levels(t)
        bare, d = self.bare(x_t, alpha, sigma, context), SIGMA_DATA
        variance = alpha**2 * d**2 + sigma**2
        own, new = (sigma, alpha) if self.base == "epsilon" else (sigma - alpha * d**2, alpha + sigma)
        # eps = (sigma x_t - alpha d sqrt(variance) F) / variance
        # x0 = (alpha d^2 x_t + sigma d sqrt(variance) F) / variance
        return (own / variance).to(x_t) * x_t - (d * new * variance.rsqrt()).to(x_t) * bare


def bare_target(x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The F that `UNet.bare` should give, [B, 3, 64, 64]."""
    return (sigma / SIGMA_DATA * x0 - alpha * SIGMA_DATA * noise) * (
        alpha**2 * SIGMA_DATA**2 + sigma**2
    ).rsqrt()
