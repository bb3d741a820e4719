"""A network small enough to replay by hand, with attention where a LoRA goes."""

import torch
from torch import nn

from dco_core.network.denoiser import NetworkDenoiser
from dco_core.training.examples import Example


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.to_q, self.to_k, self.to_v = nn.Linear(6, 6, bias=False), nn.Linear(5, 6), nn.Linear(5, 6)
        self.to_out = nn.Sequential(nn.Linear(6, 6))

    def forward(self, x, context):
        weights = torch.softmax(self.to_q(x) @ self.to_k(context).transpose(1, 2), -1)
        return self.to_out(weights @ self.to_v(context))


class Network(nn.Module):
    """x [B, 6, 2, 2], t [B], context [B, 4, 5] -> [B, 6, 2, 2]."""

    def __init__(self):
        super().__init__()
        self.time, self.attn2, self.ff = nn.Linear(1, 6), Attention(), nn.Linear(6, 6)

    def forward(self, x, t, context):
        h = x.flatten(2).transpose(1, 2) + self.time(t.float()[:, None, None] / 1000)
        h = h + self.attn2(h, context)
        return (h + torch.tanh(self.ff(h))).transpose(1, 2).reshape(x.shape)


class Denoiser(NetworkDenoiser):
    def forward(self, x_t, t, conditioning):
        return self.network(x_t, t, torch.stack(list(conditioning)))

    def phi_on(self, device):
        return Denoiser(small_base().to(device), self.schedule, None)


def small_base():
    torch.manual_seed(0)
    return Network().requires_grad_(False)


def small_examples(n=3):
    g = torch.Generator().manual_seed(1)
    return [Example(*(torch.randn(s, generator=g) for s in ((6, 2, 2), (4, 5), (4, 5)))) for _ in range(n)]
