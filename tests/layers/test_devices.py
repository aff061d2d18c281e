"""Accelerators: torch's kernels take the drop-ins, the reference all else, on the device of x.

Two devices stand for those that are not here: meta, which has shapes and no numbers, and one of
torch's own kind for backends from outside, on which every tensor is a fake that refuses to meet
one of another device.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils import backend_registration

import throughtime
from tests.cells.table import CELLS
from tests.house.source import fresh
from throughtime import Cell, Recurrent
from throughtime.cell.layout import find_fitting_size

LOOKED_AT = "it computes on the processor, and the input is on"


def shapes_of(layer: Any, x: torch.Tensor, **given: Any) -> list[Any]:
    """Shapes of all outputs, and of all gradients."""
    y, state = layer(x, **given)
    flat = torch.utils._pytree.tree_leaves((y, state))
    sum(v.sum() for v in flat).backward()
    return [v.shape for v in [*flat, x.grad, *(p.grad for p in layer.parameters())]]


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_torchs_kernels_take_the_drop_ins(kind: str) -> None:
    found = []
    for device in ("cpu", "meta"):
        layer = getattr(throughtime, kind)(3, 4, 2, bidirectional=True, device=device)
        x = torch.zeros(5, 2, 3, device=device, requires_grad=True)
        found.append(shapes_of(layer, x))
    assert found[0] == found[1]
    assert layer.explain().splitlines()[:2] == ["layer 0: torch", f"  not cpu: {LOOKED_AT} meta"]


@pytest.mark.parametrize("cell", CELLS, ids=repr)
def test_the_reference_takes_every_cell(cell: Cell) -> None:
    size, found = find_fitting_size(cell, 4), []
    for device in ("cpu", "meta"):
        layer = Recurrent(cell, 3, size, bidirectional=True, device=device)
        x = torch.zeros(5, 2, 3, device=device, requires_grad=True)
        widths = {n: cell.width(w, size) for n, w in cell.inputs.items()}
        inputs = {n: torch.zeros(5, 2, w, device=device) for n, w in widths.items()}
        found.append(shapes_of(layer, x, **({"inputs": inputs} if inputs else {})))
    assert found[0] == found[1]
    assert f"not cpu: {LOOKED_AT} meta" in layer.explain()


OUTSIDE = """
import torch
from torch.utils import backend_registration
backend_registration._setup_privateuseone_for_python_backend("toy")
from torch._subclasses.fake_tensor import FakeTensorMode
import throughtime
from throughtime import cells
OPTIONS = [
    {}, {"bidirectional": True, "merge": "sum"}, {"num_layers": 2, "dropout": 0.2}, {"bias": False},
    {"zoneout": 0.2, "recurrent_dropout": 0.3}, {"weight_dropout": 0.2}, {"learn_initial": True},
    {"dilation": 2}, {"checkpoint_every": 2}, {"clip_gradient": 0.3}, {"residual": True,
    "num_layers": 2},
]
with FakeTensorMode():
    for options in OPTIONS:
        for reset in (False, True):  # and no lengths, whose numbers are looked at
            layer = throughtime.Recurrent(cells.MGU(), 3, 4, device="toy", **options)
            x = torch.randn(5, 2, 3, device="toy", requires_grad=True)
            resets = torch.zeros(5, 2, dtype=torch.bool, device="toy")
            y, state = layer(x, reset=resets if reset else None)
            y.sum().backward()
            leaves = torch.utils._pytree.tree_leaves((y, state, x.grad))
            leaves += [v.grad for v in layer.parameters()]
            assert {v.device.type for v in leaves} == {"toy"}, (options, reset)
    print(layer.explain())
"""


@pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this torch has no backends that are written in Python",
)
def test_every_option_stays_on_a_device_from_outside() -> None:
    assert fresh(OUTSIDE).splitlines()[:2] == ["layer 0: reference", f"  not cpu: {LOOKED_AT} toy"]
