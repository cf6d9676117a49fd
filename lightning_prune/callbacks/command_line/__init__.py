"""The subcommands that train: the LightningCLI, its help and error messages, and the command that resumes a run."""

from lightning_prune.callbacks.command_line.training import PruneCLI, run

__all__ = ["PruneCLI", "run"]
