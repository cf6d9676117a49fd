"""Networks as people write them, with their forward passes spelled out."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm
from torchvision.ops import DeformConv2d


class DenseBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.layers = nn.ModuleList(nn.Conv2d(6 + 4 * i, 4, 3, padding=1) for i in range(3))
        self.norm = nn.BatchNorm2d(18)
        self.fc = nn.Linear(18, 5)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for layer in self.layers:
            features.append(F.relu(layer(torch.cat(features, 1))))
        return self.fc(F.relu(self.norm(torch.cat(features, 1))).mean((-2, -1)))


class ShuffleUnit(nn.Module):
    """A channel split, one half untouched, and a shuffle written by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.branch = nn.Conv2d(4, 4, 3, padding=1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.stem(x).chunk(2, dim=1)
        y = torch.cat((left, F.relu(self.branch(right))), dim=1)
        batch, channels, height, width = y.shape
        y = y.reshape(batch, 2, channels // 2, height, width).transpose(1, 2).contiguous()
        return self.fc(y.reshape(batch, -1, height, width).mean((2, 3)))


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.gate = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 8), nn.Sigmoid())
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        batch, channels, _, _ = x.size()
        y = self.gate(F.adaptive_avg_pool2d(x, 1).view(batch, channels)).view(batch, channels, 1, 1)
        return self.fc((x * y.expand_as(x)).mean((2, 3)))


class GatedConvs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(3, 12, 3, padding=1)
        self.second = nn.Conv1d(6, 8, 3, padding=1)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.glu(self.first(x), dim=1)
        return self.fc(F.glu(self.second(x), dim=1).mean(-1))


class SwiGLU(nn.Module):
    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.fused = fused
        self.up = nn.Linear(6, 16 if fused else 8)
        self.gate = nn.Identity() if fused else nn.Linear(6, 8)
        self.down = nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        if self.fused:
            gate, value = self.up(x).chunk(2, dim=-1)
        else:
            gate, value = self.gate(x), self.up(x)
        return x + self.down(F.silu(gate) * value)


class MultiQueryAttention(nn.Module):
    """Four query heads over one key and one value head of eight channels."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.head_dim = 4, 8
        self.embed = nn.Linear(5, 16)
        self.q = nn.Linear(16, 32)
        self.kv = nn.Linear(16, 16)
        self.out = nn.Linear(32, 16)
        self.fc = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        batch, tokens, _ = x.shape
        q = self.q(x).view(batch, tokens, self.heads, self.head_dim).transpose(1, 2)
        k, v = self.kv(x).split(self.head_dim, dim=-1)
        weights = (q @ k.unsqueeze(1).transpose(-1, -2)).softmax(-1)
        mixed = (weights @ v.unsqueeze(1)).transpose(1, 2).reshape(batch, tokens, -1)
        return self.fc((x + self.out(mixed)).mean(1))


class Scales(nn.Module):
    """Raw parameters: a scale for each channel, one for all, and a learned offset."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 1)
        self.b = nn.Conv2d(8, 8, 1)
        self.gamma = nn.Parameter(torch.randn(8, 1, 1))
        self.rezero = nn.Parameter(torch.ones(()))
        self.offset = nn.Parameter(torch.randn(1, 8, 1, 1))
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x = x + self.rezero * self.gamma * F.gelu(self.b(x))
        return self.fc((x + self.offset).flatten(2).mean(-1))


class LanguageModel(nn.Module):
    """Tied weights around a GRU."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.positions = nn.Parameter(torch.randn(4, 6))
        self.rnn = nn.GRU(6, 6, batch_first=True)
        self.decode = nn.Linear(6, 11)
        self.decode.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        states, _ = self.rnn(self.embed(tokens) + self.positions[: tokens.shape[1]])
        return self.decode(states)


class Siamese(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3))
        self.fc = nn.Linear(4, 2)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        a, b = self.tower(left).amax((2, 3)), self.tower(right).amax((2, 3))
        return self.fc((a - b).abs())


class UNet(nn.Module):
    def __init__(self, dims: int = 2) -> None:
        super().__init__()
        conv: Any = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
        up: Any = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 1]
        norm: Any = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dims - 1]
        self.pool: nn.Module = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[dims - 1](2)
        self.down1 = nn.Sequential(conv(2, 4, 3, padding=1), norm(4), nn.ReLU())
        self.down2 = nn.Sequential(conv(4, 6, 3, padding=1), norm(6), nn.ReLU())
        self.bottom = nn.Sequential(conv(6, 8, 3, padding=1), nn.ReLU())
        self.up2, self.up1 = up(8, 6, 2, stride=2), up(6, 4, 2, stride=2)
        self.merge2 = nn.Sequential(conv(12, 6, 3, padding=1), nn.LeakyReLU())
        self.merge1 = nn.Sequential(conv(8, 4, 3, padding=1), nn.LeakyReLU())
        self.out = conv(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.down1(x)
        b = self.down2(self.pool(a))
        c = self.bottom(self.pool(b))
        y = self.merge2(torch.cat([b, self.up2(c)], 1))
        return self.out(self.merge1(torch.cat([a, self.up1(y)], 1)))


class SuperResolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 6, 3, padding=1)
        self.up = nn.Conv2d(6, 16, 3, padding=1)
        self.b = nn.Conv2d(4, 12, 3, padding=1)
        self.shuffle = nn.PixelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.shuffle(self.b(F.relu(self.shuffle(self.up(F.relu(self.a(x)))))))
        return y + F.interpolate(x, scale_factor=4, mode="bilinear")


class TemporalConvs(nn.Module):
    """Causal convolutions: padded on both sides, then cut in time."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv1d(2, 6, 3, padding=4, dilation=2)
        self.b = nn.Conv1d(6, 4, 3, padding=4, dilation=2)
        self.skip = nn.Conv1d(2, 4, 1)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.a(x)[:, :, :-4].contiguous())
        y = F.relu(self.b(y)[:, :, :-4].contiguous())
        return self.fc(F.relu(y + self.skip(x))[:, :, -1])


