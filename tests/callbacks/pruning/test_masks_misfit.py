"""Weight blocks that fit no layer after channels were removed: pruning ends with a warning that names the cause."""

import re
import warnings
from pathlib import Path

import pytest
from helpers.training import Events, Lit, fit, widths

from lightning_prune import NM, IterativePruning, Scope, Weights
from lightning_prune.budgets import Count, Ratio, Sparsity
from lightning_prune.criteria import Magnitude
from lightning_prune.granularity import Granularity
from lightning_prune.schedules import Constant, Rounds


@pytest.mark.parametrize(
    ("granularity", "said"),
    [
        (NM(2, 4), r"NM\(2, 4\) fits no layer: .*, Channels\(round_to=4\)\. Pruning ends here"),
        (Weights(block=(1, 4)), r"Weights block=\(1, 4\) fits no layer: .*, Channels\(round_to=4\)\. Pruning ends"),
    ],
    ids=["NM", "block"],
)
@pytest.mark.parametrize("start", [1, 3])
def test_pruning_ends_with_one_warning(tmp_path: Path, granularity: Granularity, said: str, start: int) -> None:
    """Eight channels are two blocks of four, six are none; masked weights stay masked."""
    lit, events = Lit(), Events()
    budget = None if isinstance(granularity, NM) else Sparsity(0.5)
    masks = IterativePruning(Rounds(start, 2, 2), budget, Magnitude(), granularity)
    channels = IterativePruning(Constant(2), Ratio(0.25))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(tmp_path, lit, channels, masks, events, max_epochs=7)
    ends = [str(w.message) for w in caught if "Pruning ends here" in str(w.message)]
    assert len(ends) == 1
    assert re.match(said, ends[0])
    assert "'net.8.weight': 'its 6 inputs are not a multiple of 4'" in ends[0]
    assert widths(lit) == [6, 6, 3]
    assert not [w for w in caught if "has to wait" in str(w.message)]
    assert len([w for w in caught if "stay dense" in str(w.message)]) == 1  # the two inputs of the first layer
    assert masks._events.finished
    assert len(events.reports) == (2 if start == 1 else 1)
    zeros = float((lit.net[3].weight == 0).float().mean())
    assert (zeros > 0) == (start == 1)


@pytest.mark.parametrize("granularity", [NM(2, 4), Weights(block=(1, 4))], ids=["NM", "block"])
def test_layers_that_no_longer_fit_are_named(tmp_path: Path, granularity: Granularity) -> None:
    """A channel of the second layer is removed, so the third has seven inputs; the second keeps its eight."""
    lit, events = Lit(), Events()
    budget = None if isinstance(granularity, NM) else Sparsity(0.5)
    masks = IterativePruning(Constant(3), budget, Magnitude(), granularity)
    channels = IterativePruning(Constant(1), Count(1), scope=Scope(include=["net.3"]))
    with pytest.warns(UserWarning, match=r"'net\.8\.weight' \(its 7 inputs are not a multiple of 4\)"):
        fit(tmp_path, lit, channels, masks, events, max_epochs=5)
    assert (lit.net[3].weight == 0).float().mean() > 0.4
    assert not (lit.net[8].weight == 0).any()
