"""Several processes are one run: its figures, its bits, its ends. Here gloo stands for nodes."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from tests.house.source import ROOT
from tests.main_job.small import small_dictionary
from tests.scale.commands import SMALL, begin, by_torchrun, end, losses, refusal
from throughtime.tasks import available, find
from throughtime.train.run import resolve

TWO = ("--processes", 2)
ADDING = {
    "length": 12, "hidden": 6, "batch_size": 8, "steps": 24, "validate_every": 8, "warmup": 2,
    "checkpoint_every": 3, "log_every": 1, "threads": 1,
}  # fmt: skip
KILLED = -9


def train(*jobs: tuple[Path, int, list[Any] | None], **values: Any) -> list[list[Any]]:
    """Trains each run in some processes, perhaps killed; exit codes and last words of each job."""
    recipe = asdict(resolve(find("adding"), {**ADDING, "parts": 2, **values}))
    return forked(
        {"folder": str(f), "recipe": recipe, "size": n, "kill": kill} for f, n, kill in jobs
    )


def forked(jobs: Iterable[dict[str, Any]]) -> list[list[Any]]:
    """Exit codes and last words of each job of one program."""
    asked = list(jobs)
    done = subprocess.run(
        [sys.executable, "-m", "tests.scale.forked"], input=json.dumps(asked), cwd=ROOT,
        capture_output=True, text=True, timeout=3000,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answers: list[list[Any]] = json.loads(done.stdout)
    return answers


MOMENTS = [(1, "step", 5, 0), (0, "step", 6, 1), (0, "replace", 2, 0), (0, "fsync", 3, 1),
           (0, "write", 2, 1)]  # fmt: skip
Job = tuple[str, int, list[Any] | None]


def done(place: Path, jobs: list[Job]) -> dict[str, Path]:
    """The folders of runs by name, each trained by its jobs in turn."""
    said = train(*[(place / name, size, kill) for name, size, kill in jobs])
    for (_, _, kill), (*codes, word) in zip(jobs, said, strict=True):
        if kill is None:
            assert not any(codes) and not word
        else:
            assert codes.pop(kill[0]) == KILLED and set(codes) <= {0, 2}  # 0: it had ended
    return {name: place / name for name, *_ in jobs}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs by what was done to them, all of one program."""
    jobs: list[Job] = [("one", 1, None), ("two", 2, None)]
    jobs += [("killed", 2, list(moment)) for moment in MOMENTS[::2]] + [("killed", 2, None)]
    jobs += [("moved", 2, [1, "step", 7, 1]), ("moved", 1, [0, "step", 6, 0]), ("moved", 3, None)]
    return done(tmp_path_factory.mktemp("together"), jobs)


@pytest.fixture(scope="module")
def two(runs: dict[str, Path]) -> Path:
    """A run of two processes that nobody disturbed."""
    return runs["two"]


def same(one: Path, other: Path) -> bool:
    """Whether two runs have the same bits."""
    return weights(one) == weights(other) and losses(one) == losses(other)


def test_several_processes_are_one_at_the_same_batch(runs: dict[str, Path]) -> None:
    assert len(losses(runs["one"])) == 24
    assert same(runs["two"], runs["one"]) and same(runs["moved"], runs["one"])
    files = {f.name for f in runs["one"].iterdir()}
    assert {f.name for f in runs["two"].iterdir()} == files, "the first process alone writes"
    assert "2 processes of 1 threads each" in (runs["two"] / "log.txt").read_text()


def test_killed_processes_resume_to_the_same_bits(runs: dict[str, Path]) -> None:
    assert same(runs["killed"], runs["two"])


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_more_processes_and_moments(two: Path, tmp_path: Path) -> None:
    jobs: list[Job] = [("killed", 2, list(moment)) for moment in MOMENTS] + [("killed", 2, None)]
    jobs += [("four", 4, [2, "step", 7, 1]), ("four", 4, None)]
    runs = done(tmp_path, jobs)
    assert same(runs["killed"], two) and same(runs["four"], two)
    assert (
        "2 of 4 processes have nothing to compute, since a batch has 2 parts"
        in (runs["four"] / "log.txt").read_text()
    )


def small_recipes() -> list[dict[str, Any]]:
    """A recipe of every task that has parts, in small, with all that is random in it."""
    recipes = []
    for name, kind in available().items():
        given: dict[str, Any] = {"hidden": 4, "batch_size": 7, "threads": 1, "parts": 2, "lr": 0.01}
        given |= {} if "length" in kind.ignores or name == "forecast" else {"length": 9}
        given |= {} if "dropout" in kind.ignores else {"dropout": 0.3}
        if name != "language":
            recipes.append(asdict(resolve(kind, given)))
    return recipes


def bits(
    place: Path, size: int, steps: int, recipes: list[dict[str, Any]], small: bool,
    apart: bool = False,
) -> Any:  # fmt: skip
    """The losses of some steps and a hash of the weights after them, by task."""
    place.mkdir(exist_ok=True)
    folder = place / f"{size}{'-apart' * apart}"
    job = {"folder": str(folder), "recipes": recipes, "size": size, "steps": steps, "small": small,
           "apart": apart}  # fmt: skip
    assert forked([job]) == [[0] * size + [""]]
    each = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(size)]
    assert all(one == each[0] for one in each)
    return each[0]


