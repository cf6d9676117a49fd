"""The ``--help`` of the subcommands that train: titles, and descriptions without names of internals."""

from __future__ import annotations

import re
from argparse import Action

from jsonargparse import DefaultHelpFormatter
from lightning.pytorch.cli import LightningArgumentParser

_TITLES = {  # key -> title of its group of arguments
    "trainer": "Trainer",
    "model": "Network, a LightningModule",
    "data": "Data, a LightningDataModule",
    "optimizer": "Optimizer, for a LightningModule without configure_optimizers",
    "lr_scheduler": "Learning rate scheduler, for a LightningModule without configure_optimizers",
    "ckpt_path": "Checkpoint",
}
_HIDDEN = frozenset(  # base classes, and what this command adds itself
    (
        "lightning.Callback",
        "lightning.LightningModule",
        "lightning.LightningDataModule",
        "lightning.pytorch.loggers.logger.DummyLogger",
        "lightning_prune.callbacks.trainer.Callback",
        "lightning_prune.callbacks.PrunedCheckpoints",
        "torch.optim.Optimizer",
        "torch.optim.lr_scheduler.LRScheduler",
    )
)
_ROLE = re.compile(r":\w+:`(?:[^`<]*<)?~?(?:[\w.]*\.)?([\w]+)>?`")  # Sphinx markup: :class:`~torch.nn.Linear`
_LINK = re.compile(r"`([^`<]+?) ?<([^>]+)>`_")
_KNOWN = re.compile(r"known subclasses: (.+)\)$", re.DOTALL)


class HelpFormatter(DefaultHelpFormatter):
    """Formatter without Sphinx markup, base classes and internal classes."""

    def _get_help_string(self, action: Action) -> str:
        text = _ROLE.sub(r"\1", super()._get_help_string(action)).replace("``", "")
        text = _LINK.sub(r"\1 (\2)", text)
        return _KNOWN.sub(lambda found: f"known subclasses: {_shown(found[1])})", text)


def _shown(names: str) -> str:
    return ", ".join(
        name for name in names.split(", ") if name not in _HIDDEN and not name.startswith("lightning.pytorch.cli.")
    )


def set_titles(parser: LightningArgumentParser) -> None:
    """Name the groups of arguments by what they configure."""
    (config,) = (action for action in parser._actions if action.dest == "config")
    config.help = "Configuration file in YAML, or recipe:NAME for a recipe that 'lightning-prune methods' lists."
    for group in parser._action_groups:
        keys = {action.dest.partition(".")[0] for action in group._group_actions}
        for key in keys & set(_TITLES):
            group.title = _TITLES[key]
