"""A compiled layer trained by two processes at once equals one process with the whole batch."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel

from throughtime import Recurrent, cells

STEPS, PROCESSES = 3, 2


def _layer() -> Recurrent:
    torch.manual_seed(1)
    return Recurrent(cells.LSTM(), 3, 5, dtype=torch.float64, backend="cpu", return_state=False)


def _batch(step: int) -> torch.Tensor:
    torch.manual_seed(step)
    return torch.randn(4, 2 * PROCESSES, 3, dtype=torch.float64)


def _train(layer: torch.nn.Module, rows: slice) -> None:
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    for step in range(STEPS):
        optimizer.zero_grad()
        layer(_batch(step)[:, rows]).square().mean().backward()
        optimizer.step()


def _process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=PROCESSES
    )
    layer = DistributedDataParallel(_layer())
    _train(layer, slice(rank * 2, rank * 2 + 2))
    torch.save(layer.module.state_dict(), os.path.join(folder, f"{rank}.pt"))
    torch.distributed.destroy_process_group()


def test_two_processes_train_as_one() -> None:
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_process, (folder,), PROCESSES)
        found = [torch.load(Path(folder) / f"{rank}.pt") for rank in range(PROCESSES)]
    alone = _layer()
    _train(alone, slice(None))
    for state in found:
        torch.testing.assert_close(state, dict(alone.state_dict()), rtol=1e-12, atol=1e-14)
