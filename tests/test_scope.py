import re
from dataclasses import FrozenInstanceError

import pytest
import torch
from torch import Tensor, nn

from lightning_prune.coupling import Coupling, find_coupling
from lightning_prune.network.example_input import Example
from lightning_prune.scope import Scope


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.GroupNorm(2, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)).relu()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3)
        self.bn1 = nn.BatchNorm2d(8)
        self.layer1 = nn.Sequential(nn.Conv2d(8, 6, 3), nn.ReLU())
        self.layer10 = nn.ConvTranspose2d(6, 4, 3)
        self.scale = nn.Parameter(torch.ones(1, 4, 1, 1))
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer1(self.bn1(self.conv1(x)).relu())
        return self.fc((self.layer10(x) * self.scale).mean((2, 3)))


WEIGHTS = ["scale", "conv1.weight", "layer1.0.weight", "layer10.weight", "fc.weight"]


@pytest.fixture
def net() -> Net:
    return Net()


@pytest.fixture
def coupling(net: Net) -> Coupling:
    return find_coupling(net, Example.of(torch.zeros(1, 3, 8, 8)))


# ---- parameters


def test_weights_of_everything_by_default(net: Net) -> None:
    parameters = Scope().parameters(net)
    assert list(parameters) == WEIGHTS
    assert parameters["fc.weight"] is net.fc.weight


def test_biases_and_norms_on_request(net: Net) -> None:
    assert list(Scope(biases_and_norms=True).parameters(net)) == [name for name, _ in net.named_parameters()]


@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm1d(4),
        nn.InstanceNorm2d(4, affine=True),
        nn.LayerNorm((4, 4)),
        nn.RMSNorm((4, 4)),
        nn.GroupNorm(2, 4),
    ],
    ids=lambda norm: type(norm).__name__,
)
def test_norms_stay_whatever_their_shape(norm: nn.Module) -> None:
    assert list(Scope().parameters(nn.Sequential(nn.Linear(4, 4), norm))) == ["0.weight"]


@pytest.mark.parametrize(
    ("include", "names"),
    [
        (["fc.weight"], ["fc.weight"]),
        (["fc"], ["fc.weight"]),
        (["layer1"], ["layer1.0.weight"]),  # an ancestor, and not layer10
        (["layer1*"], ["layer1.0.weight", "layer10.weight"]),
        (["layer1.0"], ["layer1.0.weight"]),
        (["*.weight"], WEIGHTS[1:]),
        (["conv[0-9]", "f?"], ["conv1.weight", "fc.weight"]),
        (["scale"], ["scale"]),
        (["*1"], ["conv1.weight", "layer1.0.weight"]),
    ],
    ids=str,
)
def test_include_picks_names_ancestors_and_patterns(net: Net, include: list[str], names: list[str]) -> None:
    assert list(Scope(include=include).parameters(net)) == names


def test_patterns_see_upper_and_lower_case(net: Net) -> None:
    with pytest.raises(ValueError, match="matches nothing"):
        Scope(include=["FC"]).parameters(net)


def test_exclude_wins_over_include(net: Net) -> None:
    assert list(Scope(include=["layer1*"], exclude=["layer10"]).parameters(net)) == ["layer1.0.weight"]
    assert list(Scope(exclude=["*.weight"]).parameters(net)) == ["scale"]


@pytest.mark.parametrize(
    ("types", "names"),
    [
        (["Conv2d"], ["conv1.weight", "layer1.0.weight"]),
        (["Linear"], ["fc.weight"]),
        (["_ConvNd"], ["conv1.weight", "layer1.0.weight", "layer10.weight"]),
        (["Linear", "ConvTranspose2d"], ["layer10.weight", "fc.weight"]),
        (["Net"], ["scale"]),
        (["Module"], WEIGHTS),
    ],
    ids=str,
)
def test_types_take_classes_and_their_bases(net: Net, types: list[str], names: list[str]) -> None:
    assert list(Scope(types=types).parameters(net)) == names


def test_types_take_the_user_s_subclasses() -> None:
    class MyLinear(nn.Linear):
        pass

    net = nn.Sequential(MyLinear(3, 3), nn.Linear(3, 3))
    assert list(Scope(types=["MyLinear"]).parameters(net)) == ["0.weight"]
    assert list(Scope(types=["Linear"]).parameters(net)) == ["0.weight", "1.weight"]


def test_a_shared_parameter_goes_by_each_of_its_names() -> None:
    net = nn.ModuleDict({"embedding": nn.Embedding(5, 4), "middle": nn.Linear(4, 4), "head": nn.Linear(4, 5)})
    net["head"].weight = net["embedding"].weight
    assert list(Scope().parameters(net)) == ["embedding.weight", "middle.weight"]
    assert list(Scope(exclude=["head"]).parameters(net)) == ["middle.weight"]
    assert list(Scope(include=["head"]).parameters(net)) == ["embedding.weight"]
    assert list(Scope(types=["Linear"]).parameters(net)) == ["embedding.weight", "middle.weight"]


# ---- groups


def test_every_group_is_inside_by_default(net: Net, coupling: Coupling) -> None:
    inside, outside = Scope().groups(net, coupling)
    assert list(inside) == list(coupling.groups) != []
    assert outside == {}


def test_excluding_a_layer_keeps_its_filters(net: Net, coupling: Coupling) -> None:
    inside, outside = Scope(exclude=["conv1"]).groups(net, coupling)
    assert outside == {"conv1.weight": "'conv1.weight' is excluded by the scope"}
    assert set(inside) == set(coupling.groups) - {"conv1.weight"}
    assert inside["layer1.0.weight"] is coupling.groups["layer1.0.weight"]  # which conv1 does not make


