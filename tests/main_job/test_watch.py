"""`train --watch N`: the numbers of the report, in the journal and the page; the bits of a run."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from throughtime.cli import main
from throughtime.diagnosis.observe.examined import ExaminedModel
from throughtime.diagnosis.quantities.lag_gradient import lag_gradients
from throughtime.diagnosis.training import LoopFlow
from throughtime.tasks import find
from throughtime.train.learner import Learner, Watcher, begin_model
from throughtime.train.loop import Journal, fit
from throughtime.train.run import Run, create, resolve

SMALL = {
    "length": 12, "hidden": 6, "batch_size": 8, "steps": 9, "validate_every": 4, "warmup": 2,
    "checkpoint_every": 2, "log_every": 1, "threads": 1,
}  # fmt: skip
WORDS = [word for n, v in SMALL.items() for word in (f"--{n.replace('_', '-')}", str(v))]


def begun(folder: Path, **values: Any) -> Run:
    return create(folder, resolve(find("adding"), SMALL | values))


def flow_rows(run: Run) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return [row for row in rows if "flow" in row]


def test_the_numbers_are_those_of_the_report_and_of_the_weights(tmp_path: Path) -> None:
    run = begun(tmp_path / "run", lr=0.01, clip_threshold=0.1)
    task = find("adding")(run.recipe)
    model = begin_model(task)
    learner = Learner(task, model)
    batch = task.epoch(0)[0]
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    seen = ExaminedModel(model).run(batch, task.distance, last_only=True)
    expected = {f"{g.layer}": g for g in lag_gradients(seen)}
    learner.step()
    fit(run, [LoopFlow(4)])
    rows = flow_rows(run)
    assert [row["step"] for row in rows] == [1, 5, 9]
    flow = rows[0]["flow"]
    for layer, g in expected.items():
        far = g.log10_rho_by_lag[11]
        assert flow[f"log10_rho/recurrent.{layer}"] == pytest.approx(far, rel=1e-4)
        horizon = 12 if g.horizon_1e3_steps is None else g.horizon_1e3_steps
        assert flow[f"horizon_steps/recurrent.{layer}"] == horizon
    assert flow["gradient_norm"] == pytest.approx(learner.norm, rel=1e-6)
    for name, p in model.named_parameters():
        moved = float((p.detach() - before[name]).norm() / before[name].norm())
        assert flow[f"update/{name}"] == pytest.approx(moved, rel=1e-4)


class Hooks(Watcher):
    """Counts the hooks that the model and the optimizer have as each step ends."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def begin(self, journal: Journal, log: logging.Logger) -> None:
        """Nothing to do."""

    def after_step(self, learner: Learner) -> None:
        hooks = sum(len(m._forward_hooks) for m in learner.model.modules())
        self.counts.append(hooks + len(learner.optimizer._optimizer_step_pre_hooks))


def test_a_watched_run_has_the_bits_of_one_that_is_not_and_no_hooks_stay(tmp_path: Path) -> None:
    alone, watched, hooks = begun(tmp_path / "a"), begun(tmp_path / "b"), Hooks()
    fit(alone)
    fit(watched, [LoopFlow(2), hooks])
    assert watched.weights.read_bytes() == alone.weights.read_bytes()
    assert hooks.counts == [0] * 9
    assert flow_rows(alone) == []


class Stops(Watcher):
    """Ctrl-C at a step."""

    def after_step(self, learner: Learner) -> None:
        if learner.done == 6:
            raise KeyboardInterrupt


def test_a_resumed_run_has_no_row_twice(tmp_path: Path) -> None:
    whole, stopped = begun(tmp_path / "a"), begun(tmp_path / "b")
    fit(whole, [LoopFlow(2)])
    with pytest.raises(KeyboardInterrupt):
        fit(stopped, [LoopFlow(2), Stops()])
    fit(stopped, [LoopFlow(2)])
    kept = [(row["step"], row["flow"]) for row in flow_rows(stopped)]
    assert kept == [(row["step"], row["flow"]) for row in flow_rows(whole)]


def test_the_rule_on_clipping_counts_the_steps_since_the_last_row(tmp_path: Path) -> None:
    run = begun(tmp_path / "run", clip_threshold=1e-3)
    fit(run, [LoopFlow(4)])
    said = [sentence for row in flow_rows(run) for sentence in row["says"]]
    assert [s for s in said if "Clipping" in s] == [
        "Training step 5: Clipping: 100% of the steps were clipped, where 20% may be; raise the "
        "threshold."
    ]
    assert "100% of the steps were clipped" in run.log.read_text()


def test_the_command_draws_the_curves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "run")
    assert main(["train", "adding", *WORDS, "--out", out, "--watch", "4"]) == 0
    page = (tmp_path / "run" / "report.html").read_text()
    assert "How far back did it learn as it trained?" in page
    assert "how many steps back the gradient stays above 1/1000 by step" in page
    assert main(["train", "adding", *WORDS, "--out", f"{out}-2", "--watch", "0"]) == 2
    said = capsys.readouterr().err
    assert "--watch must be a positive number of steps, got 0" in said
    assert not (tmp_path / "run-2").exists()
