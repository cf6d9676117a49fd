"""The benchmark on networks of other libraries, on networks of ours."""

import json
from pathlib import Path
from typing import Any

import libraries
import pytest
import torch
from common import library_networks
from common.library_networks import networks, smallness
from helpers.training import small_net
from libraries import cells_of, check, difference, error_of, text
from torch import Tensor, nn

from lightning_prune import Report, prune_once

ABOUT = {"date": "2026-01-02", "commit": "abc", "versions": {"torch": "9"}, "hardware": "a machine", "threads": 1}


class Normed(nn.Module):
    """Two hidden layers, of which a norm runs over one; a tuple and a dict go out."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(4, 8), nn.LayerNorm(8)
        self.second, self.last = nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Any:
        logits = self.last(self.second(self.norm(self.first(x))).relu())
        return {"logits": logits}, (logits.argmax(1), logits * 2)


def convolutions() -> tuple[nn.Module, Any]:
    return small_net(), torch.randn(2, 2, 3, 4)


def test_a_network_that_is_as_it_should_be() -> None:
    row = check(convolutions)
    assert row["problems"] == []
    assert row["params"] == sum(p.numel() for p in small_net().parameters())
    assert (row["groups"], row["inexact"], row["frozen"]) == (2, 0, {"output of the network": 1})
    assert row["kept"] < 0.4
    assert row["error"] < 1e-6


def test_where_a_norm_runs_over_channels_the_others_are_compared() -> None:
    row = check(lambda: (Normed(), torch.randn(2, 4)))
    assert (row["groups"], row["inexact"], row["problems"]) == (2, 1, [])
    assert row["error"] < 1e-6

    only = check(lambda: (nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2)), torch.randn(2, 4)))
    assert (only["inexact"], only["error"], only["problems"]) == (1, None, [])
    assert only["no_exact_groups"]


def test_an_error_of_the_second_pruning_is_one() -> None:
    def fails(network: nn.Module, inputs: Any, **options: Any) -> Report:
        if options:
            raise ValueError("the trial failed")
        return prune_once(network, inputs)

    with pytest.raises(ValueError, match="the trial failed"):
        check(lambda: (Normed(), torch.randn(2, 4)), fails)


def test_a_network_that_was_cut_wrongly_is_found() -> None:
    def careless(network: nn.Module, inputs: Any, **options: Any) -> Report:
        report = prune_once(network, inputs, **options)
        with torch.no_grad():
            network[0].weight[0] += 1.0  # type: ignore[index,operator]
        return report

    (problem,) = check(convolutions, careless)["problems"]
    assert problem.startswith("relative error ")


def test_what_may_be_rounding_is_measured_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.dtype] = []

    def difference(pruned: nn.Module, dense: nn.Module, inputs: Tensor, report: Any) -> float:
        seen.append(inputs.dtype)
        assert {p.dtype for net in (pruned, dense) for p in net.parameters()} == {inputs.dtype}
        return 1e-4 if inputs.dtype == torch.float32 else 1e-12

    monkeypatch.setattr(libraries, "difference", difference)
    network, inputs = convolutions()
    assert error_of(network, small_net(), inputs, None) == 1e-12  # type: ignore[arg-type]
    assert seen == [torch.float32, torch.float64]
    assert network[0].weight.dtype == torch.float32  # type: ignore[index]


def test_outputs_that_prove_nothing() -> None:
    net = small_net()
    report = prune_once(net, torch.randn(2, 2, 3, 4))
    dense = small_net()
    for parameter in dense[-1].parameters():
        parameter.data.zero_()
    with pytest.raises(ValueError, match="prove nothing"):
        difference(net, dense, torch.randn(2, 2, 3, 4), report)
    net[-1].bias.data[0] = torch.nan
    with pytest.raises(ValueError, match="no longer finite"):
        difference(net, small_net(), torch.randn(2, 2, 3, 4), report)
    with pytest.raises(ValueError, match="shapes of the outputs changed"):
        difference(nn.Flatten(), small_net(), torch.randn(2, 2, 3, 4), report)


def test_the_smaller_networks_of_a_family_come_first() -> None:
    names = ["vit_large_patch16", "vit_tiny_patch16_384", "vit_tiny_patch16", "vit_small_patch16"]
    assert sorted(names, key=smallness) == [names[2], names[1], names[3], names[0]]


def test_libraries_that_are_not_installed_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "timm" else True)
    for name in ("timm", "transformers", "segmentation", "monai"):
        monkeypatch.setattr(library_networks, name, lambda name=name: {f"a network of {name}": None})
    assert list(networks()) == ["transformers", "segmentation_models_pytorch", "monai"]


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    builders = {"small": convolutions, "unlike": convolutions, "small, broken": lambda: (nn.Linear(3, 2), 1)}
    monkeypatch.setattr(libraries, "networks", lambda: {"ours": builders})
    libraries.main(["--only", "ours/small*", "--json", str(tmp_path / "found.json")])
    assert capsys.readouterr().out == "1 of 2 networks pass all checks\n"
    content = json.loads((tmp_path / "found.json").read_text())
    assert [(row["library"], row["name"]) for row in content["rows"]] == [("ours", "small"), ("ours", "small, broken")]
    libraries.main(["--only", "ours/unlike", "--json", str(tmp_path / "found.json")])
    assert capsys.readouterr().out == "2 of 3 networks pass all checks\n"
    page = (tmp_path / "found.md").read_text()
    assert "\n## ours\n\n2 of 3 pass all checks.\n\n| network | parameters |" in page
    assert "output of the network: 1" in page


def test_the_table_by_hand() -> None:
    row = {
        "library": "timm", "name": "a", "params": 12000, "groups": 3, "kept": 0.25, "error": 1.2e-7, "seconds": 0.51,
        "frozen": {"output of the network": 1, "one|two": 2}, "inexact": 0, "problems": [],
    }  # fmt: skip
    assert cells_of(row) == ["a", "12,000", "3", "0.250", "1e-07", "0.5", "output of the network: 1<br>one/two: 2", ""]
    assert cells_of({**row, "error": None, "problems": ["x", "y"]})[4::3] == ["", "x; y"]
    failed = {"library": "timm", "name": "b", "problems": ["ValueError: it fails"]}
    assert cells_of(failed) == ["b", *[""] * 6, "ValueError: it fails"]
    assert "\n1 of 2 pass all checks.\n" in text({**ABOUT, "rows": [row, failed]})
