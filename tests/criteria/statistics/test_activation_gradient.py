import copy
import gc
import io
import pickle
import weakref

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_prune.coupling import Activation, Group, find_coupling
from lightning_prune.criteria.statistics import ActivationGradient, channel_sums
from lightning_prune.network.example_input import Example

BATCH = 6


class Net(nn.Module):
    """A residual network whose taps are stem, bn and last."""

    def __init__(self, in_place: bool = False) -> None:
        super().__init__()
        self.in_place = in_place
        self.stem = nn.Conv2d(2, 5, 3, padding=1)
        self.conv = nn.Conv2d(5, 5, 3, padding=1)
        self.bn = nn.BatchNorm2d(5)
        self.last = nn.Linear(5, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        if not self.in_place:
            identity = F.relu(self.stem(x))
            out = F.relu(self.bn(self.conv(identity)) + identity).mean((2, 3))
            return self.head(F.hardswish(self.last(out)))
        identity = self.stem(x)
        identity.relu_()
        out = self.bn(self.conv(identity))
        out += identity
        out = F.relu(out, inplace=True).mean((2, 3))
        return self.head(F.hardswish(self.last(out), inplace=True))


@pytest.fixture
def groups() -> list[Group]:
    return list(find_coupling(Net(), Example.of(torch.zeros(2, 2, 4, 4))).groups.values())


def make(in_place: bool = False, norm: bool = True) -> tuple[Net, Tensor]:
    torch.manual_seed(0)
    net, batch = Net(in_place), torch.randn(BATCH, 2, 4, 4)
    return (net if norm else net.eval()), batch


def loss_of(net: nn.Module, batch: Tensor) -> Tensor:
    return net(batch).square().sum()


def gather(net: nn.Module, batches: list[Tensor], groups: list[Group], every_n_steps: int = 1) -> ActivationGradient:
    statistics = ActivationGradient(every_n_steps)
    statistics.attach(net, groups)
    for step, batch in enumerate(batches):
        statistics.begin_step(step)
        loss_of(net, batch).backward()
        statistics.commit()
    statistics.detach()
    return statistics


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor], rtol: float = 1e-4) -> None:
    assert one.keys() == other.keys() == {"stem", "bn", "last"}
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=rtol, atol=1e-5 * one[name].abs().max().item())


# ---- what is summed


def test_sums_are_those_of_autograd(groups: list[Group]) -> None:
    net, batch = make()
    found = gather(net, [batch], groups).totals
    net, batch = make()
    kept: dict[str, Tensor] = {}
    for name in found:
        net.get_submodule(name).register_forward_hook(lambda m, i, output, name=name: kept.update({name: output}))
    loss = loss_of(net, batch)
    gradients = dict(zip(kept, torch.autograd.grad(loss, list(kept.values())), strict=True))
    for name, activation in kept.items():
        expected = torch.zeros(activation.shape[1], dtype=torch.float64)
        for a, g in zip(activation.detach().double(), gradients[name].double(), strict=True):  # one example at a time
            product = a * g
            expected += product.reshape(len(product), -1).mean(1).abs()
        torch.testing.assert_close(found[name], expected.float(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "dim"), [((3, 4), -1), ((3, 4, 5), -2), ((3, 5, 4), -1), ((3, 4, 5, 6), -3), ((3, 5, 6, 4), -1)], ids=str
)
def test_channels_may_stand_anywhere(shape: tuple[int, ...], dim: int) -> None:
    product = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    expected = torch.zeros(4)
    for example in product:
        for channel in range(4):
            expected[channel] += example.select(dim, channel).mean().abs()
    torch.testing.assert_close(channel_sums(product, dim), expected)


@pytest.mark.parametrize(("shape", "dim"), [((4,), -1), ((4, 5), -2), ((4, 5, 6), -3)], ids=str)
def test_an_example_without_a_batch_dimension(shape: tuple[int, ...], dim: int) -> None:
    product = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(channel_sums(product, dim), channel_sums(product.unsqueeze(0), dim))


def test_steps_add_up_to_one_big_batch(groups: list[Group]) -> None:
    net, batch = make(norm=False)  # batch statistics would tie the examples of a batch together
    whole = gather(net, [batch], groups)
    parts = gather(net, list(batch.split(2)), groups)
    assert_same(parts.totals, whole.totals)
    assert (whole.steps, parts.steps) == (1, 3)


