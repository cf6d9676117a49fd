"""From channel ids that a trace has tied together to dependency groups and bundles."""

from lightning_prune.coupling.grouping.build_coupling import build_coupling

__all__ = ["build_coupling"]
