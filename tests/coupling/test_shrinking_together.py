import pytest
from helpers.bundled import by_hand

COUPLING = by_hand({"a": 8, "b": 4, "c": 5, "d": 6, "e": 3}, ({"d": 2, "a": 1}, {"b": 1, "e": 3}))


def test_bundles_stand_where_their_first_group_does() -> None:
    parts = COUPLING.shrinking_together(["a", "b", "c", "d", "e"])
    assert parts == [{"d": 2, "a": 1}, {"b": 1, "e": 3}, {"c": 1}]
    assert COUPLING.shrinking_together(["c", "e", "b"]) == [{"c": 1}, {"b": 1, "e": 3}]
    assert COUPLING.shrinking_together([]) == []


@pytest.mark.parametrize("names", [["a", "b", "e"], ["c", "d"]], ids=str)
def test_a_part_of_a_bundle_is_refused(names: list[str]) -> None:
    with pytest.raises(ValueError, match=r"shrinks only together with '[ad]', which is not among"):
        COUPLING.shrinking_together(names)


def test_a_frozen_group_freezes_its_bundle_and_no_other_group() -> None:
    together = "(the code splits one by the other), which must stay: outside the scope"
    assert COUPLING.kept_together({}) == {}
    assert COUPLING.kept_together({"c": "outside the scope"}) == {"c": "outside the scope"}
    reasons = {"a": "outside the scope", "c": "x"}
    found = COUPLING.kept_together(reasons)
    assert found == {**reasons, "d": f"shrinks only together with 'a' {together}"}
    assert COUPLING.kept_together(found) == found
    assert reasons == {"a": "outside the scope", "c": "x"}


def test_a_bundle_without_one_of_its_groups_is_frozen() -> None:
    coupling = by_hand({"stream": 4}, ({"stream": 2, "heads": 1},))
    assert coupling.kept_together({})["stream"].endswith("which must stay: it has no channels that can be removed")
    coupling.frozen["heads"] = "output of the network"
    assert coupling.kept_together({})["stream"].endswith("which must stay: output of the network")
