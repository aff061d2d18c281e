"""Who does the runs of a study: Ray, an array of SLURM; and a search in place of a grid."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.study.small import learn_or_die, recipe
from tests.study.test_study import refused
from throughtime.cli import main
from throughtime.errors import MissingExtra, RunError
from throughtime.train.study import Lost, Outcome, learn, run_on_processes, write_script
from throughtime.train.study.on_ray import run_on_ray

TINY = "--task latch --length 6 --steps 20 --validate-every 10 --hidden 8 --lr 0.01".split()
GRID = [*TINY, *"--cells rnn --init torch orthogonal --seeds 1".split()]


def figures(outcomes: list[Outcome]) -> dict[tuple[str, str, int], Any]:
    """What does not depend on who did a run."""
    return {(o.cell, o.start, o.seed): (o.validations, o.metric, o.steps) for o in outcomes}


def read(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in sorted((folder / "runs").glob("*.json"))]


def test_tasks_of_an_array_do_the_runs_and_the_same_command_reports(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "a study"
    words = ["study", *GRID, "--out", str(folder)]
    assert main([*words, "--on", "slurm", "--dry-run", "--jobs", "2"]) == 0
    script = capsys.readouterr().out
    assert "#SBATCH --array=0-1%2\n" in script and "#SBATCH --cpus-per-task=1\n" in script
    assert "--on" not in script and "--dry-run" not in script
    for number in range(2):
        done = subprocess.run(
            ["bash"], input=script, text=True, capture_output=True,
            env=os.environ | {"SLURM_ARRAY_TASK_ID": str(number)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    kept = {f.name: f.stat().st_mtime_ns for f in (folder / "runs").iterdir()}
    assert len(kept) == 2
    assert main([*words, "--on=slurm", "--dry-run"]) == 0
    assert capsys.readouterr().out.startswith("every run is done; the same command without")
    assert main(words) == 0
    assert "2 runs, 2 of them done before" in capsys.readouterr().err
    assert {f.name: f.stat().st_mtime_ns for f in (folder / "runs").iterdir()} == kept
    alone = learn(recipe(cell="rnn", start="orthogonal", hidden=8, lr=0.01, steps=20,
                         validate_every=10))  # fmt: skip
    (one,) = [one for one in read(folder) if one["start"] == "orthogonal"]
    assert one["metric"] == alone.metric


def test_an_array_names_the_missing_runs_in_spans() -> None:
    script = write_script(["study"], [7, 0, 1, 2, 9, 10], 3, 2, Path("/x"))
    assert "--array=0-2,7,9-10%3\n" in script and "--output=/x/slurm-%a.log\n" in script


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--on slurm", "SLURM's sbatch must be there to take a study, and this machine has none"),
        ("--on slurm --seeds 600", "of at most 1000, and the grid has 1200 runs; give fewer"),
        ("--dry-run", "dry-run prints a script for SLURM; leave it out with --on local"),
        ("--address a:1", "address is a Ray's, got 'a:1' with --on local"),
        ("--search tpe --on slurm", "a search goes by what came before; do it with --on local"),
        ("--run 2", "the grid has runs 0 to 1, got 2"),
        ("--on mars", "--on invalid choice: 'mars'"),
    ],
)
def test_what_does_not_go_together_is_one_sentence(
    words: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = refused(capsys, *GRID, *words.split(), "--out", tmp_path / "study")
    assert said in told


@pytest.mark.parametrize(("words", "package"), [("--on ray", "ray"), ("--search tpe", "optuna")])
def test_a_package_that_is_missing_names_its_extra(
    words: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["study", *GRID, *words.split(), "--out", str(tmp_path / "study")]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"{package}, which the extra cluster brings, is needed here and is not inst" in said
    assert not (tmp_path / "study").exists(), "other options may be given the next time"


def test_without_ray_nothing_is_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra):
        list(run_on_ray([recipe()], 1, 1))


def search(folder: Path, trials: int, kind: str = "tpe") -> list[dict[str, Any]]:
    """The trials of a search that shall have so many."""
    words = [*TINY[:-4], "--cells", "rnn", "gru", "--init", "torch", "--jobs", "1"]
    words += ["--search", kind, "--trials", str(trials), "--out", str(folder)]
    assert main(["study", *words]) == 0
    return read(folder)


def test_a_search_goes_on_where_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    optuna = pytest.importorskip("optuna", reason="the extra cluster is not installed")
    folder = tmp_path / "search"
    first = search(folder, 2)
    assert sorted(one["seed"] for one in first) == [0, 1]
    backend = optuna.storages.journal.JournalFileBackend(str(folder / "search.journal"))
    storage = optuna.storages.JournalStorage(backend)
    study = optuna.load_study(study_name="search", storage=storage)
    begun = study.ask()  # and killed before it had drawn everything
    begun.suggest_categorical("model", ["gru from torch", "rnn from torch"])
    capsys.readouterr()
    after = search(folder, 5)
    shown = capsys.readouterr()
    assert shown.err.startswith("5 runs, 2 of them done before\n")
    assert sorted(one["seed"] for one in after) == [0, 1, 3, 4], "number 2 was no trial"
    assert [one for one in after if one["seed"] < 2] == first
    report = json.loads((folder / "study.json").read_text())
    figures = [one["figure"] for one in report["best"]]
    assert figures == sorted(figures) and len(figures) == 4 and report["search"] == "tpe"
    assert "trial" in shown.out and len(search(folder, 5)) == 4, "nothing is left to do"


def test_a_trial_that_was_killed_is_begun_again(tmp_path: Path) -> None:
    pytest.importorskip("optuna", reason="the extra cluster is not installed")
    folder = tmp_path / "search"
    search(folder, 3, "random")
    lost = next((folder / "runs").glob("*-1.json"))
    lines = (folder / "search.journal").read_text().splitlines()
    told = [n for n, line in enumerate(lines) if json.loads(line).get("op_code") == 6]
    del lines[told[1]]  # as if it had been killed before
    (folder / "search.journal").write_text("\n".join(lines) + "\n")
    before = json.loads(lost.read_text())
    lost.unlink()
    (again,) = [one for one in search(folder, 3, "random") if one["seed"] == 1]
    assert again["validations"] == before["validations"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--search best", "search must be one of random, tpe, got 'best'"),
        ("--search tpe --trials 0", "trials must be a whole number of at least 1 and at most"),
        ("--search tpe --length 6 9", "a search is over one length; give one --length"),
    ],
)
def test_a_search_that_cannot_be_is_one_sentence(
    words: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("optuna", reason="the extra cluster is not installed")
    assert said in refused(capsys, *GRID, *words.split(), "--out", tmp_path / "study")


def test_a_grids_folder_is_no_searchs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("optuna", reason="the extra cluster is not installed")
    words = [*GRID, "--out", str(tmp_path / "study")]
    assert main(["study", *words]) == 0
    capsys.readouterr()
    said = refused(capsys, *words, "--search", "tpe")
    assert "must be the folder of a search, or empty, and it has the runs of a grid" in said
    search(tmp_path / "search", 1)
    words = [*GRID, "--search", "tpe", "--out", str(tmp_path / "search")]
    capsys.readouterr()
    assert "goes on with the options it began with, and hidden is" in refused(capsys, *words)
    words = [*TINY[:-4], *"--cells rnn --init torch --search tpe --out".split()]
    said = refused(capsys, *words, tmp_path / "search")
    assert "a search goes on with the cells and starts it began with, gru from torch, rnn" in said


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:99999"])
def test_a_ray_that_is_not_there_is_not_waited_for(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray itself would try for a quarter of an hour."""
    monkeypatch.setitem(sys.modules, "ray", types.SimpleNamespace())
    with pytest.raises(RunError, match=f"a Ray must answer at {address}, and none does"):
        list(run_on_ray([recipe()], 2, 1, address))


