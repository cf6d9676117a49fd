"""``fit``, ``validate`` and ``test``: a LightningCLI with the callbacks, tasks and data modules of this package."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.trainer.states import TrainerStatus
from lightning.pytorch.utilities.exceptions import MisconfigurationException

# Imported for their short names: LightningCLI finds the classes that are imported.
import lightning_prune.callbacks
import lightning_prune.distilling
import lightning_prune.schedules
import lightning_prune.tasks  # noqa: F401
from lightning_prune.callbacks.command_line.help_texts import HelpFormatter, set_titles
from lightning_prune.callbacks.command_line.parser_errors import explain
from lightning_prune.callbacks.command_line.resume import how_to_resume
from lightning_prune.callbacks.loading import PrunedCheckpoints
from lightning_prune.callbacks.reporting.summary import PruningSummary
from lightning_prune.methods import recipe_path

_PROG = "lightning-prune"
_DESCRIPTIONS = {
    "fit": "Train a network and prune it during training.",
    "validate": "Evaluate a network or checkpoint on the validation data.",
    "test": "Evaluate a network or checkpoint on the test data.",
}


class PruneParser(LightningArgumentParser):
    """Parser that reports an error in one line, without the usage."""

    config_files: tuple[str, ...] = ()

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Print what is wrong, and exit."""
        if not self.exit_on_error:  # parsers of nested classes, whose errors become part of the message
            return super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        known = {action.dest for action in parser._actions if action.option_strings}
        self.exit(2, f"{_PROG}: {explain(message, known, self.config_files)}\n")


class SaveConfig(SaveConfigCallback):
    """Writes the configuration next to the logs; a resumed run in the same folder keeps the file that is there."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write the file, once."""
        exists = Path(trainer.log_dir or ".", self.config_filename).is_file()
        if not (exists and self.config.get("ckpt_path")):
            super().setup(trainer, pl_module, stage)


class PruneCLI(LightningCLI):
    """``fit``, ``validate`` and ``test`` with pruning; ``fit`` ends with the summary where ``PruningSummary`` is used.

    Args:
        args: Command-line arguments; those of the process by default.
    """

    def __init__(self, args: ArgsType = None) -> None:
        subcommands = {
            name: {"description": text, "usage": f"{_PROG} {name} [options]"} for name, text in _DESCRIPTIONS.items()
        }
        super().__init__(
            trainer_defaults={"callbacks": [PrunedCheckpoints()]},
            save_config_callback=SaveConfig,
            parser_class=PruneParser,
            parser_kwargs={"prog": _PROG, **subcommands},
            args=args,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The subcommands, and the arguments of the Trainer's methods that the command line does not set."""
        known = LightningCLI.subcommands()
        return {name: known[name] for name in _DESCRIPTIONS}

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """A parser with the help texts of this package."""
        return super().init_parser(formatter_class=HelpFormatter, **kwargs)

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        set_titles(parser)
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse the arguments; ``--config recipe:NAME`` names a recipe of this package.

        Raises:
            MisconfigurationException: If there is no such recipe.
        """
        if args is not None and not isinstance(args, list):
            super().parse_arguments(parser, args)
            return
        given = list(sys.argv[1:] if args is None else args)
        try:
            resolved = _with_recipes(given)
        except ValueError as error:
            raise MisconfigurationException(str(error)) from error
        for one in (parser, *self._subcommand_parsers.values()):
            if isinstance(one, PruneParser):
                one.config_files = tuple(_configs(resolved))
        self.arguments = given
        self.config = parser.parse_args(resolved)

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

    def _run_subcommand(self, subcommand: str) -> None:
        try:
            super()._run_subcommand(subcommand)
        except SystemExit:  # Lightning's end of an interrupted run
            trainer: Any = self.trainer
            if subcommand == "fit" and trainer.state.status == TrainerStatus.INTERRUPTED and trainer.is_global_zero:
                print(how_to_resume(trainer, getattr(self, "arguments", ["fit"])), file=sys.stderr, flush=True)
            raise

    def after_fit(self) -> None:
        """Print what pruning has achieved."""
        summaries = [c for c in self.trainer.callbacks if isinstance(c, PruningSummary)]  # type: ignore[attr-defined]
        if summaries and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            summaries[0].conclude(self.trainer, self.model, self.datamodule)


def run(args: Sequence[str]) -> None:
    """Run a subcommand; a wrong configuration or path is one line, not a traceback."""
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated.*")  # of Lightning under torch 2.15
    _log_above_progress_bars()
    try:
        PruneCLI(list(args))
    except (MisconfigurationException, FileNotFoundError) as error:
        print(f"{_PROG}: {error}", file=sys.stderr)
        sys.exit(1)


def _with_recipes(args: Sequence[str]) -> list[str]:
    """The arguments with the path of each recipe in place of ``recipe:NAME``."""
    resolved: list[str] = []
    for arg, before in zip(args, ["", *args[:-1]], strict=True):
        option, equals, value = arg.partition("=")
        if before in ("-c", "--config"):
            resolved.append(recipe_path(arg))
        elif option in ("-c", "--config") and equals:
            resolved.append(f"{option}={recipe_path(value)}")
        else:
            resolved.append(arg)
    return resolved


def _configs(args: Sequence[str]) -> list[str]:
    """The configuration files that the arguments name."""
    following = [arg for arg, before in zip(args[1:], args[:-1], strict=True) if before in ("-c", "--config")]
    return following + [arg.partition("=")[2] for arg in args if arg.startswith(("-c=", "--config="))]


class _Stderr:
    """The current standard error: a progress bar replaces it while it is shown."""

    def write(self, text: str) -> None:
        sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


def _log_above_progress_bars() -> None:
    """Let Lightning's log handlers write to the current standard error.

    They keep the one of the import, and progress bars overwrite what is written there.
    """
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        for handler in logging.getLogger(name).handlers:
            if type(handler) is logging.StreamHandler:
                handler.setStream(_Stderr())
