"""torch.nn's own layer."""

from __future__ import annotations

from torch import nn

from benchmarks.speed.contender import Contender, torch_contender
from benchmarks.speed.material import Material
from benchmarks.speed.peers.layer_call import layer_call


def contender(m: Material) -> Contender:
    """torch.nn.RNN, GRU or LSTM with the case's weights."""
    return torch_contender(*layer_call(getattr(nn, m.cell)(m.shape.I, m.shape.H), m), m)
