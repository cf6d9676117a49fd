"""Error messages of the argument parser in one line: the innermost cause, and the nearest known name.

jsonargparse reports what each type of a union refused, one below the other. The first of them is the type that the
configuration names; what it refused is the cause.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from difflib import get_close_matches
from importlib import import_module

from jsonargparse._typehints import get_all_subclass_paths
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.loggers import Logger
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lightning_prune.budgets.budget import Budget
from lightning_prune.criteria.criterion import Criterion
from lightning_prune.granularity import Granularity
from lightning_prune.schedules.schedule import Schedule

_BASES = {
    "model": LightningModule,
    "data": LightningDataModule,
    "callbacks": Callback,
    "logger": Logger,
    "optimizer": Optimizer,
    "lr_scheduler": LRScheduler,
    "schedule": Schedule,
    "budget": Budget,
    "criterion": Criterion,
    "granularity": Granularity,
}
_CLASS_KEYS = ("class_path", "init_args")
_MOST_LISTED = 8  # arguments in a message


class _Report:
    """A message of the parser, and where in it the cause is."""

    def __init__(self, message: str, at: int, options: Collection[str], files: Sequence[str]) -> None:
        self.options, self.files = options, files
        before, self.after = message[:at], message[at:]
        keys = re.findall(r'Parser key "([^"]+)"', before) or re.findall(r"^--([\w.]+?)(?:\.help)?: ", before)
        self.key = ".".join(keys)
        owners = re.findall(r"given class_path '([^']+)'", before)
        inner = re.match(r"[^\n]*Got value: Namespace\(class_path='([^']+)'", self.after)
        self.owner: str | None = inner[1] if inner else (owners or [None])[-1]

    def at_key(self, text: str) -> str:
        return f"{self.key}: {text}" if self.key else text

    def unknown_option(self, name: str) -> str:
        if self.owner is None:
            return self._unknown_key(name)
        first = name.partition(".")[0]
        known = _arguments_of(self.owner)
        hint = _near(first, _CLASS_KEYS) or _near(first, known)
        if not hint and 0 < len(known) <= _MOST_LISTED:
            hint = f"; it has {', '.join(known)}"
        return self.at_key(f"{_last(self.owner)} has no argument {first!r}{hint}")

    def _unknown_key(self, name: str) -> str:
        known = {".".join(o.split(".")[:end]) for o in self.options for end in range(1, o.count(".") + 2)}
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            wrong, parent = ".".join(parts[:end]), ".".join(parts[: end - 1])
            if wrong not in known:
                siblings = [key for key in known if key.rpartition(".")[0] == parent]
                return f"there is no key {wrong!r}{_near(wrong, siblings)}"
        return f"{name!r} is not accepted here"

    def unknown_option_of_group(self, group: str, name: str) -> str:
        return self._unknown_key(name if name.startswith(f"{group}.") else f"{group}.{name}")

    def unknown_class(self, name: str) -> str:
        base = _BASES.get(self.key.rpartition(".")[2])
        bases: Iterable[type] = _BASES.values() if base is None else [base]
        names = {_last(path) for one in bases for path in get_all_subclass_paths(one)}
        hint = _near(name, names) or f"; give the full path of a class of your own: my_package.{name}"
        return self.at_key(f"there is no class {name!r}{hint}")

    def unknown_attribute(self, module: str, name: str) -> str:
        kind = "class" if self.owner is None or _last(self.owner) == name else "module"
        return self.at_key(f"module {module!r} has no {kind} {name!r}{_near(name, dir(sys.modules.get(module)))}")

    def unknown_module(self, name: str) -> str:
        parent, _, last = name.rpartition(".")
        if parent:
            near = _near(last, dir(sys.modules.get(parent)), f"{parent}.")
        else:
            near = _near(name, {module for module in sys.modules if not module.startswith("_") and "." not in module})
        path = f" (of {self.owner!r})" if self.owner else ""
        where = near or "; it is searched in the working directory and in the environment"
        return self.at_key(f"there is no module {name!r}{path}{where}")

    def unrecognized(self, arguments: str) -> str:
        first = arguments.split()[0]
        name = first.partition("=")[0].lstrip("-")
        if not first.startswith("-"):
            return f"{first!r} is not an option; a configuration is given with --config {first}"
        if self.owner is not None:
            return self.unknown_option(name)
        return self._unknown_key(name.removesuffix("+")).replace(" '", " '--").replace("key", "option", 1)

    def missing(self, names: str) -> str:
        if self.owner is not None:
            return self.at_key(f"{_last(self.owner)} needs the argument{'s' * (',' in names)} {names}")
        if names.rpartition(".")[2] == "model":
            return "no model is given; use --config FILE, --config recipe:NAME or --model CLASS"
        return f"missing: {names}"

    def no_class(self, base: str) -> str:
        return self.at_key(f"expected a {base} with the keys class_path and init_args{self._value()}")

    def wrong_type(self) -> str:
        alone = "Got value: " in self.after.partition("\n")[0]  # otherwise the types of a union, one below the other
        nested = re.match(r"Expected a <class '[\w.]+'>(?:\n *- Expected a <class '[\w.]+'>)*", self.after)
        found = re.findall(r"Expected a <class '([\w.]+)'>", nested[0] if nested else "")[: 1 if alone else None]
        types = [{"NoneType": "null"}.get(_last(name), _last(name)) for name in found]
        return self.at_key(f"expected {' or '.join(dict.fromkeys(types))}{self._value()}")

    def _value(self) -> str:
        value = re.search(r"Got value: (.+)", self.after) or re.search(r"Given value: (.+)", self.after)
        shown = value[1].strip() if value else ""
        return f", got {shown if len(shown) <= 60 else shown[:57] + '...'}" if shown else ""

    def no_file(self, path: str) -> str:
        return f"there is no file {path!r}"

    def syntax(self, problem: str) -> str:
        lines = [line.strip() for line in problem.splitlines() if line.strip()]
        places = re.findall(r"line (\d+), column (\d+)", problem)
        said = [line for line in lines if not line.startswith('in "')]
        at = f", line {places[-1][0]}, column {places[-1][1]}" if places else ""
        return f"{', '.join(self.files) or 'the configuration'} is not valid YAML{at}: {said[-1] if said else problem}"

    def no_mapping(self) -> str:
        return f"{', '.join(self.files) or 'the configuration'} has no keys such as trainer, model and data"


_CAUSES: tuple[tuple[str, Callable[..., str]], ...] = (
    (r"Option '([^']+)' is not accepted", _Report.unknown_option),
    (r"Subcommand '\w+' does not accept option '([^']+)'", _Report.unknown_option),
    (r"Group '([^']+)' does not accept option '([^']+)'", _Report.unknown_option_of_group),
    (r"Expected a dot import path string: (\S+)", _Report.unknown_class),
    (r"[Mm]odule '([\w.]+)' has no attribute '(\w+)'", _Report.unknown_attribute),
    (r"cannot import name '(\w+)' from '([\w.]+)'", lambda report, name, of: report.unknown_attribute(of, name)),
    (r"No module named '([\w.]+)'", _Report.unknown_module),
    (r"unrecognized arguments: (.+)", _Report.unrecognized),
    (r"the following arguments are required: (.+)", _Report.missing),
    (r"Not a valid subclass of (\w+)", _Report.no_class),
    (r"Expected a <class '[\w.]+'>", _Report.wrong_type),
    (r"File does not exist: '([^']+)'", _Report.no_file),
    (r"Problems parsing config: ((?:.|\n)+)", _Report.syntax),
    (r"Unexpected config: ", _Report.no_mapping),
)


def explain(message: str, options: Collection[str], files: Sequence[str] = ()) -> str:
    """The innermost cause of an error of the parser, in one line.

    Args:
        message: What the parser reports.
        options: Names of all options of the subcommand, such as ``trainer.max_epochs``.
        files: The configuration files that were given.

    Example:
        >>> explain("Subcommand 'fit' does not accept option 'trainr.max_epochs'", {"trainer.max_epochs", "model"})
        "there is no key 'trainr'; did you mean 'trainer'?"
    """
    found = [(match, cause) for pattern, cause in _CAUSES if (match := re.search(pattern, message))]
    if not found:
        return _plain(message, options, files)
    match, cause = min(found, key=lambda pair: pair[0].start())
    return cause(_Report(message, match.start(), options, files), *match.groups())


def _plain(message: str, options: Collection[str], files: Sequence[str]) -> str:
    """What follows the last class path; without one, the first line."""
    problems = list(re.finditer(r"given class_path '[^']+':\s*\n\s*(.+)", message))
    if not problems:
        return message.splitlines()[0] if message else "the arguments are not valid"
    report = _Report(message, problems[-1].start(1), options, files)
    return report.at_key(f"{report.owner}: {problems[-1][1]}")


def _near(name: str, known: Iterable[str], prefix: str = "") -> str:
    near = get_close_matches(name, sorted(known), 1, 0.7)
    return f"; did you mean {prefix + near[0]!r}?" if near else ""


def _arguments_of(path: str) -> list[str]:
    """Names of the arguments of a class, and after them those of its base classes."""
    module, _, name = path.rpartition(".")
    cls = getattr(import_module(module), name)
    constructors = [one.__init__ for one in cls.__mro__ if "__init__" in vars(one)]
    names = dict.fromkeys(name for init in constructors for name in inspect.signature(init).parameters)
    return [name for name in names if name not in ("self", "args", "kwargs")]


def _last(path: str) -> str:
    return path.rpartition(".")[2]
