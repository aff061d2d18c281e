"""The command line: parses, shows, maps errors to exit codes.

Every file of `commands/` adds its commands in `register(commands)`; a new one needs no other
edit. It is Python's argparse, so that what needs no training works with the core alone. A run's
options are flags whose names, help and rules come from the recipe's own fields.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import io
import os
import pkgutil
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import Field
from typing import Any, NoReturn

import throughtime
from throughtime.cli import commands as folder
from throughtime.errors import EndedElsewhere, ThroughtimeError, missing_extra
from throughtime.tasks import Task, available
from throughtime.tasks.recipe import (
    NO_COUNT,
    Recipe,
    describe_rule,
    did_you_mean,
    list_options,
    parse_option,
)

# Packages of the extra `train`, by the name they are imported under.
_EXTRA = ("lightning_fabric", "safetensors", "rich", "plotly", "polars")

_DEBUG = "--debug"
_OPTION = re.compile(r"-\D.*", re.DOTALL)  # a single dash, and -5, are values
_CTRL_C, _NO_READER = 130, 141  # what a shell calls a program that SIGINT or SIGPIPE ended


class UsageError(Exception):
    """A command line that does not fit; its text says what, and where to look."""


class Parser(argparse.ArgumentParser):
    """The options of one command, as argparse has them; what does not fit is a UsageError."""

    def __init__(self, **how: Any) -> None:
        self.options: list[str] = []
        layout = argparse.RawDescriptionHelpFormatter
        super().__init__(**how, allow_abbrev=False, add_help=False, formatter_class=layout)
        self.add_argument("--help", "-h", action="help", help="Show this help.")

    def add_argument(self, *names: str, **how: Any) -> argparse.Action:
        """One argument or option, as argparse takes it."""
        self.options += [name for name in names if name.startswith("-")]
        return super().add_argument(*names, **how)

    def add_number(
        self, name: str, default: float | None, text: str, metavar: str = "INT", whole: bool = True
    ) -> None:
        """An option that is a number, whole or not."""
        kind = read_whole_number if whole else read_number
        self.add_argument(name, type=kind, metavar=metavar, default=default, help=text)

    def parse(self, words: Sequence[str]) -> dict[str, Any]:
        """The values of all arguments, by name.

        Raises:
            UsageError: the words do not fit.
            SystemExit: the help was asked for, and has been shown.
        """
        for word in words[: words.index("--")] if "--" in words else words:
            option = word.partition("=")[0]
            if _OPTION.fullmatch(option) and option not in self.options:
                hint = did_you_mean(option, self.options)
                raise UsageError(f"no such option: {option}{hint or self._see()}")
        values, rest = self.parse_known_args(words)
        if rest:
            raise UsageError(f"unexpected argument: {rest[0]}{self._see()}")
        return vars(values)

    def error(self, message: str) -> NoReturn:
        """Called by argparse with what does not fit."""
        missing = message.removeprefix("the following arguments are required: ")
        option = re.sub(r"^argument (\S+):", r"\1", message)  # --lag: must be a whole number
        text = f"missing {missing}" if missing != message else option
        raise UsageError(f"{text}{self._see()}")

    def _see(self) -> str:
        return f"; see {self.prog} --help"


class Commands:
    """The program's commands, as their files register them.

    Attributes:
        words: of the command line after the command's name; help may depend on them.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.words = words
        self.program = Parser(
            prog="throughtime", description=throughtime.__doc__,
            epilog="Every command takes --debug: an error then shows where it arose.",
        )  # fmt: skip
        self.program.add_argument(
            "--version", action="version", version=f"throughtime {throughtime.__version__}",
            help="Show the version.",
        )  # fmt: skip
        self._parsers = self.program.add_subparsers(title="commands", metavar="COMMAND")
        self._calls: dict[str, tuple[Parser, Callable[..., None]]] = {}

    def add(self, name: str, call: Callable[..., None]) -> Parser:
        """A new command; `call` gets the values of its arguments by name."""
        about = (inspect.getdoc(call) or "").replace("%", "%%")
        parser: Parser = self._parsers.add_parser(name, help=about, description=about)
        self._calls[name] = parser, call
        return parser

    def find(self, name: str) -> Parser:
        """The options of a command."""
        return self._calls[name][0]

    def run(self, name: str) -> None:
        """Runs one, or shows the help or version that was asked for in its place."""
        if name not in self._calls:
            kind = "option" if name.startswith("-") else "command"
            names = self.program.options if kind == "option" else list(self._calls)
            if name not in names:
                hint = did_you_mean(name, names) or "; see throughtime --help"
                raise UsageError(f"no such {kind}: {name}{hint}")
            self.program.parse_args([name])
        parser, call = self._calls[name]
        call(**parser.parse(self.words))


