"""The program: finds the commands, runs one, turns what is wrong into one sentence."""

from __future__ import annotations

import importlib
import pkgutil
import sys
import traceback
from typing import Annotated

import typer

import throughtime
from throughtime import cli
from throughtime.errors import ThroughtimeError, missing_extra

# Packages of the extra `train`, by the name they are imported under.
_EXTRA = ("pytorch_lightning", "safetensors", "rich")

_DEBUG = "--debug"


def run(arguments: list[str]) -> int:
    """Runs the command in `arguments`; 0, 2 for an error, 130 for Ctrl-C.

    `--debug`, anywhere, keeps the traceback of an error.
    """
    debug = _DEBUG in arguments
    try:
        rest = [one for one in arguments if one != _DEBUG]
        return _app()(rest, prog_name="throughtime", standalone_mode=False) or 0
    except (ThroughtimeError, typer.TyperException, OSError, ModuleNotFoundError) as error:
        if debug:
            traceback.print_exc()
        if sentence := _sentence(error):  # called without a command, typer has shown the help
            print(f"error: {sentence}", file=sys.stderr)
        return 2


def _app() -> typer.Typer:
    app = typer.Typer(
        name="throughtime",
        add_completion=False,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        epilog="Every command takes --debug: an error then shows where it arose.",
    )
    app.callback()(_root)
    for entry in pkgutil.iter_modules(cli.__path__):
        module = importlib.import_module(f"{cli.__name__}.{entry.name}")
        if hasattr(module, "register"):
            module.register(app)
    return app


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"throughtime {throughtime.__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            metavar=" ",
            callback=_show_version,
            is_eager=True,
            help="Show the version.",
        ),
    ] = False,
) -> None:
    """Recurrent networks for PyTorch, compiled from their textbook equations."""


def _sentence(error: Exception) -> str:
    """What is wrong in one sentence, with the closest name where there is one."""
    if isinstance(error, ModuleNotFoundError) and not isinstance(error, ThroughtimeError):
        if error.name not in _EXTRA:
            raise error
        return str(missing_extra(str(error.name), "train"))
    if isinstance(error, typer.TyperException):
        return _usage(error)
    if isinstance(error, OSError) and not isinstance(error, ThroughtimeError):
        return f"{error.filename or 'a file'} cannot be used ({error.strerror}); see that it can"
    return str(error)


def _usage(error: typer.TyperException) -> str:
    close = getattr(error, "possibilities", None)
    if close:
        return f"no such option: {getattr(error, 'option_name', '')}; did you mean {close[0]}?"
    text = " ".join(error.format_message().split()).rstrip(".")
    if not text:
        return ""
    context = getattr(error, "ctx", None)
    path = context.command_path if context else "throughtime"
    return f"{text[:1].lower()}{text[1:]}" + ("" if text.endswith("?") else f"; see {path} --help")
