from collections.abc import Callable

import pytest
import torch
from helpers.allocations import Allocations
from torch import Tensor, nn, optim
from torch.nn.utils import prune

from lightning_prune.masks import enforcer
from lightning_prune.masks.enforcer import MaskEnforcer
from lightning_prune.masks.select import lowest_masks


class Noisy(optim.SGD):
    """Does something to every weight, whatever its gradient."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> None:
        super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter += 0.01


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1, amsgrad=True),
    "adam, foreach": lambda p: torch.optim.Adam(p, lr=0.1, foreach=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1),
    "no elementwise optimizer": lambda p: Noisy(p, lr=0.1, momentum=0.9),
}


def hidden(masks: dict[str, Tensor]) -> int:
    return sum(int((~mask).sum()) for mask in masks.values())


def trained(optimizer_name: str, steps: int, hold: bool) -> tuple[nn.Module, dict[str, Tensor], torch.optim.Optimizer]:
    """A network trained for ten steps before the masks come, and for ``steps`` under them."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    data, target = torch.randn(16, 6), torch.randn(16, 3)
    optimizer = OPTIMIZERS[optimizer_name](net.parameters())

    def train(count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            nn.functional.mse_loss(net(data), target).backward()
            optimizer.step()
            if enforcer is not None and not hold:
                enforcer.apply([optimizer])

    enforcer = None
    train(10)
    names = ["0.weight", "2.weight"]
    parameters = dict(net.named_parameters())
    masks = lowest_masks({name: parameters[name].abs() for name in names}, {}, 36)
    enforcer = MaskEnforcer(parameters, masks)
    if hold:
        enforcer.hold([optimizer])
    else:
        enforcer.apply([optimizer])
    train(steps)
    return net, masks, optimizer


@pytest.mark.parametrize("hold", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_zeros_stay_zeros(name: str, hold: bool) -> None:
    net, masks, optimizer = trained(name, 20, hold)
    parameters = dict(net.named_parameters())
    for tensor, mask in masks.items():
        assert torch.equal(parameters[tensor].detach() == 0, ~mask)
        for key, value in optimizer.state[parameters[tensor]].items():
            if value is not None and value.shape == mask.shape:
                assert not value[~mask].any(), key
                assert value[mask].any(), key
    assert hidden(masks) == 36
    dense, _, _ = trained(name, 0, hold)
    for tensor in ("0.weight", "0.bias", "2.weight", "2.bias"):  # the rest has learned
        assert not torch.equal(dict(dense.named_parameters())[tensor], parameters[tensor])


@pytest.mark.parametrize("name", ["momentum", "adam", "adamw"])
def test_without_the_enforcer_weights_regrow(name: str) -> None:
    # the case that the enforcer is made for
    net, masks, optimizer = trained(name, 0, hold=False)
    weight = net[0].weight
    assert not weight[~masks["0.weight"]].any()
    optimizer.zero_grad()
    net(torch.ones(1, 6)).sum().backward()
    optimizer.step()
    assert weight[~masks["0.weight"]].any()


def test_released_masks_no_longer_act() -> None:
    parameter = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    enforcer = MaskEnforcer({"w": parameter}, {"w": torch.tensor([True, False, True])})
    enforcer.hold([optimizer])
    assert parameter.tolist() == [1, 0, 1]
    parameter.grad = -torch.ones(3)
    optimizer.step()
    assert parameter.tolist() == [2, 0, 2]
    enforcer.release()
    parameter.grad = -torch.ones(3)
    optimizer.step()
    assert parameter.tolist() == [3, 1, 3]
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_masks_take_the_type_of_their_parameter(dtype: torch.dtype) -> None:
    parameters = {"w": nn.Parameter(torch.ones(2, 2, dtype=dtype)), "v": nn.Parameter(torch.ones(2))}
    masks = {"w": torch.tensor([[True, False], [False, True]]), "v": torch.tensor([False, True])}
    MaskEnforcer(parameters, masks).apply([])
    assert parameters["w"].dtype == dtype
    assert parameters["w"].tolist() == [[1, 0], [0, 1]]
    assert parameters["v"].tolist() == [0, 1]


@pytest.mark.parametrize("shape", [(700_001,), (3, 200_003), (600_001, 1), (64, 32, 17, 19)], ids=str)
def test_large_tensors_are_masked_whole(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    values, mask = torch.randn(shape, generator=generator), torch.rand(shape, generator=generator) > 0.5
    formats = [torch.contiguous_format] + [torch.channels_last] * (len(shape) == 4)
    for memory_format in formats:
        parameter = nn.Parameter(values.clone(memory_format=memory_format))
        MaskEnforcer({"w": parameter}, {"w": mask}).apply([])
        assert torch.equal(parameter.detach(), values.masked_fill(~mask, 0))


def test_keeping_masks_needs_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enforcer, "_CHUNK", 1000)
    parameter = nn.Parameter(torch.ones(1000, 700))
    mask = torch.rand(1000, 700, generator=torch.Generator().manual_seed(0)) > 0.5
    optimizer = torch.optim.Adam([parameter])
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    with Allocations() as memory:
        MaskEnforcer({"w": parameter}, {"w": mask}).apply([optimizer])
    assert max(memory.sizes) <= 4 * 1000  # the factors of a chunk
    assert torch.equal(parameter == 0, ~mask)
    assert torch.equal(optimizer.state[parameter]["exp_avg"] == 0, ~mask)


@pytest.mark.parametrize("shape", [(), (0, 3), (1,)], ids=str)
def test_the_smallest_tensors_are_masked(shape: tuple[int, ...]) -> None:
    parameter = nn.Parameter(torch.ones(shape))
    MaskEnforcer({"w": parameter}, {"w": torch.zeros(shape, dtype=torch.bool)}).apply([])
    assert torch.equal(parameter.detach(), torch.zeros(shape))


def test_no_sign_is_left_of_what_is_masked() -> None:
    parameter = nn.Parameter(torch.tensor([-1.0, 2.0, -3.0]))
    MaskEnforcer({"w": parameter}, {"w": torch.tensor([False, False, True])}).apply([])
    assert parameter.detach().view(torch.int32).tolist()[:2] == [0, 0]


def test_masks_act_in_place() -> None:
    parameter = nn.Parameter(torch.ones(4))
    pointer, gradient = parameter.data_ptr(), torch.ones(4)
    parameter.grad = gradient
    MaskEnforcer({"w": parameter}, {"w": torch.tensor([True, False, True, False])}).apply([])
    assert parameter.data_ptr() == pointer
    assert parameter.grad is gradient
    assert parameter.requires_grad


def test_no_masks_do_nothing() -> None:
    parameter = nn.Parameter(torch.ones(4))
    MaskEnforcer({"w": parameter}, {}).apply([torch.optim.SGD([parameter], lr=0.1)])
    assert parameter.tolist() == [1, 1, 1, 1]


ELEMENTWISE = {
    "SGD": {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    "Adam": {"lr": 0.1, "amsgrad": True, "weight_decay": 0.01},
    "AdamW": {"lr": 0.1, "foreach": True},
    "NAdam": {"lr": 0.1, "weight_decay": 0.01, "decoupled_weight_decay": True},
    "RAdam": {"lr": 0.1},
    "RMSprop": {"lr": 0.01, "centered": True, "momentum": 0.5},
    "Adagrad": {"lr": 0.1, "lr_decay": 0.1, "initial_accumulator_value": 0.1},
    "Adadelta": {"lr": 1.0},
    "ASGD": {"lr": 0.1, "t0": 5},
    "Adafactor": {"lr": 0.1},
}


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_training_is_that_of_the_reparametrised_network(name: str) -> None:
    # torch.nn.utils.prune computes with weight_orig * mask, so that autograd masks the gradients
    def network() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()

    data, target = torch.randn(16, 6).double(), torch.randn(16, 3).double()
    ours, theirs = network(), network()
    masks = lowest_masks({f"{i}.weight": ours[i].weight.detach().abs().float() for i in (0, 2)}, {}, 36)
    optimizers = [getattr(optim, name)(ours.parameters(), **ELEMENTWISE[name])]
    enforcer = MaskEnforcer(dict(ours.named_parameters()), masks)
    enforcer.hold(optimizers)
    for i in (0, 2):
        theirs[i].weight.data *= masks[f"{i}.weight"]
        prune.custom_from_mask(theirs[i], "weight", masks[f"{i}.weight"])
    in_order = [p for i in (0, 2) for p in (theirs[i].weight_orig, theirs[i].bias)]
    optimizers.append(getattr(optim, name)(in_order, **ELEMENTWISE[name]))
    for net, optimizer in zip((ours, theirs), optimizers, strict=True):
        for _ in range(20):
            optimizer.zero_grad()
            nn.functional.mse_loss(net(data), target).backward()
            optimizer.step()
    for i in (0, 2):
        assert torch.equal(ours[i].weight, theirs[i].weight_orig), i
        assert torch.equal(ours[i].weight == 0, ~masks[f"{i}.weight"]), i


def test_gradients_that_a_closure_makes_are_masked() -> None:
    parameter = nn.Parameter(torch.ones(3))
    optimizer = optim.SGD([parameter], lr=1.0, momentum=0.9)
    MaskEnforcer({"w": parameter}, {"w": torch.tensor([True, False, True])}).hold([optimizer])

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = -parameter.sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == -2
    assert optimizer.step(closure=closure).item() == -4
    torch.testing.assert_close(parameter.detach(), torch.tensor([3.9, 0.0, 3.9]))
    assert parameter.grad.tolist() == [-1, 0, -1]


def test_zero_is_not_divided_by_zero() -> None:
    parameter = nn.Parameter(torch.ones(2))
    optimizer = optim.Adam([parameter], lr=0.1, eps=0.0)
    MaskEnforcer({"w": parameter}, {"w": torch.tensor([True, False])}).hold([optimizer])
    parameter.grad = torch.ones(2)
    optimizer.step()
    torch.testing.assert_close(parameter.detach(), torch.tensor([0.9, 0.0]))


def test_only_gradients_of_this_optimizer_are_masked() -> None:
    ours, other = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    first, second = optim.SGD([ours], lr=0.1), optim.SGD([other], lr=0.1)
    mask = torch.tensor([True, False])
    MaskEnforcer({"a": ours, "b": other}, {"a": mask, "b": mask}).hold([first, second])
    ours.grad, other.grad = torch.ones(2), torch.ones(2)
    first.step()
    assert ours.grad.tolist() == [1, 0]
    assert other.grad.tolist() == [1, 1]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sparse_gradients_of_an_embedding(momentum: float) -> None:
    def trained(sparse: bool) -> tuple[Tensor, Tensor]:
        torch.manual_seed(0)
        embedding = nn.Embedding(6, 4, sparse=sparse)
        mask = torch.rand(6, 4) > 0.5
        optimizer = optim.SGD(embedding.parameters(), lr=0.1, momentum=momentum)
        MaskEnforcer({"w": embedding.weight}, {"w": mask}).hold([optimizer])
        for _ in range(3):
            optimizer.zero_grad()
            embedding(torch.tensor([1, 2, 2, 5])).square().sum().backward()
            optimizer.step()
        return embedding.weight.detach(), mask

    weight, mask = trained(sparse=True)
    assert torch.equal(weight == 0, ~mask)
    torch.testing.assert_close(weight, trained(sparse=False)[0])


def test_sparse_momentum_from_before_the_masks() -> None:
    torch.manual_seed(0)
    embedding = nn.Embedding(6, 4, sparse=True)
    mask = torch.rand(6, 4) > 0.5
    optimizer = optim.SGD(embedding.parameters(), lr=0.1, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        embedding(torch.tensor([1, 2, 2, 5])).square().sum().backward()
        optimizer.step()

    step()
    enforcer = MaskEnforcer({"w": embedding.weight}, {"w": mask})
    enforcer.hold([optimizer])
    step()
    assert torch.equal(embedding.weight == 0, ~mask)
    momentum = optimizer.state[embedding.weight]["momentum_buffer"].to_dense()
    assert not momentum[~mask].any()
    assert momentum[mask].any()
