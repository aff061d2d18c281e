"""The command line: parses, shows, maps errors to exit codes.

Every file beside this one that has a `register(app)` is a command; a new one is found by itself.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0, or 2 with one sentence on stderr."""
    try:
        from throughtime.cli import app
    except ModuleNotFoundError as error:
        if error.name != "typer":
            raise
        from throughtime.errors import missing_extra

        print(f"error: {missing_extra('typer', 'train')}", file=sys.stderr)
        return 2
    return app.run(list(sys.argv[1:] if arguments is None else arguments))
