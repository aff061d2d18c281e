"""Runs that somebody else wrote, or that the disk cut off: one sentence each, nothing lost."""

from __future__ import annotations

import copy
import io
import os
import pickle
import random
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from tests.house.source import ROOT
from tests.main_job.small import TINY, small_dictionary
from throughtime.cli import main
from throughtime.errors import RunError
from throughtime.tasks.recipe import Recipe
from throughtime.train.result import load_trained, score_and_keep
from throughtime.train.run import Run
from throughtime.train.storage import _digest, read_checkpoint, seal, unseal

pytestmark = pytest.mark.usefixtures("dictionary_in_small")

WEIGHT = "mix.bias"


def state_of(run: Run) -> dict[str, Any]:
    content = unseal(run.checkpoint.read_bytes(), run.checkpoint, "")
    state: dict[str, Any] = torch.load(io.BytesIO(content), weights_only=True)
    return state


def reseal(run: Run, state: object) -> None:
    """Writes a checkpoint with a right checksum, whatever is in it."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    run.checkpoint.write_bytes(seal(buffer.getvalue()))


def changed(state: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    state = copy.deepcopy(state)
    part: Any = state
    *before, last = path.split("/")
    for name in before:
        part = part[int(name) if name.isdecimal() else name]
    part[int(last) if last.isdecimal() else last] = value
    return state


def refused(run: Run) -> str:
    """What a checkpoint is refused with, before it is used for anything."""
    from throughtime.train.loop import fit

    before = run.metrics.read_bytes()
    with pytest.raises(RunError) as caught:
        fit(run)
    assert run.metrics.read_bytes() == before
    return str(caught.value)


NAN = torch.full((12,), torch.nan)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("step", -1, "step is -1"),
        ("step", 25, "step is 25"),
        ("step", 8.0, "step is 8.0"),
        ("step", float("nan"), "step is nan"),
        ("step", True, "step is True"),
        ("step", 10**400, "step is a number of some 400 digits"),
        ("step", "8", "step is '8'"),
        ("step", torch.tensor(8), "step is a tensor () of int64"),
        ("finished", 1, "finished is 1"),
        ("finished", None, "finished is None"),
        ("model", [], "model has other parts"),
        ("model", None, "model has other parts"),
        (f"model/{WEIGHT}", torch.zeros(13), f"model.{WEIGHT} is a tensor (13,) of float32 in pl"),
        (f"model/{WEIGHT}", torch.zeros(12, 1), f"model.{WEIGHT} is a tensor (12, 1) of float32"),
        (f"model/{WEIGHT}", torch.zeros(12).double(), f"model.{WEIGHT} is a tensor (12,) of f"),
        (f"model/{WEIGHT}", torch.zeros(12).bfloat16(), "a tensor (12,) of bfloat16 in place of a"),
        (f"model/{WEIGHT}", torch.zeros(12).to_sparse(), f"model.{WEIGHT} is a tensor (12,) of fl"),
        (f"model/{WEIGHT}", torch.empty(12, device="meta"), f"model.{WEIGHT} is a tensor (12,) of"),
        (f"model/{WEIGHT}", NAN, f"model.{WEIGHT} has values that are NaN or infinite"),
        (f"model/{WEIGHT}", [0.0] * 12, f"model.{WEIGHT} is of type list in place of a tensor"),
        ("model/more", torch.zeros(2), "model has other parts"),
        ("optimizer", {}, "optimizer has other parts"),
        ("optimizer/state", {}, "optimizer.state has other parts"),
        ("optimizer/state/0/exp_avg", torch.zeros(3), "optimizer.state.0.exp_avg is a tensor (3,)"),
        ("optimizer/state/0/step", torch.tensor(torch.nan), "optimizer.state.0.step has values"),
        ("optimizer/param_groups", [], "optimizer.param_groups has other parts"),
        ("optimizer/param_groups/0/betas", (0.9, "x"), "param_groups.0.betas.1 is 'x' in place of"),
        ("optimizer/param_groups/0/lr", float("nan"), "optimizer.param_groups.0.lr is nan"),
        ("optimizer/param_groups/0/params", [0], "optimizer.param_groups.0.params has other parts"),
        ("stopping", None, "stopping has other parts"),
        ("stopping/waited", -2, "stopping.waited is -2"),
        ("stopping/lowest", 1, "stopping.lowest is 1"),
        ("stopping/lowest", torch.zeros(2), "stopping.lowest is a tensor (2,) of float32"),
        ("stopping/more", 99, "stopping has other parts"),
        ("best", [], "best has other parts"),
        ("best/value", float("nan"), "best.value is nan"),
        ("best/weights", {}, "best.weights has other parts"),
        (f"best/weights/{WEIGHT}", torch.zeros(3), f"best.weights.{WEIGHT} is a tensor (3,) of fl"),
        (f"best/weights/{WEIGHT}", NAN, f"best.weights.{WEIGHT} has values that are NaN or infin"),
        ("journal", {}, "journal has other parts"),
        ("journal/bytes", -1, "journal.bytes is -1"),
        ("journal/bytes", 10**9, "must have at least the 1000000000 bytes that were there when"),
        ("journal/window", {"steps": 1}, "journal.window has other parts"),
        ("journal/window/loss", float("inf"), "journal.window.loss is inf"),
        ("journal/wall", "long", "journal.wall is 'long'"),
        ("recipe", None, "must be of this version of throughtime, and it is not"),
        ("recipe/of_a_newer_version", 1, "must be of this version of throughtime, and it is not"),
        ("recipe/hidden", 7, "must be of one run, and hidden is 6 in the one and 7 in the other"),
        ("recipe/hidden", True, "hidden is 6 in the one and True in the other; restore"),
        ("recipe/hidden", torch.ones(2), "hidden is 6 in the one and tensor([1., 1.]) in"),
        ("recipe/steps", 25, "steps is 24 in the one and 25 in the other; restore config.json"),
        ("recipe/steps", -3, "steps is 24 in the one and -3 in the other; restore config.json"),
        ("of_a_newer_version", 1, "must hold recipe, step, model, "),
    ],
)  # fmt: skip
def test_a_resealed_checkpoint_is_one_sentence(
    path: str, value: object, said: str, copied_run: Run
) -> None:
    reseal(copied_run, changed(state_of(copied_run), path, value))
    sentence = refused(copied_run)
    assert said in sentence and "\n" not in sentence


@pytest.mark.parametrize(
    "content",
    [
        b"", b"x", b"PK\3\4" + bytes(99), b"(" * 99_999, b"\x80\2" + b"]" * 99_999 + b".",
        pickle.dumps({"step": 1}), pickle.dumps(OrderedDict), bytes(range(256)) * 9,
    ],
    ids=range(8),
)  # fmt: skip
def test_a_resealed_file_of_another_program_is_one_sentence(
    content: bytes, copied_run: Run
) -> None:
    copied_run.checkpoint.write_bytes(seal(content))
    assert "must be a checkpoint of this program, and it is not; delete it" in refused(copied_run)


def test_bytes_changed_at_random_behind_a_right_seal(copied_run: Run) -> None:
    whole = unseal(copied_run.checkpoint.read_bytes(), copied_run.checkpoint, "")
    draw = random.Random(4)
    for _ in range(150):
        content = bytearray(whole[: draw.choice([len(whole), draw.randrange(len(whole))])])
        for _ in range(draw.choice([1, 4, 64])):
            if content:
                content[draw.randrange(len(content))] = draw.randrange(256)
        copied_run.checkpoint.write_bytes(seal(bytes(content)))
        try:
            read_checkpoint(copied_run)
        except RunError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize("kind", ["a folder", "a pipe", "a link to itself"])
def test_a_checkpoint_that_is_no_file_is_one_sentence(kind: str, copied_run: Run) -> None:
    path = copied_run.checkpoint
    path.unlink()
    make = {
        "a folder": path.mkdir,
        "a pipe": lambda: os.mkfifo(path),
        "a link to itself": lambda: path.symlink_to(path),
    }
    make[kind]()
    assert "checkpoint.pt must be readable, and it is not (" in refused(copied_run)


def weigh(run: Run, weights: dict[str, torch.Tensor]) -> None:
    """Writes weights with a right checksum, whatever they are."""
    run.weights.write_bytes(save(weights, metadata={"sha256": _digest(weights)}))


@pytest.mark.parametrize(
    ("weight", "said"),
    [
        (torch.zeros(12).bfloat16(), f"{WEIGHT} does not fit ((12,) bfloat16 for (12,) float32)"),
        (torch.zeros(12).half(), f"{WEIGHT} does not fit ((12,) float16 for (12,) float32)"),
        (torch.zeros(12).to(torch.float8_e4m3fn), f"{WEIGHT} does not fit ((12,) float8_e4m3fn f"),
        (torch.zeros(()), f"{WEIGHT} does not fit (() float32 for (12,) float32)"),
        (torch.zeros(0, 12), f"{WEIGHT} does not fit ((0, 12) float32 for (12,) float32)"),
        (None, f"{WEIGHT} does not fit (nothing for (12,) float32)"),
        (NAN, f"weights must be finite, and {WEIGHT} in "),
    ],
)
def test_other_weights_with_a_right_checksum_are_one_sentence(
    weight: torch.Tensor | None, said: str, copied_run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    state = state_of(copied_run)["model"]
    state.pop(WEIGHT)
    weigh(copied_run, state if weight is None else {**state, WEIGHT: weight})
    assert main(["predict", str(copied_run.folder), "time"]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and said in shown.err and shown.err.count("\n") == 1


@pytest.mark.parametrize(
    "header", [b"[" * 99_999, b"[]", b"{}", b'{"__metadata__": {"sha256": 3}}']
)
def test_a_header_of_another_making_is_one_sentence(header: bytes, copied_run: Run) -> None:
    copied_run.weights.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(RunError, match="weights.safetensors must "):
        load_trained(copied_run)


def test_weights_that_are_a_folder_are_one_sentence(copied_run: Run) -> None:
    copied_run.weights.unlink()
    copied_run.weights.mkdir()
    with pytest.raises(
        RunError, match=r"must be readable, and it is not \(Is a directory\); restor"
    ):
        load_trained(copied_run)


@pytest.mark.parametrize("content", ["", "{}\n", "[1]\n", "x\n", "[" * 99_999])
def test_metrics_that_lost_their_last_row_are_one_sentence(content: str, copied_run: Run) -> None:
    task, model = load_trained(copied_run)
    copied_run.metrics.write_text(content)
    with pytest.raises(RunError, match="metrics.jsonl must end with the last row that training"):
        score_and_keep(copied_run, task, model)


FULL = """
import sys, warnings
warnings.simplefilter("ignore")
import resource, signal
from tests.main_job.small import small_dictionary
from throughtime.cli import main
import throughtime.train.loop
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with small_dictionary():
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
    code = main(sys.argv[2:])
