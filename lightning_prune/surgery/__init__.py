"""The plan of one pruning event, its dry run on a copy, and its application to network, optimizers and averages."""

from lightning_prune.surgery.apply import apply_plan, remove_modules, replace_data, zero_removed
from lightning_prune.surgery.averaged_copies import apply_to_copies, following_averages, with_averages
from lightning_prune.surgery.dry_run import ANOTHER_WAY, Trial, try_widths
from lightning_prune.surgery.passthrough import Passthrough, identity_for, is_identity
from lightning_prune.surgery.plan import Plan, select
from lightning_prune.surgery.preview import hidden, state_after
from lightning_prune.surgery.removal import plan_removal, rescaled
from lightning_prune.surgery.report import Report
from lightning_prune.surgery.weight_norms import not_made_up_for, with_lengths

__all__ = [
    "ANOTHER_WAY",
    "Passthrough",
    "Plan",
    "Report",
    "Trial",
    "apply_plan",
    "apply_to_copies",
    "following_averages",
    "hidden",
    "identity_for",
    "is_identity",
    "not_made_up_for",
    "plan_removal",
    "remove_modules",
    "replace_data",
    "rescaled",
    "select",
    "state_after",
    "try_widths",
    "with_averages",
    "with_lengths",
    "zero_removed",
]
