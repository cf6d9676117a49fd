"""What Channels can be asked for, on networks and in YAML."""

import re
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor, nn

from lightning_prune import Channels, IterativePruning, Scope, Weights, prune_once
from lightning_prune.budgets import BudgetError, Count, MACs, Params, Ratio, Sparsity
from lightning_prune.cli import PruneCLI
from lightning_prune.coupling import Bundle
from lightning_prune.criteria import BatchNormScale, Magnitude
from lightning_prune.network.example_input import Example
from lightning_prune.pruners import channel_pruner, width_trials
from lightning_prune.pruners.channel_pruner import ChannelPruner
from lightning_prune.surgery.dry_run import DryRunResult

QUICKSTART = Path(__file__).parents[1] / "recipes" / "quickstart.yaml"
INPUT = torch.zeros(2, 3)
WHY = "the code splits one by the other"


def mlp(*widths: int) -> nn.Sequential:
    """Linear layers 0, 2, 4, ..."""
    layers: list[nn.Module] = []
    for inputs, outputs in zip((3, *widths), (*widths, 2), strict=True):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


# ---- arguments


@pytest.mark.parametrize("name", ["round_to", "min_width"])
@pytest.mark.parametrize("value", [0, -8, 2.0, True, "8", None], ids=repr)
def test_widths_are_whole_numbers(name: str, value: object) -> None:
    message = f"Channels {name}={value!r} must be an integer of at least 1"
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        Channels(**{name: value})


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("attention", "'head_dims' or 'heads'"),
        ("ranking", "'global' or 'isomorphic'"),
        ("aggregate", "'sum', 'mean', 'max' or 'first'"),
    ],
)
@pytest.mark.parametrize("value", ["local", "", None, True, 1, ["sum"]], ids=repr)
def test_words_are_known(name: str, words: str, value: object) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(f"Channels {name}={value!r} is not known; use {words}") + "$"):
        Channels(**{name: value})


def test_channels_are_frozen_values() -> None:
    channels = Channels(8, 4, "heads", "isomorphic", "max")
    assert eval(repr(channels)) == channels
    assert hash(eval(repr(channels))) == hash(channels)
    assert Channels() == Channels(round_to=1, min_width=1, attention="head_dims", ranking="global", aggregate="sum")
    with pytest.raises(FrozenInstanceError):
        channels.round_to = 1


def test_every_argument_in_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = {"round_to": 8, "min_width": 4, "attention": "heads", "ranking": "isomorphic", "aggregate": "max"}
    content = yaml.safe_load(QUICKSTART.read_text())
    pruning = content["trainer"]["callbacks"][0]["init_args"]
    pruning["granularity"] = {"class_path": "Channels", "init_args": arguments}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(content))

    class Built(PruneCLI):
        def fit(self, **_) -> None: ...

        def after_fit(self) -> None: ...

    (built,) = (
        c for c in Built(args=["fit", "--config", "c.yaml"]).trainer.callbacks if isinstance(c, IterativePruning)
    )
    assert built.granularity == Channels(**arguments)
    pruning["granularity"]["init_args"]["ranking"] = "local"
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(SystemExit):
        Built(args=["fit", "--config", "c.yaml"])


# ---- widths


@pytest.mark.parametrize(
    ("round_to", "min_width", "share", "kept"),
    [
        (8, 1, 0.5, (8, 8, 6)),  # 10 and 12 channels go to the nearest multiple, 6 have none below
        (8, 1, 0.1, (8, 8, 6)),  # 9 and 10.8 are nearer to 8 than to 16
        (4, 1, 0.5, (4, 8, 4)),  # 5, 6 and 3: halves stay
        (1, 5, 0.5, (5, 6, 5)),
        (1, 11, 0.5, (10, 11, 6)),
        (4, 6, 0.7, (8, 8, 6)),
    ],
)
def test_widths_of_a_network(round_to: int, min_width: int, share: float, kept: tuple[int, ...]) -> None:
    report = prune_once(
        mlp(10, 12, 6), INPUT, granularity=Channels(round_to=round_to, min_width=min_width), budget=Ratio(share)
    )
    assert tuple(after for _, after in report.widths.values()) == kept
    frozen = {name: reason for name, reason in report.frozen.items() if name in report.widths}
    assert set(frozen) <= {name for name, (before, after) in report.widths.items() if before == after}
    if (round_to, min_width) == (8, 1):
        assert frozen == {"4.weight": "round_to=8: its 6 channels are the smallest width that is allowed"}
    if (round_to, min_width) == (1, 11):
        assert frozen == {
            "0.weight": "min_width=11: its 10 channels are the smallest width that is allowed",
            "4.weight": "min_width=11: its 6 channels are the smallest width that is allowed",
        }


