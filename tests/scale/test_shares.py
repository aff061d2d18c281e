"""Processes that share a batch: each row is in one part, and the parts' losses are the whole's."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.main_job.small import small_dictionary
from throughtime.environment import ProcessPlace
from throughtime.errors import OptionError
from throughtime.tasks import available, find
from throughtime.tasks.task import Task
from throughtime.train import world
from throughtime.train.launch import find_place, launch
from throughtime.train.learner import Learner, begin_model, cut, make_step_seed
from throughtime.train.run import resolve
from throughtime.train.world import World, add_halves, share_out

ALONE = ("language",)  # one batch goes on where the one before ended


def write_data(task: str) -> dict[str, str]:
    """A small file for a task on the user's own, and the options that name it."""
    if task == "forecast":
        import polars as pl

        pl.DataFrame({"y": [((7 * n) % 13) / 13 + n / 100 for n in range(120)]}).write_csv("y.csv")
        return {"data": "y.csv", "target": "y", "horizon": "3"}
    if task == "classify":
        from throughtime.tasks.classify.find import make_waves

        make_waves().frame.write_csv("waves.csv")
        return {"data": "waves.csv", "label": "shape", "series": "wave"}
    if task == "tag":
        sentences = [f"w{n}\tN\n.\tP\n" * (1 + n % 4) for n in range(60)]
        Path("tags.tsv").write_text("\n".join(sentences) + "\n")
        return {"data": "tags.tsv"}
    if task == "translate":
        pairs = [f"w{n} {'x' * (n % 5)}\tv{n}{'y' * (n % 7)}" for n in range(60)]
        Path("pairs.tsv").write_text("\n".join(pairs) + "\n")
        return {"data": "pairs.tsv"}
    return {}


def made(name: str, **values: Any) -> Task:
    """A task in small, without dropout, whose chance differs from process to process."""
    kind = find(name)
    given = {"hidden": 4, "batch_size": 7, **write_data(name), **values}
    given |= {} if "length" in kind.ignores or name == "forecast" else {"length": 9}
    given |= {} if "dropout" in kind.ignores else {"dropout": 0.0}
    for number in ("horizon",):
        if number in given:
            given[number] = int(given[number])
    return kind(resolve(kind, given))


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    with small_dictionary():
        yield


@pytest.mark.parametrize("size", [2, 3, 9])
@pytest.mark.parametrize("name", [name for name in available() if name not in ALONE])
def test_the_parts_of_a_batch_are_the_whole(name: str, size: int) -> None:
    task = made(name)
    model = begin_model(task).eval().double()
    batch = tuple(x.double() if x.is_floating_point() else x for x in task.epoch(0)[1])
    parts = [cut(task, batch, rank, size) for rank in range(size)]
    for n, axis in enumerate(task.row_axes):
        rows = [row for part, _ in parts for row in part[n].unbind(axis)]
        whole = batch[n].unbind(axis)
        order = [row for rank in range(size) for row in range(rank, len(whole), size)]
        assert len(rows) == len(whole)
        assert all(torch.equal(a, whole[b]) or a.isnan().any()
                   for a, b in zip(rows, order, strict=True))  # fmt: skip
    with torch.no_grad():
        torch.set_default_dtype(torch.float64)
        try:
            loss = float(task.loss(model, batch))
            summed = sum(float(task.loss(model, p)) * share for p, share in parts if share)
        finally:
            torch.set_default_dtype(torch.float32)
    assert summed == pytest.approx(loss, rel=1e-6)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("name", [name for name in available() if name not in ALONE])
def test_all_processes_have_as_many_batches_of_nearly_one_padded_size(name: str, size: int) -> None:
    """Padded as the whole batch is, and at most one row more in one process than in another."""
    task = made(name)
    for batch in (task.epoch(0)[n] for n in range(2)):
        parts = [cut(task, batch, rank, size) for rank in range(size)]
        for n, axis in enumerate(task.row_axes):
            rows = [part[n].shape[axis] for part, _ in parts]
            assert max(rows) - min(rows) <= 1 and sum(rows) == batch[n].shape[axis]
            for part, _ in parts:
                assert part[n].movedim(axis, 0).shape[1:] == batch[n].movedim(axis, 0).shape[1:]


def test_one_process_has_the_batch_itself_and_the_seeds_it_always_had() -> None:
    task = made("latch")
    batch = task.epoch(0)[0]
    assert cut(task, batch, 0, 1) == (batch, 1.0)
    assert make_step_seed(3, 4) == make_step_seed(3, 4, 0)
    assert len({make_step_seed(3, 4, rank) % 2**32 for rank in range(50)}) == 50


