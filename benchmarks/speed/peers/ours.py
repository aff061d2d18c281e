"""Our own layers, on the backend that the run names."""

from __future__ import annotations

import throughtime
from benchmarks.speed.contender import Contender, torch_contender
from benchmarks.speed.material import Material, material
from benchmarks.speed.own_cell import CoupledPeephole
from benchmarks.speed.peers.layer_call import layer_call
from throughtime.backends import BACKENDS


def contender(m: Material) -> Contender:
    """Our layer of the case's cell with the case's weights."""
    I, H = m.shape.I, m.shape.H
    if m.cell == "own":
        layer = throughtime.Recurrent(CoupledPeephole(), I, H, backend=m.backend)
    else:
        layer = getattr(throughtime, m.cell)(I, H, backend=m.backend)
    return torch_contender(*layer_call(layer, m), m)


def lstm(m: Material) -> Contender:
    """Our LSTM at the case's shape, to set another cell beside."""
    return contender(material("LSTM", m.shape, m.mode, m.backend))


def usual_backend() -> str:
    """The compiled one, where there is one."""
    return "cpu" if "cpu" in BACKENDS else "auto"
