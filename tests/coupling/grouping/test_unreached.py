"""Experts that the example input does not reach."""

import warnings

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_prune import IterativePruning, prune_once
from lightning_prune.budgets import Ratio
from lightning_prune.coupling import find_coupling
from lightning_prune.network.example_input import Example
from lightning_prune.schedules import Rounds

EXPERTS, WIDTH, HIDDEN = 6, 8, 12


class Experts(nn.Module):
    """Each example goes through one of several experts, as its values say."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.router = nn.Linear(4, WIDTH), nn.Linear(WIDTH, EXPERTS)
        layers = [nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, WIDTH)) for _ in range(EXPERTS)]
        self.experts, self.head = nn.ModuleList(layers), nn.Linear(WIDTH, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        values = self.stem(inputs)
        chosen = self.router(values).argmax(1)
        out = torch.zeros_like(values)
        for number in chosen.unique().tolist():
            rows = (chosen == number).nonzero()[:, 0]
            out = out.index_add(0, rows, self.experts[number](values[rows]))
        return self.head(values + out)


def reached(network: Experts, inputs: Tensor) -> set[int]:
    return set(network.router(network.stem(inputs)).argmax(1).tolist())


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("rows", [1, 3, 64])
def test_every_other_input_runs(rows: int, seed: int) -> None:
    torch.manual_seed(seed)
    network, inputs = Experts().eval(), torch.randn(rows, 4)
    known = reached(network, inputs)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        report = prune_once(network, inputs)
    network(torch.randn(200, 4) * 3)
    assert {e[0].out_features for e in network.experts} == {HIDDEN // 2, *([HIDDEN] if len(known) < EXPERTS else [])}
    for number, expert in enumerate(network.experts):
        assert expert[0].out_features == (HIDDEN // 2 if number in known else HIDDEN)
    said = [str(warning.message) for warning in caught if "If values decide" in str(warning.message)]
    assert network.stem.out_features == (WIDTH // 2 if len(known) == EXPERTS else WIDTH)
    assert len(said) == (len(known) < EXPERTS)
    if said:
        assert said[0].startswith("'stem.weight' cannot lose channels: the example input does not reach 'experts.")
        assert "does not reach" in report.frozen["stem.weight"]


def test_an_expert_of_another_width_freezes_its_channels() -> None:
    torch.manual_seed(0)
    network, inputs = Experts().eval(), torch.randn(2, 4)
    first = reached(network, inputs)
    prune_once(network, inputs)
    with torch.no_grad():
        network.router.bias[sorted(first)] -= 100  # now others are chosen
    second = reached(network, inputs)
    assert not first & second
    prune_once(network, inputs)
    assert network.stem.out_features == WIDTH
    network(torch.randn(200, 4))


def test_an_unused_layer_freezes_nothing_where_values_do_not_select_layers() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))

        def forward(self, inputs: Tensor) -> Tensor:
            return self.layers[1](self.layers[0](inputs))

    assert list(find_coupling(Unused(), Example.of(torch.zeros(2, WIDTH))).groups) == ["layers.0.weight"]


@pytest.mark.parametrize("where", ["beside it", "in a part of an entry"])
def test_an_unused_parameter_freezes_nothing(where: str) -> None:
    class Leftover(nn.Module):
        """Looks at a value, so that it runs on real tensors, and has a norm that nothing uses."""

        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(nn.Module() for _ in range(2))
            for block in self.blocks:
                block.conv = nn.Linear(WIDTH, WIDTH)
            self.norm, self.other = nn.BatchNorm1d(WIDTH), nn.BatchNorm1d(WIDTH)
            if where != "beside it":
                for block in self.blocks:
                    block.shortcut = nn.Linear(WIDTH, WIDTH)
            self.head = nn.Linear(WIDTH, 2)

        def forward(self, inputs: Tensor) -> Tensor:
            values = self.norm(self.blocks[0].conv(inputs))
            assert torch.isfinite(values).all()
            if where != "beside it":
                values = values + self.blocks[0].shortcut(inputs)
            return self.head(self.blocks[1].conv(values.relu()))

    report = prune_once(Leftover().eval(), torch.randn(4, WIDTH))
    assert sorted(report.widths.values()) == [(WIDTH, WIDTH // 2)] * 2


def test_a_router_that_moves_between_events(tmp_path) -> None:
    class Lit(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.example_input_array = Experts(), torch.randn(4, 4)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.net(inputs)

        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            with torch.no_grad():
                self.net.router.bias.copy_(torch.randn(EXPERTS))
            return self(batch).square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.1)

    torch.manual_seed(0)
    lit, pruning = Lit(), IterativePruning(Rounds(1, 1, 4), Ratio(0.5), "magnitude")
    options = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = Trainer(max_epochs=6, accelerator="cpu", callbacks=[pruning], default_root_dir=tmp_path, **options)
    trainer.fit(lit, DataLoader(torch.randn(64, 4), 16))
    assert pruning.pruner.event == 4
    lit.net.router.bias.data.zero_()
    lit(torch.randn(200, 4) * 3)
