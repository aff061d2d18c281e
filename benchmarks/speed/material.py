"""What every contender of a case is given: the same weights, input and gradient."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

import throughtime
from benchmarks.speed.figures import Mode
from benchmarks.speed.grid import Shape
from benchmarks.speed.own_cell import CoupledPeephole

SEED = 20131


@dataclass(frozen=True)
class Material:
    """One layer's weights and batch, float32, time-major.

    Attributes:
        cell: "RNN", "GRU", "LSTM" or "own".
        shape: B, T, H, I.
        mode: what is to be done with them.
        backend: of our own layers.
        weights: name -> tensor, as torch names them.
        x: (T, B, I).
        d_y: (T, B, H), the gradient of the loss by the outputs.
    """

    cell: str
    shape: Shape
    mode: Mode
    backend: str
    weights: dict[str, Tensor]
    x: Tensor
    d_y: Tensor


def material(cell: str, shape: Shape, mode: Mode, backend: str = "auto") -> Material:
    """Random, and the same at every call; weights as torch starts them, vectors random too."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        if cell == "own":
            layer: nn.Module = throughtime.Recurrent(CoupledPeephole(), shape.I, shape.H)
        else:
            layer = getattr(nn, cell)(shape.I, shape.H)
        weights = {n: v.detach() for n, v in layer.state_dict().items()}
        for name in CoupledPeephole.vectors:
            if f"{name}_l0" in weights:
                weights[f"{name}_l0"] = 0.5 * torch.randn(shape.H)
        x = torch.randn(shape.T, shape.B, shape.I)
        d_y = torch.randn(shape.T, shape.B, shape.H)
    return Material(cell, shape, mode, backend, weights, x, d_y)
