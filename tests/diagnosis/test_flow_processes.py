"""`GradientFlow` in two processes: one of them logs, and both stop where one must."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.diagnosis.test_flow import GradientFlow, Learner, batch, fitted, made, quiet

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pytorch_lightning")
__all__ = ["quiet"]


@pytest.fixture(scope="module")
def both() -> list[list[dict[str, Any]]]:
    """What each process says of a sound training and of one that goes wrong."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "NODE_RANK": "0"}
    runs = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.diagnosis.one_of_two"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            cwd=Path(__file__).parents[2], env=os.environ | place | {"LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        said = [run.communicate(timeout=240) for run in runs]
    finally:
        for run in runs:
            run.kill()
    assert [run.returncode for run in runs] == [0, 0], said
    return [json.loads(out.splitlines()[-1]) for out, _ in said]


def test_the_first_logs_the_numbers_of_one_process(both: Any) -> None:
    (first, _), (second, _) = both
    assert (second["rows"], second["said"]) == ([], [])
    assert [step for step, _ in first["rows"]] == [1, 3]
    assert len(first["said"]) == 1 and "Vanishing in model.encoder.0" in first["said"][0]
    whole = [batch(seed) for seed in range(3)]
    expected = fitted(Learner(made("drop_in")), whole, GradientFlow(2)).rows
    for (_, row), (_, other) in zip(first["rows"], expected, strict=True):
        shared = {n: v for n, v in other.items() if "norm" in n or "update" in n}
        assert {n: row[n] for n in shared} == pytest.approx(shared, rel=1e-4)
    x, target = whole[0]
    ((_, own),) = fitted(Learner(made("drop_in")), [(x[:, ::2], target[::2])], GradientFlow()).rows
    name = "flow/log10_rho/model.encoder.0"
    assert first["rows"][0][1][name] == pytest.approx(own[name], rel=1e-4), "of its own rows"


def test_both_stop_where_one_comes_to_nan(both: Any) -> None:
    (_, first), (_, second) = both
    assert first["error"].startswith("at training step 1 the loss of another process is NaN or inf")
    assert second["error"].startswith("at training step 1 the loss is NaN or infinity, and the out")
    assert [step for step, _ in first["rows"]] == [1]
