"""Rows of several lengths: every quantity is that of each row alone, over its own steps."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import throughtime
from throughtime import Recurrent, cells, from_torch
from throughtime.diagnosis.observe.examined import ExaminedModel
from throughtime.diagnosis.observe.steps import Steps, list_steps
from throughtime.diagnosis.quantities.connectivity import connectivity
from throughtime.diagnosis.quantities.evenness import evenness
from throughtime.diagnosis.quantities.gates import gate_times
from throughtime.diagnosis.quantities.jacobians import compute_step_jacobians, jacobians
from throughtime.diagnosis.quantities.lag_gradient import lag_gradients
from throughtime.diagnosis.quantities.weight_lags import weight_lags
from throughtime.diagnosis.report import Report
from throughtime.layers.batch import Batch

T, B, I, H = 15, 5, 3, 4
LENGTHS = [15, 4, 9, 15, 12]
HOW = ["packed", "lengths"]


def _x(seed: int = 3) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(T, B, I, dtype=torch.float64, generator=draw)


class Reader(nn.Module):
    """Reads the last state of both directions, of rows that are packed or come with lengths."""

    def __init__(self, layer: Any, how: str) -> None:
        super().__init__()
        self.rnn, self.how, self.head = layer, how, nn.Linear(2 * H, 1, dtype=torch.float64)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        if self.how == "lengths":
            state = self.rnn(x, lengths=lengths)[1]
        else:
            state = self.rnn(pack_padded_sequence(x, lengths, enforce_sorted=False))[1]
        h = state[0] if isinstance(state, tuple) else state
        y: Tensor = self.head(torch.cat((h[-2], h[-1]), -1))
        return y


class Ends(Reader):
    """The same, of a layer whose state is a tuple over layers and states."""

    def __init__(self, layer: Recurrent) -> None:
        super().__init__(layer, "lengths")

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        (((h,),),) = (self.rnn(x, lengths=lengths)[1],)
        y: Tensor = self.head(torch.cat((h[0], h[1]), -1))
        return y


def _reader(kind: str, how: str) -> Reader:
    torch.manual_seed(1)
    layer = getattr(throughtime if how == "lengths" else nn, kind)(I, H, bidirectional=True)
    return Reader(layer.double(), how)


def _loss(y: Tensor) -> Tensor:
    return y.sin().sum()


def _poisoned(x: Tensor) -> Tensor:
    """The same rows, with NaN where nobody may look."""
    behind = torch.arange(T).unsqueeze(1) >= torch.tensor(LENGTHS)
    return torch.where(behind.unsqueeze(-1), math.nan, x)


def _gradients_by_hand(model: Reader, kind: str, x: Tensor) -> dict[tuple[int, int], Tensor]:
    """Row and direction -> (n, N): dL/ds_t of that row alone, by torch's cells and retain_grad,
    in the direction's own order."""
    made = {}
    for d in (0, 1):
        cell = {"LSTM": nn.LSTMCell, "GRU": nn.GRUCell}[kind](I, H, dtype=torch.float64)
        end = "_l0_reverse" if d else "_l0"
        cell.load_state_dict({n.removesuffix(end): v for n, v in model.rnn.state_dict().items()
                              if n.endswith(end)})  # fmt: skip
        made[d] = cell
    states: dict[tuple[int, int], list[Tensor]] = {}
    total = torch.zeros((), dtype=torch.float64)
    for b, n in enumerate(LENGTHS):
        ends = []
        for d, cell in made.items():
            s, kept = torch.zeros(1, H * (1 + (kind == "LSTM")), dtype=torch.float64), []
            for v in reversed(x[:n, b]) if d else x[:n, b]:
                new = cell(v.unsqueeze(0), tuple(s.split(H, 1)) if kind == "LSTM" else s)
                s = torch.cat(new, 1) if kind == "LSTM" else new
                s.requires_grad_().retain_grad()
                kept.append(s)
            states[b, d] = kept
            ends.append(s[:, :H])
        total = total + _loss(model.head(torch.cat(ends, 1)))
    total.backward()
    return {key: torch.cat([s.grad for s in kept if s.grad is not None])
            for key, kept in states.items()}  # fmt: skip


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_lags_count_from_each_rows_own_end(kind: str, how: str) -> None:
    model = _reader(kind, how)
    d = _gradients_by_hand(model, kind, _x())
    x = _poisoned(_x()) if how == "lengths" else _x()
    seen = ExaminedModel(model).run(((x, torch.tensor(LENGTHS)),), _loss, last_only=True)
    for g in lag_gradients(seen):
        for k in range(T):
            reach = [d[b, g.direction] for b, n in enumerate(LENGTHS) if n > k]
            logs = [float((v[-1 - k].norm() / v[-1].norm()).log10()) for v in reach]
            assert g.log10_rho_by_lag[k] == pytest.approx(sum(logs) / len(logs), abs=1e-9), k
            assert g.rows_by_lag[k] == len(reach)
        assert len(g.log10_rho_by_lag) == T
        assert g.horizon_1e3_steps == next(
            (k for k, v in enumerate(g.log10_rho_by_lag) if v < -3), None
        )


