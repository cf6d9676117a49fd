"""The size of compressed files."""

import io
import zipfile
import zlib

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from lightning_prune import Channels, Plan, Weights, prune_once
from lightning_prune.budgets import Ratio
from lightning_prune.file_size import compressed_size, deflated, estimated_size, overhead, write_compressed
from lightning_prune.surgery.preview import state_after


class Tied(nn.Module):
    """Two names for one parameter, and a normed layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second, self.out = (
            nn.Linear(8, 8),
            nn.BatchNorm1d(8),
            nn.Linear(8, 8),
            nn.Linear(8, 2),
        )
        self.second.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.second(self.norm(self.first(x))))


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 20, 3), nn.BatchNorm2d(20), nn.ReLU(), nn.Flatten(), nn.Linear(20 * 9, 30))


def test_a_file_is_as_large_as_is_said_and_holds_the_network(tmp_path) -> None:
    state, path = net().state_dict(), tmp_path / "net.pt"
    write_compressed(state, path)
    assert path.stat().st_size == compressed_size(state)
    loaded = torch.load(path, weights_only=True)
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], value) for name, value in state.items())
    torch.save(state, tmp_path / "plain.pt")
    assert path.stat().st_size < (tmp_path / "plain.pt").stat().st_size


def test_entries_are_deflated_at_level_six() -> None:
    """zlib by itself, entry by entry."""
    file = io.BytesIO()
    write_compressed(net().state_dict(), file)
    with zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            deflate = zlib.compressobj(6, zlib.DEFLATED, -15)
            assert entry.compress_size == len(deflate.compress(archive.read(entry)) + deflate.flush())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64], ids=str)
def test_estimates_of_noise_and_zeros(dtype: torch.dtype) -> None:
    noise = (torch.randn(700, 500) * 1000).to(dtype)
    for values in (noise, torch.zeros(700, 500, dtype=dtype)):
        exact = len(deflated(values.flatten()))
        assert estimated_size([values]) == pytest.approx(exact, rel=0.01, abs=300)
    assert estimated_size([torch.zeros(0), torch.ones(())]) < 20


def test_the_overhead_is_what_is_no_value() -> None:
    state = net().state_dict()
    whole = compressed_size(state)
    assert overhead(state) + estimated_size(state.values()) == pytest.approx(whole, rel=0.02)
    assert overhead(state) < whole / 2


@pytest.mark.parametrize("granularity", [Channels(), Weights()], ids=repr)
def test_the_state_after_a_plan_is_that_of_the_pruned_network(granularity) -> None:
    network, image = net(), torch.zeros(1, 1, 5, 5)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    report = prune_once(network, image, granularity=granularity, budget=Ratio(0.5), dry_run=True)
    after = state_after(network, report.plan)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    prune_once(network, image, granularity=granularity, budget=Ratio(0.5))
    assert after.keys() == network.state_dict().keys()
    assert all(torch.equal(after[name], value) for name, value in network.state_dict().items())
    assert compressed_size(after) == pytest.approx(compressed_size(network.state_dict()), abs=1500)  # what was pruned


def test_shared_tensors_are_saved_once() -> None:
    module = Tied()
    module.register_buffer("extra", torch.zeros(3))
    state = state_after(module, Plan(masks={"first.weight": torch.eye(8, dtype=torch.bool)}))
    assert state["first.weight"] is state["second.weight"]
    assert int(torch.count_nonzero(state["second.weight"])) == 8
    assert torch.count_nonzero(module.first.weight) == 64


def test_averaged_copies_are_cut_as_well() -> None:
    module = nn.Module()
    module.net = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2))
    module.average = AveragedModel(module.net)
    plan = Plan(keep={"net.0.weight": {0: torch.tensor([0, 2])}})
    state = state_after(module, plan)
    assert state["net.0.weight"].shape == state["average.module.0.weight"].shape == (2, 4)


def test_what_is_no_tensor_is_kept() -> None:
    class Extra(nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"epochs": 3}

        def set_extra_state(self, state: dict[str, int]) -> None: ...

    state = state_after(Extra(2, 2), Plan())
    assert state["_extra_state"] == {"epochs": 3}
    assert compressed_size(state) > overhead(state) > 300