def test_every_task_has_the_bits_of_its_parts(tmp_path: Path) -> None:
    with small_dictionary():
        recipes = small_recipes()
    alone, two = (bits(tmp_path, size, 4, recipes, small=True) for size in (1, 2))
    assert alone == two and len(alone) == len(available()) - 1


@pytest.mark.parametrize("apart", [False, True])
def test_sums_in_shared_memory_and_sums_that_are_sent_have_one_processs_bits(
    apart: bool, tmp_path: Path
) -> None:
    """Also where a process makes two of the sums, another none, and slices are odd."""
    recipe = asdict(resolve(find("adding"), {**ADDING, "hidden": 5, "steps": 6}))
    several = [{**recipe, "parts": parts} for parts in (2, 5)]
    alone = [bits(tmp_path / str(n), 1, 6, [one], small=False) for n, one in enumerate(several)]
    three = [bits(tmp_path / str(n), 3, 6, [one], small=False, apart=apart)
             for n, one in enumerate(several)]  # fmt: skip
    assert three == alone


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_two_hundred_steps_of_every_task_have_the_bits_of_its_parts(tmp_path: Path) -> None:
    """As its preset has it, dropout and all."""
    kinds = [kind for name, kind in available().items() if name != "language"]
    recipes = [asdict(resolve(kind, {"threads": 1, "parts": 2})) for kind in kinds]
    alone, two = (bits(tmp_path, size, 200, recipes, small=False) for size in (1, 2))
    assert alone == two and all(len(one) == 201 for one in two.values())


def test_all_end_at_the_same_validation_and_none_begins_on_other_data(tmp_path: Path) -> None:
    """Ended by patience: every process must see it at the same validation."""
    ended, other = train(
        (tmp_path / "run", 2, None), (tmp_path / "other", 2, [1, "data"]),
        steps=200, validate_every=2, patience=2, lr=1e-9,
    )  # fmt: skip
    assert ended == [0, 0, ""]
    said = "all processes must see the same data, and process 1 does not see what process 0 "
    said += "does; give"
    assert other[:2] == [2, 2] and other[2].startswith(said)
    assert 4 <= len(losses(tmp_path / "run")) < 20


def test_a_loss_that_grows_without_end_says_what_to_do_whoever_tells(tmp_path: Path) -> None:
    job = (tmp_path / "run", 2, None)
    said = train(job, lr=1e30)
    assert said[0][:2] == [2, 2] and said[0][2].startswith("the loss must stay finite, and it is ")
    assert "; train again with a lower --lr or with --clip norm; the last checkp" in said[0][2]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def weights(folder: Path) -> bytes:
    return (folder / "weights.safetensors").read_bytes()


def killed(folder: Path, victim: int, step: int, *words: object) -> str:
    """What is said when a process of two, or all, are killed at a step or later."""
    run = begin(*SMALL, "--out", folder, *TWO, *words)
    try:
        children = wait_for_children(run.pid)
        while run.poll() is None and len(losses_so_far(folder)) < step:
            time.sleep(0.005)
        for child in children if victim < 0 else [children[victim]]:
            os.kill(child, signal.SIGKILL)
    except ProcessLookupError:
        pass  # it was done before
    return end(run)[1]


def wait_for_children(parent: int) -> list[int]:
    """The two processes that a launcher has begun, in the order of their ranks."""
    path, limit = Path(f"/proc/{parent}/task/{parent}/children"), time.monotonic() + 60
    while time.monotonic() < limit:
        children = [int(word) for word in path.read_text().split()]
        if len(children) == 2:
            return children
        time.sleep(0.01)
    raise AssertionError("it began no two processes")


def losses_so_far(folder: Path) -> list[float]:
    try:
        return losses(folder)
    except (OSError, ValueError):
        return []


