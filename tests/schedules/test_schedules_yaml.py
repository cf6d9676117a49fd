"""YAML builds every schedule by its public class path or its bare name, and writes it back."""

from typing import Any

import pytest
import yaml
from jsonargparse import ArgumentParser, Namespace

from lightning_prune.schedules import Constant, Cosine, Cubic, Exponential, Linear, OneCycle, Rounds, Schedule, Steps

BUILT: dict[str, tuple[Schedule, dict[str, Any]]] = {
    "Constant": (Constant(3), {"start": 3}),
    "Linear": (Linear(1, 5, 2), {"start": 1, "end": 5, "every": 2}),
    "Cubic": (
        Cubic(0.2, 0.75, 0.05, "share", 2),
        {"start": 0.2, "end": 0.75, "every": 0.05, "unit": "share", "power": 2},
    ),
    "Exponential": (Exponential(0, 5, left=0.2), {"start": 0, "end": 5, "left": 0.2}),
    "Cosine": (Cosine(0, 500, 100, "step"), {"start": 0, "end": 500, "every": 100, "unit": "step"}),
    "OneCycle": (OneCycle(0, 5, alpha=10, beta=4), {"start": 0, "end": 5, "alpha": 10, "beta": 4}),
    "Rounds": (Rounds(5, 3, 6), {"start": 5, "every": 3, "count": 6}),
    "Steps": (Steps((5, 10, 12), (0.5, 0.8, 1)), {"times": [5, 10, 12], "fractions": [0.5, 0.8, 1.0]}),
}


def parser() -> ArgumentParser:
    made = ArgumentParser(exit_on_error=False)
    made.add_argument("--config", action="config")
    made.add_subclass_arguments(Schedule, "schedule")
    return made


def parse(class_path: str, init_args: dict[str, Any], tmp_path: Any) -> Namespace:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"schedule": {"class_path": class_path, "init_args": init_args}}))
    return parser().parse_args([f"--config={path}"])


@pytest.mark.parametrize("prefix", ["lightning_prune.schedules.", ""], ids=["path", "bare"])
@pytest.mark.parametrize("name", BUILT)
def test_yaml_builds_and_writes_back(name: str, prefix: str, tmp_path) -> None:
    expected, init_args = BUILT[name]
    parsed = parse(prefix + name, init_args, tmp_path)
    built = parser().instantiate(parsed).schedule
    assert built == expected
    assert hash(built) == hash(expected)
    written = yaml.safe_load(parser().dump(parsed))["schedule"]
    assert written["class_path"] == f"lightning_prune.schedules.{name}"
    again = parse(written["class_path"], written["init_args"], tmp_path)
    assert parser().instantiate(again).schedule == expected


def test_the_command_line_takes_lists() -> None:
    arguments = ["--schedule=Steps", "--schedule.times=[2, 4]", "--schedule.fractions=[0.5, 1]"]
    assert parser().instantiate(parser().parse_args(arguments)).schedule == Steps((2, 4), (0.5, 1))


def test_a_list_that_is_wrong_says_what_the_constructor_says(tmp_path) -> None:
    parsed = parse("Steps", {"times": [4, 2], "fractions": [0.5, 1.0]}, tmp_path)
    with pytest.raises(ValueError, match=r"Steps times\[1\]=2.0 must be greater than the entry before it, 4.0"):
        parser().instantiate(parsed)