def test_a_ray_that_cannot_begin_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**given: Any) -> None:
        raise Exception("The current node timed out during startup. It may be overloaded.\nMore")

    monkeypatch.setitem(sys.modules, "ray", types.SimpleNamespace(init=init))
    with pytest.raises(RunError, match="must begin on this .* timed out .* overloaded\\); see"):
        list(run_on_ray([recipe()], 1, 1))


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_what_is_no_ray_is_not_waited_for_long() -> None:
    pytest.importorskip("ray", reason="the extra cluster is not installed")
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(RunError, match=f"a Ray must answer at {address}, and none does"):
            list(run_on_ray([recipe()], 2, 1, address))


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_ray_does_the_runs_as_processes_do() -> None:
    pytest.importorskip("ray", reason="the extra cluster is not installed")
    wanted = [recipe(cell="rnn", steps=2, seed=seed) for seed in range(4)]
    found = list(run_on_ray(wanted, 2, 1, call=learn_or_die))
    lost = {one.recipe.seed: one.reason for one in found if isinstance(one, Lost)}
    assert set(lost) == {1, 2} and lost[2] == "RuntimeError: not enough memory"
    here = [one for one in run_on_processes(wanted[::3], 1, 1) if isinstance(one, Outcome)]
    there = [one for one in found if isinstance(one, Outcome)]
    assert figures(there) == figures(here) and len(there) == 2


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_sixty_trials_on_ray_survive_a_killed_driver_and_a_killed_worker(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="the extra cluster is not installed")
    slow = "--lr 1e-9 --steps 2000 --validate-every 1000"  # none is solved before its end
    words = [*TINY, *f"--cells rnn --init torch orthogonal --seeds 30 {slow}".split()]
    code = "import sys; from throughtime.cli import main; sys.exit(main(sys.argv[1:]))"
    ray = ["study", *words, "--jobs", "2", "--on", "ray", "--out", str(tmp_path / "ray")]
    for victim in ("worker", "driver", ""):
        before = len(list((tmp_path / "ray" / "runs").glob("*.json")))
        study = subprocess.Popen([sys.executable, "-c", code, *ray], start_new_session=True)
        while victim and len(list((tmp_path / "ray" / "runs").glob("*.json"))) < before + 5:
            assert study.poll() is None
            time.sleep(0.05)
        if victim == "worker":
            os.kill(ray_worker(study.pid), signal.SIGKILL)
            time.sleep(2)
        if victim:
            os.killpg(study.pid, signal.SIGKILL)
        study.wait()
    assert main(["study", *words, "--jobs", "2", "--out", str(tmp_path / "local")]) == 0
    ours, theirs = ([Outcome(**one) for one in read(tmp_path / name)] for name in ("ray", "local"))
    assert len(ours) == len(theirs) == 60 and figures(ours) == figures(theirs)


def ray_worker(driver: int) -> int:
    """A process of Ray's, below a driver, that does runs."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            process = int(path.parent.name)
            if path.read_bytes().startswith(b"ray::_run") and driver in parents(process):
                return process
    raise AssertionError("no worker of Ray's was found")


def parents(process: int) -> Iterator[int]:
    """The process that began this one, and that one's, and so on."""
    while process:
        process = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
        yield process
