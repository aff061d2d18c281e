"""The harness: figures, turns, red rows, resuming, bars."""

from __future__ import annotations

import ctypes
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.speed import figures, grid, neighbours, run, table
from benchmarks.speed import row as rows_of
from benchmarks.speed.bar import judge
from benchmarks.speed.bars import BARS, asked
from benchmarks.speed.contender import Contender
from benchmarks.speed.measure import Clock, Effort, interleave
from benchmarks.speed.memory import added_peak
from benchmarks.speed.spread import geometric_mean, quartiles, ratio
from benchmarks.speed.store import Store, resume
from benchmarks.speed.works import WORKS, cases
from tests.benchmarks.small import TINY, case, row

QUICK = Effort(seconds=0.0, least=2, most=2)
CLOCKS: tuple[Clock, ...] = ("wall", "cpu")


@pytest.mark.parametrize("cell", ["RNN", "GRU", "LSTM", "own"])
def test_flops_are_those_of_counted_loops(cell: str) -> None:
    B, T, H, I = TINY.B, TINY.T, TINY.H, TINY.I
    multiply_adds = 0
    for _t in range(T):
        for _b in range(B):
            for _unit in range(figures.GATES[cell] * H):
                multiply_adds += sum(1 for _ in range(I)) + sum(1 for _ in range(H))
    assert figures.forward_flops(cell, TINY) == 2 * multiply_adds
    assert figures.flops(cell, TINY, "inference") == 2 * multiply_adds


