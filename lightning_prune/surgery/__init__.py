"""The plan of one pruning event, its dry run on a copy, and its application to network, optimizers and averages."""

from lightning_prune.surgery.apply import apply_plan, remove_modules, replace_data, zero_removed
from lightning_prune.surgery.averaged_copies import apply_to_copies, following_averages, with_averages
from lightning_prune.surgery.dry_run import OTHER_CODE_PATH, DryRunResult, try_widths
from lightning_prune.surgery.passthrough import Passthrough, identity_for, is_identity
from lightning_prune.surgery.plan import Plan, select
from lightning_prune.surgery.preview import masked_copy, state_after
from lightning_prune.surgery.removal import compensate_scalars, plan_removal
from lightning_prune.surgery.report import Report
from lightning_prune.surgery.weight_norms import rescale_weight_norms, spectral_norm_groups

__all__ = [
    "OTHER_CODE_PATH",
    "DryRunResult",
    "Passthrough",
    "Plan",
    "Report",
    "apply_plan",
    "apply_to_copies",
    "compensate_scalars",
    "following_averages",
    "identity_for",
    "is_identity",
    "masked_copy",
    "plan_removal",
    "remove_modules",
    "replace_data",
    "rescale_weight_norms",
    "select",
    "spectral_norm_groups",
    "state_after",
    "try_widths",
    "with_averages",
    "zero_removed",
]
