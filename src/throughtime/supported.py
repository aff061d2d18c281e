"""Which Pythons and torches are taken; asked before anything that an older one could trip over."""

from __future__ import annotations

import re
import sys
import warnings

from throughtime.errors import VersionError

OLDEST_PYTHON = (3, 11)
OLDEST_TORCH = (2, 9)

TRIED = ("2.9", "2.13", "2.14", "2.15")
"""The minors of torch that tests were run with; docs/support.md says which tests."""


def check_python(version: tuple[int, ...]) -> None:
    """Raises VersionError for a Python that is too old."""
    if version[:2] < OLDEST_PYTHON:
        oldest, got = _dotted(OLDEST_PYTHON), _dotted(version[:3])
        raise VersionError(
            f"throughtime needs Python {oldest} or newer, got {got}; make an environment with a "
            f"newer one: python{oldest} -m venv .venv"
        )


def check_torch(version: str) -> None:
    """Raises VersionError for a torch that is too old."""
    if _minor(version) < OLDEST_TORCH:
        raise VersionError(
            f"throughtime needs torch {_dotted(OLDEST_TORCH)} or newer, got {version}; "
            f"upgrade it: pip install --upgrade torch"
        )


def warn_of_untried(version: str, lost: tuple[str, ...]) -> None:
    """One warning of a torch that was never tried, or that lacks what this package uses of it."""
    if lost:
        names = ", ".join(f"torch.{name}" for name in lost)
        warnings.warn(
            f"torch {version} lacks {names}, which throughtime uses, so some calls are slower and "
            f"some refused; throughtime was tried with torch {', '.join(TRIED)}",
            stacklevel=3,
        )
    elif _dotted(_minor(version)) not in TRIED:
        warnings.warn(
            f"throughtime was tried with torch {', '.join(TRIED)}, not with {version}; "
            f"throughtime.check(cell) holds a cell to its laws here",
            stacklevel=3,
        )


def _minor(version: str) -> tuple[int, ...]:
    """(2, 13) of 2.13.0+cpu; a version without numbers is taken for one that will do."""
    numbers = re.match(r"(\d+)\.(\d+)", version)
    return tuple(map(int, numbers.groups())) if numbers else OLDEST_TORCH


def _dotted(numbers: tuple[int, ...]) -> str:
    return ".".join(map(str, numbers))


def _check_here() -> None:
    """The same of what runs now."""
    check_python(tuple(sys.version_info[:3]))
    import torch

    check_torch(torch.__version__)
    from throughtime.torch_private import LOST  # which an older torch could trip over

    warn_of_untried(torch.__version__, LOST)


_check_here()
