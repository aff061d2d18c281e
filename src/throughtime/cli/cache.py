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
    from throughtime.compiler.llvm import cache as objects
    from throughtime.errors import DataError

    cleared = objects.clear() if clear else objects.Cleared(0, ())
    contents = objects.show()
    if contents.folder is not None:
        typer.echo(f"folder   {contents.folder}")
    if contents.refused is not None:
        typer.echo(f"not used: {contents.refused}")
        return
    if clear:
        typer.echo(f"deleted  {cleared.deleted}")
    typer.echo(f"objects  {contents.files}\nbytes    {contents.bytes}")
    if cleared.left:
        raise DataError(
            f"{contents.folder} has what cannot be deleted: {', '.join(cleared.left)}; "
            "remove it by hand"
        )
