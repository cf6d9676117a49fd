"""The command ``lightning-prune``: a LightningCLI that knows this package's callbacks, tasks and datamodules."""

from __future__ import annotations

import logging
import sys
import warnings
from argparse import ArgumentParser
from pickle import UnpicklingError

from lightning.pytorch.cli import ArgsType, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException

# Imported for their short names: LightningCLI finds what is imported.
from lightning_prune import budgets, callbacks, criteria, distilling, granularity, schedules, tasks
from lightning_prune.callbacks.loading import PrunedCheckpoints
from lightning_prune.callbacks.reporting.summary import PruningSummary
from lightning_prune.checkpoint.inspection import inspect_file, show
from lightning_prune.methods import show_methods

__all__ = ["PruneCLI", "budgets", "callbacks", "criteria", "distilling", "granularity", "main", "schedules", "tasks"]


_DESCRIPTION = (
    "Prune neural networks while they train. 'lightning-prune methods' lists what there are recipes for; "
    "'lightning-prune inspect FILE' prints what a checkpoint holds."
)


class PruneCLI(LightningCLI):
    """``fit``, ``validate`` and ``test`` with pruning; ``fit`` ends with the summary where ``PruningSummary`` is used.

    Args:
        args: Command-line arguments; those of the process by default.
    """

    def __init__(self, args: ArgsType = None) -> None:
        super().__init__(
            trainer_defaults={"callbacks": [PrunedCheckpoints()]},
            parser_kwargs={"prog": "lightning-prune", "description": _DESCRIPTION},
            args=args,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The subcommands, and the arguments of the Trainer's methods that the command line does not set."""
        known = LightningCLI.subcommands()
        return {name: known[name] for name in ("fit", "validate", "test")}

    def instantiate_classes(self) -> None:
        """Build everything that the configuration names.

        Raises:
            MisconfigurationException: If a constructor refuses an argument; the message is the constructor's.
        """
        try:
            super().instantiate_classes()
        except ValueError as error:
            refusal: BaseException = error
            while refusal.__cause__ is not None:  # jsonargparse wraps it in pages about types, one for each union
                refusal = refusal.__cause__
            if not isinstance(refusal, (ValueError, MisconfigurationException)):
                raise
            raise MisconfigurationException(str(refusal)) from error

    def after_fit(self) -> None:
        """Print what pruning has brought."""
        summaries = [c for c in self.trainer.callbacks if isinstance(c, PruningSummary)]  # type: ignore[attr-defined]
        if summaries and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            summaries[0].conclude(self.trainer, self.model, self.datamodule)


def main(args: ArgsType = None) -> None:
    """Run the command line; a wrong configuration or path is one line, not a traceback."""
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated.*")  # of Lightning under torch 2.15
    _log_above_progress_bars()
    given = sys.argv[1:] if args is None else args
    try:
        if isinstance(given, list) and given[:1] == ["inspect"]:
            _inspect(given[1:])
        elif isinstance(given, list) and given[:1] == ["methods"]:
            _methods(given[1:])
        else:
            PruneCLI(args)
    except (MisconfigurationException, FileNotFoundError) as error:
        sys.exit(f"lightning-prune: {error}")


def _inspect(args: list[str]) -> None:
    """Print what checkpoints hold."""
    parser = ArgumentParser(prog="lightning-prune inspect", description="Print what pruned checkpoints hold.")
    parser.add_argument("paths", nargs="+", metavar="FILE", help="a Lightning checkpoint, or a file with a state dict")
    for path in parser.parse_args(args).paths:
        try:
            show(inspect_file(path), path)
        except (ValueError, UnpicklingError) as error:
            sys.exit(f"lightning-prune: {str(error).splitlines()[0]}")


def _methods(args: list[str]) -> None:
    """List the methods."""
    ArgumentParser(
        prog="lightning-prune methods", description="List the methods that there are recipes for."
    ).parse_args(args)
    show_methods()


class _Stderr:
    """The standard error of the moment: a progress bar replaces it for as long as it shows."""

    def write(self, text: str) -> None:
        sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


def _log_above_progress_bars() -> None:
    """Lightning's log handlers keep the standard error of the import, and progress bars paint over what goes there."""
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        for handler in logging.getLogger(name).handlers:
            if type(handler) is logging.StreamHandler:
                handler.setStream(_Stderr())


if __name__ == "__main__":
    main()