def test_gradient_accumulation_adds_up_too(groups: list[Group]) -> None:
    net, batch = make(norm=False)
    whole = gather(net, [batch], groups)
    statistics = ActivationGradient()
    statistics.attach(net, groups)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    for step, part in enumerate(batch.split(1)):
        statistics.begin_step(step)
        loss_of(net, part).backward()  # gradients of parameters pile up, those of activations do not
        statistics.commit()
        if step % 3 == 2:
            optimizer.step()
            optimizer.zero_grad()
    assert_same(statistics.totals, whole.totals)


def test_the_loss_scale_is_divided_out(groups: list[Group]) -> None:
    net, batch = make()
    expected = gather(net, [batch], groups).totals
    statistics = ActivationGradient()
    statistics.attach(net, groups)
    statistics.begin_step(0)
    (loss_of(net, batch) * 65536).backward()
    statistics.commit(loss_scale=65536.0)
    assert_same(statistics.totals, expected)


@pytest.mark.parametrize("poison", [float("inf"), float("nan")])
def test_a_step_that_is_not_finite_is_dropped_whole(groups: list[Group], poison: float) -> None:
    net, batch = make(norm=False)
    expected = gather(net, [batch], groups)
    factor = 1.0
    net.stem.register_forward_hook(
        lambda m, i, output: output.register_hook(lambda gradient: gradient * factor) and None
    )
    statistics = ActivationGradient()
    statistics.attach(net, groups)
    for step, part in enumerate([batch[:3], batch[:5], batch[3:]]):
        statistics.begin_step(step)
        factor = poison if step == 1 else 1.0
        loss_of(net, part).backward()
        if step == 1:  # the gradient of the stem alone is broken; the others are dropped with it
            assert not statistics.pending["stem"].isfinite().all()
            assert statistics.pending["last"].isfinite().all()
        statistics.commit()
    assert_same(statistics.totals, expected.totals)
    assert statistics.steps == 2


def test_an_overflow_in_the_backward_pass_is_dropped(groups: list[Group]) -> None:
    net, batch = make()
    statistics = gather(net, [batch], groups)
    before = dict(statistics.totals)
    statistics.attach(net, groups)
    statistics.begin_step(1)
    (loss_of(net, batch) * float("inf")).backward()
    statistics.commit()
    assert_same(statistics.totals, before, rtol=0)


def test_only_every_nth_step_is_observed(groups: list[Group]) -> None:
    net, batch = make(norm=False)
    parts = list(batch.split(1))
    found = gather(net, parts, groups, every_n_steps=3)
    assert_same(found.totals, gather(net, [parts[0], parts[3]], groups).totals)
    assert found.steps == 2


# ---- what other code may do


def test_in_place_code_behind_the_hooked_layers_changes_nothing(groups: list[Group]) -> None:
    functional, batch = make(in_place=False)
    in_place, _ = make(in_place=True)
    torch.testing.assert_close(functional(batch), in_place(batch))
    assert_same(gather(in_place, [batch], groups).totals, gather(functional, [batch], groups).totals)


def test_the_network_learns_the_same_with_hooks(groups: list[Group]) -> None:
    for in_place in (False, True):
        plain, batch = make(in_place)
        hooked, _ = make(in_place)
        loss_of(plain, batch).backward()
        gather(hooked, [batch], groups)
        for one, other in zip(plain.parameters(), hooked.parameters(), strict=True):
            assert torch.equal(one.grad, other.grad)


def test_autocast_gives_float32_sums(groups: list[Group]) -> None:
    net, batch = make()
    expected = gather(net, [batch], groups).totals
    net, batch = make()
    with torch.autocast("cpu", torch.bfloat16):
        found = gather(net, [batch], groups).totals
    assert {value.dtype for value in found.values()} == {torch.float32}
    for name in expected:
        relative = (found[name] - expected[name]).norm() / expected[name].norm()
        assert 0 < relative < 0.05, name