def test_excluding_a_reader_does_not_freeze_what_it_reads(net: Net, coupling: Coupling) -> None:
    read_by_fc = [n for n, g in coupling.groups.items() if any(m.tensor == "fc.weight" and m.reads for m in g.members)]
    inside, outside = Scope(exclude=["fc"]).groups(net, coupling)
    assert read_by_fc
    assert set(read_by_fc) <= set(inside)
    assert outside == {}


def test_excluding_the_norm_keeps_the_filters_it_scales(net: Net, coupling: Coupling) -> None:
    _, outside = Scope(exclude=["bn1"]).groups(net, coupling)
    assert outside == {"conv1.weight": "'bn1.weight' is excluded by the scope"}


def test_including_a_layer_leaves_the_others_outside(net: Net, coupling: Coupling) -> None:
    inside, outside = Scope(include=["layer1"]).groups(net, coupling)
    assert list(inside) == ["layer1.0.weight"]
    assert outside == {name: "outside the scope" for name in coupling.groups if name != "layer1.0.weight"}


def test_types_pick_groups_by_what_makes_them(net: Net, coupling: Coupling) -> None:
    inside, _ = Scope(types=["Conv2d"]).groups(net, coupling)
    assert list(inside) == ["conv1.weight", "layer1.0.weight"]


def test_one_excluded_maker_keeps_a_residual_stream() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 1)
            self.block = Block(4)
            self.inner = nn.Conv2d(4, 6, 1)
            self.outer = nn.Conv2d(6, 4, 1)
            self.head = nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return self.head(x + self.outer(self.inner(x)))

    net = Residual()
    coupling = find_coupling(net, Example.of(torch.zeros(1, 3, 4, 4)))
    inside, outside = Scope(exclude=["outer"]).groups(net, coupling)
    assert list(inside) == ["inner.weight"]
    assert outside == {"stem.weight": "'outer.weight' is excluded by the scope"}


def test_a_group_without_the_scope_names_why_nothing_is_left(net: Net, coupling: Coupling) -> None:
    with pytest.raises(ValueError, match="leaves no removable channels in Net") as error:
        Scope(include=["fc"]).groups(net, coupling)
    message = str(error.value)
    assert message.startswith("Scope(include=('fc',), exclude=(), types=(), biases_and_norms=False) leaves no ")
    assert "leaves no removable channels in Net; the channels that it has must be kept: {" in message
    assert "'fc.weight': 'output of the network'" in message
    assert "'conv1.weight': 'outside the scope'" in message


# ---- messages


@pytest.mark.parametrize("field", ["include", "exclude"])
def test_a_pattern_without_matches_is_refused(net: Net, coupling: Coupling, field: str) -> None:
    scope = Scope(**{field: ["conv1", "layer2.*"]})
    expected = (
        f"Scope {field}='layer2.*' matches nothing in Net; "
        "its layers are named conv1, bn1, layer1.0, layer1.1, layer10, fc"
    )
    with pytest.raises(ValueError, match="^" + re.escape(expected) + "$"):
        scope.parameters(net)
    with pytest.raises(ValueError, match="^" + re.escape(expected) + "$"):
        scope.groups(net, coupling)


def test_long_lists_of_layers_are_cut() -> None:
    net = nn.Sequential(*[nn.Linear(2, 2) for _ in range(9)])
    with pytest.raises(ValueError, match=r"its layers are named 0, 1, 2, 3, 4, 5, \.\.\.$"):
        Scope(exclude=["nothing"]).parameters(net)


def test_a_scope_without_matches_is_refused(net: Net) -> None:
    with pytest.raises(
        ValueError,
        match="^"
        + re.escape(
            "Scope(include=('*',), exclude=(), types=('LSTM',), biases_and_norms=False) matches no parameter of Net; "
            "its layers are named conv1, bn1, layer1.0, layer1.1, layer10, fc"
        )
        + "$",
    ):
        Scope(types=["LSTM"]).parameters(net)
    with pytest.raises(ValueError, match="matches no parameter of Net"):
        Scope(include=["bn1"]).parameters(net)
    assert list(Scope(include=["bn1"], biases_and_norms=True).parameters(net)) == ["bn1.weight", "bn1.bias"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"include": "conv1"}, "Scope include='conv1' must be a list of strings: ['conv1']"),
        ({"exclude": "fc"}, "Scope exclude='fc' must be a list of strings: ['fc']"),
        ({"types": "Linear"}, "Scope types='Linear' must be a list of strings: ['Linear']"),
        ({"include": None}, "Scope include=None must be a list of strings"),
        ({"exclude": [3]}, "Scope exclude=[3] must be a list of strings"),
        ({"types": [nn.Linear]}, "Scope types=[<class 'torch.nn.modules.linear.Linear'>] must be a list of strings"),
        ({"include": []}, "Scope include=[] matches nothing; omit it to prune everything"),
    ],
    ids=str,
)
def test_arguments_are_checked(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        Scope(**arguments)


def test_a_scope_is_a_frozen_value() -> None:
    scope = Scope(exclude=["a"], types=["Linear"])
    assert scope == Scope(exclude=("a",), types=("Linear",))
    assert hash(scope) == hash(Scope(exclude=("a",), types=("Linear",)))
    with pytest.raises(FrozenInstanceError):
        scope.exclude = ()
