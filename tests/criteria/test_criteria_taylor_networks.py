"""Taylor on networks whose layers do not simply return what the operation on their weight made."""

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import get_model
from torchvision.models.convnext import LayerNorm2d

from lightning_prune import prune_once
from lightning_prune.budgets import Ratio
from lightning_prune.coupling import Example, analyse
from lightning_prune.criteria import Taylor


def calibrate(network: nn.Module) -> None:
    torch.manual_seed(1)
    network(torch.randn(4, 3, 32, 32)).square().mean().backward()


def test_a_norm_that_permutes_is_seen_along_its_channels() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), LayerNorm2d(6), nn.AvgPool2d(8), nn.Flatten(), nn.Linear(96, 5)
    )
    coupling = analyse(network, Example.of(torch.zeros(2, 3, 32, 32)))
    (activation,) = coupling.groups["0.weight"].activations
    assert (activation.module, activation.dim) == ("1", -3)

    report = prune_once(
        network, torch.zeros(1, 3, 32, 32), criterion=Taylor(), budget=Ratio(0.5), calibrate=calibrate, dry_run=True
    )
    torch.manual_seed(1)
    images = torch.randn(4, 3, 32, 32)
    seen = network[1](network[0](images)).detach().requires_grad_()
    network[4](network[3](network[2](seen))).square().mean().backward()
    expected = (seen * seen.grad).mean((2, 3)).abs().sum(0).detach()
    torch.testing.assert_close(report.scores["0.weight"], expected / expected.norm())


def test_a_module_that_only_lends_its_weight_shows_nothing() -> None:
    class Lender(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lent, self.head = nn.Conv2d(3, 6, 3), nn.Linear(6, 2)

        def forward(self, images: Tensor) -> Tensor:
            return self.head(nn.functional.conv2d(images, self.lent.weight).mean((2, 3)))

    with pytest.raises(ValueError, match="no layer output shows these channels, so Taylor cannot see them"):
        prune_once(Lender(), torch.zeros(1, 3, 8, 8), criterion=Taylor(), calibrate=calibrate)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["convnext_tiny", "densenet121", "efficientnet_b0", "shufflenet_v2_x0_5", "swin_t"])
def test_half_of_the_channels_of_torchvision_networks(name: str) -> None:
    torch.manual_seed(0)
    network = get_model(name, weights=None).eval()
    report = prune_once(network, torch.zeros(1, 3, 32, 32), criterion=Taylor(), budget=Ratio(0.5), calibrate=calibrate)
    assert report.after.params < 0.7 * report.before.params
    assert sum(bool(scores.gt(0).any()) for scores in report.scores.values()) > 0.8 * len(report.scores)
    network(torch.zeros(2, 3, 32, 32))
