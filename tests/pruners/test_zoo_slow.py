"""All networks of torchvision, pruned by one call without hints: about ten minutes on one core."""

import pytest
from common import zoo, zoo_check


@pytest.mark.slow
@pytest.mark.parametrize("name", zoo.names())
def test_half_of_a_network_goes_without_a_hint(name: str) -> None:
    row = zoo_check.check(name)
    assert zoo_check.problems(row) == [], row
