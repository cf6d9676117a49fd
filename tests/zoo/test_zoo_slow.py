"""All networks of torchvision, pruned by one call without hints: about ten minutes on one core."""

import pytest
import zoo


@pytest.mark.slow
@pytest.mark.parametrize("name", zoo.names())
def test_half_of_a_network_goes_without_a_hint(name: str) -> None:
    row = zoo.check(name)
    assert zoo.problems(row) == [], row
