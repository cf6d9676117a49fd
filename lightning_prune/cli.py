"""The command ``lightning-prune``: its subcommands, each of which imports what it needs when it runs."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from lightning_prune.callbacks.command_line.training import PruneCLI

__all__ = ["SUBCOMMANDS", "PruneCLI", "Subcommand", "main"]

_PROG = "lightning-prune"


@dataclass(frozen=True)
class Subcommand:
    """A subcommand of ``lightning-prune``.

    Attributes:
        help: One line for ``lightning-prune --help``.
        run: Function that is called with the arguments after the name; it imports what it needs itself.
    """

    help: str
    run: Callable[[list[str]], None]


def _training(name: str) -> Callable[[list[str]], None]:
    return lambda args: _train([name, *args])


def _train(args: list[str]) -> None:
    """Run the LightningCLI."""
    from lightning_prune.callbacks.command_line.training import run

    run(args)


def _methods(args: list[str]) -> None:
    """List the methods, or print a recipe."""
    parser = ArgumentParser(prog=f"{_PROG} methods", description="List the pruning methods that have recipes.")
    parser.add_argument("name", nargs="?", metavar="NAME", help="print this recipe, to copy and change it")
    name = parser.parse_args(args).name
    from lightning_prune.methods import method_named, show_methods

    if name is None:
        show_methods()
    else:
        try:
            sys.stdout.write(method_named(name).path.read_text(encoding="utf-8"))
        except ValueError as error:
            _fail(error)


def _inspect(args: list[str]) -> None:
    """Print what checkpoints contain."""
    parser = ArgumentParser(prog=f"{_PROG} inspect", description="Print what pruned checkpoints contain.")
    parser.add_argument("paths", nargs="+", metavar="FILE", help="a Lightning checkpoint, or a file with a state dict")
    paths = parser.parse_args(args).paths
    from lightning_prune.checkpoint.inspection import inspect_file, show

    for path in paths:
        try:
            show(inspect_file(path), path)
        except FileNotFoundError:
            _fail(f"there is no file {path!r}")
        except ValueError as error:
            _fail(str(error).splitlines()[0])


SUBCOMMANDS = {
    "fit": Subcommand("train a network and prune it during training", _training("fit")),
    "validate": Subcommand("evaluate a network or checkpoint on the validation data", _training("validate")),
    "test": Subcommand("evaluate a network or checkpoint on the test data", _training("test")),
    "methods": Subcommand("list the pruning methods that have recipes, or print a recipe", _methods),
    "inspect": Subcommand("print what a pruned checkpoint contains", _inspect),
}


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line. A wrong configuration or path is reported in one line, without a traceback.

    Args:
        args: Arguments after the name of the program; those of the process by default.
    """
    given = list(sys.argv[1:] if args is None else args)
    if not given or given[0] in ("-h", "--help"):
        _parser().print_help()
        sys.exit(0 if given else 2)
    if given[0] == "--version":
        from lightning_prune import __version__

        print(f"{_PROG} {__version__}")
        return
    if given[0] not in SUBCOMMANDS and not given[0].startswith("-"):
        near = get_close_matches(given[0], SUBCOMMANDS, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(SUBCOMMANDS)}"
        _fail(f"there is no subcommand {given[0]!r}; {hint}", 2)
    _import_from_working_directory()
    try:
        if given[0] in SUBCOMMANDS:
            SUBCOMMANDS[given[0]].run(given[1:])
        else:  # options in front of the subcommand, such as a configuration with a section for each
            _train(given)
    except KeyboardInterrupt:
        sys.exit(130)


def _parser() -> ArgumentParser:
    width = max(map(len, SUBCOMMANDS))
    lines = [f"  {name:<{width}}  {subcommand.help}" for name, subcommand in SUBCOMMANDS.items()]
    hints = [
        "",
        f"'{_PROG} SUBCOMMAND --help' describes the arguments of a subcommand.",
        f"Start with '{_PROG} fit --config recipe:quickstart'.",
    ]
    parser = ArgumentParser(
        prog=_PROG,
        usage=f"{_PROG} [-h] [--version] SUBCOMMAND ...",
        description="Prune neural networks while PyTorch Lightning trains them.",
        epilog="\n".join(["subcommands:", *lines, *hints]),
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="show the version and exit")
    return parser


def _import_from_working_directory() -> None:
    """Find modules of the working directory, as ``python -m`` does."""
    if not getattr(sys.flags, "safe_path", False) and not {"", os.getcwd()} & set(sys.path):
        sys.path.insert(0, os.getcwd())


def _fail(message: object, code: int = 1) -> NoReturn:
    print(f"{_PROG}: {message}", file=sys.stderr)
    sys.exit(code)


def __getattr__(name: str) -> Any:
    if name != "PruneCLI":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lightning_prune.callbacks.command_line.training import PruneCLI

    return PruneCLI


if __name__ == "__main__":
    main()
