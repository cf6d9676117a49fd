"""Taylor on networks whose layers do not simply return what the operation on their weight made."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torchvision.models import get_model
from torchvision.models.convnext import LayerNorm2d

from lightning_prune import prune_once
from lightning_prune.budgets import Ratio
from lightning_prune.coupling import find_coupling
from lightning_prune.criteria import Taylor
from lightning_prune.network.example_input import Example


def calibrate(network: nn.Module) -> None:
    torch.manual_seed(1)
    network(torch.randn(4, 3, 32, 32)).square().mean().backward()


def assert_scores_of_the_norm(network: nn.Sequential, group: str) -> None:
    """Of the second of five layers, by hand."""
    report = prune_once(
        network, torch.zeros(1, 3, 32, 32), criterion=Taylor(), budget=Ratio(0.5), calibrate=calibrate, dry_run=True
    )
    torch.manual_seed(1)
    images = torch.randn(4, 3, 32, 32)
    seen = network[1](network[0](images)).detach().requires_grad_()
    network[4](network[3](network[2](seen))).square().mean().backward()
    expected = (seen * seen.grad).mean((2, 3)).abs().sum(0).detach()
    torch.testing.assert_close(report.scores[group], expected / expected.norm())


def test_a_norm_that_permutes_is_seen_along_its_channels() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), LayerNorm2d(6), nn.AvgPool2d(8), nn.Flatten(), nn.Linear(96, 5)
    )
    coupling = find_coupling(network, Example.of(torch.zeros(2, 3, 32, 32)))
    (activation,) = coupling.groups["0.weight"].activations
    assert (activation.module, activation.dim) == ("1", -3)

    assert_scores_of_the_norm(network, "0.weight")


def test_a_module_that_only_lends_its_weight_shows_nothing() -> None:
    class Lender(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lent, self.head = nn.Conv2d(3, 6, 3), nn.Linear(6, 2)

        def forward(self, images: Tensor) -> Tensor:
            return self.head(nn.functional.conv2d(images, self.lent.weight).mean((2, 3)))

    with pytest.raises(ValueError, match="no layer output contains these channels, so Taylor cannot score them"):
        prune_once(Lender(), torch.zeros(1, 3, 8, 8), criterion=Taylor(), calibrate=calibrate)


class Standardised(nn.Conv2d):
    """A convolution with a computed weight."""

    def forward(self, images: Tensor) -> Tensor:
        weight = self.weight / self.weight.flatten(1).std(1)[:, None, None, None]
        return nn.functional.conv2d(images, weight, self.bias, self.stride, self.padding)


COMPUTED: dict[str, Callable[[], nn.Module]] = {
    "weight_norm": lambda: weight_norm(nn.Conv2d(3, 6, 3, padding=1)),
    "weight_norm, as it was": lambda: nn.utils.weight_norm(nn.Conv2d(3, 6, 3, padding=1)),
    "spectral_norm": lambda: spectral_norm(nn.Conv2d(3, 6, 3, padding=1)).eval(),
    "standardised": lambda: Standardised(3, 6, 3, padding=1),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm")
@pytest.mark.parametrize("kind", COMPUTED)
@pytest.mark.parametrize("norm", [False, True])
def test_layers_whose_weight_is_computed_show_what_they_return(kind: str, norm: bool) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        COMPUTED[kind](), nn.BatchNorm2d(6) if norm else nn.Identity(), nn.AvgPool2d(8), nn.Flatten(), nn.Linear(96, 5)
    )
    (group,) = find_coupling(network, Example.of(torch.zeros(2, 3, 32, 32))).groups.values()
    (activation,) = group.activations
    assert (activation.module, activation.dim) == ("1" if norm else "0", -3)

    assert_scores_of_the_norm(network, group.name)


def test_a_linear_weight_with_a_norm_is_seen_along_the_last_dimension() -> None:
    network = nn.Sequential(weight_norm(nn.Linear(4, 6)), nn.ReLU(), nn.Linear(6, 2))
    (group,) = find_coupling(network, Example.of(torch.zeros(2, 3, 4))).groups.values()
    assert [(seen.module, seen.dim) for seen in group.activations] == [("0", -1)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["convnext_tiny", "densenet121", "efficientnet_b0", "shufflenet_v2_x0_5", "swin_t"])
def test_half_of_the_channels_of_torchvision_networks(name: str) -> None:
    torch.manual_seed(0)
    network = get_model(name, weights=None).eval()
    report = prune_once(network, torch.zeros(1, 3, 32, 32), criterion=Taylor(), budget=Ratio(0.5), calibrate=calibrate)
    assert report.after.params < 0.7 * report.before.params
    assert sum(bool(scores.gt(0).any()) for scores in report.scores.values()) > 0.8 * len(report.scores)
    network(torch.zeros(2, 3, 32, 32))
