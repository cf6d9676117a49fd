import pytest
import torch
from torch import nn

from lightning_prune.penalties import add_l1_subgradient, slimming_gammas


def network() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv1d(2, 5, 3), nn.BatchNorm1d(5), nn.ReLU(), nn.Conv1d(5, 4, 3), nn.BatchNorm1d(4), nn.Flatten()
    ).double()
    for gamma in slimming_gammas(net).values():
        nn.init.normal_(gamma)
    return net


@pytest.mark.parametrize("strength", [0.0, 1e-4, 0.3])
def test_equals_autograd_of_the_l1_norm(strength: float) -> None:
    net, x = network(), torch.randn(6, 2, 9, dtype=torch.float64)
    gammas = slimming_gammas(net)
    loss = net(x).square().mean()
    total = loss + strength * sum(gamma.abs().sum() for gamma in gammas.values())
    wanted = torch.autograd.grad(total, list(net.parameters()), retain_graph=True)
    loss.backward()
    add_l1_subgradient(list(gammas.values()), strength)
    for (name, parameter), gradient in zip(net.named_parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=0, atol=1e-15, msg=name)


def test_zero_stays_where_it_is() -> None:
    gamma = nn.Parameter(torch.tensor([0.0, -0.0, 1.0]))
    gamma.grad = torch.zeros(3)
    add_l1_subgradient([gamma], 5.0)
    assert gamma.grad.tolist() == [0.0, 0.0, 5.0]


def test_a_scale_outside_this_step_is_left_alone() -> None:
    gamma = nn.Parameter(torch.ones(3))
    add_l1_subgradient([gamma], 5.0)
    assert gamma.grad is None


def test_it_leaves_no_graph_behind() -> None:
    gamma = nn.Parameter(torch.ones(3))
    (gamma * 2).sum().backward()
    add_l1_subgradient([gamma], 5.0)
    assert gamma.grad is not None
    assert not gamma.grad.requires_grad


def test_gammas_are_those_of_trainable_batch_norms() -> None:
    net = nn.ModuleDict(
        {
            "one": nn.BatchNorm1d(3),
            "two": nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)),
            "three": nn.BatchNorm3d(3),
            "sync": nn.SyncBatchNorm(3),
            "plain": nn.BatchNorm2d(3, affine=False),
            "frozen": nn.BatchNorm2d(3),
            "other": nn.GroupNorm(1, 3),
        }
    )
    net["frozen"].weight.requires_grad = False
    assert list(slimming_gammas(net)) == ["one.weight", "two.1.weight", "three.weight", "sync.weight"]
    assert slimming_gammas(net)["two.1.weight"] is net["two"][1].weight


@pytest.mark.parametrize("affine", [False, True])
def test_nothing_to_work_on(affine: bool) -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2, affine=affine), nn.GroupNorm(1, 2))
    net.requires_grad_(False)
    with pytest.raises(
        ValueError, match="Sequential has no batch norm with a trainable scale, so slimming has nothing"
    ):
        slimming_gammas(net)
