"""Every error the package raises on purpose.

ThroughtimeError
├── CellError        (TypeError)     a cell's equations or declarations cannot be taken
├── ShapeError       (ValueError)    a tensor of the wrong shape, length or width
├── OptionError      (ValueError)    an option with a value outside its rule
│   └── NotFiniteError               a tensor with NaN or infinity where numbers are needed
├── BackendError     (RuntimeError)  a named backend cannot run this call
├── TransformError   (RuntimeError)  a transform of torch that could not be right here
├── DataError        (ValueError)    input data that cannot be read
├── LawError         (AssertionError) a cell breaks a law that every cell must obey
├── RunError         (ValueError)    a run folder or checkpoint that cannot be used
├── MissingExtra     (ImportError)   an optional package is not installed
└── VersionError     (ImportError)   a Python or torch that is too old

Each also is the built-in error its kind belongs to, so that callers may catch either.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any


class ThroughtimeError(Exception):
    """Base of every error raised on purpose; its text says what, rule, value and cure."""


class CellError(ThroughtimeError, TypeError):
    """A cell's equations or declarations cannot be taken; names the line where there is one."""


class ShapeError(ThroughtimeError, ValueError):
    """A tensor has a shape, length or width that the call cannot take."""


class OptionError(ThroughtimeError, ValueError):
    """An option has a value outside its rule."""


class NotFiniteError(OptionError):
    """A tensor has NaN or infinity in it; says which and, where it has steps, at which first.

    Args:
        text: the sentence.
        tensor: "parameter", "input", "state", "output", "loss" or "gradient".
        name: of the module or parameter; empty when it is the model's own.
        step: the first t, counted from 0 in the order of time; None where there is no time.
    """

    def __init__(self, text: str, tensor: str, name: str = "", step: int | None = None) -> None:
        super().__init__(text)
        self.tensor, self.name, self.step = tensor, name, step


class BackendError(ThroughtimeError, RuntimeError):
    """A backend named by the caller cannot run this call; says why and which one can."""


class TransformError(ThroughtimeError, RuntimeError):
    """A transform of torch would give a wrong result here, so it is refused."""


class DataError(ThroughtimeError, ValueError):
    """Input data cannot be read or breaks its format."""


class LawError(ThroughtimeError, AssertionError):
    """A cell breaks a law that every cell must obey."""


class RunError(ThroughtimeError, ValueError):
    """A run folder or checkpoint is missing, damaged or does not fit."""


class MissingExtra(ThroughtimeError, ImportError):
    """An optional package is not installed; the text gives the pip command."""


class EndedElsewhere(ThroughtimeError, RuntimeError):
    """This process ends since another one of its run did, which says why."""


class VersionError(ThroughtimeError, ImportError):
    """Python or torch is older than the package takes; says which will do, and how to get it."""


def import_extra(module: str, extra: str, package: str = "") -> Any:
    """A module of an optional package, called `package` where its first name is another.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise missing_extra(package or module.partition(".")[0], extra) from error


def missing_extra(package: str, extra: str) -> MissingExtra:
    """The error to raise when `package`, which the extra `extra` installs, is not there."""
    return MissingExtra(
        f"{package}, which the extra {extra} brings, is needed here and is not installed; install "
        f"all of that extra with: {_command(extra)}"
    )


def _command(extra: str) -> str:
    """The command that brings an extra's packages, wherever this one was installed from."""
    from importlib import metadata  # slow, and seldom needed

    try:
        needs = metadata.requires("throughtime") or []
    except metadata.PackageNotFoundError:  # run from a checkout that nobody installed
        needs = []
    parts = [need.replace("'", '"').partition(";") for need in needs]
    wanted = [name.strip() for name, _, marker in parts if f'extra == "{extra}"' in marker]
    if not wanted:
        return f"pip install '.[{extra}]', in the checkout"
    return " ".join(["pip install", *(f"'{one}'" for one in wanted)])
