"""A Python file of the user's: executed, what it defines, and what goes wrong in it."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType

from throughtime.errors import OptionError, ThroughtimeError


def executed(file: Path) -> ModuleType:
    """The module of a file; what it defines has this module's name as `__module__`.

    Raises:
        OSError: the file cannot be read.
        OptionError: it raises; names the line.
    """
    name, own = f"throughtime_user_{file.stem}", file.resolve()
    spec = importlib.util.spec_from_file_location(name, own)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # what the file defines may look itself up there
    sys.path.insert(0, str(own.parent))  # as for a program: its neighbours are found
    with told_by_line(file):
        exec(_compiled(own, name), vars(module))
    return module


def _compiled(file: Path, name: str) -> CodeType:
    """The code of a file."""
    try:
        code = SourceFileLoader(name, str(file)).get_code(name)
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        if isinstance(error, SyntaxError) and error.lineno:
            raise
        raise OptionError(f"{file} must be Python, and it is not ({error})") from error
    assert code is not None
    return code


@contextmanager
def told_by_line(file: Path | None) -> Iterator[None]:
    """An error that arose in a file of the user's, or below it, ends as one sentence with the line.

    Without a file, an error stays as it is.

    Raises:
        OptionError: in place of the error.
    """
    own = file and file.resolve()  # before the user's code may go to another folder
    try:
        yield
    except ThroughtimeError:
        raise
    except (Exception, SystemExit) as error:  # a user's code may raise anything
        line = own and _line(own, error)
        if line is None:
            raise
        words = " ".join(str(error).split())
        raise OptionError(
            f"{file}, line {line}, raises {type(error).__name__}{': ' * bool(words)}{words}"
        ) from error


def _line(own: Path, error: BaseException) -> int | None:
    """The last line of the file that an error passed through; None for one from elsewhere."""
    if isinstance(error, SyntaxError) and error.filename == str(own):
        return error.lineno
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f.lineno for f in frames if f.filename == str(own)]
    return lines[-1] if lines else None