def test_a_killed_process_and_ctrl_c_are_told_once(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    said = killed(folder, 1, 5, "--steps", 10**6, "--patience", 10**6)
    assert "process 1 was ended by SIGKILL; the last checkpoint is kept: " in refusal(said)
    assert f"go on with: throughtime train adding --resume --out {folder}" in said
    run = begin("train", "adding", "--resume", "--out", folder, *TWO)
    count = len(losses(folder))
    while run.poll() is None and len(losses_so_far(folder)) < count + 5:
        time.sleep(0.01)
    run.send_signal(signal.SIGINT)
    code, said = end(run)
    assert code == 130 and said.count("go on with: throughtime train adding --resume") == 1
    assert "Traceback" not in said and "error:" not in said


@pytest.mark.soak
def test_a_launcher_that_is_killed_takes_its_processes_along(tmp_path: Path) -> None:
    run = begin(*SMALL, "--out", tmp_path / "run", *TWO, "--steps", 10**6)
    children = wait_for_children(run.pid)
    run.kill()
    end(run)
    limit = time.monotonic() + 60
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < limit, "they went on by themselves"
        time.sleep(0.05)


BAD_LATER = """
import os, sys
from throughtime.errors import DataError
from throughtime.train.learner import Learner
from throughtime.cli import main
step = Learner.step
def fails(self):
    step(self)
    if self.done == 4 and os.environ["RANK"] == "1":
        raise DataError("the disk of this node is gone")
Learner.step = fails
sys.exit(main())
"""


def test_what_fails_in_one_process_is_told_once(tmp_path: Path) -> None:
    port = free_port()
    out = ("--out", tmp_path / "run")
    both = [
        begin(*SMALL, *out, code=BAD_LATER, environment=by_torchrun(n, 2, port)) for n in range(2)
    ]
    (first, told), (second, quiet) = map(end, both)
    assert (first, second) == (2, 2) and quiet == ""
    assert "the disk of this node is gone" in refusal(told)


@pytest.mark.soak
def test_two_nodes_are_two_processes_of_one(two: Path, tmp_path: Path) -> None:
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    both = [
        begin(*SMALL, "--out", tmp_path / "run", "--nodes", 2,
              environment={**where, "NODE_RANK": str(number), "GLOO_SOCKET_IFNAME": "lo"})
        for number in (1, 0)
    ]  # fmt: skip
    for code, said in map(end, both):
        assert code == 0, said
    assert weights(tmp_path / "run") == weights(two) and losses(tmp_path / "run") == losses(two)


def test_a_node_that_never_comes_is_named(tmp_path: Path) -> None:
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "NODE_RANK": "0"}
    words = (*SMALL, "--out", tmp_path / "run", "--nodes", 2, *TWO, "--wait", 3)
    code, said = end(begin(*words, environment=where))
    assert code == 2 and not (tmp_path / "run").exists()
    assert "all 4 processes must come within 3 s, and processes 2 and 3 do not" in refusal(said)
    where["NODE_RANK"] = "1"
    code, said = end(begin(*words, environment=where))
    assert code == 2
    assert f"process 0 must answer at 127.0.0.1:{where['MASTER_PORT']}, and it did" in refusal(said)
    assert said.count("\n") == 1, "torch says nothing beside"


def test_a_port_in_use_is_one_sentence(tmp_path: Path) -> None:
    """Also for the other nodes, whom what has it never answers."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        words = (*SMALL, "--out", tmp_path / "run", "--nodes", 2, "--wait", 3)
        both = [begin(*words, environment={**where, "NODE_RANK": str(n)}) for n in range(2)]
        (first, at_first), (second, at_second) = map(end, both)
    assert (first, second) == (2, 2) and at_second.count("\n") == 1
    assert f"the processes meet at 127.0.0.1:{port}, and that" in refusal(at_first)
    assert f"process 0 must answer at 127.0.0.1:{port}, and it did not" in refusal(at_second)


def test_a_host_that_nobody_knows_is_one_sentence(tmp_path: Path) -> None:
    where = {"MASTER_ADDR": "no.such.host.invalid", "MASTER_PORT": "29500", "NODE_RANK": "0"}
    code, said = end(begin(*SMALL, "--out", tmp_path / "run", "--nodes", 2, environment=where))
    assert code == 2 and said.count("\n") == 1
    assert "the processes meet at no.such.host.invalid:29500, and that cannot" in refusal(said)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--processes 0", "processes must be a whole number of 1 to 1024, got 0"),
        ("--processes 5000", "processes must be a whole number of 1 to 1024, got 5000"),
        ("--processes 2 --batch-size 1", "parts, must be at most as many as a batch has rows, 1"),
        ("--nodes 2", "each of 2 nodes must have NODE_RANK, 0 to 1, MASTER_ADDR, the address of n"),
    ],
)
def test_what_cannot_be_is_one_sentence(words: str, said: str, tmp_path: Path) -> None:
    code, told = end(begin(*SMALL, *words.split(), "--out", tmp_path / "run"))
    assert code == 2 and said in refusal(told)
    assert not (tmp_path / "run").exists()


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_killed_at_twenty_random_moments(tmp_path: Path) -> None:
    draw = random.Random(5)
    long: list[Any] = []
    for number in range(20):
        folder = tmp_path / str(number)
        for _ in range(2):
            long.append((folder, 2, [draw.choice((-1, 0, 1)), "seconds", draw.uniform(0, 4), 0]))
        long.append((folder, 2, None))
    said = train((tmp_path / "whole", 2, None), *long, steps=1200)
    codes = [code for one in said for code in one[:2]]
    assert codes.count(KILLED) >= 20 and not any(code for one in said[3::3] for code in one[:2])
    assert all(same(tmp_path / str(number), tmp_path / "whole") for number in range(20))


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_two_torchruns_are_two_processes_of_one(two: Path, tmp_path: Path) -> None:
    port = free_port()
    code = "from throughtime.cli import main; import sys; sys.exit(main())"
    (tmp_path / "program.py").write_text(code)
    both = [
        subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node",
             "1", "--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id",
             "1", str(tmp_path / "program.py"), *SMALL, "--out", str(tmp_path / "run")],
            stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    for process in both:
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said
    assert weights(tmp_path / "run") == weights(two)
