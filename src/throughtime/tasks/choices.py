"""A choice among few names: checked in one place, with the closest name in the error."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

from throughtime.errors import OptionError


def one_of(what: str, value: str, allowed: Sequence[str]) -> str:
    """`value`, when it is one of `allowed`.

    Raises:
        OptionError: it is not; names the rule, the value and the closest allowed name.
    """
    if value in allowed:
        return value
    raise OptionError(
        f"{what} must be one of {', '.join(allowed)}, got {value!r}{did_you_mean(value, allowed)}"
    )


def did_you_mean(value: str, allowed: Sequence[str]) -> str:
    """`; did you mean X?` for the allowed name closest to `value`, or nothing when none is."""
    close = get_close_matches(value, allowed, n=1)
    return f"; did you mean {close[0]}?" if close else ""
