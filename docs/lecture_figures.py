"""The figures of docs/lecture.md, computed: `python docs/lecture_figures.py` prints them all.

Each function below gives figures of one kind as name -> value; the page marks each figure with its
name, and tests/docs/test_lecture_page.py compares the two within `TOLERANCE`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cosine_similarity, mse_loss

from throughtime import Cell, Recurrent, cells

# By the first word of a figure's name, relative: machines and versions of torch round differently,
# bytes and counts are exact, gradients far back are products of many rounded numbers.
TOLERANCE = {
    "memory": 0.05,
    "reach": 0.5,
    "clip": 0.02,
    "skip": 0.02,
    "bytes": 0.0,
    "weights": 0.0,
    "sides": 0.5,
}
T, B, H = 200, 16, 64  # steps, rows and units of every gradient measured over lags
CELLS: dict[str, Callable[[], Cell]] = {"RNN": cells.Elman, "LSTM": cells.LSTM, "GRU": cells.GRU}


def gradients(
    cell: Cell, change: Callable[[Any], None] = lambda layer: None, dtype: Any = torch.float32
) -> Tensor:
    """dL/ds_t of every step and row, (T, B, width of s); L looks at the last output alone.

    Step by step, since a state inside a sequence is nobody's leaf; s is h, or h and c in one row.
    """
    torch.manual_seed(0)
    layer = Recurrent(cell, 1, H, dtype=dtype)
    change(layer)
    states, state = [], None
    for x_t in torch.rand(T, 1, B, 1, dtype=dtype):
        _, state = layer(x_t, state)
        states.append(state[0])
        for v in state[0]:
            v.retain_grad()
    (states[-1][0] * torch.randn(1, B, H, dtype=dtype)).sum().backward()
    found = [[v.grad if v.grad is not None else 0 * v for v in s] for s in states]
    return torch.stack([torch.cat(g, -1)[0].detach() for g in found])


def forget(bias: float) -> Callable[[Any], None]:
    """Starts an LSTM with this bias of its forget gate."""
    return lambda layer: setattr(layer.gate("f"), "bias", bias)


def larger(factor: float) -> Callable[[Any], None]:
    """Starts a layer with larger recurrent weights."""
    return lambda layer: layer.weight_hh_l0.data.mul_(factor)


def reach() -> dict[str, float]:
    """||dL/ds_{T-k}|| / ||dL/ds_T|| over the lag k, the geometric mean over the batch."""
    kinds: dict[str, tuple[Cell, Callable[[Any], None]]] = {
        **{name: (cell(), lambda layer: None) for name, cell in CELLS.items()},
        "LSTM_forget_1": (cells.LSTM(), forget(1.0)),
        "LSTM_forget_3": (cells.LSTM(), forget(3.0)),
        "RNN_times_3": (cells.Elman(), larger(3.0)),
    }
    found: dict[str, float] = {}
    for name, (cell, change) in kinds.items():
        gradient = gradients(cell, change)
        logs = gradient.double().norm(dim=-1).log()
        for lag in (10, 50, 100, 199):
            found[f"reach.{name}.{lag}"] = float((logs[-1 - lag] - logs[-1]).mean().exp())
        found[f"reach.{name}.float32"] = float(gradient[0].norm(dim=-1).max())
    return found


def memory() -> dict[str, float]:
    """What is left of a changed first input in the state: ||s_k - s'_k|| / ||s_0 - s'_0||."""
    found: dict[str, float] = {}
    for name, cell in CELLS.items():
        torch.manual_seed(0)
        layer = Recurrent(cell(), 1, H, dtype=torch.float64)
        x = torch.rand(51, B, 1, dtype=torch.float64)
        changed = x.clone()
        changed[0] = 1 - x[0]
        with torch.no_grad():
            pairs = zip(layer.trace(x)[0].values(), layer.trace(changed)[0].values(), strict=True)
            difference = torch.cat([(a - b).flatten(2) for a, b in pairs], -1).norm(dim=-1)
        left = (difference.log() - difference[0].log()).mean(1).exp()
        found |= {f"memory.{name}.{k}": float(left[k]) for k in (10, 50)}
    return found


def adding_gradients(gain: float, batches: int = 60) -> Tensor:
    """Gradients of a tanh network on the adding problem, one row a batch, weights fixed.

    T = 100, H = 64, B = 20, recurrent weights N(0, gain^2 / H).
    """
    torch.manual_seed(0)
    steps, rows = 100, 20
    layer = Recurrent(cells.Elman(), 2, H, return_state=False, dtype=torch.float64)
    readout = nn.Linear(H, 1, dtype=torch.float64)
    nn.init.normal_(layer.get_parameter("weight_hh_l0"), std=gain / H**0.5)
    found = []
    for _ in range(batches):
        x = torch.rand(steps, rows, 2, dtype=torch.float64)
        x[..., 1] = 0
        for half in range(2):
            marked = torch.randint(steps // 2, (rows,)) + half * (steps // 2)
            x[marked, torch.arange(rows), 1] = 1
        y = readout(layer(x)[-1]).squeeze(-1)
        loss = mse_loss(y, (x[..., 0] * x[..., 1]).sum(0))
        gradients = torch.autograd.grad(loss, [*layer.parameters(), *readout.parameters()])
        found.append(torch.cat([g.flatten() for g in gradients]))
    return torch.stack(found)


def clip() -> dict[str, float]:
    """What clipping by norm (1.0) and by value (0.1) does to batches and to their mean."""
    found: dict[str, float] = {}
    for gain in (1.0, 2.0):
        g = adding_gradients(gain)
        norm = g.norm(dim=1, keepdim=True)
        by_norm, by_value = g * (1 / norm).clamp(max=1), g.clamp(-0.1, 0.1)
        figures = {
            "norm": norm.median(),
            "batch_by_norm": cosine_similarity(by_norm, g).min(),
            "mean_by_norm": cosine_similarity(by_norm.mean(0), g.mean(0), 0),
            "batch_by_value": cosine_similarity(by_value, g).mean(),
            "mean_by_value": cosine_similarity(by_value.mean(0), g.mean(0), 0),
            "halves": cosine_similarity(g[::2].mean(0), g[1::2].mean(0), 0),
        }
        found |= {f"clip.{gain:g}.{name}": float(value) for name, value in figures.items()}
    return found


def saved_bytes(layer: Recurrent, x: Tensor) -> int:
    """Bytes that a call keeps for its backward pass, the weights aside, each tensor once."""
    weights = {p.untyped_storage().data_ptr() for p in layer.parameters()}
    kept: dict[int, Any] = {}

    def keep(v: Tensor) -> Tensor:
        storage = v.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return v

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda v: v):
        y = layer(x)
    del y
    return sum(storage.nbytes() for storage in kept.values())


SKIPS: dict[str, Callable[[], Recurrent]] = {
    "plain": lambda: Recurrent(cells.Elman(), 1, H, backend="reference"),
    **{
        f"skip_{d}": lambda d=d: Recurrent(cells.Skip(d), 1, H, backend="reference")  # type: ignore[misc]
        for d in (2, 4, 8, 16)
    },
    **{
        f"dilation_{d}": lambda d=d: Recurrent(cells.Elman(), 1, H, dilation=d, backend="reference")  # type: ignore[misc]
        for d in (2, 4, 8, 16)
    },
}


def skip_bytes() -> dict[str, float]:
    """Bytes of state, of activations saved for backward (240 steps) and of weights."""
    found: dict[str, float] = {}
    for name, make in SKIPS.items():
        torch.manual_seed(0)
        layer = make()
        state = layer(torch.rand(1, B, 1))[1]
        found[f"bytes.{name}.state"] = float(sum(v.nbytes for v in state[0]))
        found[f"bytes.{name}.saved"] = float(saved_bytes(layer, torch.rand(240, B, 1)))
        found[f"bytes.{name}.weights"] = float(sum(p.nbytes for p in layer.parameters()))
    padded = SKIPS["dilation_16"]()
    found["bytes.dilation_16.saved_239"] = float(saved_bytes(padded, torch.rand(239, B, 1)))
    return found


def skip_reach() -> dict[str, float]:
    """||dL/dx_{T-96}|| / ||dL/dx_T||: how far back a skip of d steps learns."""
    found: dict[str, float] = {}
    for name, make in SKIPS.items():
        torch.manual_seed(0)
        layer = make().double()
        x = torch.rand(240, B, 1, dtype=torch.float64, requires_grad=True)
        y = layer(x)[0][-1]
        (y * torch.randn_like(y)).sum().backward()
        assert x.grad is not None
        norm = x.grad.abs().squeeze(-1).log()
        found[f"skip.{name}.96"] = float((norm[239 - 96] - norm[239]).mean().exp())
    return found


def weights() -> dict[str, float]:
    """How many numbers each cell learns for I = H = 64, and how many sets of W, U and b."""
    found: dict[str, float] = {}
    for name, cell in CELLS.items():
        layer = Recurrent(cell(), 64, 64)
        count = sum(p.numel() for p in layer.parameters())
        found[f"weights.{name}.numbers"] = float(count)
        found[f"weights.{name}.sets"] = layer.get_parameter("weight_hh_l0").shape[0] / 64
    return found


def sides() -> dict[str, float]:
    """Loss in bits of telling the next input's sign, after 150 steps: one direction and two."""
    found: dict[str, float] = {}
    for directions in (1, 2):
        torch.manual_seed(0)
        layer = Recurrent(cells.GRU(), 1, 8, bidirectional=directions == 2, return_state=False)
        readout = nn.Linear(layer.output_size, 1)
        adam = torch.optim.Adam([*layer.parameters(), *readout.parameters()], lr=0.02)
        losses = []
        for _ in range(150):
            x = torch.randn(9, 64, 1)
            y = readout(layer(x))[:-1]
            loss = binary_cross_entropy_with_logits(y, (x[1:] > 0).float())
            adam.zero_grad()
            loss.backward()
            adam.step()
            losses.append(loss.detach() / torch.tensor(2.0).log())
        found[f"sides.{directions}"] = float(torch.stack(losses[-20:]).mean())
    return found


GROUPS = (reach, memory, clip, skip_bytes, skip_reach, weights, sides)


def main() -> None:
    """Print every figure by its name."""
    for group in GROUPS:
        for name, value in group().items():
            print(f"{name:<32} {value:.4g}" if value < 1e5 else f"{name:<32} {value:.6g}")


if __name__ == "__main__":
    main()
