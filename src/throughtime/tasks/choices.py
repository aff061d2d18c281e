"""A choice among few names: checked in one place, with the closest name in the error."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

from throughtime.errors import OptionError

_LONG = 60


def one_of(what: str, value: str, allowed: Sequence[str]) -> str:
    """`value`, when it is one of `allowed`.

    Raises:
        OptionError: it is not; names the rule, the value and the closest allowed name.
    """
    if value in allowed:
        return value
    hint = did_you_mean(value, allowed) if isinstance(value, str) else ""
    raise OptionError(f"{what} must be one of {', '.join(allowed)}, got {short(value)}{hint}")


def short(value: object) -> str:
    """A value as an error shows it: whole, or its beginning where it is long."""
    if isinstance(value, int) and abs(value) >= 10**_LONG:
        return f"a number of some {value.bit_length() * 30103 // 100000} digits"
    text = repr(value)
    return text if len(text) <= _LONG else f"{text[:_LONG]}..."


def did_you_mean(value: str, allowed: Sequence[str]) -> str:
    """`; did you mean X?` for the allowed name closest to `value`, or nothing when none is."""
    names = {name.casefold(): name for name in allowed}
    close = get_close_matches(value.casefold(), names, n=1)
    return f"; did you mean {names[close[0]]}?" if close else ""
