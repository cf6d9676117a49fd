import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_prune.budgets import BudgetError, Count, MACs, Params, Ratio, Sparsity
from lightning_prune.criteria import BatchNormScale, Criterion, Magnitude, Taylor
from lightning_prune.functional import prune_once
from lightning_prune.granularity import Channels, Granularity, Weights
from lightning_prune.network.example_input import Example
from lightning_prune.pruners.factory import make_pruner
from lightning_prune.scope import Scope

IMAGE = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def network(width: int = 10, inner: int = 6) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, inner, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(inner * 4, 5),
    )  # fmt: skip


def widths(model: nn.Module) -> tuple[int, int]:
    return model[0].out_channels, model[3].out_channels


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_untouched(model: nn.Module, before: dict[str, Tensor]) -> None:
    assert model.state_dict().keys() == before.keys()
    for name, value in model.state_dict().items():
        assert value.shape == before[name].shape, name
        assert torch.equal(value, before[name]), name
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def calibrate(model: nn.Module) -> None:
    model(IMAGE).square().sum().backward()


# --- what it does


def test_defaults_remove_half_of_every_group_by_magnitude() -> None:
    model = network()
    norms = []  # what makes a channel and what reads it, by hand; relative to the mean, which keeps the order
    for made, read in ((model[0].weight, model[3].weight), (model[3].weight, model[6].weight.view(5, 6, 4))):
        squares = made.detach().square().flatten(1).sum(1) + read.detach().square().transpose(0, 1).flatten(1).sum(1)
        norms.append(squares.sqrt())
    expected = [norm.topk(len(norm) // 2).indices.sort().values for norm in norms]
    report = prune_once(model, IMAGE)
    assert torch.equal(report.plan.keep["0.weight"][0], expected[0])
    assert torch.equal(report.plan.keep["3.weight"][0], expected[1])
    assert widths(model) == (5, 3)
    assert report.widths == {"0.weight": (10, 5), "3.weight": (6, 3)}
    for name, norm in zip(report.scores, norms, strict=True):
        torch.testing.assert_close(report.scores[name], norm / norm.mean())


def test_the_report_is_what_happened() -> None:
    model = network()
    report = prune_once(model, IMAGE, budget=Ratio(0.5))
    before = (3 * 10 * 9 + 10) + 20 + (10 * 6 * 9 + 6) + (24 * 5 + 5)
    after = (3 * 5 * 9 + 5) + 10 + (5 * 3 * 9 + 3) + (12 * 5 + 5)
    assert (report.before.params, report.after.params) == (before, after)
    assert sum(parameter.numel() for parameter in model.parameters()) == after
    assert report.before.macs == 16 * 27 * 10 + 4 * 90 * 6 + 24 * 5
    assert report.after.macs == 16 * 27 * 5 + 4 * 45 * 3 + 12 * 5
    assert report.sparsity == pytest.approx(1 - after / before)
    assert report.fraction == 1
    assert report.frozen == {"6.weight": "output of the network"}
    assert report.inexact == {}
    assert str(report).startswith(f"parameters {before:,} -> {after}, MACs 6,600 -> 2,760, sparsity 0.")
    zero_biases = sum(int((parameter == 0).sum()) for parameter in model.parameters())
    assert report.after.nonzero == after - zero_biases


def test_dry_run_reports_the_same_and_leaves_the_model() -> None:
    model = network()
    before = state(model)
    dry = prune_once(model, IMAGE, dry_run=True)
    assert_untouched(model, before)
    wet = prune_once(model, IMAGE)
    assert (dry.before, dry.after, dry.widths) == (wet.before, wet.after, wet.widths)
    assert all(
        torch.equal(index, wet.plan.keep[name][dim])
        for name, dims in dry.plan.keep.items()
        for dim, index in dims.items()
    )


@pytest.mark.parametrize("inputs", [IMAGE, (IMAGE,), {"input": IMAGE}, IMAGE[:1]])
def test_example_inputs_of_every_kind(inputs: Any) -> None:
    model = network()
    assert prune_once(model, inputs).after.macs == 2760
    assert widths(model) == (5, 3)


def test_mode_flags_and_random_state_survive() -> None:
    model = network().train()
    model[1].eval()
    model[3].weight.requires_grad_(False)
    random, mean = torch.get_rng_state(), model[1].running_mean.clone()
    report = prune_once(model, IMAGE)
    assert [module.training for module in model] == [True, False, True, True, True, True, True]
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["3.weight"]
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(model[1].running_mean, mean[report.plan.keep["1.running_mean"][0]])


def test_memory_format_and_dtype_survive() -> None:
    model = network().double().to(memory_format=torch.channels_last)
    prune_once(model, IMAGE.double())
    assert model[3].weight.dtype == torch.float64
    assert model[3].weight.is_contiguous(memory_format=torch.channels_last)
    assert not model[3].weight.is_contiguous()


def test_the_scope_decides_where() -> None:
    model = network()
    report = prune_once(model, IMAGE, scope=Scope(exclude=["3"]))
    assert widths(model) == (5, 6)
    assert report.frozen["3.weight"] == "'3.weight' is excluded by the scope"


def test_a_value_that_a_criterion_cannot_score_stays_with_its_reason() -> None:
    model = network()
    report = prune_once(model, IMAGE, criterion=BatchNormScale())
    assert widths(model) == (5, 6)
    assert report.frozen["3.weight"] == "no batch norm with a scale follows these channels"


def test_the_lowest_scales_go() -> None:
    model = network(width=6)
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([0.5, -3.0, 0.1, 2.0, -0.2, 1.0]))
    report = prune_once(model, IMAGE, criterion=BatchNormScale())
    assert report.plan.keep["1.weight"][0].tolist() == [1, 3, 5]


@pytest.mark.parametrize("budget", [MACs(keep=0.4), Params(keep=0.4), Sparsity(0.6)])
def test_other_budgets_are_met_and_not_overshot(budget: Any) -> None:
    model = network(width=16, inner=16)
    report = prune_once(model, IMAGE, budget=budget)
    before, after = (report.before.macs, report.after.macs) if isinstance(budget, MACs) else (
        report.before.params, report.after.params,
    )  # fmt: skip
    assert 0.33 * before < after <= 0.4 * before


def test_pruning_twice_goes_on_from_where_it_was() -> None:
    model = network()
    prune_once(model, IMAGE)
    prune_once(model, IMAGE, budget=Count(1, per_layer=True))
    assert widths(model) == (4, 2)
    assert model(IMAGE).shape == (4, 5)


# --- rounding


@pytest.mark.parametrize(
    ("width", "round_to", "share", "kept"),
    [
        (10, 8, 0.5, 8),  # not silently 10
        (10, 1, 0.5, 5),
        (10, 4, 0.5, 4),
        (16, 8, 0.5, 8),
        (32, 8, 0.5, 16),
        (32, 8, 0.6, 16),
        (32, 8, 0.9, 8),  # at least one multiple
        (9, 1, 0.5, 5),  # 4.5 rounds up
    ],
)
def test_widths_are_rounded_to_multiples(width: int, round_to: int, share: float, kept: int) -> None:
    model = network(width=width)
    prune_once(model, IMAGE, granularity=Channels(round_to=round_to), budget=Ratio(share), scope=Scope(include=["0"]))
    assert model[0].out_channels == kept
    assert model(IMAGE).shape == (4, 5)


def test_grouped_channels_are_rounded_as_channels_not_as_units() -> None:
    model = nn.Sequential(nn.Conv2d(3, 24, 1), nn.Conv2d(24, 24, 3, groups=2), nn.Flatten(), nn.Linear(24 * 16, 2))
    report = prune_once(model, IMAGE, granularity=Channels(round_to=8))
    assert report.widths["0.weight"] == (12, 8)  # 6 units of 2 channels would be 12 channels; 8 and 4 are as near
    assert model[0].out_channels == 16


def test_rounding_that_removes_nothing_is_an_error() -> None:
    model = network(width=8, inner=8)
    before = state(model)
    message = (
        r"^Ratio\(share=0.5, per_layer=True\) removes nothing here: groups of at most 8 units, kept in multiples of 8 "
        r"channels. Lower round_to or remove more.$"
    )
    with pytest.raises(BudgetError, match=message):
        prune_once(model, IMAGE, granularity=Channels(round_to=8))
    assert_untouched(model, before)


# --- errors: each names the argument, and nothing has changed


class WeightsOnly(Criterion):
    scores_weights = True

    def __repr__(self) -> str:
        return "WeightsOnly()"


class Unknown(Granularity):
    def __repr__(self) -> str:
        return "Unknown()"


ERRORS: dict[str, tuple[dict[str, Any], str]] = {
    "a criterion for weights only": (
        {"criterion": WeightsOnly()},
        r"^criterion WeightsOnly\(\) does not score channels; use Weights\(\), or another criterion$",
    ),
    "a criterion for channels only": (
        {"criterion": BatchNormScale(), "granularity": Weights()},
        r"^criterion BatchNormScale\(\) does not score weights; use Channels\(\), or another criterion$",
    ),
    "a budget for channels only": (
        {"budget": MACs(keep=0.5), "granularity": Weights()},
        r"^budget MACs\(keep=0.5, per_layer=False\) counts what is physically removed; with Weights\(\) use Sparsity",
    ),
    "an unknown granularity": (
        {"granularity": Unknown()},
        r"^granularity=Unknown\(\) is not known; use Channels\(\), Weights\(\), NM\(\) or Blocks\(\)$",
    ),
    "Taylor without calibration": (
        {"criterion": Taylor()},
        r"^criterion Taylor\(every_n_steps=1\) needs gradients: pass calibrate=, a function that runs forward and",
    ),
    "Taylor with a calibration that brings no gradients": (
        {"criterion": Taylor(), "calibrate": lambda model: model(IMAGE)},
        r"^Taylor needs gradients of '[13]', but none were gathered since the last event. Is it frozen, unused, or",
    ),
    "a share that leaves no channel": (
        {"budget": Ratio(1.0)},
        r"^Ratio\(share=1.0, per_layer=True\) keeps no channel in a group; use at most share=0.8750$",
    ),
    "too few parameters": (
        {"budget": Params(keep=0.01)},
        r"^Params\(keep=0.01, per_layer=False\) cannot be met: with the fewest channels in every group, 0.0\d+ of the "
        r"parameters remain. Widen the scope or increase the target.$",
    ),
    "too few MACs": ({"budget": MACs(keep=0.01)}, r"^MACs\(keep=0.01.*0.0\d+ of the MACs remain"),
    "too many channels at once": (
        {"budget": Count(15)},
        r"^Count\(count=15, per_layer=False\): only 14 more units can be removed, with one kept in every group",
    ),
    "a budget of the wrong kind": (
        {"budget": 0.5},
        r"^prune_once budget=0.5 is not a Budget; it takes an object such as Params\(keep=0.5\)$",
    ),
    "a class for a criterion": (
        {"criterion": Taylor},
        r"^prune_once criterion=<class .*Taylor'> is not a Criterion; it takes an object such as Taylor\(\) or 'ta",
    ),
    "a criterion that is not known": (
        {"criterion": "tailor"},
        r"^criterion='tailor' is not known; did you mean 'Taylor'\?",
    ),
    "a name for a granularity": (
        {"granularity": "channels"},
        r"^prune_once granularity='channels' is not a Granularity; it takes an object such as Channels\(\), We",
    ),
    "a list for a scope": (
        {"scope": ["3"]},
        r"^prune_once scope=\['3'\] is not a Scope; it takes an object such as Scope\(exclude=\['head'\]\)$",
    ),
    "a loss for a calibration": (
        {"criterion": "taylor", "calibrate": 1.5},
        r"^prune_once calibrate=1.5 is not a Callable; it takes an object such as lambda model: ",
    ),
    "a word for a dry run": (
        {"dry_run": "no"},
        r"^prune_once dry_run='no' is not a bool; it takes an object such as True$",
    ),
    "a scope that matches nothing": (
        {"scope": Scope(exclude=["conv1"])},
        r"^Scope exclude='conv1' matches nothing in Sequential; its layers are named 0, 1, 2, 3, 4, 5, ...$",
    ),
    "a scope that leaves nothing": (
        {"scope": Scope(include=["6"])},
        r"leaves no removable channels in Sequential; .* must be kept: .*'6.weight': 'output of the network'",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_name_the_cure_and_leave_the_model_alone(name: str) -> None:
    arguments, message = ERRORS[name]
    model = network().eval()
    before = state(model)
    with pytest.raises(ValueError, match=message):
        prune_once(model, IMAGE, **arguments)
    assert_untouched(model, before)


def test_a_class_for_a_network_is_an_error() -> None:
    with pytest.raises(
        ValueError, match=r"^prune_once model=<class .*Linear'> is not a Module; it takes an object such"
    ):
        prune_once(nn.Linear, IMAGE)


def test_a_criterion_can_be_named() -> None:
    named, made = network(), network()
    assert prune_once(named, IMAGE, criterion="taylor", calibrate=calibrate).plan
    prune_once(made, IMAGE, criterion=Taylor(), calibrate=calibrate)
    assert all(torch.equal(value, made.state_dict()[name]) for name, value in named.state_dict().items())


def test_a_criterion_that_can_score_nothing_is_an_error() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 3))
    with pytest.raises(
        ValueError, match=r"^criterion BatchNormScale\(\) can score no channels of Sequential: no batch "
    ):
        prune_once(model, IMAGE, criterion=BatchNormScale())


def test_a_forward_that_fails_says_what_to_pass() -> None:
    model = network()
    before = state(model)
    message = r"(?s)^the forward pass of Sequential failed on the example input: .*5 channels.*Pass what its forward"
    with pytest.raises(ValueError, match=message):
        prune_once(model, torch.zeros(1, 5, 6, 6))
    assert_untouched(model, before)


def test_channels_without_an_example_are_refused() -> None:
    pruner = make_pruner(Channels(), Magnitude(), Ratio(0.5), Scope())
    with pytest.raises(ValueError, match=r"^channels are found by following them through a forward pass, which needs"):
        pruner.prepare(network(), None)


def test_a_network_whose_every_channel_is_pinned_by_its_code_says_so() -> None:
    class Pinned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            scores: Tensor = self.head(self.conv(x).view(len(x), 8, -1).mean(-1))
            return scores

    model = Pinned()
    before = state(model)
    with pytest.raises(
        ValueError, match=r"^no channel of the network can be removed: .*'conv.weight': 'forward gives the shape"
    ):
        prune_once(model, IMAGE)
    assert_untouched(model, before)


def test_a_calibration_that_fails_leaves_no_hooks() -> None:
    model = network()
    before = state(model)

    def broken(model: nn.Module) -> None:
        raise RuntimeError("no data")

    with pytest.raises(RuntimeError, match="no data"):
        prune_once(model, IMAGE, criterion=Taylor(), calibrate=broken)
    assert_untouched(model, before)


# --- Taylor


def test_taylor_equals_a_hand_computation() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 2, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 4, 1, bias=False))
    inputs = torch.randn(5, 1, 3, 3)

    def loss_of(model: nn.Module) -> None:
        for batch in inputs.split(2):
            model(batch).square().sum().backward()

    # z = conv(x) as a matrix product, y = w · relu(z), loss = y², so dloss/dz = 2 y w [z > 0].
    z = torch.einsum("nkl,ck->ncl", F.unfold(inputs, 2), model[0].weight.detach().flatten(1))
    w = model[3].weight.detach().view(4, 4)
    y = torch.einsum("ncl,cl->n", z.relu(), w)
    terms = (z * 2 * y.view(-1, 1, 1) * w * (z > 0)).mean(2).abs().sum(0)

    report = prune_once(model, inputs, criterion=Taylor(), calibrate=loss_of)
    torch.testing.assert_close(report.scores["0.weight"], terms / terms.norm())
    assert report.plan.keep["0.weight"][0].tolist() == sorted(terms.topk(2).indices.tolist())


