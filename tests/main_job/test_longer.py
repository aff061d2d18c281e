"""`--resume` with more steps or patience than the run began with: it goes on, and says how."""

from __future__ import annotations

import json
from pathlib import Path
from shutil import copytree

import pytest

from tests.main_job.small import TINY
from tests.main_job.test_resume import outcome, same
from throughtime.cli import main
from throughtime.errors import OptionError
from throughtime.tasks import find
from throughtime.train.learner import learning_rate
from throughtime.train.run import Run, create, go_on, read

pytestmark = pytest.mark.usefixtures("dictionary_in_small")


def trained(folder: Path, **values: object) -> Run:
    from throughtime.train.loop import fit

    run = create(folder, find("pronounce").options(**{**TINY, "steps": 8, **values}))
    fit(run)
    return run


def longer(folder: Path, *flags: str) -> Run:
    assert main(["train", "pronounce", "--resume", "--out", str(folder), *flags]) == 0
    return read(folder)


def test_at_a_constant_rate_it_is_the_run_that_had_all_steps(tmp_path: Path) -> None:
    constant = {"schedule": "constant", "log_every": 4}
    whole = trained(tmp_path / "whole", **constant, steps=24)
    short = trained(tmp_path / "short", **constant)
    assert longer(short.folder, "--steps", "16").recipe.steps == 16
    assert longer(short.folder, "--steps", "24").recipe == whole.recipe
    assert same(outcome(short.folder), outcome(whole.folder))


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_from_there_the_rate_is_that_of_the_longer_schedule(
    schedule: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained(tmp_path / "run", schedule=schedule, log_every=1)
    before, after = run.recipe, longer(run.folder, "--steps", "20").recipe
    rows = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    rates = [row["lr"] for row in rows if "lr" in row]
    assert rates == [learning_rate(before if t < 8 else after, t) for t in range(20)]
    said = capsys.readouterr().err
    last, first = learning_rate(before, 7), learning_rate(after, 8)
    assert first > last
    assert (
        "it goes on to step 20, where it was to end at 8; from here the learning rate follows the "
        f"{schedule} over 20 steps, {first:.3g} after {last:.3g}, so that the weights will be "
        "others than those of a run that had 20 steps from its beginning"
    ) in said
    longer(run.folder)
    assert "it goes on to step" not in capsys.readouterr().err, "once is enough"


def test_killed_between_its_new_recipe_and_its_first_new_step(tmp_path: Path) -> None:
    run = trained(tmp_path / "run")
    other = Run(Path(copytree(run.folder, tmp_path / "other")), run.recipe)
    go_on(find("pronounce"), run.folder, {"steps": 16})  # writes config.json, and no more
    assert longer(run.folder) == read(run.folder) == Run(run.folder, read(run.folder).recipe)
    longer(other.folder, "--steps", "16")
    assert same(outcome(run.folder), outcome(other.folder))


def test_a_run_that_was_not_at_its_end_gets_more_steps_too(tmp_path: Path) -> None:
    run = create(tmp_path / "run", find("pronounce").options(**{**TINY, "steps": 8}))
    assert go_on(find("pronounce"), run.folder, {"steps": 12}).recipe.steps == 12


def test_one_that_stopped_early_needs_more_patience(tmp_path: Path) -> None:
    impatient = {"steps": 60, "validate_every": 2, "patience": 2, "lr": 1e-9}
    run = trained(tmp_path / "run", **impatient)
    stopped = outcome(run.folder)["state"]["step"]
    assert stopped < 20
    before = (run.folder / "config.json").read_bytes()
    with pytest.raises(OptionError, match=rf"stopped at step {stopped} of 60, since 2 .* --patien"):
        go_on(find("pronounce"), run.folder, {"steps": 80})
    assert (run.folder / "config.json").read_bytes() == before
    assert longer(run.folder, "--patience", "4").recipe.patience == 4
    later = outcome(run.folder)["state"]
    assert later["step"] == stopped + 4 and later["stopping"]["waited"] == 4
    whole = trained(tmp_path / "whole", **impatient | {"patience": 4})
    assert same(outcome(run.folder)["weights"], outcome(whole.folder)["weights"])


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--steps 5", "may get a larger --steps, not a smaller one, and it is 24 in"),
        ("--patience 1", "may get a larger --patience, not a smaller one, and it is 10 in"),
        ("--steps 30 --seed 5", "a resumed run keeps its options, and --seed is 0 in"),
        ("--steps none", "steps must be a whole number of at least 1, got 'none'"),
        ("--steps 0", "steps must be a whole number of at least 1, got 0"),
    ],
)
def test_what_a_resumed_run_cannot_have(
    flags: str, said: str, trained_run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (trained_run.folder / "config.json").read_bytes()
    out = str(trained_run.folder)
    assert main(["train", "pronounce", "--resume", "--out", out, *flags.split()]) == 2
    shown = capsys.readouterr().err
    assert said in shown and shown.count("\n") == 1
    assert (trained_run.folder / "config.json").read_bytes() == before
