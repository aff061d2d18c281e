"""`throughtime check CELL`: whether a cell obeys the laws that every cell must."""

from __future__ import annotations

from typing import TYPE_CHECKING

from throughtime.cli.options import whole_number

if TYPE_CHECKING:
    from throughtime.cli import Commands


def register(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add("check", check_cell)
    parser.add_argument(
        "cell", metavar="CELL", help="A name of `throughtime cells`, or FILE.py:CLASS."
    )
    parser.add_argument(
        "--seed", type=whole_number, metavar="INT", default=0,
        help="Where the random sizes, weights and inputs come from. Default: 0.",
    )  # fmt: skip


def check_cell(cell: str, seed: int) -> None:
    """Hold a cell against every law that cells must obey, by gradcheck and on every backend."""
    from throughtime import check
    from throughtime.tasks.recipe import build_cell, find_python_file, report_line

    with report_line(find_python_file(cell)):
        print(check(build_cell(cell), seed=seed))
