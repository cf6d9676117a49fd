"""Passes without the compiler."""

import subprocess
import sys

import torch

from lightning_prune.network.eager import running_eagerly

COMPILED_IN_FORWARD = """
import sys
import torch
from torch import nn
from lightning_prune.network.eager import running_eagerly

def compiling(graph, inputs):
    raise AssertionError("compiled")

class Net(nn.Module):
    def forward(self, x):
        return torch.compile(torch.sin, backend=compiling)(x)

assert "torch._dynamo" not in sys.modules
with running_eagerly():
    with running_eagerly():
        nn.Linear(4, 4, device="meta")(torch.zeros(2, 4, device="meta"))
        first = sys.modules["torch._dynamo"]
        assert not hasattr(first, "__file__")
    assert sys.modules["torch._dynamo"] is first
    Net()(torch.zeros(2))
    assert sys.modules["torch._dynamo"] is not first
    assert first.disable is not torch._dynamo.disable
from torch._dynamo.eval_frame import _stance
assert _stance.stance == "default"
try:
    torch.compile(lambda x: x.sin() + 1, backend=compiling)(torch.zeros(2))
except Exception as error:
    print("compiled" in str(error))
"""

LEFT_BEHIND = """
import sys
import torch
from torch import nn
from lightning_prune.network.eager import running_eagerly

with running_eagerly():
    nn.Linear(4, 4, device="meta")(torch.zeros(2, 4, device="meta"))
print("torch._dynamo" in sys.modules, "_dynamo" in vars(torch))
nn.Linear(4, 4, device="meta")(torch.zeros(2, 4, device="meta"))
print("torch._dynamo" in sys.modules, hasattr(torch._dynamo, "__file__"))
"""


def output_of(code: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_code_that_is_compiled_in_the_pass_runs_eagerly() -> None:
    assert output_of(COMPILED_IN_FORWARD) == ["True"]


def test_nothing_is_left_behind() -> None:
    assert output_of(LEFT_BEHIND) == ["False", "False", "True", "True"]  # PyTorch's own kernels import it


def test_what_is_compiled_runs_eagerly() -> None:
    graphs: list[torch.fx.GraphModule] = []

    def compiling(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    plus_one = torch.compile(lambda x: x.sin() + 1, backend=compiling)
    with running_eagerly():
        assert float(plus_one(torch.zeros(()))) == 1
        assert graphs == []
    plus_one(torch.zeros(()))
    assert len(graphs) == 1
