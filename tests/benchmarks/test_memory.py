"""The memory benchmark is fair, and keeps what it measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.memory import protocol, run
from benchmarks.memory.learn import Case, learn


@pytest.mark.parametrize("bar", protocol.BARS.values())
def test_rows_of_a_bar_share_all_but_start_and_the_stated_sweeps(bar: protocol.Bar) -> None:
    for what, case in bar.cases():
        assert (case.task, case.length, case.cap) == (bar.task, bar.length, bar.cap)
        assert case.lr == 2e-3 or (what == "default lr" and case.start == "torch")
        assert case.horizon == 0 or what == "ours T_max"
        assert case.leak == (what == "leak")
    swept = {case.lr for what, case in bar.cases() if what in ("default", "default lr")}
    assert swept == {5e-4, 1e-3, 2e-3, 5e-3}


def test_a_short_bit_is_learned_unless_it_is_hidden() -> None:
    case = Case("latch", 5, 200, "rnn", "orthogonal")
    error, steps = learn(case, 0)
    assert error <= 0.02 and steps <= 200
    error, steps = learn(case._replace(leak=True, cap=60), 0)
    assert error > 0.4 and steps == 60


def test_a_result_says_every_seed_and_whether_it_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = protocol.Bar("latch", 4, 2, ("rnn",), 0.4, 5)
    monkeypatch.setitem(run.BARS, 2, tiny)
    monkeypatch.setattr("torch.set_num_threads", lambda count: None)
    run.main(["--bar", "2", "--seeds", "2", "--out", str(tmp_path)])
    result = json.loads((tmp_path / "bar2.json").read_text())
    assert result["complete"] and len(result["rows"]) == len(list(tiny.cases()))
    assert all(len(row["errors"]) == 2 and row["steps"] == [2, 2] for row in result["rows"])


@pytest.mark.parametrize(
    ("errors", "passes"),
    [
        ({}, True),
        ({"default": [0.5, 0.39]}, False),  # torch's start learned it, too
        ({"ours": [0.0, 0.5]}, False),  # one seed of two is less than five of five
        ({"leak": [0.0, 0.5]}, False),  # solved without its label
        ({"default lr": [0.0, 0.0]}, True),  # published, and no part of the bar
    ],
)
def test_a_bar_is_passed_by_every_seed_it_asks_for(
    errors: dict[str, list[float]], passes: bool
) -> None:
    found = {"default": [0.5, 0.5], "ours": [0.0, 0.02], "leak": [0.5, 0.5], **errors}
    rows = [
        {"what": what, "errors": e, "seeds": 2, "solved": sum(v <= 0.02 for v in e)}
        for what, e in found.items()
    ]
    assert protocol.BARS[2].passed(rows) is passes