@pytest.mark.parametrize("size", range(1, 10))
@pytest.mark.parametrize("parts", [1, 2, 3, 4, 7, 8])
def test_a_sum_by_halves_has_the_bits_of_one_process(parts: int, size: int) -> None:
    every = range(parts)
    numbers = torch.randn(parts, 100, generator=torch.Generator().manual_seed(parts)) * 1e4
    asked: list[int] = []

    def alone(few: range) -> torch.Tensor | None:
        asked.extend(few if len(few) == 1 else ())
        return numbers[few[0]] if len(few) == 1 else None

    whole = add_halves(every, alone)
    assert asked == [*reversed(every)], "the first part is made last: what looks on sees it"
    shares = share_out(every, size)
    assert [part for _, few in shares for part in few] == [*every]
    counts = [sum(len(few) for rank, few in shares if rank == one) for one in range(size)]
    assert max(counts) - min(counts) <= 1 and counts[0] == max(counts)
    assert [rank for rank, _ in shares] == sorted(rank for rank, _ in shares)
    made = {few: add_halves(few, alone) for _, few in shares}
    assert torch.equal(add_halves(every, made.get), whole)
    if parts == 4:
        assert torch.equal(whole, (numbers[0] + numbers[1]) + (numbers[2] + numbers[3]))


def test_memory_of_a_process_that_is_gone_is_not_there() -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    with ours, pytest.raises(OSError, match="the first process is gone"):
        world._share(1, [ours], 8)


class Several(World):
    """A process of several that meets no other."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def agree(self, batches: Any) -> None:
        """Of nobody else."""


@pytest.mark.parametrize(
    ("name", "size", "said"),
    [
        ("latch", 8, "parts, must be at most as many as a batch has rows, 7, got 8; give fewer"),
        ("classify", 1, "parts, must be at most as many as a batch has rows, 7, got 8"),
    ],
)
def test_more_parts_than_rows_are_refused(name: str, size: int, said: str) -> None:
    for parts, processes in ((7, 7), (7, size), (1, 8)):
        task = made(name, parts=parts)
        Learner(task, begin_model(task), world=Several(processes)).check_world()
    task = made(name, parts=8)
    with pytest.raises(OptionError, match=said):
        Learner(task, begin_model(task), world=Several(size)).check_world()


def test_a_task_whose_rows_hang_together_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    task = made("latch")
    monkeypatch.setattr(type(task), "row_axes", ())
    with pytest.raises(OptionError, match="and one of latch is whole, got 2; leave out --proc"):
        Learner(task, begin_model(task), world=Several(2)).check_world()


def environment(monkeypatch: pytest.MonkeyPatch, **values: object) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "SLURM_PROCID", "MASTER_ADDR",
                 "MASTER_PORT", "NODE_RANK"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    for name, value in values.items():
        monkeypatch.setenv(name, str(value))


def test_the_place_is_what_torchrun_says(monkeypatch: pytest.MonkeyPatch) -> None:
    environment(monkeypatch)
    assert find_place() is None
    where = {"MASTER_ADDR": "a", "MASTER_PORT": 7}
    environment(monkeypatch, RANK=3, WORLD_SIZE=4, LOCAL_WORLD_SIZE=2, **where)
    assert find_place() == ProcessPlace(3, 4, 2, "a", 7, hosted=False)
    environment(monkeypatch, RANK=0, WORLD_SIZE=1, LOCAL_WORLD_SIZE=1, **where)
    assert find_place() is None
    environment(monkeypatch, RANK=3, WORLD_SIZE=5, LOCAL_WORLD_SIZE=2, **where)
    with pytest.raises(OptionError, match="every machine must have as many processes as this one"):
        find_place()
    environment(monkeypatch, RANK="x", WORLD_SIZE=5, LOCAL_WORLD_SIZE=2, **where)
    with pytest.raises(OptionError, match="the environment of torchrun must say how many"):
        find_place()
    for wrong, name in ((5, "RANK"), (-1, "RANK"), (0, "LOCAL_WORLD_SIZE"), (70000, "MASTER_PORT")):
        environment(monkeypatch, **{"RANK": 1, "WORLD_SIZE": 4, **where, name: wrong})
        with pytest.raises(OptionError, match=f"and it does not .*{name}.* {wrong}"):
            find_place()


@pytest.mark.parametrize("port", [0, 70000, "80x"])
def test_a_node_has_a_port_that_can_be(port: object, monkeypatch: pytest.MonkeyPatch) -> None:
    environment(monkeypatch, NODE_RANK=0, MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    with pytest.raises(OptionError, match=f"MASTER_PORT one of 1 to 65535 .*{port}"):
        launch(["train"], 1, 2, 3)


def test_the_place_is_what_srun_says(monkeypatch: pytest.MonkeyPatch) -> None:
    said = {"SLURM_NTASKS": 4, "SLURM_PROCID": 2, "SLURM_LOCALID": 0, "SLURM_NODEID": 1}
    said |= {"SLURM_JOB_ID": 1234567, "SLURM_NODELIST": "node[3-5]", "SLURM_JOB_NAME": "run"}
    environment(monkeypatch, SLURM_NTASKS_PER_NODE=2, **said)
    assert find_place() == ProcessPlace(2, 4, 2, "node3", 19567, hosted=False)
    monkeypatch.setenv("SLURM_JOB_NAME", "bash")
    assert find_place() is None, "an interactive shell has begun one process"
    monkeypatch.setenv("SLURM_JOB_NAME", "run")
    monkeypatch.delenv("SLURM_NTASKS_PER_NODE")
    environment(monkeypatch, **said)
    with pytest.raises(OptionError, match="the environment of srun must say .*ntasks-per-node"):
        find_place()