@pytest.mark.parametrize(
    ("settings", "budget", "message"),
    [
        (
            {"min_width": 12},
            Ratio(0.5),
            "removes nothing here: groups of at most 12 units, with at least 12 channels each. Lower min_width or "
            "remove more.",
        ),
        (
            {"min_width": 9, "round_to": 8},
            Count(2),
            ": only 0 more units can be removed, with one kept in every group",
        ),
        (
            {"min_width": 9, "round_to": 8},
            Count(2, per_layer=True),
            "removes nothing here: groups of at most 12 units, kept in multiples of 8 channels, with at least 9 "
            "channels each. Lower round_to and min_width or remove more.",
        ),
        (
            {"min_width": 9},
            Ratio(0.5, per_layer=False),
            "keeps fewer channels than min_width=9 in a group; use at most share=0.1818",  # 1 + 3 of 22
        ),
        ({"min_width": 9}, MACs(keep=0.1), "Widen the scope, lower min_width or increase the target."),
        (
            {"min_width": 9, "round_to": 2},
            Params(0.1),
            "Widen the scope, lower round_to and min_width or increase the target.",
        ),
    ],
    ids=repr,
)
def test_widths_that_leave_nothing_to_remove(settings: dict[str, int], budget, message: str) -> None:
    with pytest.raises(BudgetError, match=re.escape(message) + "$"):
        prune_once(mlp(10, 12), INPUT, granularity=Channels(**settings), budget=budget)


# ---- ranking


class Blocks(nn.Module):
    """Two hidden layers of one kind between a stream, and a convolution of another."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3)
        self.up1, self.down1 = nn.Linear(6, 8), nn.Linear(8, 6)
        self.up2, self.down2 = nn.Linear(6, 12), nn.Linear(12, 6)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).mean((2, 3))
        x = x + self.down1(self.up1(x).relu())
        return self.head(x + self.down2(self.up2(x).relu()))


def test_every_kind_gives_its_share() -> None:
    torch.manual_seed(0)
    net = Blocks()
    with torch.no_grad():  # most hidden units look unimportant beside the stream
        for up, down in ((net.up1, net.down1), (net.up2, net.down2)):
            few = up.out_features * 3 // 4
            up.weight[:few] *= 1e-3
            down.weight[:, :few] *= 1e-3
    image = torch.zeros(1, 1, 5, 5)
    alike = {"granularity": Channels(ranking="isomorphic"), "budget": Ratio(0.5, per_layer=False)}
    report = prune_once(net, image, **alike, dry_run=True)
    widths = {name: after for name, (_, after) in report.widths.items()}
    together = prune_once(net, image, budget=Ratio(0.5, per_layer=False), dry_run=True)
    assert together.widths["stem.weight"] == (6, 6)
    assert widths["stem.weight"] == 3
    assert widths["up1.weight"] + widths["up2.weight"] == 10
    for budget in (Params(0.4), MACs(0.4), Sparsity(0.6), Count(13)):
        report = prune_once(net, image, granularity=Channels(ranking="isomorphic"), budget=budget, dry_run=True)
        widths = {name: after for name, (_, after) in report.widths.items()}
        hidden = 1 - (widths["up1.weight"] + widths["up2.weight"]) / 20
        assert hidden > 0
        assert abs(hidden - (1 - widths["stem.weight"] / 6)) <= 1 / 6, budget


def test_a_ranking_needs_a_budget_that_ranks() -> None:
    with pytest.raises(ValueError, match=r"itself; use ranking='global', or a budget with per_layer=False$"):
        prune_once(mlp(8), INPUT, granularity=Channels(ranking="isomorphic"), budget=Ratio(0.5))


def test_classes_survive_a_checkpoint() -> None:
    net, example = Blocks(), Example.of(torch.zeros(1, 1, 5, 5))

    def pruner() -> ChannelPruner:
        return ChannelPruner(Channels(ranking="isomorphic"), Magnitude(), Ratio(0.5, per_layer=False), Scope())

    first, second = pruner(), pruner()
    first.prepare(net, example)
    assert first.dense.classes == {
        "stem.weight": "stem.weight",
        "up1.weight": "up1.weight",
        "up2.weight": "up1.weight",
    }
    second.load_state_dict(first.state_dict())
    assert second.dense == first.dense
    assert {type(value) for value in first.state_dict()["origin"].values()} <= {dict, int, float}


# ---- aggregate


def test_aggregate_reaches_the_criterion() -> None:
    net = mlp(3)
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[3.0, 0, 0], [0, 2, 0], [0, 0, 1]]))  # 9, 4, 1
        net[2].weight.copy_(torch.tensor([[1.0, 0, 3], [0, 2, 3]]))  # 1, 4, 18
    powers = {"sum": [10, 8, 19], "mean": [5, 4, 9.5], "max": [9, 4, 18], "first": [9, 4, 1]}
    for how, values in powers.items():
        report = prune_once(net, INPUT, granularity=Channels(aggregate=how), budget=Count(1), dry_run=True)
        expected = torch.tensor(values, dtype=torch.float).sqrt()
        torch.testing.assert_close(report.scores["0.weight"], expected / expected.mean())
        assert report.plan.keep["0.weight"][0].tolist() == ([0, 1] if how == "first" else [0, 2])


# ---- bundles, through the whole pruner


@pytest.fixture
def tied(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the code of ``mlp(8, 4, ...)`` tied 2 units of the first hidden layer to 1 of the second."""
    analyze = channel_pruner.find_coupling

    def with_bundle(*args, **options):
        coupling = analyze(*args, **options)
        if not {"0.weight", "2.weight"} <= coupling.groups.keys():
            return coupling
        return replace(coupling, bundles=(Bundle({"0.weight": 2, "2.weight": 1}, WHY),))

    monkeypatch.setattr(channel_pruner, "find_coupling", with_bundle)