class Tagger(nn.Module):
    """Token and shape embeddings side by side, a bidirectional LSTM of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.shapes = nn.Embedding(11, 6), nn.Embedding(3, 4)
        self.rnn = nn.LSTM(10, 5, num_layers=2, bidirectional=True, batch_first=True, dropout=0.1)
        self.fc = nn.Linear(10, 3)

    def forward(self, words: Tensor, shapes: Tensor) -> Tensor:
        states, _ = self.rnn(torch.cat([self.words(words), self.shapes(shapes)], -1))
        return self.fc(states)


class LastState(nn.Module):
    def __init__(self, kind: Any = nn.LSTM, layers: int = 1) -> None:
        super().__init__()
        self.rnn = kind(3, 6, num_layers=layers, batch_first=True)
        self.fc = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        _, hidden = self.rnn(x)
        return self.fc((hidden[0] if isinstance(hidden, tuple) else hidden)[-1])


class TextReader(nn.Module):
    """A CRNN: columns of an image, read by a GRU."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2))
        self.rnn = nn.GRU(4 * 4, 6, bidirectional=True, batch_first=True)
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).permute(0, 3, 1, 2).flatten(2)
        return F.log_softmax(self.fc(self.rnn(y)[0]), dim=-1)


class Decoder(nn.Module):
    """A recurrent cell called in a loop, its state begun with zeros."""

    def __init__(self, cell: type[nn.Module]) -> None:
        super().__init__()
        self.cell: Any = cell(3, 6)
        self.hidden = 6
        self.fc = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        state: Any = torch.zeros(len(x), self.hidden, dtype=x.dtype, device=x.device)
        if isinstance(self.cell, nn.LSTMCell):
            state = (state, state)
        outputs = []
        for step in x.unbind(1):
            state = self.cell(step, state)
            outputs.append(self.fc(state[0] if isinstance(state, tuple) else state))
        return torch.stack(outputs, 1)


class BagOfWords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(11, 6, mode="mean")
        self.a, self.b = nn.Linear(6, 8), nn.Bilinear(8, 8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.a(self.bag(tokens)).tanh()
        return self.b(x, x * 2)


class Einsums(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 6, 1)
        self.mix = nn.Parameter(torch.randn(8, 6))
        self.fc = nn.Linear(64, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.einsum("bchw,oc->bohw", self.a(x), self.mix).tanh().flatten(2)
        return self.fc(torch.einsum("bcn,bcm->bnm", y, y).mean(1))


@dataclass
class Detections:
    scores: Tensor
    features: list[dict[str, Tensor]]


class Signature(nn.Module):
    """Images and boxes in a dict, a keyword, a flag that is no tensor, and a dataclass as the result."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 1)
        self.boxes, self.fc = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, batch: dict[str, Any], *, scale: float = 1.0, names: list[str] | None = None) -> Detections:
        x = self.a(batch["image"]) * scale
        x = F.relu(x + self.boxes(batch["extra"][0])[:, :, None, None])
        return Detections(self.fc(x.mean((2, 3))), [{"map": self.b(x)}])


class Pyramid(nn.Module):
    """Lists of images of any size in, a dict of maps out, merged from the top down."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 6, 3, 2, 1)
        self.norm = nn.BatchNorm2d(4)
        self.lateral = nn.ModuleList([nn.Conv2d(4, 8, 1), nn.Conv2d(6, 8, 1)])
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, images: list[Tensor]) -> dict[str, Tensor]:
        height, width = (max(image.shape[d] for image in images) for d in (1, 2))
        batch = images[0].new_zeros(len(images), 3, height, width)
        for i, image in enumerate(images):
            batch[i, :, : image.shape[1], : image.shape[2]].copy_(image)
        low = F.relu(self.norm(self.a(batch)))
        high = self.lateral[1](F.relu(self.b(low)))
        low = self.lateral[0](low) + F.interpolate(high, size=low.shape[-2:], mode="nearest")
        return {name: self.head(x) for name, x in {"low": low, "high": high}.items()}


class Normed(nn.Module):
    """Weight norm on a convolution, as WaveNets have it."""

    def __init__(self) -> None:
        super().__init__()
        self.a = weight_norm(nn.Conv1d(2, 6, 3, padding=1))
        self.b = nn.Conv1d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).tanh())


class Deformable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.offset = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 18, 3, padding=1)
        self.deform, self.fc = DeformConv2d(6, 4, 3, padding=1), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        return self.fc(self.deform(x, self.offset(x).tanh()).mean((2, 3)))


class BlockAttention(nn.Module):
    """A spatial gate from the maximum and the mean over the channels, as CBAM has it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.gate, self.fc = nn.Conv2d(3, 8, 1), nn.Conv2d(2, 1, 3, padding=1), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        seen = torch.cat([torch.max(x, 1)[0].unsqueeze(1), torch.mean(x, 1).unsqueeze(1)], 1)
        return self.fc((x * self.gate(seen).sigmoid()).mean((2, 3)))


class UnevenSplit(nn.Module):
    """Two channels of eight go one way, six another."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 8, 1), nn.Conv2d(6, 4, 1), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        left, right = torch.split(self.a(x), [2, 6], dim=1)
        return self.fc(torch.cat([left, self.b(right)], 1).mean((2, 3)))