sys.exit(code)
"""


def with_a_full_disk(bytes: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    """A command that may make no file longer than that, as if the disk were full."""
    command = [sys.executable, "-c", FULL, str(bytes), *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110)


def flags() -> list[str]:
    values = TINY | {"directions": 2}
    return [part for n, v in values.items() for part in (f"--{n.replace('_', '-')}", str(v))]


@pytest.mark.parametrize("bytes", [0, 800, 5000], ids=["config", "log", "checkpoint"])
def test_a_full_disk_ends_a_new_run_in_one_sentence(bytes: int, tmp_path: Path) -> None:
    out = tmp_path / "runs" / "run"
    done = with_a_full_disk(bytes, "train", "pronounce", "--out", out, *flags())
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "(File too large)" in done.stderr.splitlines()[-1]
    assert not list(tmp_path.rglob("*.draft*"))
    assert "checkpoint is kept" not in done.stderr, "there was none yet"
    if bytes == 0:
        assert not list(tmp_path.iterdir()), "no folder of a run that never began"


def test_a_full_disk_keeps_the_last_checkpoint(copied_run: Run) -> None:
    before = {file.name: file.read_bytes() for file in copied_run.folder.iterdir()}
    longer = ["train", "pronounce", "--resume", "--steps", 48, "--out", copied_run.folder]
    done = with_a_full_disk(copied_run.checkpoint.stat().st_size // 2, *longer)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "checkpoint.pt must take what training writes, and it does not" in done.stderr
    assert "; the last checkpoint is kept: see that it can" in done.stderr
    assert "see that it can, then go on with: throughtime train pronounce --resume" in done.stderr
    for name in ("checkpoint.pt", "checkpoint-previous.pt", "weights.safetensors"):
        assert (copied_run.folder / name).read_bytes() == before[name]
    with small_dictionary():
        assert main([*map(str, longer)]) == 0
    assert Recipe(**state_of(copied_run)["recipe"]).steps == 48
