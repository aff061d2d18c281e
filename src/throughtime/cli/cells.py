"""`throughtime cells`: the cells there are."""

from __future__ import annotations

import inspect

import typer


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("cells")(cells)


def cells() -> None:
    """List the cells, each with the first line of its description."""
    from throughtime.cells import available

    for name, kind in available().items():
        typer.echo(f"{name:<20} {(inspect.getdoc(kind) or '').partition(chr(10))[0]}")
