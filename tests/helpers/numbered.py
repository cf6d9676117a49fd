"""A network that keeps the number of its heads as an attribute."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from helpers.training import Lit, images

EXAMPLE = torch.zeros(2, 2, 3, 4)


def logits(module: nn.Module) -> Tensor:
    inputs = torch.stack([images()[n][0] for n in range(8)])
    with torch.no_grad():
        return module.eval()(inputs)


class Numbered(nn.Module):
    """Attention over the pixels of an image, with its own numbers."""

    def __init__(self, heads: int = 2, head_dim: int = 8, sizes: tuple[int, int] = (6, 10)) -> None:
        super().__init__()
        self.heads, self.head_dim, self.sizes, self.inner = heads, head_dim, list(sizes), heads * head_dim
        self.pair = tuple(sizes)
        self.qkv, self.proj = nn.Linear(2, 3 * self.inner), nn.Linear(self.inner, sum(sizes))
        self.fc = nn.Linear(sum(sizes), 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2).transpose(1, 2)
        q, k, v = self.qkv(x).reshape(len(x), -1, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(len(x), -1, self.inner)
        a, b = self.proj(y).split(self.sizes, dim=-1)
        return self.fc(torch.cat([a.tanh(), b.relu()], -1).mean(1))


class LitNumbered(Lit):
    def __init__(self, heads: int = 2) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.hparams.update(lr=0.05, optimizer="sgd")
        self.net = Numbered(heads)


def numbers(net: Any) -> tuple[Any, ...]:
    return net.heads, net.head_dim, net.sizes, net.pair, net.inner
