"""What other people's libraries are full of, each in a few lines."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ConvLSTM(nn.Module):
    """Both states begin with zeros, and the first is laid beside the input before it has met a channel."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = 8
        self.gates, self.out = nn.Conv2d(3 + 8, 4 * 8, 3, padding=1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.zeros(len(x), self.hidden, *x.shape[3:], dtype=x.dtype, device=x.device)
        cell = torch.zeros_like(hidden)
        for frame in x.unbind(1):
            i, f, o, g = self.gates(torch.cat([frame, hidden], 1)).split(self.hidden, 1)
            cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
            hidden = o.sigmoid() * cell.tanh()
        return self.out(hidden)


class StateOfZeros(nn.Module):
    """A recurrent layer whose first states are made in forward, as tutorials do."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.hidden = 2, 8
        self.rnn, self.fc = nn.LSTM(3, 8, 2, batch_first=True), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        state = torch.zeros(self.layers, len(x), self.hidden, dtype=x.dtype, device=x.device)
        return self.fc(self.rnn(x, (state, state.clone()))[0][:, -1])


class Corner(nn.Module):
    """Channels written into a part of the image of a tensor of zeros, as Fourier neural operators do."""

    def __init__(self) -> None:
        super().__init__()
        self.made = 8
        self.a, self.fc = nn.Conv2d(3, 8, 1), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        whole = torch.zeros(len(x), self.made, *x.shape[2:], dtype=x.dtype, device=x.device)
        whole[:, :, :3, :3] = self.a(x)[:, :, :3, :3]
        return self.fc(whole.mean((2, 3)))


class FirstChannels(nn.Module):
    """Channels written into the first of a tensor of zeros; a single one would be broadcast over both."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.fc = nn.Conv2d(3, 2, 1), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        whole = torch.zeros(len(x), 6, *x.shape[2:], dtype=x.dtype, device=x.device)
        whole[:, :2] = self.a(x)
        return self.fc(whole.mean((2, 3)))


class Experts(nn.Module):
    """Two experts in one weight, each for half of the rows, in one grouped product."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.out = nn.Linear(3, 16), nn.Linear(16, 2)
        self.up, self.down = (nn.Parameter(torch.randn(2, 16, 16) / 4) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        ends = torch.tensor([len(x) // 2, len(x)], dtype=torch.int32, device=x.device)
        y = F.relu(torch._grouped_mm(self.a(x), self.up, offs=ends))
        return self.out(torch._grouped_mm(y, self.down, offs=ends))


class ReadingAttention(nn.Module):
    """Fused attention in a network that reads values, and so is followed on a real pass."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.head_dim = 2, 8
        self.a, self.qkv, self.out = nn.Linear(3, 16), nn.Linear(16, 48), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        if x.abs().sum().item() == 0:
            return x
        batch, tokens, _ = x.shape
        x = self.a(x)
        split = self.qkv(x).view(batch, tokens, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(*split).transpose(1, 2).reshape(batch, tokens, -1)
        return self.out(x + y)


class Quantiser(nn.Module):
    """The nearest of some learned vectors, found by the position of the least distance."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.codes, self.out = nn.Linear(3, 8), nn.Embedding(5, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        z = self.a(x)
        distance = z.square().sum(1, keepdim=True) + self.codes.weight.square().sum(1) - 2 * z @ self.codes.weight.t()
        return self.out(self.codes(distance.argmin(1)))


class Standardised(nn.Conv2d):
    """A convolution whose weights are brought to mean 0 and variance 1, filter by filter."""

    def forward(self, x: Tensor) -> Tensor:
        rows = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(rows, None, None, training=True).reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias, padding=1)
