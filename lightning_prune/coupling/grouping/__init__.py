"""Turns the tied channel ids of a trace into dependency groups and bundles. Imports ``symbols`` and ``tracing``."""

from lightning_prune.coupling.grouping.build_coupling import build_coupling

__all__ = ["build_coupling"]
