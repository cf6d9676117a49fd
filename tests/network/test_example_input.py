import threading
from functools import partial

import pytest
import torch
from torch import nn

from lightning_prune import prune_once
from lightning_prune.network.copies import copy_of, meta_copy
from lightning_prune.network.example_input import Example, run_on_copy


class WithOptimizer(nn.Module):
    """Keeps a partial that leads to what nobody can copy, as command lines hand them out."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.seen: list[int] = []
        self.make_optimizer = partial(torch.optim.SGD, lock=threading.Lock())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(len(x))
        return self.linear(x)


@pytest.mark.parametrize("make", [copy_of, meta_copy])
def test_copies_share_partials_and_nothing_else(make) -> None:
    model = nn.Sequential(WithOptimizer())
    copied = make(model)
    assert copied[0].make_optimizer is model[0].make_optimizer
    assert copied[0].linear is not model[0].linear
    assert copied[0].linear.weight is not model[0].linear.weight
    assert copied[0].seen is not model[0].seen
    assert copied[0].linear.weight.device.type == ("meta" if make is meta_copy else "cpu")


@pytest.mark.parametrize("on_meta", [True, False])
def test_a_pass_on_a_copy_leaves_the_network_as_it_was(on_meta: bool) -> None:
    model = WithOptimizer()
    shape = run_on_copy(model, Example.of(torch.zeros(4, 3)), lambda copy, inputs: inputs.run(copy).shape, on_meta)
    assert shape[1] == 2
    assert model.seen == []


def test_a_compiled_module_is_copied_without_its_compiled_call() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network[1].compile(backend="eager")
    report = prune_once(network, torch.randn(2, 3, 8, 8), dry_run=True)
    assert report.widths == {"0.weight": (8, 4)}
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_torchscript_is_refused_with_the_cure() -> None:
    scripted = torch.jit.script(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)))
    with pytest.raises(ValueError, match="TorchScript module cannot be traced: prune the Python module"):
        prune_once(scripted, torch.randn(2, 3, 8, 8))


def test_pruning_works_inside_inference_mode() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3))
    with torch.inference_mode():
        assert prune_once(network, torch.randn(2, 3, 8, 8)).widths == {"0.weight": (8, 4)}
