"""Time scales, saturation and dead units against loops written from the equations."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tests.cells.table import CELLS
from tests.tolerance import TOLERANCE
from throughtime import GRU, Cell, Recurrent, cells, initialise
from throughtime.diagnosis.quantities.gates import GateTimes, gate_times
from throughtime.errors import OptionError, ShapeError
from throughtime.layers.batch import Batch

EXACT: Any = TOLERANCE[torch.float64]


def _x(*shape: int) -> Tensor:
    draw = torch.Generator().manual_seed(5)
    return torch.randn(*shape, dtype=torch.float64, generator=draw)


def _layer(cell: Cell, hidden: Any, **options: Any) -> Recurrent:
    torch.manual_seed(2)
    return Recurrent(cell, 3, hidden, dtype=torch.float64, **options)


def _walk(layer: Recurrent, row: Tensor, backward: int) -> list[dict[str, Tensor]]:
    """Gates and state of a one-layer LSTM or GRU, one step after the other."""
    w = layer.weights(0, backward)
    h = c = torch.zeros(layer.hidden_sizes[0], dtype=torch.float64)
    seen = []
    for x in reversed(row) if backward else row:
        a, u = w["weight_ih"] @ x + w["bias_ih"], w["weight_hh"] @ h + w["bias_hh"]
        if len(layer.cell.gates) == 4:
            i, f, g, o = (a + u).chunk(4)
            i, f, o = i.sigmoid(), f.sigmoid(), o.sigmoid()
            c = f * c + i * g.tanh()
            h = o * c.tanh()
            seen.append({"i": i, "f": f, "o": o, "keeps": f, "h": h})
        else:
            (ar, az, an), (ur, uz, un) = a.chunk(3), u.chunk(3)
            r, z = (ar + ur).sigmoid(), (az + uz).sigmoid()
            n = (an + r * un).tanh()
            h = (1 - z) * n + z * h
            seen.append({"r": r, "z": z, "keeps": z, "h": h})
    return seen


@pytest.mark.parametrize("cell", [cells.LSTM(), cells.GRU()], ids=repr)
@pytest.mark.parametrize("direction", [0, 1])
def test_every_number_is_a_loop_s(cell: Cell, direction: int) -> None:
    layer = _layer(cell, 6, bidirectional=True)
    with torch.no_grad():
        for weight in layer.parameters():
            weight.mul_(4)  # so that gates do saturate
    x, lengths = 2 * _x(11, 3, 3), [11, 4, 7]
    batch = Batch(x, lengths=torch.tensor(lengths))
    found = gate_times(layer, batch)[direction]
    seen = [step for b, n in enumerate(lengths) for step in _walk(layer, x[:n, b], direction)]
    mean = torch.stack([s["keeps"] for s in seen]).mean(0)
    tau = [-1 / math.log(f) for f in mean.tolist()]
    assert found.kind == "gate"
    assert_close(torch.tensor(found.tau_steps), torch.tensor(tau))
    for part in found.saturation:
        if part.function == "sigmoid":
            values = torch.stack([s[part.name] for s in seen]).flatten().tolist()
            low = sum(v < 0.05 for v in values) / len(values)
            high = sum(v > 0.95 for v in values) / len(values)
            assert (part.share_low, part.share_high) == pytest.approx((low, high), abs=1e-12)
            assert low > 0 or high > 0
    h = torch.stack([s["h"] for s in seen]).detach()
    deviation = ((h - h.mean(0)) ** 2).mean(0).sqrt()
    assert_close(torch.tensor(found.unit_deviations), deviation.float())


@pytest.mark.parametrize("cell", [c for c in CELLS if c.keeps], ids=repr)
def test_a_hand_set_bias_gives_its_time_scale(cell: Cell) -> None:
    """With nothing but the bias b before the gate: tau = -1 / ln sigmoid(b) = 1 / ln(1 + e^-b)."""
    layer = _layer(cell, 4)
    with torch.no_grad():
        for weight in layer.parameters():
            weight.zero_()
    initialise(layer, forget_bias=math.log(49.0))
    inputs = {n: _x(9, 2, cell.width(w, 4)).abs() for n, w in cell.inputs.items()}
    (found,) = gate_times(layer, Batch(_x(9, 2, 3), inputs=inputs or None))
    expected = 1 / math.log1p(1 / 49)
    assert found.tau_steps == pytest.approx([expected] * 4 * len(cell.keeps), rel=1e-9)
    assert found.share_above(49) == 1
    assert found.share_above(50) == 0


@pytest.mark.parametrize("activation", ["tanh", "sigmoid", "relu"])
def test_a_plain_cell_s_scales_are_those_of_its_mean_slopes(activation: str) -> None:
    layer = _layer(cells.Elman(activation), 5)
    x = _x(8, 2, 3)
    w, slopes = layer.weights(0, 0), []
    slopes_of: dict[str, Callable[[Tensor], Tensor]] = {
        "tanh": lambda v: 1 - v.tanh() ** 2,
        "sigmoid": lambda v: v.sigmoid() * (1 - v.sigmoid()),
        "relu": lambda v: (v > 0).double(),
    }
    for b in range(2):
        h = torch.zeros(5, dtype=torch.float64)
        for t in range(8):
            v = w["weight_ih"] @ x[t, b] + w["weight_hh"] @ h + w["bias_ih"] + w["bias_hh"]
            slopes.append(slopes_of[activation](v))
            h = getattr(torch, activation)(v)
    size = torch.linalg.eigvals(w["weight_hh"] @ torch.stack(slopes).mean(0).diag()).abs()
    (found,) = gate_times(layer, Batch(x))
    assert found.kind == "eigenvalues"
    assert sorted(found.tau_steps) == pytest.approx(sorted((-1 / size.log()).tolist()), rel=1e-6)


@pytest.mark.parametrize("dilation", [1, 3])
def test_known_eigenvalues_and_scales_that_never_end(dilation: int) -> None:
    layer = _layer(cells.IndRNN("identity"), 3, dilation=dilation)
    with torch.no_grad():
        layer.get_parameter("u_l0").copy_(torch.tensor([0.5, 1.0, -0.9], dtype=torch.float64))
    (found,) = gate_times(layer, Batch(_x(7, 2, 3)))
    known = [dilation / -math.log(0.5), dilation / -math.log(0.9), math.inf]
    assert sorted(found.tau_steps) == pytest.approx(known, rel=1e-9)


def test_layers_and_directions_stand_alone() -> None:
    """A stack is measured as its layers are when each is given the outputs below it."""
    layer = _layer(cells.GRU(), [4, 5], bidirectional=True, merge="sum")
    x = _x(9, 2, 3)
    found = gate_times(layer, Batch(x))
    assert [(f.layer, f.direction) for f in found] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    below = layer.trace(x)[0]["h"].sum(2)
    upper = Recurrent(cells.GRU(), 4, 5, bidirectional=True, dtype=torch.float64)
    upper.load_state_dict(
        {n: getattr(layer, n.replace("_l0", "_l1")) for n, _ in upper.named_parameters()}
    )
    alone = gate_times(upper, Batch(below))
    for one, other in zip(found[2:], alone, strict=True):
        assert one.tau_steps == pytest.approx(other.tau_steps, rel=1e-12)


def test_a_unit_that_never_moves_is_dead() -> None:
    layer = _layer(cells.LSTM(), 5)
    with torch.no_grad():
        for name, value in (("weight_ih_l0", 0), ("weight_hh_l0", 0), ("bias_ih_l0", -30)):
            layer.get_parameter(name)[3 * 5 + 3] = value  # o stands last of four
    (found,) = gate_times(layer, Batch(_x(9, 2, 3)))
    assert found.dead_units == (3,)
    assert found.unit_deviations[3] < 1e-3 < min(found.unit_deviations[:3])


def test_a_start_of_the_user_s_counts() -> None:
    layer = _layer(cells.GRU(), 4)
    x, state = _x(6, 2, 3), ((_x(1, 2, 4),),)
    whole = gate_times(layer, Batch(x, state=state))
    assert whole != gate_times(layer, Batch(x))
    _, half = layer(x[:3], state)
    parts = [
        gate_times(layer, Batch(x[:3], state=state)),
        gate_times(layer, Batch(x[3:], state=half)),
    ]
    share = torch.tensor([[math.exp(-1 / t) for t in p[0].tau_steps] for p in parts]).mean(0)
    assert_close(torch.tensor([math.exp(-1 / t) for t in whole[0].tau_steps]), share)


@pytest.mark.parametrize(
    ("x", "kind", "text"),
    [
        (_x(0, 2, 3), ShapeError, r"needs at least one step, got \(0, 2\)"),
        (_x(4, 0, 3), ShapeError, r"needs at least one step, got \(4, 0\)"),
        (_x(1, 1, 3), ShapeError, "need at least 2 steps over all rows, got 1"),
        (_x(4, 1, 3) * math.nan, OptionError, "finite inputs, got NaN or infinity"),
    ],
)
def test_what_cannot_be_measured_is_refused(x: Tensor, kind: Any, text: str) -> None:
    with pytest.raises(kind, match=text):
        gate_times(_layer(cells.GRU(), 2), Batch(x))


def test_states_that_explode_are_named() -> None:
    layer = _layer(cells.Elman("relu"), 4)
    with torch.no_grad():
        layer.get_parameter("weight_hh_l0").fill_(1e200)
        layer.get_parameter("weight_ih_l0").fill_(1)
    with pytest.raises(OptionError, match="layer 0 makes NaN or infinity of this batch"):
        gate_times(layer, Batch(_x(9, 1, 3).abs()))


def test_a_keeping_gate_that_is_no_sigmoid_is_named() -> None:
    class Clamped(Cell):
        """A cell that keeps by a clamp."""

        gates = ("f", "n")
        state = ("h",)
        keeps = {"f": 1}

        def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any]:
            f = (a.f + U.f @ s.h).clamp(0, 1)
            return (f * s.h + (1 - f) * a.n,)

    with pytest.raises(OptionError, match="one sigmoid of its equations must be made of f, got 0"):
        gate_times(_layer(Clamped(), 2), Batch(_x(4, 1, 3)))


def test_drop_ins_in_float32_and_in_training_are_left_as_they_were() -> None:
    layer = GRU(3, 4, num_layers=2, dropout=0.5)
    before = {n: v.clone() for n, v in layer.state_dict().items()}
    x = _x(9, 2, 3).float()
    first: tuple[GateTimes, ...] = gate_times(layer, Batch(x))
    assert layer.training
    assert first == gate_times(layer, Batch(x))  # no dropout was drawn
    assert all(torch.equal(v, before[n]) for n, v in layer.state_dict().items())
