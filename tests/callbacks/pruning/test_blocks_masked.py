"""Removal of encoder layers that receive a mask: resume, files, averages, two ranks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.ranks import launch
from helpers.training import BATCH, Events, fit, images, same, trainer_for
from lightning.pytorch import LightningModule
from lightning.pytorch import callbacks as lightning_callbacks
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_prune import Blocks, IterativePruning, load_pruned
from lightning_prune.budgets import Count, Ratio
from lightning_prune.criteria import BlockInfluence, Sensitivity
from lightning_prune.schedules import Rounds
from lightning_prune.surgery.passthrough import Passthrough

EMA: Any = getattr(lightning_callbacks, "EMAWeightAveraging", None)
CAUSAL = nn.Transformer.generate_square_subsequent_mask(4)
LAYERS = 4


class LitEncoder(LightningModule):
    """Each row of an image is a token; a causal mask restricts attention to earlier rows."""

    def __init__(self, layers: int = LAYERS) -> None:
        super().__init__()
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(6, 2, 12, dropout=0.0, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, layers), nn.Linear(6, 3)
        with torch.no_grad():
            for parameter in self.encoder.parameters():  # PyTorch gives all layers the same
                parameter.add_(0.1 * torch.randn_like(parameter))

    def forward(self, images: Tensor) -> Tensor:
        tokens = images.permute(0, 3, 1, 2).flatten(2)
        return self.head(self.encoder(tokens, mask=CAUSAL.to(tokens), is_causal=True).mean(1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.training_step(batch, batch_idx)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)

    def train_dataloader(self) -> Any:
        return DataLoader(images(), BATCH)

    def val_dataloader(self) -> Any:
        return DataLoader(images(24, seed=1), BATCH)


def blocks(criterion: Any = None) -> IterativePruning:
    return IterativePruning(Rounds(1, 1, 2), Count(1), criterion or BlockInfluence(), Blocks())


METHODS: dict[str, Callable[[], list[Callback]]] = {
    "influence": lambda: [blocks()],
    "sensitivity": lambda: [blocks(Sensitivity())],
    "with_channels": lambda: [blocks(), IterativePruning(Rounds(1, 2, 2), Ratio(0.5), criterion="taylor")],
    "with_ema": lambda: [blocks(), EMA(decay=0.5)],
}


def gone(lit: LitEncoder) -> list[int]:
    return [number for number, layer in enumerate(lit.encoder.layers) if isinstance(layer, Passthrough)]


@pytest.mark.slow
@pytest.mark.parametrize("method", [name for name in METHODS if EMA is not None or name != "with_ema"])
def test_a_resumed_training_ends_as_the_uninterrupted_one(tmp_path: Path, method: str) -> None:
    lit, events = LitEncoder(), Events()
    save = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    trainer = fit(tmp_path, lit, *METHODS[method](), save, events, max_epochs=4)
    removed = [report.plan.removed_modules for report in events.reports if report.plan.removed_modules]
    assert len(removed) == 2
    assert len(gone(lit)) == 2
    assert 0 not in gone(lit)  # which PyTorch looks into
    assert trainer.optimizers[0].state.keys() == set(lit.parameters())
    for epoch in range(3):
        other = LitEncoder()
        again = trainer_for(tmp_path / "again", *METHODS[method](), max_epochs=4)
        again.fit(other, ckpt_path=tmp_path / f"epoch={epoch}.ckpt")
        assert gone(other) == gone(lit)
        assert same(dict(other.state_dict()), dict(lit.state_dict())), epoch
    inputs = images()[:][0]
    for loaded in (
        load_pruned(LitEncoder, tmp_path / "epoch=3.ckpt"),
        load_pruned(LitEncoder(), tmp_path / "epoch=3.ckpt"),
    ):
        assert gone(loaded) == gone(lit)
        if method != "with_ema":  # whose files hold the average
            assert torch.equal(loaded.eval()(inputs), lit.eval()(inputs))


def test_training_equals_that_of_an_encoder_built_without_the_layer(tmp_path: Path) -> None:
    before: dict[str, Any] = {}

    class Before(Callback):
        def on_before_prune(self, trainer: Any, pl_module: Any, _: Any) -> None:
            if not before:
                before["weights"] = {name: value.clone() for name, value in pl_module.state_dict().items()}
                state = trainer.optimizers[0].state
                before["state"] = {
                    name: {key: value.clone() for key, value in state[p].items()}
                    for name, p in pl_module.named_parameters()
                }

    lit = LitEncoder()
    fit(tmp_path, lit, IterativePruning(Rounds(1, 1, 1), Count(1), BlockInfluence(), Blocks()), Before(), max_epochs=2)
    (number,) = gone(lit)
    control = LitEncoder(LAYERS - 1)

    def name_before(name: str) -> str:
        """Later layers have moved up in the control."""
        parts = name.split(".")
        if parts[1] == "layers" and int(parts[2]) >= number:
            parts[2] = str(int(parts[2]) + 1)
        return ".".join(parts)

    control.load_state_dict({name: before["weights"][name_before(name)] for name in control.state_dict()})
    optimizer = torch.optim.SGD(control.parameters(), 0.1, momentum=0.9)
    for name, parameter in control.named_parameters():
        optimizer.state[parameter] = before["state"][name_before(name)]
    for batch in DataLoader(images(), batch_size=BATCH):
        optimizer.zero_grad()
        control.training_step(batch, 0).backward()
        optimizer.step()
    left = lit.state_dict()
    assert same({name: left[name_before(name)] for name in control.state_dict()}, dict(control.state_dict()))
    assert len(left) == len(control.state_dict())


SCRIPT = """
import sys
from pathlib import Path

import torch
from helpers.training import BATCH, fit, images
from test_blocks_masked import METHODS, LitEncoder, gone
from torch.utils.data import DataLoader, DistributedSampler

ranks, folder = int(sys.argv[1]), Path(sys.argv[2])
torch.set_num_threads(1)


class Half(LitEncoder):
    def loader(self, data):
        sampler = DistributedSampler(data, ranks, self.global_rank, shuffle=False)
        return DataLoader(data, BATCH // ranks, sampler=sampler)

    def train_dataloader(self):
        return self.loader(images())

    def val_dataloader(self):
        return self.loader(images(24, seed=1))


if __name__ == "__main__":
    for name in ("influence", "sensitivity", "with_channels"):
        lit = Half()
        trainer = fit(folder, lit, *METHODS[name](), max_epochs=4, strategy="ddp", devices=ranks,
                      use_distributed_sampler=False)
        result = {"weights": dict(lit.named_parameters()), "gone": gone(lit)}
        torch.save(result, folder / f"{name}_{trainer.global_rank}.pt")
"""


@pytest.mark.slow
def test_two_ranks(tmp_path: Path) -> None:
    """Without dropout and batch norms they train as one process does, up to rounding."""
    names = ("influence", "sensitivity", "with_channels")
    for name, (first, second) in launch(tmp_path, 2, SCRIPT, names).items():
        assert same(first, second), name
        assert len(first["gone"]) == 2
        lit = LitEncoder()
        fit(tmp_path, lit, *METHODS[name](), max_epochs=4)
        assert gone(lit) == first["gone"], name
        for key, value in lit.named_parameters():
            torch.testing.assert_close(first["weights"][key], value, rtol=1e-3, atol=1e-4)
