"""Two ranks whose clocks disagree: the first measures for both."""

from typing import Any

import pytest
import torch
from helpers.ranks import launch
from helpers.training import same

pytestmark = pytest.mark.slow

SCRIPT = """
import sys
from pathlib import Path

import pytest
import torch
from helpers.fake_time import by_weights, fake_time, total
from helpers.training import Events, Lit, fit
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_prune import IterativePruning
from lightning_prune.budgets import latency_measurement
from lightning_prune.budgets import All, Latency, MACs
from lightning_prune.schedules import Rounds

ranks, folder = int(sys.argv[1]), Path(sys.argv[2])
torch.set_num_threads(1)
BUDGETS = {
    "met": Latency(4.0), "share": All([MACs(keep=0.9), Latency(keep=0.5)]), "not met": Latency(1e-6),
    "met already": Latency(20.0), "no device": Latency(5.0, device="cuda:7"),
}


def main():
    measured = []
    measure = latency_measurement.measure_table
    latency_measurement.measure_table = lambda *args: measured.append(1) or measure(*args)
    for name, budget in BUDGETS.items():
        torch.manual_seed(0)
        lit, events, said = Lit(width=32), Events(), ""
        pruning = IterativePruning(Rounds(1, 1, 2), budget)
        measured.clear()
        with pytest.MonkeyPatch.context() as patch, fake_time(patch) as clock:

            def setup(trainer, module, stage, begin=pruning.setup):
                clock.slowness = 1.0 + 9 * trainer.global_rank
                begin(trainer, module, stage)

            pruning.setup = setup
            options = {"strategy": "ddp", "devices": ranks}
            try:
                trainer = fit(folder, lit, pruning, events, max_epochs=4, **options)
            except MisconfigurationException as error:
                said = str(error)
            result = {
                "weights": {name: p.detach().clone() for name, p in lit.named_parameters()},
                "said": said, "total": total(lit), "dense": total(Lit(width=32)), "tables": len(measured),
                "epochs": [epoch for epoch, _ in events.times], "losses": len(lit.losses), "slowness": clock.slowness,
            }
        torch.save(result, folder / f"{name}_{torch.distributed.get_rank()}.pt")


if __name__ == "__main__":
    main()
"""
NAMES = ("met", "share", "not met", "met already", "no device")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    return launch(tmp_path_factory.mktemp("two"), 2, SCRIPT, NAMES)


@pytest.mark.parametrize("name", ["met", "share"])
def test_ranks_prune_the_same_by_the_clock_of_the_first(name: str, two) -> None:
    first, second = two[name]
    assert (first["slowness"], second["slowness"]) == (1, 10)
    assert same(first["weights"], second["weights"])
    assert first["epochs"] == second["epochs"] == [1, 2]
    wanted = 4.0 if name == "met" else first["dense"] / 2
    assert 0.9 * wanted <= first["total"] <= wanted
    assert (first["tables"], second["tables"]) == (1, 0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("not met", "cannot be met: with the fewest channels in every group a pass takes 0.03 ms"),
        ("met already", "is met already: a pass of the dense network takes 9.888 ms"),
        pytest.param(
            "no device",
            "Latency device='cuda:7' cannot be used",
            marks=pytest.mark.skipif(torch.cuda.device_count() > 7, reason="asks for a device that is not there"),
        ),
    ],
)
def test_what_is_wrong_is_said_on_both(name: str, message: str, two) -> None:
    first, second = two[name]
    assert message in first["said"]
    assert first["said"] == second["said"]
    assert first["losses"] == second["losses"] == 0