def test_bfloat16_networks_are_summed_in_float32() -> None:
    # 1 + 1/512 is 1 in bfloat16: a sum of 600 ones would stand still at 256
    layer = nn.Linear(1, 2, bias=False).bfloat16()
    nn.init.ones_(layer.weight)
    net = nn.Sequential(layer, nn.Linear(2, 1, bias=False).bfloat16())
    nn.init.ones_(net[1].weight)
    groups = find_coupling(net, Example.of(torch.zeros(2, 1, dtype=torch.bfloat16))).groups.values()
    statistics = ActivationGradient()
    statistics.attach(net, groups)
    statistics.begin_step(0)
    net(torch.ones(600, 1, dtype=torch.bfloat16)).sum().backward()
    statistics.commit()
    assert statistics.totals["0"].tolist() == [600, 600]


def test_validation_gathers_nothing(groups: list[Group]) -> None:
    net, batch = make()
    statistics = ActivationGradient()
    statistics.attach(net, groups)
    statistics.begin_step(0)
    with torch.no_grad():
        net(batch)
    with torch.inference_mode():
        net(batch)
    assert statistics.pending == {}
    statistics.commit()
    assert statistics.totals == {}
    assert statistics.unseen() == ["stem", "bn", "last"]


def test_a_forward_pass_without_backward_leaves_nothing(groups: list[Group]) -> None:
    net, batch = make()
    expected = gather(net, [batch], groups)
    net, batch = make()
    statistics = ActivationGradient()
    statistics.attach(net, groups)
    statistics.begin_step(0)
    loss_of(net, batch)
    statistics.begin_step(1)
    loss_of(net, batch).backward()
    statistics.commit()
    assert_same(statistics.totals, expected.totals)


def test_what_was_not_committed_is_forgotten(groups: list[Group]) -> None:
    net, batch = make()
    statistics = ActivationGradient()
    statistics.attach(net, groups)
    statistics.begin_step(0)
    loss_of(net, batch).backward()
    statistics.begin_step(1)
    statistics.commit()
    assert statistics.totals == {}


def test_a_module_called_twice_sums_its_calls() -> None:
    torch.manual_seed(0)
    shared = nn.Linear(3, 3, bias=False)
    net = nn.ModuleDict({"shared": shared, "head": nn.Linear(3, 1, bias=False)})
    group = Group("shared.weight", (), (Activation("shared", -1, torch.arange(3).reshape(3, 1)),))
    statistics = ActivationGradient()
    statistics.attach(net, [group])
    batch = torch.randn(4, 3)
    statistics.begin_step(0)
    first = shared(batch)
    second = shared(first.tanh())
    net["head"](second).sum().backward()
    statistics.commit()

    first = batch @ shared.weight.T
    second = first.tanh() @ shared.weight.T
    gradients = torch.autograd.grad((second @ net["head"].weight.T).sum(), [first, second])
    expected = sum((a * g).abs().sum(0) for a, g in zip((first, second), gradients, strict=True))
    torch.testing.assert_close(statistics.totals["shared"], expected.detach())


def test_a_graph_that_is_kept_may_be_used_again(groups: list[Group]) -> None:
    """Two losses of one forward pass, each with a backward pass of its own, are as two forward passes."""
    net, batch = make(norm=False)
    expected: dict[str, Tensor] = {}
    for out in range(2):
        statistics = ActivationGradient()
        statistics.attach(net, groups)
        statistics.begin_step(0)
        net(batch)[:, out].square().sum().backward()
        statistics.commit()
        for name, total in statistics.totals.items():
            expected[name] = expected[name] + total if name in expected else total
        statistics.detach()
    statistics.attach(net, groups)
    statistics.reset()
    statistics.begin_step(0)
    output = net(batch)
    output[:, 0].square().sum().backward(retain_graph=True)
    output[:, 1].square().sum().backward()
    statistics.commit()
    assert_same(statistics.totals, expected)


def test_layers_without_gradients_are_unseen(groups: list[Group]) -> None:
    net, batch = make()
    net.stem.requires_grad_(False)
    statistics = ActivationGradient()
    statistics.attach(net, groups)
    assert statistics.unseen() == ["stem", "bn", "last"]
    statistics.begin_step(0)
    loss_of(net, batch).backward()
    statistics.commit()
    assert statistics.unseen() == ["stem"]


# ---- copies, states, and what is left behind


