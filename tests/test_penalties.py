import pytest
import torch
from torch import Tensor, nn

from lightning_prune.budgets import Ratio, Sparsity
from lightning_prune.coupling import Group, find_coupling
from lightning_prune.functional import prune_once
from lightning_prune.granularity import Weights
from lightning_prune.network.example_input import Example
from lightning_prune.penalties import (
    add_group_lasso_subgradient,
    add_l1_subgradient,
    add_l2_gradient,
    slimming_gammas,
    unit_norms,
    weights_removed_by,
)
from lightning_prune.surgery.plan import Plan


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
        ValueError, match="Sequential has no batch norm with a trainable scale for network slimming; use"
    ):
        slimming_gammas(net)


class Residual(nn.Module):
    """Two layers write to one stream, which two read; a norm stands behind one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(3, 4)
        self.first, self.norm, self.second = nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        stream = self.stem(x)
        return self.head(stream + self.second(self.norm(self.first(stream)).relu()))


def by_hand(net: Residual) -> Tensor:
    """√n Σ ‖w_unit‖ of both groups, spelled out."""
    stream = (
        net.stem.weight.square().sum(1) + net.stem.bias.square() + net.second.weight.square().sum(1)
        + net.second.bias.square() + net.first.weight.square().sum(0) + net.head.weight.square().sum(0)
    )  # fmt: skip
    inner = (
        net.first.weight.square().sum(1) + net.first.bias.square() + net.norm.weight.square()
        + net.norm.bias.square() + net.second.weight.square().sum(0)
    )  # fmt: skip
    return (3 + 1 + 5 + 1 + 5 + 2) ** 0.5 * stream.sqrt().sum() + (4 + 1 + 1 + 1 + 4) ** 0.5 * inner.sqrt().sum()


def lasso(frozen: bool = False) -> tuple[Residual, list[Group]]:
    torch.manual_seed(0)
    net = Residual().double()
    nn.init.normal_(net.norm.bias)
    groups = list(find_coupling(net, Example.of(torch.zeros(2, 3).double())).groups.values())
    net.head.weight.requires_grad_(not frozen)
    return net, groups


def test_group_lasso_equals_autograd() -> None:
    net, groups = lasso()
    loss = net(torch.randn(6, 3).double()).square().mean()
    wanted = torch.autograd.grad(loss + 0.3 * by_hand(net), list(net.parameters()), retain_graph=True)
    loss.backward()
    penalty = add_group_lasso_subgradient(groups, dict(net.named_parameters()), 0.3)
    assert penalty == pytest.approx(0.3 * float(by_hand(net).detach()))
    for (name, parameter), gradient in zip(net.named_parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-12, atol=1e-14, msg=name)


def test_group_lasso_leaves_zeros_and_frozen_weights_alone() -> None:
    net, groups = lasso(frozen=True)
    with torch.no_grad():
        for tensor, dim in ((net.first.weight, 0), (net.second.weight, 1)):
            tensor.select(dim, 2).zero_()
        for tensor in (net.first.bias, net.norm.weight, net.norm.bias):
            tensor[2] = 0
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    add_group_lasso_subgradient(groups, dict(net.named_parameters()), 1.0)
    assert net.head.weight.grad is None
    assert all(p.grad.isfinite().all() for p in net.parameters() if p.grad is not None)
    assert not net.first.bias.grad[2]
    assert net.first.bias.grad[1] != 0


def test_group_lasso_of_one_of_two_optimizers() -> None:
    net, groups = lasso()
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    add_group_lasso_subgradient(groups, dict(net.named_parameters()), 1.0, {id(net.stem.weight)})
    assert net.stem.weight.grad.any()
    assert not any(p.grad.any() for p in net.parameters() if p is not net.stem.weight)
    norm = unit_norms(next(g for g in groups if g.name == "stem.weight"), dict(net.named_parameters()))
    wanted = 17**0.5 * net.stem.weight.detach() / norm[:, None]  # the norm is that of all layers
    torch.testing.assert_close(net.stem.weight.grad, wanted)


# ---- growing on what is picked


def test_what_goes_with_units_is_every_weight_of_them() -> None:
    net, groups = lasso()
    plan = prune_once(net, torch.zeros(2, 3).double(), budget=Ratio(0.5), dry_run=True).plan
    units = {}
    for group in groups:
        member = next(member for member in group.members if member.tensor == group.name)
        units[group.name] = sorted(set(range(group.size)) - set(plan.keep[group.name][member.dim].tolist()))
    stream, inner = units["stem.weight"], units["first.weight"]
    assert (len(stream), len(inner)) == (2, 2)
    expected = {name: torch.zeros(p.shape, dtype=torch.bool) for name, p in net.named_parameters()}
    for name in ("stem.weight", "stem.bias", "second.weight", "second.bias"):
        expected[name][stream] = True
    for name in ("first.weight", "first.bias", "norm.weight", "norm.bias"):
        expected[name][inner] = True
    expected["first.weight"][:, stream] = expected["head.weight"][:, stream] = True
    expected["second.weight"][:, inner] = True
    found = weights_removed_by(plan, net)
    assert {name: mask.tolist() for name, mask in found.items()} == {
        name: mask.tolist() for name, mask in expected.items() if mask.any()
    }


def test_what_goes_may_be_single_weights_or_whole_modules() -> None:
    net, _ = lasso()
    x = torch.zeros(2, 3).double()
    masks = prune_once(net, x, granularity=Weights(), budget=Sparsity(0.5), dry_run=True).plan
    found = weights_removed_by(masks, net)
    assert found.keys() == masks.masks.keys()
    assert all(torch.equal(~mask, masks.masks[name]) for name, mask in found.items())
    whole = weights_removed_by(Plan(removed_modules=("norm", "first")), net)
    assert whole.keys() == {"norm.weight", "norm.bias", "first.weight", "first.bias"}
    assert all(mask.all() for mask in whole.values())


def picked() -> tuple[Residual, dict[str, Tensor]]:
    net, _ = lasso()
    return net, weights_removed_by(
        prune_once(net, torch.zeros(2, 3).double(), budget=Ratio(0.5), dry_run=True).plan, net
    )


def test_the_l2_gradient_is_that_of_autograd() -> None:
    net, masks = picked()
    loss = net(torch.randn(6, 3).double()).square().mean()
    squares = sum(net.get_parameter(name)[mask].square().sum() for name, mask in masks.items())
    wanted = torch.autograd.grad(loss + 0.7 / 2 * squares, list(net.parameters()), retain_graph=True)
    plain = torch.autograd.grad(loss, list(net.parameters()), retain_graph=True)
    loss.backward()
    penalty = add_l2_gradient(masks, dict(net.named_parameters()), 0.7)
    assert penalty == pytest.approx(0.35 * float(squares.detach()))
    for (name, parameter), gradient, bare in zip(net.named_parameters(), wanted, plain, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-12, atol=1e-14, msg=name)
        assert torch.equal(parameter.grad[~masks[name]], bare[~masks[name]]) if name in masks else True


def test_the_l2_gradient_of_one_of_two_optimizers() -> None:
    net, masks = picked()
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    net.head.weight.grad = None
    stepped = {id(net.stem.weight), id(net.head.weight)}
    penalty = add_l2_gradient(masks, dict(net.named_parameters()), 2.0, stepped)
    own = net.stem.weight.detach() * masks["stem.weight"]
    assert torch.equal(net.stem.weight.grad, 2 * own)
    assert penalty == pytest.approx(float(own.square().sum()))
    assert net.head.weight.grad is None
    assert not any(p.grad.any() for p in net.parameters() if p.grad is not None and p is not net.stem.weight)
