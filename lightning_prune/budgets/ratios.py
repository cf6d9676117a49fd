"""A share of its own for every layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from lightning_prune.budgets.budget import Budget, BudgetError, check_moves, check_share, some
from lightning_prune.budgets.spaces.candidates import Candidate
from lightning_prune.budgets.spaces.channel_space import ChannelSpace
from lightning_prune.budgets.spaces.weight_space import WeightSpace
from lightning_prune.scope import any_match


@dataclass(frozen=True, repr=False)
class Ratios(Budget):
    """Explicit shares removed, by patterns on names.

    A pattern (``fnmatch``, on qualified names, as in ``Scope``) picks a parameter, or a module with everything below
    it; the first that matches counts, so exceptions come first. With ``Channels()`` it has to match a layer that makes
    the channels, not one that only reads them; channels that go together, such as a residual stream, have one share.

    Args:
        shares: Pattern -> share removed of the original, in [0, 1]; the first that matches counts.
        default: Share removed where no pattern matches.

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
            raise ValueError(f"Ratios shares={{}} picks nothing; for one share everywhere use Ratio({self.default!r})")
        for pattern, share in pairs:
            if not isinstance(pattern, str):
                raise ValueError(f"Ratios shares has the pattern {pattern!r}; a pattern is a string such as 'layer1.*'")
            check_share(self, f"shares[{pattern!r}]", share)
        check_share(self, "default", self.default)
        object.__setattr__(self, "shares", pairs)  # hashable, and in order, which counts

    def __repr__(self) -> str:
        return f"Ratios(shares={dict(self.shares)!r}, default={self.default!r})"

    def keep_units(self, space: ChannelSpace, fraction: float) -> Mapping[str, int]:
        """What the shares leave of every group."""
        removed: dict[str, float] = {}
        for candidate in space.candidates:
            share = self._share_of(candidate, space)
            removed.update(dict.fromkeys(candidate.quantum, share * fraction))
        return space.keep_shares(removed)

    def check_units(self, space: ChannelSpace, events: int | None) -> None:
        """Also refuse patterns that do nothing, and shares that rounding turns into nothing."""
        kept = self.keep_units(space, 1.0)
        if space.now == space.dense_units and not space.exhausted:
            makers = [_makers(candidate, space) for candidate in space.candidates]
            self._check_patterns(makers, "layer whose channels can be removed")
            if self.default or any(share for _, share in self._pairs):
                check_moves(self, space, kept)

    def mask_weights(self, space: WeightSpace, fraction: float) -> Mapping[str, int]:
        """What the shares take of every parameter."""
        counts = {}
        for name, size in space.sizes.items():
            counts[name] = min(round(self._share_for([name]) * fraction * size), size - 1)
        return counts

    def check_weights(self, space: WeightSpace, events: int | None) -> None:
        """Also refuse patterns that do nothing, and shares of which one weight has to stay."""
        for name, size in space.sizes.items():
            share = self._share_for([name])
            if share == 1 or (self._heard([name]) and round(share * size) == size > 1):
                raise BudgetError(f"{self} leaves no weight in {name!r}; at most {1 - 1 / size:.6f} can go there")
        self._check_patterns([[name] for name in space.sizes], "parameter in the scope", space.left_out)

    @property
    def _pairs(self) -> Sequence[tuple[str, float]]:
        assert isinstance(self.shares, tuple)
        return self.shares

    def _heard(self, names: Sequence[str]) -> list[tuple[str, float, list[str]]]:
        """The patterns, shares and matches that decide over ``names``, which have one share.

        The first pattern that matches does, and others that match elsewhere; what matches all that it does, and more,
        is what it makes an exception from.
        """
        asked = [(p, share, [n for n in names if any_match([n], [p])]) for p, share in self._pairs]
        asked = [found for found in asked if found[2]]
        return asked[:1] + [found for found in asked[1:] if not set(asked[0][2]) <= set(found[2])]

    def _share_for(self, names: Sequence[str]) -> float:
        return next((share for _, share, _ in self._heard(names)), self.default)

    def _share_of(self, candidate: Candidate, space: ChannelSpace) -> float:
        """The one share of everything that shrinks with ``candidate``."""
        heard = self._heard(_makers(candidate, space))
        share = self._share_for(_makers(candidate, space))
        for pattern, other, names in heard:
            if other != share:
                raise BudgetError(
                    f"Ratios asks for {share} of {_layer(heard[0][2][0])!r} ({heard[0][0]!r}) and {other} of "
                    f"{_layer(names[0])!r} ({pattern!r}), whose channels go only together; give both one share"
                )
        name, quantum = next(iter(candidate.quantum.items()))
        units = space.dense_units[name]
        if units * (1 - share) < quantum / 2 and (heard or share == 1):
            raise BudgetError(
                f"{self} leaves no channel in {some(candidate.quantum)}; at most {1 - quantum / units:.4f} can go there"
            )
        return share

    def _check_patterns(
        self, parts: Sequence[Sequence[str]], what: str, left_out: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        """Every pattern must decide something; ``parts`` are names, of which those in one part go together.

        ``left_out`` says of others why they stay as they are.
        """
        names = [name for part in parts for name in part]
        deciding = {pattern for part in parts for pattern, _, _ in self._heard(part)}
        for number, (pattern, _) in enumerate(self._pairs):
            if pattern in deciding:
                continue
            found = [name for name in names if any_match([name], [pattern])]
            if found:
                together = [name for part in parts if not set(found).isdisjoint(part) for name in part]
                before = next(p for p, _ in self._pairs[:number] if any_match(together, [p]))
                raise ValueError(
                    f"Ratios shares[{pattern!r}] decides nothing: {before!r} comes before it and picks all that it "
                    "matches; put the narrower pattern first"
                )
            dense = {name: why for name, why in left_out.items() if any_match([name], [pattern])}
            if dense:
                raise ValueError(
                    f"Ratios shares[{pattern!r}] matches only what stays dense: {dict(list(dense.items())[:5])}; leave "
                    "it out, or change the block"
                )
            raise ValueError(
                f"Ratios shares[{pattern!r}] matches no {what}; there are {some(dict.fromkeys(map(_layer, names)))}"
            )


def _makers(candidate: Candidate, space: ChannelSpace) -> list[str]:
    """The tensors that make the channels of ``candidate``."""
    groups = [space.coupling.groups[name] for name in candidate.quantum]
    return list(dict.fromkeys(m.tensor for group in groups for m in group.members if not m.reads))


def _layer(tensor: str) -> str:
    return tensor.rpartition(".")[0] or tensor