def test_calibration_leaves_no_gradients_and_no_hooks() -> None:
    model = network()
    prune_once(model, IMAGE, criterion=Taylor(), calibrate=calibrate)
    assert widths(model) == (5, 3)
    assert not any(module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model(IMAGE).shape == (4, 5)


def test_taylor_dry_run_leaves_the_model() -> None:
    model = network().eval()  # in train mode the calibration itself moves the batch-norm statistics
    before = state(model)
    prune_once(model, IMAGE, criterion=Taylor(), calibrate=calibrate, dry_run=True)
    assert_untouched(model, before)


# --- Weights


def test_weights_are_masked_and_shapes_stay() -> None:
    model = network()
    dense = {name: value.detach().clone() for name, value in model.named_parameters()}
    report = prune_once(model, IMAGE, granularity=Weights(), budget=Sparsity(0.75))
    prunable = ["0.weight", "3.weight", "6.weight"]
    values = torch.cat([dense[name].abs().flatten() for name in prunable])
    threshold = values.sort().values[round(0.75 * len(values)) - 1]
    for name, value in model.named_parameters():
        mask = dense[name].abs() > threshold if name in prunable else torch.ones_like(value, dtype=torch.bool)
        assert torch.equal(value, dense[name] * mask)
        assert (name in report.plan.masks) == (name in prunable)
    assert not report.plan.keep
    assert report.sparsity == pytest.approx(0.75, abs=1e-3)
    assert report.before.params == report.after.params == sum(p.numel() for p in model.parameters())
    assert report.after.nonzero == sum(int((p != 0).sum()) for p in model.parameters())
    assert report.after.macs == report.before.macs


def test_weights_dry_run_leaves_the_model() -> None:
    model = network()
    before = state(model)
    report = prune_once(model, IMAGE, granularity=Weights(), budget=Sparsity(0.5), dry_run=True)
    assert_untouched(model, before)
    assert report.after.nonzero < report.before.nonzero


@pytest.mark.parametrize("make", [lambda: Channels(), lambda: Weights()])
def test_the_same_call_gives_the_same_result(make: Callable[[], Granularity]) -> None:
    model = network()
    other = copy.deepcopy(model)
    prune_once(model, IMAGE, granularity=make())
    prune_once(other, IMAGE, granularity=make())
    assert_untouched(model, state(other))


def test_a_vector_beside_batched_inputs_shares_their_batch() -> None:
    example = Example.of((torch.zeros(5, 7), torch.ones(5)))
    assert example.batch == 2
    assert [tuple(t.shape) for t in example.args] == [(2, 7), (2,)]
    assert [tuple(t.shape) for t in example.repeated(3).args] == [(3, 7), (3,)]
    assert Example.of(torch.zeros(5)).batch == 1
