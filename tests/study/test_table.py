"""What outcomes mean, by hand."""

from __future__ import annotations

from tests.study.small import outcome
from throughtime.train.study.folder import (
    HEADINGS,
    find_longest_solved,
    list_failures,
    make_page,
    make_rows,
)


def solved(seed: int, step: int, seconds: float, length: int = 10):
    """An outcome that solved its task."""
    own = {"solved_at_step": step, "solved_at_seconds": seconds, "metric": 0.01 * seed}
    return outcome("lstm", "chrono", length, seed, solved=True, step_milliseconds=seed, **own)


FOUND = [
    outcome("lstm", "torch", 10, 0, metric=0.25),
    solved(2, 300, 3.0),
    solved(1, 100, 1.0),
    solved(0, 150, 2.5),
    outcome("lstm", "chrono", 10, 3, metric=0.5, step_milliseconds=3),
    solved(0, 500, 9.0, length=20),
    outcome("lstm", "chrono", 20, 1, metric=None, failed="the loss became nan at step 7"),
    outcome("gru", "torch", 10, 0, metric=0.4),
]


def test_a_row_has_the_medians_of_what_was_solved() -> None:
    table = make_rows(FOUND)
    assert [(r.length, r.cell, r.start) for r in table] == [
        (10, "gru", "torch"),
        (10, "lstm", "chrono"),
        (10, "lstm", "torch"),
        (20, "lstm", "chrono"),
    ]
    row = table[1]
    assert (row.seeds, row.solved, row.steps, row.seconds) == (4, 3, 150, 2.5)
    assert (row.metric, row.step_milliseconds, row.parameters) == (0.015, 1.5, 7)
    assert row.cells() == ("lstm", "chrono", "10", "3 of 4", "150", "2.5", "0.015", "7", "1.50")
    assert table[0].cells()[3:7] == ("0 of 1", "-", "-", "0.4")


def test_the_reach_is_the_longest_length_that_most_seeds_solved() -> None:
    headings, lines = find_longest_solved(make_rows(FOUND))
    assert headings == ["cell", "torch", "chrono"]
    assert lines == [["gru", "-", ""], ["lstm", "-", "10"]], "of two seeds one is not most"


def test_the_page_has_both_tables_and_every_remark() -> None:
    table = make_rows(FOUND)
    assert list_failures(table) == [
        "lstm from chrono over 20, seed 1: the loss became nan at step 7"
    ]
    lines = make_page("Study of latch", table, ["left out: nothing"]).splitlines()
    assert lines[0] == "# Study of latch"
    assert "| lstm | - | 10 |" in lines and "| cell | torch | chrono |" in lines
    assert f"| {' | '.join(HEADINGS)} |" in lines
    assert "| lstm | chrono | 10 | 3 of 4 | 150 | 2.5 | 0.015 | 7 | 1.50 |" in lines
    assert lines[-2:] == [f"- {list_failures(table)[0]}", "- left out: nothing"]