@pytest.mark.parametrize(
    "budget",
    [Ratio(0.5), Ratio(0.5, per_layer=False), Count(3), Count(5), Count(2, per_layer=True), Params(0.5), MACs(0.6)],
    ids=repr,
)
@pytest.mark.usefixtures("tied")
def test_a_bundle_shrinks_in_step(budget) -> None:
    torch.manual_seed(0)
    net = mlp(8, 4, 5)
    report = prune_once(net, INPUT, budget=budget)
    assert net[0].out_features == 2 * net[2].out_features
    assert report.widths["0.weight"][1] == net[0].out_features
    assert report.removes
    assert net(INPUT).shape == (2, 2)


@pytest.mark.usefixtures("tied")
def test_what_the_scope_leaves_out_keeps_its_bundle() -> None:
    why = f"shrinks only together with '2.weight' ({WHY}), which must stay: '2.weight' is excluded by the scope"
    report = prune_once(mlp(8, 4, 5), INPUT, scope=Scope(exclude=["2"]))
    assert report.frozen["0.weight"] == why
    assert list(report.widths) == ["4.weight"]
    with pytest.raises(ValueError, match=r"^Scope\(.*leaves no removable channels.*shrinks only together with '2.weig"):
        prune_once(mlp(8, 4), INPUT, scope=Scope(exclude=["2"]))


@pytest.mark.usefixtures("tied")
def test_what_the_criterion_cannot_score_keeps_its_bundle() -> None:
    net = nn.Sequential(
        nn.Linear(3, 8),
        nn.BatchNorm1d(8),
        nn.Linear(8, 4),
        nn.ReLU(),
        nn.Linear(4, 5),
        nn.BatchNorm1d(5),
        nn.Linear(5, 2),
    )
    report = prune_once(net, INPUT, criterion=BatchNormScale())
    assert report.frozen["2.weight"] == "no batch norm with a scale follows these channels"
    assert report.frozen["0.weight"] == (
        f"shrinks only together with '2.weight' ({WHY}), which must stay: {report.frozen['2.weight']}"
    )
    assert report.widths == {"4.weight": (5, 3)}


@pytest.mark.usefixtures("tied")
def test_what_breaks_the_network_keeps_its_bundle(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def failing(model, example, coupling, removed):
        asked.append(sorted(removed))
        return DryRunResult(
            {"2.weight": "with fewer channels the forward pass fails"} if "2.weight" in removed else {}, ()
        )

    monkeypatch.setattr(width_trials, "try_widths", failing)
    report = prune_once(mlp(8, 4, 5), INPUT)
    assert asked[:2] == [["0.weight", "2.weight", "4.weight"], ["4.weight"]]
    assert report.frozen["2.weight"] == "with fewer channels the forward pass fails"
    assert report.frozen["0.weight"].startswith("shrinks only together with '2.weight'")


def test_weights_have_no_such_arguments() -> None:
    assert Weights() == Weights()
    with pytest.raises(TypeError):
        Weights(round_to=8)