def run(arguments: list[str]) -> int:
    """Runs the command in `arguments`; 0, 2 for an error, 130 for Ctrl-C.

    `--debug`, anywhere, keeps the traceback of an error.
    """
    debug = _DEBUG in arguments
    try:
        return _run([one for one in arguments if one != _DEBUG])
    except SystemExit as done:  # argparse has shown a help or the version
        return int(done.code or 0)
    except KeyboardInterrupt:
        return _CTRL_C
    except EndedElsewhere:  # which said why
        return 2
    except BrokenPipeError:  # as in `throughtime cells | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return _NO_READER
    except (ThroughtimeError, UsageError, OSError, ImportError, RuntimeError, MemoryError) as error:
        sentence = _sentence(error)
        if sentence is None:
            raise
        if debug:
            traceback.print_exc()
        print(f"error: {sentence}", file=sys.stderr)
        return 2


def _run(words: list[str]) -> int:
    commands = Commands(words[1:])
    for entry in pkgutil.iter_modules(folder.__path__):
        importlib.import_module(f"{folder.__name__}.{entry.name}").register(commands)
    if not words:
        commands.program.print_help(sys.stderr)
        return 2
    commands.run(words[0])
    if sys.stdout is not None:
        sys.stdout.flush()  # what cannot be written is seen here, not when the program has ended
    return 0


def _sentence(error: Exception) -> str | None:
    """What is wrong in one sentence; None when it is a fault of the program."""
    if isinstance(error, ThroughtimeError | UsageError):
        return str(error)
    if isinstance(error, ModuleNotFoundError) and error.name in _EXTRA:
        return str(missing_extra(str(error.name), "train"))
    if isinstance(error, OSError):
        what = error.filename or "the output, or a file,"
        return f"{what} cannot be used ({error.strerror or error}); see that it can"
    if isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error):
        sizes = re.search(r"allocate (\d+) b", str(error))
        size = f" {int(sizes[1]) / 2**30:.3g} GiB at once" if sizes else " more"
        return f"this machine has not enough memory for{size}; make sizes smaller, say --batch-size"
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0, or 2 with one sentence on stderr."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files may be no text
    return run(list(sys.argv[1:] if arguments is None else arguments))


def add_recipe_flags(
    parser: Parser, commands: Commands, kinds: Mapping[str, type[Task]], without: Sequence[str] = ()
) -> None:
    """One flag for each field that a task's recipe has, but `task` and those of `without`.

    The help has the defaults of the task that the command line names, and leaves out what that
    task does not read; without one it has what all tasks share, and lists them. All are read as
    text, so that one place, the recipe, tells what is wrong with a value.
    """
    values = [word.rpartition("=")[2] for word in commands.words]
    named = [kinds[value] for value in values if value in kinds][:1]
    for field in _list_fields([*named, *kinds.values()], bool(named)).values():
        if field.name not in ("task", *without):
            parser.add_argument(
                f"--{field.name.replace('_', '-')}",
                metavar="|".join(field.metadata["choices"]) or str(field.type).upper(),
                help=_write_help(field.name, named or [*kinds.values()]),
            )
    abouts = {name: (kind.__doc__ or "").partition("\n")[0] for name, kind in kinds.items()}
    lines = [f"  {name:<10} {about}" for name, about in abouts.items()]
    if not named:
        example = "--task latch" if "--task" in parser.options else "latch"
        lines.append(f"\nDefaults of one of them: {parser.prog} {example} --help")
    parser.epilog = "\n".join(["tasks:", *lines])


def parse_flags(flags: Mapping[str, str | None]) -> dict[str, Any]:
    """What was given of the flags, as the recipe takes it; what was not is the preset's."""
    known = _list_fields(available().values())
    return {n: parse_option(known[n], text) for n, text in flags.items() if text is not None}


def _list_fields(kinds: Iterable[type[Task]], first: bool = False) -> dict[str, Field[Any]]:
    """The options of some tasks by name, those that all share first.

    With `first` an option is as the first of them has it.
    """
    every, kinds = list_options(Recipe), list(kinds)
    for kind in kinds:
        every |= {n: f for n, f in list_options(kind.options).items() if n not in every}
    return every | (list_options(kinds[0].options) if first else {})


def read_whole_number(text: str) -> int:
    """The number that somebody typed; argparse says what is wrong with another text."""
    try:
        value = int(text)
    except ValueError:
        value = NO_COUNT
    if abs(value) >= NO_COUNT:
        raise argparse.ArgumentTypeError(f"must be a whole number below {NO_COUNT}, got {text!r}")
    return value


def read_number(text: str) -> float:
    """The number that somebody typed; argparse says what is wrong with another text."""
    try:
        return float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be a number, got {text!r}") from error


def _write_help(name: str, kinds: Sequence[type[Task]]) -> str:
    """The help line of a field with its default in some tasks, all of them or the one asked for."""
    field = list_options(kinds[0].options if len(kinds) == 1 else Recipe).get(name)
    if field is None or all(name in kind.ignores for kind in kinds):
        return argparse.SUPPRESS
    rule = "" if field.metadata["choices"] else f" ({describe_rule(field.metadata, field.type)})"
    quick, full = ({k.presets[p].get(name, list_options(k.options)[name].default) for k in kinds
                    if p in k.presets} for p in ("quick", "full"))  # fmt: skip
    if len(quick) > 1 or len(full) > 1:
        default = "the task's"
    else:
        default = str(*quick) or "none"
        default += f", with --preset full {full.pop()}" if full and full != quick else ""
    return f"{field.metadata['help']}{rule}. Default: {default}.".replace("%", "%%")
