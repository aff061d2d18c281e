"""`throughtime cache`: the compiled code that is kept on disk."""

from __future__ import annotations

from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("cache")(cache)


def cache(
    clear: Annotated[
        bool, typer.Option("--clear", metavar=" ", help="Delete it; it is made anew when needed.")
    ] = False,
) -> None:
    """Show where compiled code is kept and how much there is, or delete it."""
    from throughtime.compiler.llvm import cache as kept

    deleted = kept.clear() if clear else 0
    found = kept.show()
    if found.folder is not None:
        typer.echo(f"folder   {found.folder}")
    if found.refused is not None:
        typer.echo(f"not used: {found.refused}")
        return
    if clear:
        typer.echo(f"deleted  {deleted}")
    typer.echo(f"objects  {found.files}\nbytes    {found.bytes}")
