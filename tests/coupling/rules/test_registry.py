"""A rule for a new operation, as the docstring of ``rules.registry`` describes it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_prune.coupling import Coupling, find_coupling
from lightning_prune.coupling.rules import registry
from lightning_prune.coupling.rules.lookup import rule_of
from lightning_prune.coupling.rules.registry import rule_for
from lightning_prune.coupling.tracing.tracer import Tracer
from lightning_prune.network.example_input import Example


@torch.library.custom_op("lightning_prune_test::scale_rows", mutates_args=())
def scale_rows(x: Tensor, scale: Tensor) -> Tensor:
    return (x * scale[:, None]).sort(1).values


@scale_rows.register_fake
def _(x: Tensor, scale: Tensor) -> Tensor:
    return torch.empty_like(x)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.scale = nn.Parameter(torch.randn(8, 4)), nn.Parameter(torch.randn(8))
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.linear(x, scale_rows(self.weight, self.scale)))


def coupling() -> Coupling:
    rule_of.cache_clear()
    return find_coupling(Net(), Example.of(torch.zeros(2, 4)))


def test_an_operation_without_a_rule_freezes_its_operands() -> None:
    found = coupling()
    assert not found.groups
    assert "there is no rule for lightning_prune_test.scale_rows.default yet" in found.frozen["weight"]


def test_a_rule_makes_its_operands_prunable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_RULES", dict(registry._RULES))

    @rule_for("lightning_prune_test::scale_rows")
    def _scale_rows(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        x, scale = args
        rows, _columns = tracer.labels(x)
        tracer.tie(rows, tracer.labels(scale)[0])
        tracer.freeze(x, tracer.forward_reason("sorts its columns"), dims=[1])
        tracer.set_labels(out, [rows, None])

    (group,) = coupling().groups.values()
    assert {(member.tensor, member.dim) for member in group.members} == {
        ("weight", 0),
        ("scale", 0),
        ("head.weight", 1),
    }
    rule_of.cache_clear()
