"""The memory benchmark is fair, and keeps what it measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from benchmarks.memory import protocol, run, store
from benchmarks.memory.learn import Case, learn
from benchmarks.memory.parts import CASES, Parts, begin
from benchmarks.memory.store import Store
from throughtime import Recurrent, cells

BARS = protocol.BARS


@pytest.mark.parametrize("bar", BARS.values(), ids=BARS.keys())
def test_rows_of_a_bar_share_all_but_start_and_the_stated_sweeps(bar: protocol.Bar) -> None:
    for what, case in bar.cases():
        assert (case.task, case.length, case.cap) == (bar.task, bar.length, bar.cap)
        assert (case.hidden, case.stop) == (bar.hidden, bar.stop)
        assert case.lr == 2e-3 or (what == "default lr" and case.start == "torch")
        assert case.horizon == 0 or what == "ours T_max"
        assert case.leak == (what == "leak")
        assert case.clip == (0 if what == "ours unclipped" else 1)
    swept = {case.lr for what, case in bar.cases() if what in ("default", "default lr")}
    assert swept == {5e-4, 1e-3, 2e-3, 5e-3}
    told = {case.horizon for what, case in bar.cases() if what == "ours T_max"}
    assert told == {round(times * bar.length) for times in (0.1, 0.3, 1, 10)}


def test_a_short_bit_is_learned_unless_it_is_hidden() -> None:
    case = Case("latch", 5, 200, "rnn", "orthogonal")
    found = learn(case, 0)
    assert found.error <= 0.02 and found.steps <= 200
    found = learn(case._replace(leak=True, cap=60), 0)
    assert found.error > 0.4 and found.steps == 60 and found.clipped is None


@pytest.mark.parametrize(("clip", "share"), [(1e-9, 1.0), (1e9, 0.0), (0.0, None)])
def test_the_share_of_clipped_steps_is_of_those_after_a_hundred(
    clip: float, share: float | None
) -> None:
    """A run of 110 steps: ten count. With no clipping there is no share."""
    found = learn(Case("latch", 4, 110, "rnn", "torch", stop=-1.0, clip=clip), 0)
    assert (found.steps, found.clipped) == (110, share)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> protocol.Bar:
    bar = protocol.Bar("latch", 4, 2, ("rnn",), 0.4, 0.4, 5, unclipped=True, trap_seeds=1)
    monkeypatch.setitem(run.BARS, "2", bar)
    monkeypatch.setattr("torch.set_num_threads", lambda count: None)
    return bar


def _result(folder: Path, name: str = "bar2") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
    return found


def test_a_result_says_every_seed_and_whether_it_is_whole(
    tmp_path: Path, tiny: protocol.Bar
) -> None:
    run.main(["--bar", "2", "--seeds", "2", "--out", str(tmp_path)])
    result = _result(tmp_path)
    assert result["complete"] and len(result["rows"]) == len(list(tiny.cases()))
    assert result["versions"]["torch"] == torch.__version__
    assert result["machine"]["processor"] and "commit" in result["source"]
    for row in result["rows"]:
        seeds = [0] if row["what"] in ("leak", "default lr") else [0, 1]
        assert row["seed"] == seeds and row["steps"] == [2] * len(seeds)
        assert len(row["errors"]) == row["seeds"] == len(seeds) and row["cpu_seconds"] >= 0


def test_a_killed_bar_goes_on_where_it_was(
    tmp_path: Path, tiny: protocol.Bar, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--bar", "2", "--seeds", "2", "--out", str(tmp_path)]
    learned, calls = learn, []

    def killed(case: Case, seed: int) -> Any:
        if case.cap == 1:  # what comes before the first row
            return learned(case, seed)
        calls.append((case, seed))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return learned(case, seed)

    monkeypatch.setattr(run, "learn", killed)
    with pytest.raises(KeyboardInterrupt):
        run.main(words)
    assert not _result(tmp_path)["complete"]
    run.main(words)
    assert _result(tmp_path)["complete"]
    assert sorted(calls[:3] + calls[4:]) == sorted(set(calls)), "no seed is trained twice"


def test_rows_of_another_commit_are_not_gone_on_with(
    tmp_path: Path,
    tiny: protocol.Bar,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "bar2.json"
    Store(file).keep({"what": "default"})
    assert Store(file, resume=True).rows == [{"what": "default"}]
    kept = file.read_text()
    monkeypatch.setattr(store, "describe_source", lambda: {"commit": "another"})
    with pytest.raises(SystemExit):
        run.main(["--bar", "2", "--out", str(tmp_path)])
    assert "differs in source: go back to those" in capsys.readouterr().err
    assert file.read_text() == kept
    assert Store(file).rows == [], "what begins anew asks nothing of the file"


@pytest.mark.parametrize("bar", ["2", "3"])
def test_every_cell_takes_a_step_before_the_first_row(
    tmp_path: Path, bar: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, int]] = []

    def stop(case: Case, seed: int) -> Any:
        calls.append((case.cell, case.cap))
        if case.cap > 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(run, "learn", stop)
    monkeypatch.setattr("torch.set_num_threads", lambda count: None)
    with pytest.raises(KeyboardInterrupt):
        run.main(["--bar", bar, "--out", str(tmp_path)])
    cells = BARS[bar].cells
    assert calls == [*((cell, 1) for cell in cells), (cells[0], BARS[bar].cap)]


def test_calibration_has_seeds_and_a_file_of_its_own(tmp_path: Path, tiny: protocol.Bar) -> None:
    run.main(["--bar", "2", "--seeds", "2", "--calibrate", "--out", str(tmp_path)])
    rows = _result(tmp_path, "bar2-calibration")["rows"]
    assert [row["what"] for row in rows] == ["default", "ours", "ours unclipped"]
    assert all(row["seed"] == [100, 101] for row in rows)


@pytest.mark.parametrize("parts", CASES, ids=str)
def test_a_start_is_built_from_its_parts(parts: Parts) -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"recurrent": Recurrent(cells.LSTM(), 1, 400)})
    begin(model, parts)
    layer = model["recurrent"]
    assert isinstance(layer, Recurrent)
    kept = layer.gate("f").bias.detach()
    assert 0.9 * parts.longest < float(kept.exp().max() + 1) <= 1.001 * parts.longest
    assert_close(layer.gate("i").bias, -parts.writes * kept)
    for gate in "go":
        assert bool(layer.gate(gate).bias.any()) == (parts.others == "torch")
    U = layer.gate("g").weight_hh
    assert U is not None
    norms = torch.linalg.svdvals(U.detach())
    assert bool((norms > 0.99).all()) == (parts.matrices == "orthogonal")