@pytest.mark.parametrize("direction", [0, 1])
def test_omega_is_the_mean_of_the_rows_own(direction: int) -> None:
    """Of a linear network d_t J_t is U^T d_t, whatever the row."""
    torch.manual_seed(0)
    layer = Recurrent(cells.Elman("identity"), I, H, bidirectional=True, dtype=torch.float64)
    model = Ends(layer)
    seen = ExaminedModel(model).run(((_x(), torch.tensor(LENGTHS)),), _loss, last_only=True)
    g = lag_gradients(seen)[direction]
    U = layer.weights(0, direction)["weight_hh"].detach()
    total = 0.0
    for n in LENGTHS:
        d = model.head.weight.detach()[0, H * direction : H * (direction + 1)]
        for _ in range(n - 1):
            total += float((d @ U).norm() / d.norm() - 1) ** 2
            d = d @ U
    assert g.omega == pytest.approx(total / B)


@pytest.mark.parametrize("how", HOW)
def test_depth_is_each_rows_first_middle_and_last_step(how: str) -> None:
    model = _reader("GRU", how)
    d = _gradients_by_hand(model, "GRU", _x())
    examined = ExaminedModel(model)
    found = evenness(examined, examined.run(((_x(), torch.tensor(LENGTHS)),), _loss))
    for depth in found.depth:
        assert depth.steps == (0, T // 2, T - 1)
        for which, norm in zip((lambda n: 0, lambda n: n // 2, lambda n: n - 1), depth.norms,
                               strict=True):  # fmt: skip
            rows = []
            for b, n in enumerate(LENGTHS):
                own = d[b, depth.direction].flip(0) if depth.direction else d[b, 0]
                rows.append(own[which(n)])
            assert norm == pytest.approx(float(torch.stack(rows).norm()))


def _by_qr(steps: Steps, n: int) -> tuple[Tensor, Tensor]:
    """Of one row of n steps: the exponents in the order of QR, and the product of the last 12."""
    q, logs, product = torch.eye(H, dtype=torch.float64), [], torch.eye(H, dtype=torch.float64)
    for number, (J,) in enumerate(compute_step_jacobians(steps, n)):
        q, r = torch.linalg.qr(J @ q)
        logs.append(r.diagonal().abs().log())
        product = J @ product if number >= n - 12 else product
    return torch.stack(logs[10:]).mean(0), product


@pytest.mark.parametrize("bidirectional", [False, True])
def test_jacobians_are_those_of_each_row_alone(bidirectional: bool) -> None:
    torch.manual_seed(0)
    layer = throughtime.GRU(I, H, 2, bidirectional=bidirectional, dtype=torch.float64)
    found = jacobians(layer, Batch(_poisoned(_x()), lengths=torch.tensor(LENGTHS)), rows=4)
    long = [(n, b) for b, n in enumerate(LENGTHS) if n > 10]  # the fourth of the longest has 9
    alone = [[_by_qr(steps, n) for steps in list_steps(layer, Batch(_x()[:n, b : b + 1]))]
             for n, b in long]  # fmt: skip
    for number, one in enumerate(found):
        exponents = torch.stack([row[number][0] for row in alone]).mean(0)
        assert one.lyapunov_nats_per_step == pytest.approx(
            exponents.sort(descending=True).values.tolist()
        )
        logs = [float(torch.linalg.cond(row[number][1]).log()) for row in alone]
        assert math.log(one.condition_number) == pytest.approx(sum(logs) / len(logs))
        assert one.condition_steps == 12


def test_connectivity_counts_each_row_from_its_own_end() -> None:
    torch.manual_seed(0)
    layer = throughtime.GRU(I, H, bidirectional=True, dtype=torch.float64)
    found = connectivity(layer, Batch(_x(), lengths=torch.tensor(LENGTHS)), shown=5)
    alone = {b: connectivity(layer, Batch(_x()[:n, b : b + 1]), shown=n)
             for b, n in enumerate(LENGTHS)}  # fmt: skip
    assert found.output_steps[-1] == T - 1
    for at, norms in zip(found.output_steps, found.norms, strict=True):
        for t, norm in enumerate(norms):
            logs = [math.log(alone[b].norms[at - (T - n)][t - (T - n)])
                    for b, n in enumerate(LENGTHS) if min(at, t) >= T - n]  # fmt: skip
            assert math.log(norm) == pytest.approx(sum(logs) / len(logs), abs=1e-9)


WEIGHT = torch.randn(T, B, 2 * H, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
"""Of each output in the loss below."""


def _every_step(model: Reader) -> Tensor:
    """A loss of every step and of the last states."""
    x, lengths = _x(), torch.tensor(LENGTHS)
    if model.how == "lengths":
        y, state = model.rnn(x, lengths=lengths)
    else:
        packed, state = model.rnn(pack_padded_sequence(x, lengths, enforce_sorted=False))
        y = pad_packed_sequence(packed)[0]
    last = state[1] if isinstance(state, tuple) else state
    return (y * WEIGHT).sum() + last.sin().sum()


def _parts_by_hand(model: Reader, kind: str, d: int) -> Tensor:
    """(T, P): G_k of one direction, each row with a copy of torch's cell for each of its steps.

    The gradient of the loss at a step by the copy used k steps before belongs to lag k.
    """
    end = "_l0_reverse" if d else "_l0"
    weights = {n.removesuffix(end): v for n, v in model.rnn.state_dict().items() if n.endswith(end)}
    parts: Any = 0
    for b, n in enumerate(LENGTHS):
        copies = [{"LSTM": nn.LSTMCell, "GRU": nn.GRUCell}[kind](I, H).double() for _ in range(n)]
        times, state, sums = [*range(n)][:: -1 if d else 1], None, torch.zeros(T, 0)
        rows: list[list[Tensor]] = [[] for _ in range(T)]
        for own, (t, cell) in enumerate(zip(times, copies, strict=True)):
            cell.load_state_dict(weights)
            state = cell(_x()[t, b : b + 1], state)
            h, last = state if kind == "LSTM" else (state, state)
            value = (h[0] * WEIGHT[t, b, H * d : H * (d + 1)]).sum()
            value = value + last.sin().sum() * (own == n - 1)
            for k in range(own + 1):
                g = torch.autograd.grad(value, copies[own - k].parameters(), retain_graph=True)
                rows[k].append(torch.cat([v.flatten() for v in g]))
        sums = torch.stack([torch.stack(v).sum(0) if v else torch.zeros_like(rows[0][0])
                            for v in rows])  # fmt: skip
        parts = parts + sums
    return parts


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_weight_gradients_by_lag_are_those_of_copies_in_each_row(kind: str, how: str) -> None:
    model: Any = from_torch(_reader(kind, how))
    for d, found in enumerate(weight_lags(model.rnn, lambda: _every_step(model))):
        parts = _parts_by_hand(model, kind, d)
        g, sums = parts.sum(0), parts.cumsum(0)
        assert found.norm_by_lag == pytest.approx(parts.norm(dim=1).tolist(), rel=1e-8)
        assert found.share_by_lag == pytest.approx((sums.norm(dim=1) / g.norm()).tolist(), rel=1e-8)
        cosines = (sums @ g) / (sums.norm(dim=1) * g.norm())
        assert found.cosine_by_lag == pytest.approx(cosines.tolist(), rel=1e-8)
        assert found.unexplained_share < 1e-10


def test_of_few_rows_the_longest_weigh() -> None:
    model: Any = from_torch(_reader("GRU", "packed"))
    few = weight_lags(model.rnn, lambda: _every_step(model), rows=2)
    assert [len(w.norm_by_lag) for w in few] == [T, T]
    short = Reader(model.rnn, "packed")
    x, lengths = _x()[:, [0, 3]], torch.tensor([T, T])

    def loss() -> Tensor:
        packed, last = short.rnn(pack_padded_sequence(x, lengths))
        return (pad_packed_sequence(packed)[0] * WEIGHT[:, [0, 3]]).sum() + last.sin().sum()

    for one, other in zip(few, weight_lags(model.rnn, loss), strict=True):
        assert one.norm_by_lag == pytest.approx(other.norm_by_lag)
        assert one.unexplained_share < 1e-10


@pytest.mark.parametrize("how", HOW)
def test_rows_of_one_length_have_the_numbers_of_a_plain_batch(how: str) -> None:
    model = _reader("GRU", how)
    full, plain = torch.full((B,), T), Both(model)
    report = throughtime.diagnose(model, [((_x(s), full),) for s in range(2)], _loss, lag=9)
    expected = throughtime.diagnose(plain, [_x(s) for s in range(2)], _loss, lag=9)
    assert report.lengths == () and report.missing == expected.missing == ()
    for name in ("lag_gradients", "bands", "connectivity", "weight_lags", "evenness", "clipping"):
        assert getattr(report, name) == getattr(expected, name), name
    assert [m.gates for m in report.modules] == [m.gates for m in expected.modules]
    assert [m.jacobians for m in report.modules] == [m.jacobians for m in expected.modules]


class Both(nn.Module):
    """The same reader of whole rows."""

    def __init__(self, reader: Reader) -> None:
        super().__init__()
        self.rnn, self.head = reader.rnn, reader.head

    def forward(self, x: Tensor) -> Tensor:
        h = self.rnn(x)[1]
        y: Tensor = self.head(torch.cat((h[-2], h[-1]), -1))
        return y


def test_a_whole_report_of_ragged_rows_leaves_nothing_out() -> None:
    model = _reader("LSTM", "packed")
    batches = [((_x(s), torch.tensor(LENGTHS).roll(s)),) for s in range(4)]
    report = throughtime.diagnose(model, batches, _loss, lag=10, clip=1.0)
    assert report.missing == ()
    assert sorted(report.lengths, reverse=True) == sorted(LENGTHS, reverse=True)
    assert (report.steps, report.rows) == (T, B)
    assert str(report).startswith("Reader: 4 to 15 steps, 5 rows, lag 10, loss ")
    assert Report.from_json(report.to_json()) == report
    assert [len(b.lowest_log10_rho_by_lag) for b in report.bands] == [T, T]


class Outputs(nn.Module):
    """The outputs of a layer that is given lengths."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.rnn = layer

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        y: Tensor = self.rnn(x, lengths=lengths)[0]
        return y


class Late(nn.Module):
    """A layer whose rows begin late, as batches padded on the left have them."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.rnn = layer

    def forward(self, x: Tensor, starts: Tensor) -> Tensor:
        y: Tensor = self.rnn(x, starts=starts)[0]
        return y


@pytest.mark.parametrize("bidirectional", [False, True])
def test_rows_that_begin_late_have_the_numbers_of_rows_that_end_early(bidirectional: bool) -> None:
    torch.manual_seed(0)
    layer = throughtime.GRU(I, H, bidirectional=bidirectional, dtype=torch.float64)
    lengths = torch.tensor(LENGTHS)
    order = (torch.arange(T).unsqueeze(1) + lengths) % T  # each row's own steps at the end

    def turned(y: Tensor, order: Tensor) -> Tensor:
        return y.gather(0, order.unsqueeze(-1).expand_as(y))

    def loss(y: Tensor) -> Tensor:
        return (y * WEIGHT[..., : y.shape[-1]]).sum()

    plain, late = _poisoned(_x()), turned(_poisoned(_x()), order)
    back = (torch.arange(T).unsqueeze(1) - lengths) % T
    found = throughtime.diagnose(
        Late(layer), ((late, T - lengths),), lambda y: loss(turned(y, back))
    )
    expected = throughtime.diagnose(Outputs(layer), ((plain, lengths),), loss)
    assert found.lengths == expected.lengths == tuple(LENGTHS)
    for name in ("lag_gradients", "connectivity", "weight_lags", "evenness", "modules"):
        assert getattr(found, name) == getattr(expected, name), name


def test_rows_without_a_step_are_left_aside() -> None:
    torch.manual_seed(0)
    layer = throughtime.GRU(I, H, dtype=torch.float64)

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = layer

        def forward(self, x: Tensor, n: Tensor) -> Tensor:
            h: Tensor = self.rnn(x, lengths=n)[1]
            return h

    some, all_of_them = torch.tensor([15, 0, 9, 0, 12]), torch.tensor([15, 9, 12])
    report = throughtime.diagnose(Last(), [((_x(), some),)] * 2, _loss)
    expected = throughtime.diagnose(Last(), [((_x()[:, [0, 2, 4]], all_of_them),)] * 2, _loss)
    assert report.missing == expected.missing == ()
    for one, other in ((report.lag_gradients[0], expected.lag_gradients[0]),):
        assert one.log10_rho_by_lag == pytest.approx(other.log10_rho_by_lag)
        assert one.omega == pytest.approx(other.omega)
    assert report.weight_lags[0].norm_by_lag == pytest.approx(expected.weight_lags[0].norm_by_lag)
    assert gate_times(layer, Batch(_x(), lengths=some)) == gate_times(
        layer, Batch(_x()[:, [0, 2, 4]], lengths=all_of_them)
    )


def test_batches_of_other_lengths_share_the_lags_that_all_have() -> None:
    torch.manual_seed(0)
    layer = nn.GRU(I, H)
    long, short = torch.randn(20, 4, I), torch.randn(13, 4, I)
    (band,) = throughtime.diagnose(layer, [long, short]).bands
    curves = [throughtime.diagnose(layer, x).lag_gradients[0].log10_rho_by_lag
              for x in (long, short)]  # fmt: skip
    assert band.batches == 2 and len(band.lowest_log10_rho_by_lag) == 13
    for k in range(13):
        ends = sorted(c[k] for c in curves)
        assert [band.lowest_log10_rho_by_lag[k], band.highest_log10_rho_by_lag[k]] == ends


def test_a_loss_left_out_reads_each_rows_own_last_output() -> None:
    torch.manual_seed(0)
    layer = throughtime.GRU(I, H, dtype=torch.float64)
    report = throughtime.diagnose(Outputs(layer), ((_x(), torch.tensor(LENGTHS)),))
    draw = torch.Generator().manual_seed(0)
    vector = torch.randn(H, dtype=torch.float64, generator=draw)
    ends = torch.stack([layer(_x()[:n, b : b + 1])[0][-1, 0] for b, n in enumerate(LENGTHS)])
    assert report.loss == pytest.approx((ends @ vector).mean().item())
    assert report.lag_gradients[0].rows_by_lag[0] == B
    packed = pack_padded_sequence(_x(), torch.tensor(LENGTHS), enforce_sorted=False)
    assert throughtime.diagnose(layer, packed).loss == pytest.approx(report.loss)
