"""How figures and examples look on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from throughtime.tasks import Task
    from throughtime.tasks.task import Score


def show_score(task: Task, score: Score, split: str) -> None:
    """Prints the split, the rule, the figures beside chance, and the examples beside the truth."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, soft_wrap=True)
    console.print(f"\n{score.split}\n{score.rule}\n")
    figures = Table("figure", split, "chance", box=None, pad_edge=False)
    chance = task.chance(split)
    for name, value in score.metrics.items():
        figures.add_row(name, task.shown(value), task.shown(chance[name]))
    console.print(figures)
    examples = Table("given", "answer", "truth", "", box=None, pad_edge=False)
    for one in score.examples:
        examples.add_row(one.given, one.answer, one.truth, "right" if one.right else "wrong")
    console.print()
    console.print(examples)
