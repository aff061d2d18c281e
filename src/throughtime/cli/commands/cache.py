"""`throughtime cache`: the compiled code that is kept on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from throughtime.cli import Commands


def register(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add("cache", show_cache)
    parser.add_argument(
        "--clear", action="store_true", help="Delete it; it is made anew when needed."
    )


def show_cache(clear: bool) -> None:
    """Show where compiled code is kept and how much there is, or delete it."""
    from throughtime.compiler.runtime import cache as objects
    from throughtime.errors import DataError

    cleared = objects.clear() if clear else objects.Cleared(0, ())
    contents = objects.show()
    if contents.folder is not None:
        print(f"folder   {contents.folder}")
    if contents.refused is not None:
        print(f"not used: {contents.refused}")
        return
    if clear:
        print(f"deleted  {cleared.deleted}")
    print(f"objects  {contents.files}\nbytes    {contents.bytes}")
    if cleared.left:
        raise DataError(
            f"{contents.folder} has what cannot be deleted: {', '.join(cleared.left)}; "
            "remove it by hand"
        )
