"""The environment variables of the package, all of them; README.md lists them."""

from __future__ import annotations

import os


def machine() -> str | None:
    """`THROUGHTIME_MACHINE`: the machine to compile for, by name; None: the one this runs on."""
    return os.environ.get("THROUGHTIME_MACHINE") or None


def cache() -> str | None:
    """`THROUGHTIME_CACHE`: the cache's folder; empty: none on disk; None: the platform's."""
    return os.environ.get("THROUGHTIME_CACHE")
