import pytest
from helpers.bundled import by_hand

from lightning_prune.coupling.shrinking_together import shrinking_together, stay_together

COUPLING = by_hand({"a": 8, "b": 4, "c": 5, "d": 6, "e": 3}, ({"d": 2, "a": 1}, {"b": 1, "e": 3}))


def test_bundles_stand_where_their_first_group_does() -> None:
    parts = shrinking_together(COUPLING, ["a", "b", "c", "d", "e"])
    assert parts == [{"d": 2, "a": 1}, {"b": 1, "e": 3}, {"c": 1}]
    assert shrinking_together(COUPLING, ["c", "e", "b"]) == [{"c": 1}, {"b": 1, "e": 3}]
    assert shrinking_together(COUPLING, []) == []


@pytest.mark.parametrize("names", [["a", "b", "e"], ["c", "d"]], ids=str)
def test_a_part_of_a_bundle_is_refused(names: list[str]) -> None:
    with pytest.raises(ValueError, match=r"shrinks only together with '[ad]', which is not among"):
        shrinking_together(COUPLING, names)


def test_what_must_stay_keeps_its_bundle_and_no_other_group() -> None:
    together = "(the code splits one by the other), which must stay: outside the scope"
    assert stay_together(COUPLING, {}) == {}
    assert stay_together(COUPLING, {"c": "outside the scope"}) == {"c": "outside the scope"}
    reasons = {"a": "outside the scope", "c": "x"}
    found = stay_together(COUPLING, reasons)
    assert found == {**reasons, "d": f"shrinks only together with 'a' {together}"}
    assert stay_together(COUPLING, found) == found
    assert reasons == {"a": "outside the scope", "c": "x"}


def test_a_bundle_stays_without_one_of_its_groups() -> None:
    coupling = by_hand({"stream": 4}, ({"stream": 2, "heads": 1},))
    assert stay_together(coupling, {})["stream"].endswith("which must stay: it has no channels that can go")
    coupling.frozen["heads"] = "output of the network"
    assert stay_together(coupling, {})["stream"].endswith("which must stay: output of the network")