@pytest.mark.parametrize("cell", ["RNN", "GRU", "LSTM"])
def test_training_flops_are_those_torch_counts(cell: str) -> None:
    """torch counts the products of its step by step GRU and RNN; the LSTM's are 4/3 of a GRU's."""
    from torch.utils.flop_counter import FlopCounterMode

    layer = getattr(torch.nn, "RNN" if cell == "RNN" else "GRU")(TINY.I, TINY.H)
    x = torch.randn(TINY.T, TINY.B, TINY.I, requires_grad=True)
    h = torch.zeros(1, TINY.B, TINY.H, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        layer(x, h)[0].sum().backward()
    gates = figures.GATES[cell] / (1 if cell == "RNN" else 3)
    assert figures.training_flops(cell, TINY) == gates * counter.get_total_flops()


def test_contenders_take_turns() -> None:
    said: list[str] = []
    runs = {name: lambda name=name: said.append(name) for name in "AB"}
    found = interleave(runs, Effort(seconds=0.0, least=3, most=3))
    blocks = [name for i, name in enumerate(said) if i == 0 or said[i - 1] != name]
    assert "".join(blocks) == "ABABABAB"  # once each to see how long a call takes, then turns
    assert {len(t.wall) for t in found.values()} == {3}
    assert all(t.calls > 1 for t in found.values())


def test_a_ratio_is_that_of_the_medians_with_the_spread_of_turns() -> None:
    found = ratio([4.0, 9.0, 6.0], [2.0, 3.0, 1.0])
    assert found == {"ratio": 3.0, "q1": 2.5, "q3": 4.5}
    assert quartiles([5.0]) == {"median": 5.0, "q1": 5.0, "q3": 5.0}
    assert geometric_mean([2.0, 8.0]) == pytest.approx(4.0)


def test_a_share_of_peak_is_one_of_rates() -> None:
    repeats = {"throughtime": [2.0], "peak": [1.0]}
    found = rows_of.compared({}, repeats, {"throughtime": 6.0, "peak": 4.0})
    assert found["ratios"]["peak"]["ratio"] == pytest.approx(3.0 / 4.0)
    assert found["best"] is None  # the machine is no rival


def test_the_best_rival_is_the_fastest_green_one() -> None:
    repeats = {"throughtime": [1.0], "torch.nn": [3.0], "openvino": [2.0]}
    flops = dict.fromkeys(repeats, 1.0)
    assert rows_of.compared({}, repeats, flops)["best"] == "openvino"
    red = rows_of.compared({"openvino": {"ok": False}}, repeats, flops)
    assert (red["best"], red["red"], set(red["ratios"])) == ("torch.nn", ["openvino"], {"torch.nn"})


def test_a_red_parity_prints_no_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    build = rows_of.build

    def wrong(name: str, m: Any) -> Contender:
        right = build(name, m)
        if name != "throughtime" or right.values is None:
            return right
        return Contender(right.run, lambda: right.values() | {"d_x": m.x}, right.flops)

    monkeypatch.setattr(rows_of, "build", wrong)
    found = rows_of.measure_case(case("training", "GRU"), QUICK, "auto")
    assert (found["red"], found["ratios"]) == (["throughtime"], {})
    assert "RED, no ratio" in run.line(found) and "d_x" in run.line(found)
    assert "| red | throughtime |" in "\n".join(table.detail("training", [found]))


@pytest.mark.parametrize(
    ("work", "cell", "beside"),
    [
        ("training", "RNN", "torch.nn"),
        ("own", "own", "eager loop"),
        ("GRU inference", "GRU", "our LSTM"),
    ],
)
def test_a_row_end_to_end(work: str, cell: str, beside: str) -> None:
    found = rows_of.measure_case(case(work, cell), QUICK, "auto")
    head = rows_of.headline(found)
    assert head is not None and head[0] == beside
    assert head[1]["ratio"] > 0 and found["red"] == []
    assert found["parity"]["throughtime"]["ok"]
    assert found["times"]["throughtime"]["flops"] == figures.flops(
        cell, TINY, case(work, cell).work.mode
    )
    assert json.loads(json.dumps(found)) == found


ABOUT = {"machine": 1, "versions": 2, "source": 3, "backend": "auto", "clock": "wall"}


def test_a_resumed_run_skips_what_is_there(tmp_path: Path) -> None:
    store = Store(tmp_path / "run.json", ABOUT)
    store.add({"key": "a", "others_share": 0.0})
    store.add({"key": "b", "others_share": 0.5})
    again = resume(store.file, ABOUT)
    assert (again.has("a"), again.has("b"), again.has("c")) == (True, True, False)
    quiet = resume(store.file, ABOUT, quiet=0.1)
    assert (quiet.has("a"), quiet.has("b")) == (True, False)


def test_a_run_of_another_commit_is_not_resumed(tmp_path: Path) -> None:
    store = Store(tmp_path / "run.json", ABOUT)
    store.add({"key": "a"})
    with pytest.raises(ValueError, match=r"--resume needs a run of the same .* differs in source"):
        resume(store.file, ABOUT | {"source": 4})


def test_a_measuring_run_skips_done_rows_and_stops_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [c.key for c in cases(["large"], ["GRU"], False)]
    done = []

    def measured(c: Any, *_: Any) -> dict[str, Any]:
        done.append(c.key)
        return {"key": c.key}

    monkeypatch.setattr(run, "measure_case", measured)
    monkeypatch.setattr(run, "line", lambda row: row["key"])
    options = run.parse(["--work", "large", "--cells", "GRU"])
    store = Store(tmp_path / "run.json", ABOUT)
    store.add({"key": asked[0]})
    run.measure(store, options, end=float("inf"))
    assert done == asked[1:]
    run.measure(Store(tmp_path / "late.json", ABOUT), options, end=0.0)
    assert done == asked[1:]
    assert f"left out: {', '.join(asked)}" in capsys.readouterr().out


def verdict(text: str, rows: list[dict[str, Any]]) -> Any:
    """What the rows say to the bar of that text."""
    (bar,) = [bar for bar in BARS if bar.text == text]
    return judge(bar, rows)


def test_bars_met_not_met_and_missing() -> None:
    rows = [
        row("training", "GRU", {"torch.nn": 4.0}),
        row("training", "GRU", {"torch.nn": 9.0}, H=64),
        row("training", "LSTM", {"torch.nn": 0.5}),
    ]
    mean = verdict("GRU training step against torch.nn, geometric mean", rows)
    assert (mean.met, mean.shapes, mean.got) == (True, 2, pytest.approx(6.0))
    assert str(mean).startswith("met: 6, 20% past it (worst training/GRU/16x50x32x32")
    every = verdict("LSTM training step against torch.nn, every shape", rows)
    assert (every.met, every.got) == (False, 0.5)
    assert str(every).startswith("NOT MET: 0.5, 41% short of it")
    missing = verdict("RNN training step against torch.nn, every shape", rows)
    assert (missing.met, str(missing)) == (None, "not measured")


def test_a_bar_tells_of_how_many_rows_it_was_measured() -> None:
    text = "GRU training step against torch.nn, geometric mean"
    found = table.bars([row("training", "GRU", {"torch.nn": 4.0})])
    assert f"| {text} | at least 5 | 1 of 48 | NOT MET: 4, 20% short of it" in found
    assert all(asked(bar) > 0 for bar in BARS)


def test_a_red_row_misses_its_bar() -> None:
    rows = [row("training", "GRU", {"torch.nn": 9.0}), row("training", "GRU", {}, H=64)]
    found = verdict("GRU training step against torch.nn, geometric mean", rows)
    assert (found.met, found.red) == (False, 1)
    alone = verdict("GRU training step against torch.nn, geometric mean", rows[1:])
    assert (alone.met, str(alone)) == (False, "not met: all 1 rows red")


def test_bars_of_time_are_at_most() -> None:
    rows = [row("GRU training", "GRU", {"our LSTM": 1 / 0.8}, best=None)]
    found = verdict("GRU training, time over our LSTM's", rows)
    assert (found.met, found.got) == (True, pytest.approx(0.8))
    rows = [row("GRU training", "GRU", {"our LSTM": 1.0}, best=None)]
    assert verdict("GRU training, time over our LSTM's", rows).met is False
    first = {"key": "first/forward/warm", "work": "first", "cpu_s": {"median": 0.03}}
    found = verdict("first use, forward, warm cache, processor s", [first])
    assert (found.met, found.got) == (False, 0.03)


def test_every_bar_has_rows_in_the_stated_part() -> None:
    keys = {"first/forward/empty", "first/forward/warm"}
    keys |= {"first/forward and backward/empty", "first/forward and backward/warm"}
    stated = cases([w.group for w in WORKS], ["RNN", "GRU", "LSTM", "own"], False)
    rows = [{"key": k, "work": "first"} for k in keys]
    rows += [{"key": c.key, "work": c.work.name, "cell": c.cell, "H": c.shape.H} for c in stated]
    assert [bar.text for bar in BARS if not any(map(bar.wants, rows))] == []


def test_shapes_can_be_named() -> None:
    asked = cases(["training", "peak"], ["GRU"], False, ["64x50x128", "3x365x37"])
    assert [str(c) for c in asked] == [
        "training GRU B 64 T 50 H 128",
        "training GRU B 3 T 365 H 37",
        "recurrent GRU B 64 T 50 H 128 I 1",
        "whole step GRU B 64 T 50 H 128",
    ]


def test_the_stated_part_is_part_of_the_grid() -> None:
    for work in WORKS:
        assert set(work.stated) <= set(work.full), work.name
    assert len(grid.GRID) == len(set(grid.GRID)) == 48


def test_the_kernels_of_the_machine_compute_what_they_say() -> None:
    pytest.importorskip("llvmlite", reason="pip install 'throughtime[bench]'")
    from benchmarks.speed import peak_kernels as k
    from benchmarks.speed.peak import aligned

    sink = np.ones(64, np.float32)
    k.compiled("multiply_adds", ctypes.c_int64, ctypes.c_void_p)(2, sink.ctypes.data)
    assert sink[: k.LANES].tolist() == [3.0 * k.ACCUMULATORS] * k.LANES  # 1, 1 1 + 1, 2 1 + 1
    data = aligned(4 * k.LANES * k.LOADS * 3).view(np.float32)
    data[:] = 1.0
    reads = k.compiled("reads", ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)
    reads(2, 3, data.ctypes.data)
    assert data[: k.LANES].tolist() == [2.0 * 3.0 * k.LOADS] * k.LANES


def test_memory_added_is_what_a_call_holds() -> None:
    held: list[torch.Tensor] = []

    def run() -> None:
        held.append(torch.ones(2**24))
        torch.ones(2**24)

    added = added_peak(Contender(run, None, 0.0, held.clear))
    if added is None:
        pytest.skip("the system does not count it")
    assert held == []
    assert added == pytest.approx(2 * 4 * 2**24, rel=0.1)


def test_ratios_follow_the_clock_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rival that sleeps takes time by the wall's clock and next to none of the processor's."""
    build = rows_of.build

    def sleepy(name: str, m: Any) -> Contender:
        right = build(name, m)
        if name == "throughtime":
            return right
        return Contender(lambda: time.sleep(0.05), right.values, right.flops)

    monkeypatch.setattr(rows_of, "build", sleepy)
    wall, cpu = (rows_of.measure_case(case("training", "RNN"), QUICK, "auto", c) for c in CLOCKS)
    assert wall["ratios"]["torch.nn"]["ratio"] > 50 * cpu["ratios"]["torch.nn"]["ratio"]


def test_others_share_counts_what_is_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours.os, "cpu_count", lambda: 4)
    begun, done = neighbours.Instant(10.0, 100.0, 5.0), neighbours.Instant(12.0, 106.0, 9.0)
    assert neighbours.others_share(begun, done) == pytest.approx((6 - 4) / (2 * 4))
    assert neighbours.others_share(None, done) is None
