"""Weights divided by their own norm: what stays of a network is what it was, by masks on activations."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.optim.swa_utils import AveragedModel

from lightning_prune import prune_once
from lightning_prune.surgery.apply import zero_removed
from lightning_prune.surgery.weight_norms import SPECTRAL, spectral_norm_vectors, weight_norm_magnitudes

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm", "ignore:.*spectral_norm")

NORMS: dict[str, Callable[..., nn.Module]] = {
    "parametrization": parametrizations.weight_norm,
    "hook": nn.utils.weight_norm,
}
LAYERS: dict[str, tuple[Callable[[int, int], nn.Module], int, tuple[int, ...]]] = {  # the layer, its dim, an input
    "linear": (nn.Linear, 0, (3, 5)),
    "convolution": (lambda i, o: nn.Conv2d(i, o, 3, padding=1), 0, (3, 5, 4, 4)),
    "transposed": (lambda i, o: nn.ConvTranspose1d(i, o, 4, 2, 1), 0, (3, 5, 6)),
    "transposed, by outputs": (lambda i, o: nn.ConvTranspose1d(i, o, 4, 2, 1), 1, (3, 5, 6)),
    "by kernel position": (lambda i, o: nn.Conv1d(i, o, 3, padding=1), 2, (3, 5, 6)),
}


def network(norm: Callable[..., nn.Module], layer: Callable[[int, int], nn.Module], dim: int | None) -> nn.Sequential:
    """Three layers, of which the second reads and makes channels that go."""
    torch.manual_seed(0)
    net = nn.Sequential(
        *(norm(layer(5, 8), dim=dim), nn.Sigmoid(), norm(layer(8, 6), dim=dim), nn.ReLU(), norm(layer(6, 2), dim=dim))
    )
    with torch.no_grad():
        for tensor in net.parameters():
            tensor.mul_(torch.rand_like(tensor) + 0.5)  # lengths are not the norms of their directions
    return net


def masked_outputs(net: nn.Sequential, inputs: Tensor, keep: list[Tensor]) -> Tensor:
    """Of the dense network, with the activations of removed channels zero."""
    first, second = (torch.zeros(width).index_fill(0, index, 1.0) for width, index in zip((8, 6), keep, strict=True))

    def masked(values: Tensor, mask: Tensor) -> Tensor:
        return values * (mask if values.dim() == 2 else mask.view(-1, *[1] * (values.dim() - 2)))

    values = masked(net[1](net[0](inputs)), first)
    return net[4](masked(net[3](net[2](values)), second))


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("norm", NORMS)
def test_what_is_left_is_what_it_was(norm: str, kind: str) -> None:
    layer, dim, shape = LAYERS[kind]
    dense, net = (network(NORMS[norm], layer, dim) for _ in range(2))  # hooks forbid copies
    inputs = torch.randn(shape)
    report = prune_once(net, inputs)
    keep = [report.plan.keep[f"{number}.bias"][0] for number in (0, 2)]
    wanted = masked_outputs(dense, inputs, keep)
    torch.testing.assert_close(net(inputs), wanted)
    zero_removed(dense, report.plan)
    torch.testing.assert_close(dense(inputs), wanted)


@pytest.mark.parametrize("norm", NORMS)
def test_one_length_for_the_whole_weight(norm: str) -> None:
    dense, net = (network(NORMS[norm], nn.Linear, None) for _ in range(2))
    inputs = torch.randn(3, 5)
    report = prune_once(net, inputs)
    keep = [report.plan.keep[f"{number}.bias"][0] for number in (0, 2)]
    torch.testing.assert_close(net(inputs), masked_outputs(dense, inputs, keep))


def test_two_rounds_are_one_plan() -> None:
    net, inputs = network(parametrizations.weight_norm, nn.Linear, 0), torch.randn(3, 5)
    dense = copy.deepcopy(net)
    first = prune_once(net, inputs).plan
    both = first.then(prune_once(net, inputs).plan)
    keep = [both.keep[f"{number}.bias"][0] for number in (0, 2)]
    torch.testing.assert_close(net(inputs), masked_outputs(dense, inputs, keep))


def test_an_averaged_copy_has_norms_of_its_own() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network(parametrizations.weight_norm, nn.Linear, 0)
            self.average = AveragedModel(self.net)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.net(inputs)

    model, inputs = Both(), torch.randn(3, 5)
    with torch.no_grad():
        for tensor in model.average.parameters():
            tensor.mul_(torch.rand_like(tensor) + 0.5)
    dense = copy.deepcopy(model.average.module)
    plan = prune_once(model, inputs).plan
    keep = [plan.keep[f"net.{number}.bias"][0] for number in (0, 2)]
    torch.testing.assert_close(model.average(inputs), masked_outputs(dense, inputs, keep))


@pytest.mark.parametrize("norm", [parametrizations.spectral_norm, nn.utils.spectral_norm])
def test_another_singular_value_is_said_and_estimated_anew(norm: Callable[..., nn.Module]) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(norm(nn.Linear(5, 8)), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2)).eval()
    report = prune_once(net, torch.randn(3, 5))
    assert report.inexact == {"0.bias": SPECTRAL}
    (weight, vectors), *others = spectral_norm_vectors(net).items()
    assert others == []
    tensors = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    u, v = (tensors[name] for name in vectors)
    assert (len(u), len(v)) == tuple(tensors[weight].shape) == (4, 5)
    assert [float(vector.norm()) for vector in (u, v)] == pytest.approx([1, 1])
    net(torch.randn(3, 5))
    torch.testing.assert_close(net[0].weight, tensors[weight] / (u @ tensors[weight] @ v))


def test_a_singular_value_that_is_not_the_first_step_is_said() -> None:
    class Double(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return 2 * weight

    layer = nn.Linear(5, 8)
    torch.nn.utils.parametrize.register_parametrization(layer, "weight", Double())
    net = nn.Sequential(parametrizations.spectral_norm(layer), nn.ReLU(), nn.Linear(8, 2))
    assert prune_once(net.eval(), torch.randn(3, 5)).inexact == {"0.bias": SPECTRAL}
    assert float(net[0].parametrizations.weight[1]._u.norm()) == pytest.approx(1)


def test_a_norm_that_forward_computes_is_said() -> None:
    class Cosine(nn.Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            return F.linear(inputs, F.normalize(self.weight, dim=1))

    report = prune_once(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), Cosine(8, 3)), torch.randn(2, 4))
    assert report.inexact == {"0.weight": "'2': forward computes the norm of a weight over its input channels"}


def test_norms_of_activations_are_as_with_zeros() -> None:
    class Normalised(nn.Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            return super().forward(F.normalize(inputs, dim=1))

    assert prune_once(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), Normalised(8, 3)), torch.randn(2, 4)).inexact == {}


def test_other_weights_have_no_length() -> None:
    net = nn.Sequential(nn.Linear(2, 2), parametrizations.orthogonal(nn.Linear(2, 2)))
    assert (weight_norm_magnitudes(net), spectral_norm_vectors(net)) == ({}, {})
