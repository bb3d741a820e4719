"""The Toy World's text encoder: word ids to one vector a token, as CLIP does for the models users train."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .tokenizer import MAX_TOKENS, VOCABULARY

WIDTH = 128


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, d))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class TextEncoder(nn.Module):
    """Ids int64 [B, 20] (or their embeddings [B, 20, 128], for learned tokens) -> conditioning [B, 20, 128]."""

    def __init__(self, width: int = WIDTH, layers: int = 2, heads: int = 4):
        super().__init__()
        self.token_embedding = nn.Embedding(len(VOCABULARY), width)
        self.position_embedding = nn.Parameter(torch.randn(MAX_TOKENS, width) * 0.02)
        self.layers = nn.ModuleList(_Layer(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, ids: Tensor | None = None, embeddings: Tensor | None = None) -> Tensor:
        x = self.token_embedding(ids) if embeddings is None else embeddings
        x = x + self.position_embedding[: x.shape[1]].to(x)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)
