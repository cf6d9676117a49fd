"""Exactness as a property: random small networks, random removals."""

import pytest
import torch
from helpers.coupling_nets import conv, image, randomise, removal_error
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

BLOCKS = ("plain", "residual", "concat", "gate", "depthwise", "grouped", "shuffle", "chunk", "padded", "transposed")


class Block(nn.Module):
    """One way to go from some channels to others, with batch norms at random places."""

    def __init__(self, kind: str, read: int, width: int, normed: bool) -> None:
        super().__init__()
        self.kind, self.made = kind, width
        if kind == "residual":
            self.made = read
        elif kind == "concat":
            self.made = read + width
        elif kind == "depthwise":
            self.made = 2 * read
        elif kind in ("grouped", "shuffle"):
            self.made = 2 * read
            self.made += self.made % 4
        elif kind == "padded":
            self.made = read + 3
        out = {"residual": read, "padded": read + 3, "chunk": 2 * width, "grouped": self.made, "shuffle": self.made}
        if kind == "depthwise":
            self.conv: nn.Module = conv(read, 2 * read, groups=read)
        elif kind == "transposed":
            self.conv = nn.ConvTranspose2d(read, width, 3, padding=1)
        else:
            self.conv = conv(read, out.get(kind, width))
        inner = 2 * width if kind == "chunk" else width if kind == "concat" else self.made
        self.norm = nn.BatchNorm2d(inner) if normed else nn.Identity()
        if kind == "gate":
            self.down, self.up = nn.Conv2d(width, 3, 1), nn.Conv2d(3, width, 1)
        if kind == "grouped":
            self.second = conv(self.made, self.made, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.conv(x))
        if self.kind == "residual":
            return (x + y).relu()
        if self.kind == "concat":
            return torch.cat([x, y.relu()], 1)
        if self.kind == "gate":
            return y * self.up(self.down(F.adaptive_avg_pool2d(y, 1)).relu()).sigmoid()
        if self.kind == "grouped":
            grouped: Tensor = self.second(y.relu())
            return grouped
        if self.kind == "shuffle":
            n, c, h, w = y.shape
            return y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        if self.kind == "chunk":
            a, b = y.chunk(2, 1)
            return a * b.tanh()
        if self.kind == "padded":
            return y + F.pad(x, (0, 0, 0, 0, 1, 2))
        return y.relu()


class RandomNet(nn.Module):
    def __init__(self, stem: int, blocks: list[tuple[str, int, bool]], flatten: bool) -> None:
        super().__init__()
        self.stem = conv(3, stem)
        layers, width = [], stem
        for kind, wanted, normed in blocks:
            layers.append(Block(kind, width, wanted, normed))
            width = layers[-1].made
        self.blocks = nn.Sequential(*layers)
        self.flatten = flatten
        self.head = nn.Linear(width * 16 if flatten else width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.stem(x).relu())
        scores: Tensor = self.head(x.flatten(1) if self.flatten else x.mean((2, 3)))
        return scores


ARCHITECTURE = st.tuples(
    st.integers(2, 7),
    st.lists(st.tuples(st.sampled_from(BLOCKS), st.integers(2, 7), st.booleans()), min_size=1, max_size=4),
    st.booleans(),
)


def check(architecture: tuple[int, list[tuple[str, int, bool]], bool], seed: int) -> None:
    torch.manual_seed(seed)
    net = randomise(RandomNet(*architecture), seed).double()
    before = sum(parameter.numel() for parameter in net.parameters())
    assert removal_error(net, image(2, 3, 4, 4, seed=seed).double(), seed) <= 1e-10
    assert sum(parameter.numel() for parameter in net.parameters()) < before
    net.train()
    net(image(2, 3, 4, 4).double()).square().sum().backward()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(ARCHITECTURE, st.integers(0, 2**16))
def test_removing_equals_masking_on_random_networks(architecture, seed) -> None:
    check(architecture, seed)


@pytest.mark.slow
@settings(max_examples=300, deadline=None, derandomize=True)
@given(ARCHITECTURE, st.integers(0, 2**16))
def test_removing_equals_masking_on_many_networks(architecture, seed) -> None:
    check(architecture, seed)
