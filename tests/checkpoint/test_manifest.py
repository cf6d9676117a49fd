"""State dicts of the network inside a module that was pruned."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.numbered import EXAMPLE, LitNumbered, Numbered, logits, numbers
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_prune import Blocks, Channels, Scope, load_pruned, prune_once
from lightning_prune.budgets import Ratio
from lightning_prune.checkpoint.manifest import manifest_of
from lightning_prune.criteria import Random


class LitSequential(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        layers = [nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)) for _ in range(4)]
        self.net = nn.Sequential(nn.Linear(3, 8), *layers, nn.Linear(8, 2))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.net(inputs)


def shipped(net: nn.Module, tmp_path: Path) -> Path:
    torch.save(net.state_dict(), tmp_path / "net.pt")
    return tmp_path / "net.pt"


@pytest.mark.parametrize("attention", ["head_dims", "heads"])
def test_the_network_inside_writes_what_was_pruned_of_it(tmp_path, attention) -> None:
    lit = LitNumbered(4)
    prune_once(lit, EXAMPLE, granularity=Channels(attention=attention), budget=Ratio(0.5))
    loaded = load_pruned(Numbered(4), shipped(lit.net, tmp_path))
    assert numbers(loaded) == numbers(lit.net) != numbers(Numbered(4))
    assert torch.equal(logits(loaded), logits(lit.net))
    whole, part = manifest_of(lit.state_dict()), manifest_of(lit.net.state_dict())
    for key in ("dense_shapes", "attributes"):
        assert {f"net.{name}".rstrip("."): value for name, value in part[key].items()} == whole[key] != {}
    around = nn.Sequential(lit.net)
    assert manifest_of(around.state_dict())["dense_shapes"] == {
        f"0.{name}": shape for name, shape in part["dense_shapes"].items()
    }


def test_copies_of_the_network_inside_go_their_own_ways(tmp_path) -> None:
    lit = LitNumbered(4)
    prune_once(lit, EXAMPLE, budget=Ratio(0.25))
    apart, both = copy.deepcopy(lit.net), copy.deepcopy(lit)
    for net in (apart, both.net):
        assert manifest_of(net.state_dict()) == manifest_of(lit.net.state_dict())
    before = manifest_of(lit.net.state_dict())
    prune_once(apart, EXAMPLE, budget=Ratio(0.25))
    prune_once(both, EXAMPLE, budget=Ratio(0.25))
    for net in (apart, both.net):
        loaded = load_pruned(Numbered(4), shipped(net, tmp_path))
        assert numbers(loaded) == numbers(net) != numbers(lit.net)
        assert torch.equal(logits(loaded), logits(net))
        assert manifest_of(net.state_dict())["dense_shapes"].items() >= before["dense_shapes"].items()
    assert manifest_of(lit.net.state_dict()) == before


def test_a_part_that_goes_by_another_name_claims_nothing(tmp_path) -> None:
    lit = LitNumbered(4)
    lit.model, lit.net = nn.ModuleDict({"inner": lit.net}), lit.net
    lit._modules.move_to_end("net") if hasattr(lit._modules, "move_to_end") else lit._modules.update(
        {"net": lit._modules.pop("net")}
    )
    prune_once(lit, EXAMPLE, granularity=Channels(attention="heads"), budget=Ratio(0.5))
    with pytest.warns(UserWarning, match="has no manifest of integers"):
        load_pruned(Numbered(4), shipped(lit.net, tmp_path))


def test_a_pickled_network_needs_no_more_than_torch(tmp_path) -> None:
    lit = LitSequential()
    prune_once(lit, torch.zeros(2, 3), budget=Ratio(0.5))
    torch.save(lit.net, tmp_path / "net.pt")
    torch.save(lit.net(torch.ones(2, 3)), tmp_path / "wanted.pt")
    script = (
        "import sys, torch; sys.modules['lightning_prune'] = None\n"
        f"net = torch.load({str(tmp_path / 'net.pt')!r}, weights_only=False)\n"
        f"wanted = torch.load({str(tmp_path / 'wanted.pt')!r})\n"
        "assert torch.equal(net(torch.ones(2, 3)), wanted)\n"
        "net.load_state_dict(net.state_dict())\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


def test_a_removed_block_of_the_network_inside(tmp_path) -> None:
    lit = LitSequential()
    report = prune_once(
        lit,
        torch.zeros(2, 3),
        granularity=Blocks(),
        criterion=Random(),
        budget=Ratio(0.5),
        scope=Scope(include=["net.*"]),
    )
    assert len(report.plan.removed_modules) == 2
    loaded = load_pruned(LitSequential().net, shipped(lit.net, tmp_path))
    assert torch.equal(loaded(torch.ones(2, 3)), lit.net(torch.ones(2, 3)))
