"""How figures and examples look on the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from throughtime.tasks.task import Score


def show_score(score: Score, chance: Mapping[str, float], split: str) -> None:
    """Prints the split, the rule, the figures beside chance, and the examples beside the truth."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, soft_wrap=True)
    console.print(f"\n{score.split}\n{score.rule}\n")
    figures = Table("figure", split, "chance", box=None, pad_edge=False)
    for name, value in score.metrics.items():
        figures.add_row(name, f"{100 * value:.2f} %", f"{100 * chance[name]:.1f} %")
    console.print(figures)
    examples = Table("given", "answer", "truth", "", box=None, pad_edge=False)
    for one in score.examples:
        examples.add_row(one.given, one.answer, one.truth, "right" if one.right else "wrong")
    console.print()
    console.print(examples)
