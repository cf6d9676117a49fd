"""Rules for ATen operations: which channels an operation ties together, freezes and passes on.

``registry`` shows how to add a rule; ``lookup`` finds the rule of an operation. Imports ``symbols`` and ``tracing``.
"""

from lightning_prune.coupling.rules.lookup import is_cut, is_reshape, rule_of, step_of
from lightning_prune.coupling.rules.registry import Rule, rule_for

__all__ = ["Rule", "is_cut", "is_reshape", "rule_for", "rule_of", "step_of"]
