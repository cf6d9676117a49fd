"""YAML builds every budget by its public class path or its bare name, and writes it back."""

from typing import Any

import pytest
import yaml
from jsonargparse import ArgumentParser, Namespace

from lightning_prune import budgets
from lightning_prune.budgets import (
    ERK,
    All,
    Budget,
    Count,
    FileSize,
    Latency,
    MACs,
    Params,
    Ratio,
    Ratios,
    Sparsity,
    Threshold,
)

PATH = "lightning_prune.budgets."
BUILT: dict[str, tuple[Budget, dict[str, Any]]] = {
    "Ratio": (Ratio(0.5, per_layer=False), {"share": 0.5, "per_layer": False}),
    "Sparsity": (Sparsity(0.9), {"sparsity": 0.9}),
    "Count": (Count(200), {"count": 200}),
    "Params": (Params(keep=0.3), {"keep": 0.3}),
    "MACs": (MACs(keep=0.4, per_layer=True), {"keep": 0.4, "per_layer": True}),
    "Threshold": (Threshold(0.05), {"value": 0.05}),
    "ERK": (ERK(0.9), {"sparsity": 0.9}),
    "FileSize": (FileSize(25.0), {"mb": 25.0}),
    "Latency": (Latency(2.5, batch=8, device="cpu"), {"ms": 2.5, "batch": 8, "device": "cpu"}),
    "Ratios": (
        Ratios({"layer1.*": 0.2, "layer4.0.conv2": 0.7}, default=0.5),
        {"shares": {"layer1.*": 0.2, "layer4.0.conv2": 0.7}, "default": 0.5},
    ),
    "All": (
        All([MACs(keep=0.5), Ratios({"fc": 0.25})]),
        {
            "budgets": [
                {"class_path": PATH + "MACs", "init_args": {"keep": 0.5}},
                {"class_path": PATH + "Ratios", "init_args": {"shares": {"fc": 0.25}}},
            ]
        },
    ),
}


def parser() -> ArgumentParser:
    made = ArgumentParser(exit_on_error=False)
    made.add_argument("--config", action="config")
    made.add_subclass_arguments(Budget, "budget")
    return made


def parse(class_path: str, init_args: dict[str, Any], tmp_path: Any) -> Namespace:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"budget": {"class_path": class_path, "init_args": init_args}}, sort_keys=False))
    return parser().parse_args([f"--config={path}"])


def test_every_budget_is_here() -> None:
    assert BUILT.keys() == set(budgets.__all__) - {"Budget", "BudgetError"}


@pytest.mark.parametrize("prefix", [PATH, ""], ids=["path", "bare"])
@pytest.mark.parametrize("name", BUILT)
def test_yaml_builds_and_writes_back(name: str, prefix: str, tmp_path) -> None:
    expected, init_args = BUILT[name]
    parsed = parse(prefix + name, init_args, tmp_path)
    built = parser().instantiate(parsed).budget
    assert built == expected
    assert hash(built) == hash(expected)
    written = yaml.safe_load(parser().dump(parsed))["budget"]
    assert written["class_path"] == PATH + name
    again = parse(written["class_path"], written["init_args"], tmp_path)
    assert parser().instantiate(again).budget == expected


@pytest.mark.parametrize("name", BUILT)
def test_values_are_frozen_and_written_as_they_are_built(name: str) -> None:
    budget = BUILT[name][0]
    assert eval(repr(budget)) == budget
    assert hash(eval(repr(budget))) == hash(budget)
    with pytest.raises(AttributeError):
        budget.share = budget.masks = 1


def test_parts_by_short_names(tmp_path) -> None:
    parts = [{"class_path": "MACs", "init_args": {"keep": 0.5}}, {"class_path": "Count", "init_args": {"count": 3}}]
    assert parser().instantiate(parse("All", {"budgets": parts}, tmp_path)).budget == All([MACs(0.5), Count(3)])


@pytest.mark.parametrize(
    ("name", "init_args", "message"),
    [
        ("Ratios", {"shares": {"a": 2}}, r"Ratios shares\['a'\]=2"),
        ("Ratios", {"shares": {}}, "selects nothing"),
        ("All", {"budgets": []}, "must be a list of budgets"),
        ("Latency", {"ms": 5.0, "keep": 0.5}, "give exactly one of them"),
        ("Latency", {"ms": -5.0}, "must be a finite number above 0, in milliseconds"),
        ("Threshold", {"value": float("nan")}, "must be a finite number"),
    ],
)
def test_what_is_wrong_says_what_the_constructor_says(name: str, init_args: dict, message: str, tmp_path) -> None:
    parsed = parse(name, init_args, tmp_path)
    with pytest.raises(ValueError, match=message):
        parser().instantiate(parsed)
