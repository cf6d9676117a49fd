import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop

from lightning_prune.coupling import find_coupling
from lightning_prune.network.example_input import Example
from lightning_prune.network.tensors import named_tensors
from lightning_prune.surgery.apply import apply_plan, set_attributes, zero_removed
from lightning_prune.surgery.plan import Plan, select
from lightning_prune.surgery.removal import plan_removal


class SmallNet(nn.Module):
    """A residual network small enough to be written down a second time with other widths."""

    def __init__(self, stem: int = 8, inner: int = 6, hidden: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, stem, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(stem)
        self.first = nn.Conv2d(stem, inner, 3, padding=1)
        self.depth = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.second = nn.Conv2d(inner, stem, 1)
        self.fc1 = nn.Linear(stem * 16, hidden)
        self.fc2 = nn.Linear(hidden, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = x + self.second(self.depth(self.first(x).relu()))
        scores: Tensor = self.fc2(self.fc1(x.flatten(1)).relu())
        return scores


REMOVED = {"stem.weight": [1, 2, 7], "first.weight": [0, 5], "fc1.weight": [3, 4, 5, 9]}
SMALL = {"stem": 5, "inner": 4, "hidden": 6}
BATCHES = [torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(seed)) for seed in range(15)]
TARGETS = [torch.randint(0, 4, (4,), generator=torch.Generator().manual_seed(seed)) for seed in range(15)]


def small_net(**widths: int) -> SmallNet:
    torch.manual_seed(0)
    return SmallNet(**widths)


def make_plan(model: nn.Module) -> Plan:
    coupling = find_coupling(model, Example.of(BATCHES[0]))
    removed = {
        name: torch.zeros(coupling.groups[name].size, dtype=torch.bool).index_fill_(0, torch.tensor(gone), True)
        for name, gone in REMOVED.items()
    }
    return plan_removal(removed, coupling)


def step(model: nn.Module, optimizer: Optimizer, batch: int) -> Tensor:
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(BATCHES[batch]), TARGETS[batch])
    loss.backward()
    optimizer.step()
    return loss.detach()


def kept_slice(value: Tensor, dims: dict[int, Tensor]) -> Tensor:
    """An independent way to slice: one list of indices after the other."""
    for dim, index in dims.items():
        value = value.transpose(0, dim)[index.tolist()].transpose(0, dim)
    return value.contiguous()


OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "sgd": lambda p: SGD(p, lr=0.05),
    "sgd momentum": lambda p: SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "sgd foreach": lambda p: SGD(p, lr=0.05, momentum=0.9, foreach=True),
    "sgd fused": lambda p: SGD(p, lr=0.05, momentum=0.9, fused=True),
    "adamw": lambda p: AdamW(p, lr=0.01, weight_decay=0.1),
    "adamw foreach": lambda p: AdamW(p, lr=0.01, foreach=True),
    "adamw fused": lambda p: AdamW(p, lr=0.01, fused=True),
    "adam amsgrad": lambda p: Adam(p, lr=0.01, amsgrad=True),
    "adam amsgrad foreach": lambda p: Adam(p, lr=0.01, amsgrad=True, foreach=True),
    "rmsprop": lambda p: RMSprop(p, lr=0.01, momentum=0.5, centered=True),
    "adagrad": lambda p: Adagrad(p, lr=0.01),
    "two param groups": lambda p: SGD([{"params": p[:3], "lr": 0.01}, {"params": p[3:]}], lr=0.05, momentum=0.9),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_goes_on_as_if_the_network_had_been_built_small(name: str) -> None:
    model = small_net()
    optimizer = OPTIMIZERS[name](list(model.parameters()))
    for batch in range(5):
        step(model, optimizer, batch)
    plan = make_plan(model)

    # The reference: built with the small widths, given the kept slices of weights, buffers and optimizer state.
    scratch = small_net(**SMALL)
    scratch.load_state_dict({n: kept_slice(t, plan.keep.get(n, {})) for n, t in model.state_dict().items()})
    reference = OPTIMIZERS[name](list(scratch.parameters()))
    names = {parameter: name for name, parameter in model.named_parameters()}
    twins = dict(scratch.named_parameters())
    for parameter, state in optimizer.state.items():
        dims = plan.keep.get(names[parameter], {})
        reference.state[twins[names[parameter]]] = {
            key: kept_slice(value, dims).clone() if isinstance(value, Tensor) and value.dim() else copy.deepcopy(value)
            for key, value in state.items()
        }

    before = list(model.parameters())
    listed = [[id(p) for p in group["params"]] for group in optimizer.param_groups]
    apply_plan(model, plan, [optimizer])

    assert all(a is b for a, b in zip(model.parameters(), before, strict=True))
    assert [[id(p) for p in group["params"]] for group in optimizer.param_groups] == listed
    assert {id(p) for p in optimizer.state} <= {id(p) for p in before}
    for parameter, state in optimizer.state.items():
        expected = reference.state[twins[names[parameter]]]
        assert state.keys() == expected.keys()
        for key, value in state.items():
            if isinstance(value, Tensor):
                assert value.shape in (parameter.shape, ())
                assert torch.equal(value, expected[key])
    if name != "sgd":
        assert len(optimizer.state) == len(before)

    for batch in range(5, 15):
        assert torch.equal(step(model, optimizer, batch), step(scratch, reference, batch))
    for (tensor, value), other in zip(model.state_dict().items(), scratch.state_dict().values(), strict=True):
        assert torch.equal(value, other), tensor
    assert repr(model) == repr(scratch)


