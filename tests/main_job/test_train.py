"""Training: the schedule, clipping, the journal and early stopping against what they promise."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.main_job.small import TINY
from throughtime.errors import RunError
from throughtime.tasks import find
from throughtime.tasks.recipe import Recipe
from throughtime.train.learner import StepBatches, clip, learning_rate, make_step_seed
from throughtime.train.loop import Journal
from throughtime.train.result import load_trained
from throughtime.train.run import Run, create, lock


def rows(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.metrics.read_text().splitlines()]


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_the_learning_rate_climbs_then_falls_as_named(schedule: str) -> None:
    recipe = replace(Recipe(**TINY), schedule=schedule, steps=25, warmup=5, lr=0.5)
    rates = [learning_rate(recipe, step) for step in range(25)]
    assert rates[:5] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    middle = {"cosine": 0.25, "linear": 0.25, "constant": 0.5}[schedule]
    assert rates[15] == pytest.approx(middle)
    last = {"cosine": 0.25 * (1 + math.cos(math.pi * 19 / 20)), "linear": 0.025, "constant": 0.5}
    assert rates[24] == pytest.approx(last[schedule])


def test_warm_up_may_be_all_there_is() -> None:
    assert learning_rate(replace(Recipe(), steps=3, warmup=0, lr=1.0), 0) == 1.0
    assert learning_rate(replace(Recipe(), steps=3, warmup=9, lr=0.9), 2) == pytest.approx(0.3)


@pytest.mark.parametrize("kind", ["none", "norm", "value"])
@pytest.mark.parametrize("scale", [0.01, 100.0])
def test_clipping_is_what_its_name_says(kind: str, scale: float) -> None:
    parameters = [
        nn.Parameter(torch.zeros(3, 2)),
        nn.Parameter(torch.zeros(5)),
        nn.Parameter(torch.ones(1)),
    ]
    gradients = [scale * torch.randn_like(p) for p in parameters[:2]]
    for p, g in zip(parameters, gradients, strict=False):
        p.grad = g.clone()
    recipe = replace(Recipe(), clip=kind, clip_threshold=1.5)
    norm, clipped = clip(recipe, parameters)
    whole = torch.cat([g.flatten() for g in gradients])
    assert norm == pytest.approx(float(whole.norm()))
    assert clipped == (scale > 1 and kind != "none")
    expected = {
        "none": whole,
        "norm": whole * min(1.0, 1.5 / (norm + 1e-6)),
        "value": whole.clamp(-1.5, 1.5),
    }
    found = torch.cat([p.grad.flatten() for p in parameters[:2]])
    torch.testing.assert_close(found, expected[kind])


def test_seeds_differ_in_the_bits_torch_looks_at() -> None:
    seeds = {make_step_seed(seed, step) % 2**32 for seed in range(30) for step in range(-1, 100)}
    assert len(seeds) == 30 * 101


@pytest.mark.usefixtures("dictionary_in_small")
def test_a_batch_is_a_function_of_the_step() -> None:
    task = find("pronounce")(Recipe(**{**TINY, "steps": 500, "validate_every": 150}))
    whole = [StepBatches(task).batch(step) for step in range(500)]
    passed = len(task.epoch(0))
    assert passed < 450  # so that the steps below cross into further passes
    for first in (0, 1, 149, 150, 299, 450, 499):
        found = StepBatches(task)
        for step in range(first, min(first + 150, 500)):
            assert all(map(torch.equal, found.batch(step), whole[step]))


def test_the_journal_forgets_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    journal = Journal(path)
    journal.window.add(1.0, 2.0, True)
    journal.window.add(3.0, 4.0, False)
    journal.steps_row(2, 0.1)
    journal.window.add(5.0, 6.0, True)
    state = json.loads(json.dumps(journal.state()))
    journal.window.add(7.0, 8.0, True)
    journal.steps_row(4, 0.1)
    journal.close()
    again = Journal(path, state)
    again.window.add(7.0, 8.0, False)
    again.steps_row(4, 0.1)
    again.close()
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert [
        (row["step"], row["loss"], row["gradient_norm"], row["clipped_share"]) for row in found
    ] == [
        (2, 2.0, 3.0, 0.5),
        (4, 6.0, 7.0, 0.5),
    ]
    assert found[1]["wall_seconds"] >= found[0]["wall_seconds"]


def test_a_journal_that_lost_rows_is_told(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("{}\n")
    with pytest.raises(RunError, match="must have at least the 40 bytes that were there when"):
        Journal(path, {"bytes": 40, "window": {}, "wall": 0.0, "cpu": 0.0})
    assert path.read_text() == "{}\n"


def test_a_run_has_one_trainer_at_a_time(tmp_path: Path) -> None:
    run = create(tmp_path / "run", Recipe())
    with lock(run.folder):
        with pytest.raises(RunError, match="one process at a time trains in a folder"):
            with lock(run.folder):
                pass
    with lock(run.folder):
        pass


def test_a_run_folder_holds_what_it_promises(trained_run: Run) -> None:
    assert {path.name for path in trained_run.folder.iterdir()} == {
        "config.json",
        "metrics.jsonl",
        "log.txt",
        "lock",
        "checkpoint.pt",
        "checkpoint-previous.pt",
        "weights.safetensors",
    }
    assert [row["step"] for row in rows(trained_run) if "loss" in row] == [5, 10, 15, 20, 24]
    assert [row["step"] for row in rows(trained_run) if "split" in row] == [8, 16, 24]
    assert {"wer", "per", "wer_stress", "per_stress"} <= set(rows(trained_run)[-1])


@pytest.mark.usefixtures("dictionary_in_small")
def test_the_weights_are_those_of_the_best_validation(trained_run: Run) -> None:
    task, model = load_trained(trained_run)
    best = min(row["per"] for row in rows(trained_run) if "split" in row)
    assert task.score(model, "validation").metrics["per"] == best


@pytest.mark.usefixtures("dictionary_in_small")
def test_training_learns(trained_run: Run) -> None:
    losses = [row["loss"] for row in rows(trained_run) if "loss" in row]
    assert losses[-1] < losses[0] - 0.3


@pytest.mark.usefixtures("dictionary_in_small")
def test_it_stops_early_and_stays_stopped(tmp_path: Path) -> None:
    from throughtime.train.loop import fit

    recipe = Recipe(**{**TINY, "steps": 400, "validate_every": 2, "patience": 2, "lr": 1e-9})
    run = create(tmp_path / "run", recipe)
    first = fit(run).state_dict()
    stopped = rows(run)[-1]["step"]
    assert stopped <= 10
    again = fit(run).state_dict()
    assert rows(run)[-1]["step"] == stopped
    assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (math.nan, "the loss must stay finite, and it is nan at step 5; train again with a lower"),
        (5e37, "the norm of the gradient must stay finite, and it is (inf|nan) at step 5"),
    ],
)
@pytest.mark.usefixtures("dictionary_in_small")
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(
    bad: float, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from throughtime.tasks.pronounce import Pronounce
    from throughtime.train.loop import fit

    loss, calls = Pronounce.loss, []

    def breaks_at_step_5(self: Pronounce, model: nn.Module, batch: Any) -> torch.Tensor:
        calls.append(1)
        return loss(self, model, batch) * (bad if len(calls) == 6 else 1.0)

    monkeypatch.setattr(Pronounce, "loss", breaks_at_step_5)
    run = create(tmp_path / "run", Recipe(**TINY))
    with pytest.raises(RunError, match=said):
        fit(run)
    assert run.checkpoint.exists()
    assert not run.weights.exists()


@pytest.mark.usefixtures("dictionary_in_small")
def test_weights_that_are_not_finite_never_take_the_place_of_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from throughtime.train.learner import Learner
    from throughtime.train.loop import fit
    from throughtime.train.storage import read_checkpoint

    step = Learner.step

    def breaks_at_step_6(self: Learner) -> None:
        step(self)
        if self.done == 6:
            with torch.no_grad():
                self.model.get_parameter("mix.bias")[2] = math.inf

    monkeypatch.setattr(Learner, "step", breaks_at_step_6)
    run = create(tmp_path / "run", Recipe(**TINY))
    said = "mix.bias in the model after step 6 has 1 values .* the last checkpoint is kept"
    with pytest.raises(RunError, match=said):
        fit(run)
    state = read_checkpoint(run)
    assert state is not None and state["step"] == 3
