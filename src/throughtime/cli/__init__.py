"""The command line: parses, shows, maps errors to exit codes.

Every file beside this one that has a `register(commands)` is a command; a new one is found by
itself. It is Python's argparse, so that what needs no training works with the core alone.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0, or 2 with one sentence on stderr."""
    from throughtime.cli import app

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files may be no text
    return app.run(list(sys.argv[1:] if arguments is None else arguments))