def test_copies_carry_no_hooks_that_act(groups: list[Group]) -> None:
    net, batch = make()
    statistics = ActivationGradient()
    statistics.attach(net, groups)
    statistics.totals = {"stem": torch.ones(1_000_000)}  # would show in a copy
    pickled = pickle.dumps(net)
    assert len(pickled) < 100_000
    for twin in (copy.deepcopy(net), pickle.loads(pickled)):
        statistics.begin_step(0)
        loss_of(twin, batch).backward()
        assert statistics.pending == {}
        for module in twin.modules():
            for hook in module._forward_hooks.values():
                assert hook.owner is None
    buffer = io.BytesIO()
    torch.save(net, buffer)
    assert buffer.tell() < 100_000
    statistics.begin_step(0)
    loss_of(net, batch).backward()
    assert statistics.pending.keys() == {"stem", "bn", "last"}  # the original still observes


def test_the_state_survives_a_checkpoint(groups: list[Group]) -> None:
    net, batch = make(norm=False)
    first, second = batch.split(3)
    whole = gather(net, [first, second], groups)

    statistics = gather(net, [first], groups)
    buffer = io.BytesIO()
    torch.save(statistics.state_dict(), buffer)
    buffer.seek(0)
    resumed = ActivationGradient()
    resumed.load_state_dict(torch.load(buffer, weights_only=True))
    assert resumed.steps == 1
    assert all(torch.equal(resumed.totals[name], value) for name, value in statistics.totals.items())
    resumed.attach(net, groups)
    resumed.begin_step(1)
    loss_of(net, second).backward()
    resumed.commit()
    assert_same(resumed.totals, whole.totals, rtol=0)
    assert resumed.steps == 2


def test_a_state_dict_does_not_change_afterwards(groups: list[Group]) -> None:
    net, batch = make()
    statistics = gather(net, [batch], groups)
    state = statistics.state_dict()
    before = {name: value.clone() for name, value in state["totals"].items()}
    statistics.attach(net, groups)
    statistics.begin_step(1)
    loss_of(net, batch).backward()
    statistics.commit()
    statistics.reset()
    assert state["steps"] == 1
    assert state["totals"].keys() == before.keys()
    assert all(torch.equal(state["totals"][name], value) for name, value in before.items())
    assert (statistics.totals, statistics.steps) == ({}, 0)


def hooks(net: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in net.modules())


def test_detach_removes_every_hook_and_attach_replaces_them(groups: list[Group]) -> None:
    net, batch = make()
    foreign = net.stem.register_forward_hook(lambda module, inputs, output: None)
    statistics = ActivationGradient()
    statistics.attach(net, groups)
    assert hooks(net) == 4
    statistics.attach(net, groups)
    assert hooks(net) == 4
    statistics.begin_step(0)
    loss_of(net, batch).backward()
    statistics.commit()
    statistics.detach()
    assert hooks(net) == 1
    assert list(net.stem._forward_hooks) == [foreign.id]
    assert statistics.totals.keys() == {"stem", "bn", "last"}
    statistics.detach()


def test_nothing_stays_alive_after_the_backward_pass(groups: list[Group], monkeypatch) -> None:
    net, batch = make()
    copies: list[weakref.ref] = []
    clone = Tensor.clone

    def remember(self: Tensor, *args, **kwargs) -> Tensor:
        result = clone(self, *args, **kwargs)
        copies.append(weakref.ref(result))
        return result

    statistics = ActivationGradient()
    statistics.attach(net, groups)
    gc.collect()
    gc.disable()  # by counting references alone: no cycle holds an activation
    try:
        for step in range(3):
            statistics.begin_step(step)
            monkeypatch.setattr(Tensor, "clone", remember)
            loss = loss_of(net, batch)
            monkeypatch.undo()
            alive = [ref for ref in copies if ref() is not None]
            assert len(alive) == 3  # one copy for each tap, of this step only
            loss.backward()
            del loss
            assert all(ref() is None for ref in copies)
            statistics.commit()
    finally:
        gc.enable()
    assert all(value.grad_fn is None and not value.requires_grad for value in statistics.totals.values())
    assert all(value.dim() == 1 for value in statistics.totals.values())


def test_steps_that_are_not_observed_copy_nothing(groups: list[Group], monkeypatch) -> None:
    net, batch = make()
    statistics = ActivationGradient(every_n_steps=2)
    statistics.attach(net, groups)
    statistics.begin_step(1)
    monkeypatch.setattr(Tensor, "clone", lambda self: pytest.fail("an activation was copied"))
    loss_of(net, batch).backward()
    statistics.commit()
    assert (statistics.totals, statistics.steps) == ({}, 0)
