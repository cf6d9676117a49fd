"""Ratios: a share for each layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from lightning_prune.budgets.budget import Budget, BudgetError, check_moves, some
from lightning_prune.budgets.spaces.candidates import Candidate
from lightning_prune.budgets.spaces.channel_space import ChannelSpace
from lightning_prune.budgets.spaces.weight_space import WeightSpace
from lightning_prune.network.argument_checks import check_share
from lightning_prune.scope import any_match


@dataclass(frozen=True, repr=False)
class Ratios(Budget):
    """Shares of channels or weights that are removed from each layer, by patterns on names.

    A pattern (``fnmatch``, on qualified names, as in ``Scope``) selects a parameter, or a module with everything in it.
    The first pattern that matches applies, so exceptions come first. With ``Channels()`` a pattern has to match a layer
    that makes the channels, not a layer that only reads them. Coupled channels, such as a residual stream, have one
    share.

    Args:
        shares: Pattern -> share removed of the dense network, in [0, 1].
        default: Share removed where no pattern matches, in [0, 1].

    Raises:
        ValueError: If ``shares`` is not a non-empty mapping, a pattern is not a string, or a share is out of range.

    Example:
        >>> Ratios({"layer1.*": 0.2, "layer4.0.conv2": 0.7}, default=0.5)
        Ratios(shares={'layer1.*': 0.2, 'layer4.0.conv2': 0.7}, default=0.5)
    """

    shares: Mapping[str, float] | Sequence[tuple[str, float]]
    default: float = 0.0
    per_layer = True
    masks = True

    def __post_init__(self) -> None:
        shares = self.shares
        if not isinstance(shares, Mapping) and not (isinstance(shares, tuple) and shares):
            raise ValueError(f"Ratios shares={shares!r} must be a dict of shares by pattern: {{'layer1.*': 0.2}}")
        pairs = tuple(dict(shares).items())
        if not pairs:
            raise ValueError(
                f"Ratios shares={{}} selects nothing; for the same share everywhere use Ratio({self.default!r})"
            )
        for pattern, share in pairs:
            if not isinstance(pattern, str):
                raise ValueError(f"Ratios shares has the pattern {pattern!r}; a pattern is a string such as 'layer1.*'")
            check_share(self, f"shares[{pattern!r}]", share)
        check_share(self, "default", self.default)
        object.__setattr__(self, "shares", pairs)  # hashable, and in order

    def __repr__(self) -> str:
        return f"Ratios(shares={dict(self.shares)!r}, default={self.default!r})"

    def keep_units(self, space: ChannelSpace, fraction: float) -> Mapping[str, int]:
        """Units kept in every group after its share is removed."""
        removed: dict[str, float] = {}
        for candidate in space.candidates:
            share = self._share_of(candidate, space)
            removed.update(dict.fromkeys(candidate.quantum, share * fraction))
        return space.keep_shares(removed)

    def check_units(self, space: ChannelSpace, events: int | None) -> None:
        """Also refuse patterns without effect, and shares that round to no unit."""
        kept = self.keep_units(space, 1.0)
        if space.now == space.dense_units and not space.exhausted:
            makers = [_makers(candidate, space) for candidate in space.candidates]
            self._check_patterns(makers, "layer whose channels can be removed")
            if self.default or any(share for _, share in self._pairs):
                check_moves(self, space, kept)

    def mask_weights(self, space: WeightSpace, fraction: float) -> Mapping[str, int]:
        """The share of every parameter, with one weight kept."""
        counts = {}
        for name, size in space.sizes.items():
            counts[name] = min(round(self._share_for([name]) * fraction * size), size - 1)
        return counts

    def check_weights(self, space: WeightSpace, events: int | None) -> None:
        """Also refuse patterns without effect, and shares that keep no weight of a parameter."""
        for name, size in space.sizes.items():
            share = self._share_for([name])
            if share == 1 or (self._applying([name]) and round(share * size) == size > 1):
                raise BudgetError(f"{self} keeps no weight in {name!r}; use at most {1 - 1 / size:.6f} there")
        self._check_patterns([[name] for name in space.sizes], "parameter in the scope", space.left_out)

    @property
    def _pairs(self) -> Sequence[tuple[str, float]]:
        assert isinstance(self.shares, tuple)
        return self.shares

    def _applying(self, names: Sequence[str]) -> list[tuple[str, float, list[str]]]:
        """Patterns, shares and matches that apply to ``names``, which must have one share.

        The first pattern that matches applies. Of the others, those apply that do not match all of its names: a pattern
        that does is the rule to which the first one is an exception.
        """
        matching = [(p, share, [n for n in names if any_match([n], [p])]) for p, share in self._pairs]
        matching = [found for found in matching if found[2]]
        return matching[:1] + [found for found in matching[1:] if not set(matching[0][2]) <= set(found[2])]

    def _share_for(self, names: Sequence[str]) -> float:
        return next((share for _, share, _ in self._applying(names)), self.default)

    def _share_of(self, candidate: Candidate, space: ChannelSpace) -> float:
        """The share of all groups that are pruned together with ``candidate``."""
        matches = self._applying(_makers(candidate, space))
        share = self._share_for(_makers(candidate, space))
        for pattern, other, names in matches:
            if other != share:
                raise BudgetError(
                    f"Ratios removes {share} of {_layer(matches[0][2][0])!r} ({matches[0][0]!r}) and {other} of "
                    f"{_layer(names[0])!r} ({pattern!r}), whose channels are coupled; give both the same share"
                )
        name, quantum = next(iter(candidate.quantum.items()))
        units = space.dense_units[name]
        if units * (1 - share) < quantum / 2 and (matches or share == 1):
            raise BudgetError(
                f"{self} keeps no channel in {some(candidate.quantum)}; use at most {1 - quantum / units:.4f} there"
            )
        return share

    def _check_patterns(
        self, parts: Sequence[Sequence[str]], what: str, left_out: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        """Check that every pattern has an effect.

        Args:
            parts: Names of tensors, grouped by those that are pruned together.
            what: Description of these tensors, for the message.
            left_out: Name -> why it is not pruned, for other tensors in the scope.

        Raises:
            ValueError: If a pattern has no effect; the message names it.
        """
        names = [name for part in parts for name in part]
        deciding = {pattern for part in parts for pattern, _, _ in self._applying(part)}
        for number, (pattern, _) in enumerate(self._pairs):
            if pattern in deciding:
                continue
            found = [name for name in names if any_match([name], [pattern])]
            if found:
                together = [name for part in parts if not set(found).isdisjoint(part) for name in part]
                before = next(p for p, _ in self._pairs[:number] if any_match(together, [p]))
                raise ValueError(
                    f"Ratios shares[{pattern!r}] has no effect: {before!r} comes first and matches the same names; "
                    "put the narrower pattern first"
                )
            dense = {name: why for name, why in left_out.items() if any_match([name], [pattern])}
            if dense:
                raise ValueError(
                    f"Ratios shares[{pattern!r}] matches only parameters that stay dense: "
                    f"{dict(list(dense.items())[:5])}; remove it, or change the block"
                )
            raise ValueError(
                f"Ratios shares[{pattern!r}] matches no {what}, such as {some(dict.fromkeys(map(_layer, names)))}"
            )


def _makers(candidate: Candidate, space: ChannelSpace) -> list[str]:
    """Names of the tensors that make the channels of ``candidate``."""
    groups = [space.coupling.groups[name] for name in candidate.quantum]
    return list(dict.fromkeys(m.tensor for group in groups for m in group.members if not m.reads))


def _layer(tensor: str) -> str:
    return tensor.rpartition(".")[0] or tensor