def test_the_steps_would_differ_with_the_wrong_momentum() -> None:
    # Guards the test above: it must be able to see optimizer state.
    def final_weight(forget: bool) -> Tensor:
        model = small_net()
        optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9)
        step(model, optimizer, 0)
        apply_plan(model, make_plan(model), [optimizer])
        if forget:
            optimizer.state.clear()
        step(model, optimizer, 1)
        return model.fc2.weight.detach()

    assert not torch.equal(final_weight(forget=True), final_weight(forget=False))


def test_state_of_other_optimizers_and_of_untouched_parameters_stays() -> None:
    model, other = small_net(), nn.Linear(2, 2)
    optimizer = SGD([*model.parameters(), *other.parameters()], lr=0.1, momentum=0.9)
    (model(BATCHES[0]).sum() + other(torch.ones(1, 2)).sum()).backward()
    optimizer.step()
    buffer = optimizer.state[other.weight]["momentum_buffer"]
    apply_plan(model, make_plan(model), [optimizer])
    assert optimizer.state[other.weight]["momentum_buffer"] is buffer
    assert optimizer.state[model.fc1.weight]["momentum_buffer"].shape == model.fc1.weight.shape == (6, 80)


def test_factored_optimizer_state_follows() -> None:
    # Adafactor keeps a row and a column of second moments: (out, 1) and (1, in) for a matrix.
    model = small_net()
    optimizer = torch.optim.Adafactor(model.parameters(), lr=0.01)
    step(model, optimizer, 0)
    plan = make_plan(model)
    state = {key: value.clone() for key, value in optimizer.state[model.fc1.weight].items() if value.dim()}
    apply_plan(model, plan, [optimizer])
    rows, columns = plan.keep["fc1.weight"][0], plan.keep["fc1.weight"][1]
    now = optimizer.state[model.fc1.weight]
    assert torch.equal(now["row_var"], state["row_var"][rows])
    assert torch.equal(now["col_var"], state["col_var"][:, columns])
    step(model, optimizer, 1)


def test_factors_of_square_kernels_are_cut_along_their_own_dimension() -> None:
    # (out, in, height, 1) and (out, in, 1, width) for a kernel; sizes alone would not tell the dimensions apart.
    conv = nn.Conv2d(4, 4, 4)
    optimizer = torch.optim.Adafactor(conv.parameters(), lr=0.01)
    conv(torch.randn(2, 4, 6, 6)).square().sum().backward()
    optimizer.step()
    before = {key: value.clone() for key, value in optimizer.state[conv.weight].items()}
    rows, columns = torch.tensor([0, 3]), torch.tensor([1, 2, 3])
    apply_plan(conv, Plan({"weight": {0: rows, 1: columns}, "bias": {0: rows}}), [optimizer])
    after = optimizer.state[conv.weight]
    assert after["row_var"].shape == (2, 3, 4, 1)
    assert torch.equal(after["row_var"], before["row_var"][[0, 3]][:, 1:])
    assert torch.equal(after["col_var"], before["col_var"][[0, 3]][:, 1:])
    assert optimizer.state[conv.bias]["variance"].shape == (2,)
    assert after["step"] == before["step"] == 1


class Remembering(Optimizer):
    """Remembers what it is told to, of every parameter."""

    def __init__(self, params: Any, remember: Callable[[Tensor], Any]) -> None:
        super().__init__(params, {})
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p] = {"step": torch.tensor(3.0), "mean": p.detach().clone(), "odd": remember(p)}


ODD: dict[str, Callable[[Tensor], Any]] = {
    "flat": lambda p: p.detach().flatten(),
    "a vector of rows": lambda p: p.detach().flatten(1).sum(1) if p.dim() > 1 else p.detach().clone(),
    "statistics of both sides": lambda p: [torch.eye(size) for size in p.shape],
    "statistics of one side": lambda p: torch.eye(p.shape[0]),  # of the shape of a square matrix
    "blocks": lambda p: {"codes": torch.zeros(-(-p.numel() // 4), 4, dtype=torch.uint8)},
    "a tensor of another class": lambda p: p.detach().clone().as_subclass(type("Blocks", (Tensor,), {})),
    "the same transposed": lambda p: p.detach().t().clone(),
}


@pytest.mark.parametrize("remember", ODD.values(), ids=list(ODD))
def test_state_that_cannot_be_cut_begins_anew(remember: Callable[[Tensor], Any]) -> None:
    model = nn.Sequential(nn.Linear(5, 5, bias=False), nn.ReLU(), nn.Linear(5, 3), nn.Linear(3, 2))
    optimizer = Remembering(model.parameters(), remember)
    kept = {p: optimizer.state[p] for p in (model[2].bias, model[3].weight, model[3].bias)}
    keep = torch.tensor([0, 2, 4])
    with pytest.warns(UserWarning, match="Remembering keeps 'odd' in other shapes .* 2 pruned parameters is reset"):
        apply_plan(model, Plan({"0.weight": {0: keep}, "2.weight": {1: keep}}), [optimizer])
    assert optimizer.state == kept  # nothing of them was cut
    assert optimizer.param_groups[0]["params"] == list(model.parameters())


@pytest.mark.parametrize(
    "remember",
    [lambda p: None, lambda p: 3, lambda p: torch.ones(1), lambda p: torch.ones(()), lambda p: [], lambda p: [1.0]],
)
def test_numbers_stay_as_they_are(remember: Callable[[Tensor], Any]) -> None:
    layer = nn.Linear(3, 4)
    optimizer = Remembering(layer.parameters(), remember)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        apply_plan(layer, Plan({"weight": {0: torch.tensor([0, 2])}, "bias": {0: torch.tensor([0, 2])}}), [optimizer])
    for p in layer.parameters():
        assert torch.equal(optimizer.state[p]["mean"], p)
        assert optimizer.state[p]["step"] == 3
        assert repr(optimizer.state[p]["odd"]) == repr(remember(p))


def test_only_one_process_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    layer = nn.Linear(3, 4)
    optimizer = Remembering(layer.parameters(), ODD["flat"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        apply_plan(layer, Plan({"weight": {0: torch.tensor([0, 2])}}), [optimizer])
    assert list(optimizer.state) == [layer.bias]


def test_pending_gradients_are_sliced() -> None:
    model = small_net()
    model(BATCHES[0]).sum().backward()
    plan = make_plan(model)
    before = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    apply_plan(model, plan)
    for name, parameter in model.named_parameters():
        assert parameter.grad.shape == parameter.shape
        assert torch.equal(parameter.grad, kept_slice(before[name], plan.keep.get(name, {})))


def test_everything_else_about_the_network_survives() -> None:
    model = small_net().train()
    model.norm.eval()
    model.stem.weight.requires_grad_(False)
    calls: list[str] = []
    model.first.register_forward_hook(lambda *_: calls.append("hook"))
    names = [name for name, _ in named_tensors(model)]
    modes = [module.training for module in model.modules()]
    identities = [(id(module), type(module)) for module in model.modules()]
    attributes = [set(vars(module)) for module in model.modules()]
    apply_plan(model, make_plan(model))
    calls.clear()
    model(BATCHES[0])
    assert calls == ["hook"]
    assert [name for name, _ in named_tensors(model)] == names
    assert [module.training for module in model.modules()] == modes
    assert [(id(module), type(module)) for module in model.modules()] == identities
    assert [set(vars(module)) for module in model.modules()] == attributes
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["stem.weight"]
    assert (model.depth.groups, model.depth.in_channels, model.norm.num_features) == (4, 4, 5)


def test_buffers_are_sliced_and_scalars_left() -> None:
    model = small_net().train()
    for batch in range(3):
        model(BATCHES[batch])
    mean, variance = model.norm.running_mean.clone(), model.norm.running_var.clone()
    apply_plan(model, make_plan(model))
    kept = [0, 3, 4, 5, 6]
    assert torch.equal(model.norm.running_mean, mean[kept])
    assert torch.equal(model.norm.running_var, variance[kept])
    assert model.norm.num_batches_tracked == 3
    assert set(dict(model.named_buffers())) == {
        f"norm.{n}" for n in ("running_mean", "running_var", "num_batches_tracked")
    }


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_dtype_survives(dtype: torch.dtype) -> None:
    model = small_net().to(dtype)
    apply_plan(model, make_plan(model_in_float32 := small_net()))
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert model_in_float32.stem.out_channels == 8
    assert model.stem.weight.shape[0] == 5


def test_the_memory_format_survives() -> None:
    model = small_net().to(memory_format=torch.channels_last)
    apply_plan(model, make_plan(model))
    for layer in (model.stem, model.first):
        assert layer.weight.is_contiguous(memory_format=torch.channels_last)
        assert not layer.weight.is_contiguous()


def test_tied_parameters_stay_tied() -> None:
    model = nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 9, bias=False))
    model[1].weight = model[0].weight
    apply_plan(model, Plan({"0.weight": {1: torch.tensor([0, 2, 5])}}))
    assert model[1].weight is model[0].weight
    assert (model[0].embedding_dim, model[1].in_features, model[1].out_features) == (3, 3, 9)
    assert model(torch.tensor([[1, 2]])).shape == (1, 2, 9)


def test_a_copy_of_the_weights_follows_the_same_plan() -> None:
    model = small_net()
    averaged = torch.optim.swa_utils.AveragedModel(model)
    plan = make_plan(model)
    apply_plan(model, plan)
    apply_plan(averaged.module, plan)
    averaged.update_parameters(model)
    assert torch.equal(averaged(BATCHES[0]), model(BATCHES[0]))


def test_zero_removed_writes_neutral_values_by_hand() -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([2.0, 3.0, 4.0]).reshape(3, 1, 1, 1))
        model[1].running_mean.copy_(torch.tensor([5.0, 6.0, 7.0]))
        model[1].running_var.copy_(torch.tensor([8.0, 9.0, 10.0]))
    keep = {0: torch.tensor([0, 2])}
    zero_removed(model, Plan({name: keep for name in ("0.weight", "1.running_mean", "1.running_var")}))
    assert model[0].weight.flatten().tolist() == [2, 0, 4]
    assert model[1].running_mean.tolist() == [5, 0, 7]
    assert model[1].running_var.tolist() == [8, 1, 10]
    assert model[1].weight.tolist() == [1, 1, 1]


def test_select_agrees_with_plain_indexing() -> None:
    value = torch.randn(5, 6, 3, generator=torch.Generator().manual_seed(0))
    dims = {0: torch.tensor([0, 3]), 2: torch.tensor([1])}
    assert torch.equal(select(value, dims), kept_slice(value, dims))
    assert select(value, {}) is value


def test_attributes_are_set_in_their_own_kind_of_sequence() -> None:
    model = nn.ModuleDict({"a": nn.Module(), "b": nn.ModuleList([nn.Module()])})
    model["a"].dim, model["a"].pair, model["a"].triple = 12, (4, 8), [1, 2, 3]
    model["b"][0].dim, before = 5, model["a"].triple
    set_attributes(model, {"a": {"dim": 6, "pair": {0: 2}, "triple": {0: 7, 2: 9}}, "b.0": {"dim": 4}})
    assert (model["a"].dim, model["a"].pair, model["a"].triple, model["b"][0].dim) == (6, (2, 8), [7, 2, 9], 4)
    assert before == [1, 2, 3]  # another may hold the same list
    set_attributes(model, {"a": {"pair": (1, 1), "triple": [0]}})
    assert (model["a"].pair, model["a"].triple) == ((1, 1), [0])
    set_attributes(model, {})


def test_attributes_of_the_network_itself_follow_a_plan() -> None:
    model = small_net()
    model.stem_width, model.sizes = 8, [8, 6]
    plan = make_plan(model)
    apply_plan(model, Plan(plan.keep, attributes={"": {"stem_width": 5, "sizes": {0: 5}}}))
    assert (model.stem_width, model.sizes, model.stem.out_channels) == (5, [5, 6], 5)


def test_scaled_rows_leave_optimizer_state_and_gradients_alone() -> None:
    model = small_net()
    optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9)
    step(model, optimizer, 0)
    before = model.fc2.weight.detach().clone()
    buffer = optimizer.state[model.fc2.weight]["momentum_buffer"].clone()
    factors = torch.tensor([1.0, 2.0, 0.5, 1.0], dtype=torch.float64)
    apply_plan(model, Plan(scales={"fc2.weight": {0: factors}}), [optimizer])
    assert torch.equal(model.fc2.weight, before * factors.float()[:, None])
    assert torch.equal(optimizer.state[model.fc2.weight]["momentum_buffer"], buffer)
