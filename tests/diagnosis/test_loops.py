"""Cells and layers that a loop steps: the numbers of the layer that runs them at once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import throughtime
from throughtime.diagnosis.observe.examined import ExaminedModel
from throughtime.diagnosis.quantities.evenness import Evenness
from throughtime.diagnosis.quantities.lag_gradient import lag_gradients
from throughtime.diagnosis.report import Report
from throughtime.errors import OptionError

T, B, I, H = 14, 4, 3, 5
PLACES = ["torch", "throughtime"]


def _x(seed: int = 0) -> Tensor:
    return torch.randn(T, B, I, generator=torch.Generator().manual_seed(seed))


def _loss(y: Tensor) -> Tensor:
    return y.sin().mean()


class Layer(nn.Module):
    """A layer run at once, with a read-out of every step or of the last."""

    def __init__(self, rnn: Any, head: nn.Module, every: bool) -> None:
        super().__init__()
        self.rnn, self.head, self.every = rnn, head, every

    def forward(self, x: Tensor) -> Tensor:
        y = self.rnn(x)[0]
        out: Tensor = self.head(y if self.every else y[-1])
        return out


class CellLoop(Layer):
    """The same with a cell, one step after the other."""

    def forward(self, x: Tensor) -> Tensor:
        state, outputs = None, []
        for v in x:
            state = self.rnn(v, state)
            outputs.append(state[0] if isinstance(state, tuple) else state)
        out: Tensor = self.head(torch.stack(outputs) if self.every else outputs[-1])
        return out


class Pieces(Layer):
    """The same with a layer, a few steps after the others, its state handed on."""

    size = 1

    def forward(self, x: Tensor) -> Tensor:
        state, outputs = None, []
        for part in x.split(self.size):
            y, state = self.rnn(part, state)
            outputs.append(y)
        y = torch.cat(outputs)
        out: Tensor = self.head(y if self.every else y[-1])
        return out


class PiecesOfFive(Pieces):
    """With a shorter one at the end."""

    size = 5


def _made(kind: str, where: str, every: bool) -> tuple[Layer, Any]:
    """The layer in its model, and a cell with its weights."""
    torch.manual_seed(0)
    source = nn if where == "torch" else throughtime
    layer, cell = getattr(source, kind)(I, H), getattr(source, f"{kind}Cell")(I, H)
    cell.load_state_dict({n.removesuffix("_l0"): v for n, v in layer.state_dict().items()})
    return Layer(layer, nn.Linear(H, 2), every), cell


def _names_aside(report: Report) -> Report:
    """Without the names of parameters, and of classes."""
    e = report.evenness
    assert isinstance(e, Evenness)
    shares = tuple(replace(s, parameter=s.parameter.removesuffix("_l0")) for s in e.shares)
    return replace(report, model="", evenness=replace(e, shares=shares))


@pytest.mark.parametrize("every", [False, True])
@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_a_loop_over_cells_has_the_report_of_the_layer(kind: str, where: str, every: bool) -> None:
    model, cell = _made(kind, where, every)
    loop = CellLoop(cell, model.head, every)
    batches = [_x(s) for s in range(3)]
    found, expected = (
        _names_aside(throughtime.diagnose(m, batches, _loss, lag=9, clip=1e-3))
        for m in (loop, model)
    )
    assert found.missing == expected.missing == ()
    _assert_close(found, expected)


@pytest.mark.parametrize("every", [False, True])
@pytest.mark.parametrize("pieces", [Pieces, PiecesOfFive])
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_a_layer_run_in_pieces_has_the_report_of_the_whole(
    kind: str, pieces: type[Pieces], every: bool
) -> None:
    model, _ = _made(kind, "torch", every)
    batches = [_x(s) for s in range(3)]
    found, expected = (
        _names_aside(throughtime.diagnose(m, batches, _loss, lag=9))
        for m in (pieces(model.rnn, model.head, every), model)
    )
    assert found.missing == expected.missing == ()
    _assert_close(found, expected)


def _assert_close(found: Any, expected: Any, name: str = "report") -> None:
    """Equal, numbers but for rounding."""
    if hasattr(expected, "__dataclass_fields__"):
        for field in expected.__dataclass_fields__:
            if field not in ("made", "troubles", "unexplained_share"):
                _assert_close(getattr(found, field), getattr(expected, field), f"{name}.{field}")
    elif isinstance(expected, tuple):
        assert len(found) == len(expected), name
        for i, (one, other) in enumerate(zip(found, expected, strict=True)):
            _assert_close(one, other, f"{name}[{i}]")
    elif name.endswith("condition_number"):  # from 1e15 on a lower bound
        assert min(found, 1e15) == pytest.approx(min(expected, 1e15), rel=1e-3)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-5), name
    else:
        assert found == expected, name


class Asking(Layer):
    """Takes a state apart by the class of its layer, as programs of torch's layers do."""

    def forward(self, x: Tensor) -> Tensor:
        state = self.rnn(x)[1]
        h = state[0] if isinstance(self.rnn, nn.LSTM) else state
        out: Tensor = self.head(h[-1])
        return out


def test_a_model_may_ask_whether_its_layer_is_torchs() -> None:
    model, _ = _made("LSTM", "torch", False)
    report = throughtime.diagnose(Asking(model.rnn, model.head, False), _x(), _loss)
    assert report.lag_gradients == throughtime.diagnose(model, _x(), _loss).lag_gradients


class Stacked(nn.Module):
    """Two layers that are modules of their own."""

    def __init__(self, low: Any, high: Any, head: nn.Module) -> None:
        super().__init__()
        self.low, self.high, self.head = low, high, head

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.high(self.low(x)[0])[0])
        return y


class StackedCells(Stacked):
    """The same, step by step through both."""

    def forward(self, x: Tensor) -> Tensor:
        h = g = None
        outputs = []
        for v in x:
            h = self.low(v, h)
            g = self.high(h, g)
            outputs.append(self.head(g))
        return torch.stack(outputs)


def test_two_cells_a_step_are_two_layers() -> None:
    torch.manual_seed(0)
    layers = [nn.GRU(I, H), nn.GRU(H, H)]
    made = [nn.GRUCell(I, H), nn.GRUCell(H, H)]
    for layer, cell in zip(layers, made, strict=True):
        cell.load_state_dict({n.removesuffix("_l0"): v for n, v in layer.state_dict().items()})
    head = nn.Linear(H, 2)
    found, expected = (
        _names_aside(throughtime.diagnose(m, [_x(0), _x(1)], _loss, lag=9))
        for m in (StackedCells(*made, head), Stacked(*layers, head))
    )
    assert [m.name for m in found.modules] == ["low", "high"]
    assert found.missing == expected.missing == ()
    _assert_close(found, expected)


class Decoder(nn.Module):
    """An encoder whose last state a loop over cells goes on from."""

    def __init__(self, encoder: Any, decoder: Any) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        h, outputs = self.encoder(x)[1][0], []
        for v in target:
            h = self.decoder(v, h)
            outputs.append(h)
        return torch.stack(outputs)


class WholeDecoder(Decoder):
    """The same with a layer."""

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        y: Tensor = self.decoder(target, self.encoder(x)[1])[0]
        return y


def test_an_encoder_before_a_loop_is_seen_through_it() -> None:
    torch.manual_seed(0)
    encoder, layer, cell = nn.GRU(I, H), nn.GRU(I, H), nn.GRUCell(I, H)
    cell.load_state_dict({n.removesuffix("_l0"): v for n, v in layer.state_dict().items()})
    batches = [((_x(s), _x(s + 9)[:11]),) for s in range(2)]
    found, expected = (
        _names_aside(throughtime.diagnose(m, batches, _loss, lag=9))
        for m in (Decoder(encoder, cell), WholeDecoder(encoder, layer))
    )
    assert [len(g.log10_rho_by_lag) for g in found.lag_gradients] == [T, 11]
    assert found.missing == expected.missing == ()
    _assert_close(found, expected)


class Changed(nn.Module):
    """A loop that changes the state between its steps, or is given its own outputs."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.cell, self.norm = how, nn.GRUCell(I, H), nn.LayerNorm(H)
        self.back, self.head = nn.Linear(H, I), nn.Linear(H, 1)
        self.states: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        """The same with a graph of torch's own, whose states are kept."""
        h, v, outputs, self.states = x.new_zeros(B, H), x[0], [], []
        for t in range(T):
            if self.how == "norm":
                h = self.norm(h)
            new = self.cell(v if self.how == "fed back" else x[t], h)
            if new.requires_grad and not isinstance(self.cell, throughtime.GRUCell):
                new.retain_grad()
            self.states.append(new)
            h = new
            v = self.back(h)
            outputs.append(self.head(h))
        return torch.stack(outputs)


LENGTHS = torch.tensor([T, 12, 5, 9])


class Masked(nn.Module):
    """A loop over cells that keeps the state of rows where a mask is 0."""

    def __init__(self, cell: Any, head: nn.Module, how: str) -> None:
        super().__init__()
        self.rnn, self.head, self.how = cell, head, how

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        pair = isinstance(self.rnn, nn.LSTMCell)
        state = (x.new_zeros(B, H),) * (2 if pair else 1)
        for v, m in zip(x, mask.unsqueeze(-1), strict=True):
            new = self.rnn(v, state if pair else state[0])
            both = list(zip(new if pair else (new,), state, strict=True))
            if self.how == "product":
                state = tuple(m * n + (1 - m) * o for n, o in both)
            else:
                state = tuple(torch.where(m > 0, n, o) for n, o in both)
        out: Tensor = self.head(state[0])
        return out


class Ragged(nn.Module):
    """A layer that is given lengths."""

    def __init__(self, layer: Any, head: nn.Module) -> None:
        super().__init__()
        self.rnn, self.head = layer, head

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        state = self.rnn(x, lengths=lengths)[1]
        out: Tensor = self.head((state[0] if isinstance(state, tuple) else state)[0])
        return out


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("how", ["product", "where"])
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_a_loop_under_a_mask_has_the_report_of_rows_with_lengths(
    kind: str, how: str, left: bool
) -> None:
    """Rows that end early, or begin late."""
    _, cell = _made(kind, "torch", False)
    layer, head = getattr(throughtime, kind)(I, H), nn.Linear(H, 2)
    layer.load_state_dict({f"{n}_l0": v for n, v in cell.state_dict().items()})
    behind = (torch.arange(T).unsqueeze(1) >= LENGTHS).float()
    plain, masked = [], []
    for seed in range(3):
        x, mask = _x(seed), 1 - behind
        plain.append(((x, LENGTHS),))
        if left:  # each row's own steps at the end
            order = torch.arange(T).unsqueeze(1) - (T - LENGTHS)
            x, mask = x.gather(0, order.clamp(0).unsqueeze(-1).expand_as(x)), mask.flip(0)
        masked.append(((x, mask),))
    found = _names_aside(throughtime.diagnose(Masked(cell, head, how), masked, _loss, lag=9))
    expected = _names_aside(throughtime.diagnose(Ragged(layer, head), plain, _loss, lag=9))
    assert found.missing == expected.missing == ()
    assert found.lengths == tuple(LENGTHS.tolist())
    _assert_close(found, expected)


@pytest.mark.parametrize("every", [False, True])
@pytest.mark.parametrize("how", ["norm", "fed back"])
def test_a_path_through_the_loops_own_code_counts(how: str, every: bool) -> None:
    """The gradients of torch's own graph, where the outputs before the last are constants."""
    torch.manual_seed(0)
    model = Changed(how)

    def loss(y: Tensor) -> Tensor:
        return _loss(y) if every else _loss(y[-1])

    seen = ExaminedModel(model).run(_x(), loss, last_only=True)
    (found,) = lag_gradients(seen)
    y = model(_x())
    _loss(torch.cat((y[:-1].detach(), y[-1:])) if every else y[-1]).backward()
    d = torch.stack([h.grad for h in model.states if h.grad is not None]).double()
    norms = d.norm(dim=-1).flip(0)
    expected = (norms / norms[0]).log10().mean(1).tolist()
    assert found.log10_rho_by_lag == pytest.approx(expected, abs=1e-5)
    backward = {"norm": 1, "fed back": 0}[how]  # what the state alone is
    assert bool(seen.not_whole) == bool(backward)


def test_what_has_no_meaning_in_a_changed_loop_is_left_out_with_a_reason() -> None:
    torch.manual_seed(0)
    report = throughtime.diagnose(Changed("norm"), [_x(0), _x(1)], lambda y: _loss(y[-1]))
    reason = (
        "between two calls of cell its state is changed, so that its equations alone are not what "
        "one step does"
    )
    left_out = {m.quantity for m in report.missing}
    assert left_out == {"jacobians", "connectivity", "capacities", "weight_lags"}
    assert {m.reason for m in report.missing} == {reason}
    assert report.modules[0].jacobians == () and report.modules[0].gates != ()


def test_gates_in_a_changed_loop_are_those_of_the_steps_it_took() -> None:
    torch.manual_seed(0)
    model = Changed("norm")
    report = throughtime.diagnose(model, _x(), lambda y: _loss(y[-1]))
    model(_x())
    befores = [torch.zeros(B, H), *model.states[:-1]]
    cell, opened = model.cell, []
    for x, h in zip(_x(), befores, strict=True):
        a = (x @ cell.weight_ih.T + cell.bias_ih).chunk(3, 1)[1]
        u = (model.norm(h) @ cell.weight_hh.T + cell.bias_hh).chunk(3, 1)[1]
        opened.append((a + u).sigmoid())
    mean = torch.cat(opened).mean(0).detach()
    tau = (-1 / mean.log()).tolist()
    (times,) = report.modules[0].gates
    assert times.tau_steps == pytest.approx(tau, rel=1e-4)


def test_inputs_made_of_the_loops_own_outputs_leave_the_weight_gradient_whole() -> None:
    torch.manual_seed(0)
    report = throughtime.diagnose(Changed("fed back"), [_x(0), _x(1)], lambda y: _loss(y[-1]))
    ((quantity, reason),) = {(m.quantity, m.reason) for m in report.missing}
    assert quantity == "weight_lags" and "made of what it gave before" in reason
    assert report.modules[0].jacobians and report.capacities and report.connectivity


class Through(nn.Module):
    """A second cell's output is the first one's next input."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = nn.GRUCell(H, H), nn.GRUCell(H, H)

    def forward(self, x: Tensor) -> Tensor:
        h = g = x.new_zeros(B, H)
        for v in x:
            h = self.low(g + v.mean(), h)
            g = self.high(h, g)
        return g


def test_a_feedback_by_way_of_another_cell_is_seen() -> None:
    torch.manual_seed(0)
    report = throughtime.diagnose(Through(), [_x(0), _x(1)], _loss)
    reasons = {(m.quantity, m.name): m.reason for m in report.missing}
    assert set(reasons) == {("weight_lags", "low"), ("weight_lags", "high")}
    assert all("no one lag" in reason for reason in reasons.values())


class Twins(nn.Module):
    """One layer reads two sequences apart."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(I, H)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return (self.rnn(a)[0][-1] * self.rnn(b)[0][-1]).sum(-1)


def test_two_sequences_of_one_layer_are_rows_of_it() -> None:
    torch.manual_seed(0)
    model, a, b = Twins(), _x(0), _x(1)[:11]
    seen = ExaminedModel(model).run(((a, b),), _loss, last_only=True)
    (found,) = lag_gradients(seen)
    cell = nn.LSTMCell(I, H)
    cell.load_state_dict({n.removesuffix("_l0"): v for n, v in model.rnn.state_dict().items()})
    kept: list[list[Tensor]] = [[], []]
    for x, states in zip((a, b), kept, strict=True):
        s = torch.zeros(B, 2 * H)
        for v in x:
            s = torch.cat(cell(v, tuple(s.split(H, 1))), 1)
            s.requires_grad_().retain_grad()
            states.append(s)
    _loss((kept[0][-1][:, :H] * kept[1][-1][:, :H]).sum(-1)).backward()
    for k in range(T):
        logs = [(s[-1 - k].grad.norm(dim=1) / s[-1].grad.norm(dim=1)).log10()  # type: ignore[union-attr]
                for s in kept if len(s) > k]  # fmt: skip
        assert found.log10_rho_by_lag[k] == pytest.approx(float(torch.cat(logs).mean()), abs=1e-5)
    report = throughtime.diagnose(model, [((a, b),)] * 2, _loss)
    assert (report.rows, report.steps, report.lengths) == (2 * B, T, (T,) * B + (11,) * B)
    (reason,) = {m.reason for m in report.missing}
    assert reason == "the layer must run once in the loss, it ran 2 times"


class Windows(Pieces):
    """State handed on and cut from its graph."""

    def forward(self, x: Tensor) -> Tensor:
        state, total = None, []
        for part in x.split(7):
            y, state = self.rnn(part, state)
            state = tuple(v.detach() for v in state)
            total.append(self.head(y[-1]))
        return torch.stack(total)


def test_windows_cut_from_each_other_are_sequences_of_their_own() -> None:
    model, _ = _made("LSTM", "torch", True)
    report = throughtime.diagnose(Windows(model.rnn, model.head, True), [_x(0), _x(1)], _loss)
    assert (report.steps, report.rows) == (7, 2 * B)
    assert [len(g.log10_rho_by_lag) for g in report.lag_gradients] == [7]


class Odd(nn.Module):
    """Calls whose steps have no one order."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.rnn = how, nn.GRU(I, H, bidirectional=how == "both ways")
        self.cell = nn.GRUCell(H, H)

    def forward(self, x: Tensor) -> Tensor:
        y, h = self.rnn(x[:6])
        if self.how == "two ends":
            return self.rnn(x[6:], h)[0][-1] + self.rnn(x[6:] + 1, h)[0][-1]  # type: ignore[no-any-return]
        if self.how == "fewer rows":
            return self.rnn(x[6:, :2], h[:, :2].contiguous())[0][-1].sum() + y.sum() * 0  # type: ignore[no-any-return]
        if self.how == "both ways":
            return self.rnn(x[6:], h)[0][-1]  # type: ignore[no-any-return]
        g = h[0]
        for _ in range(3):  # the same cell as its own upper layer
            g = self.cell(g, torch.zeros(B, H))
        return g


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("two ends", "two calls of layer rnn go on from one state, so that its steps have no one"),
        ("fewer rows", "the rows of layer rnn change from 4 to 2 between two of its calls; give"),
        ("both ways", "layer rnn runs piece by piece and both ways, so that its backward"),
        ("on itself", "layer cell runs twice on a batch; it must run once, or on from the state"),
    ],
)
def test_calls_without_one_order_are_refused(how: str, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        throughtime.diagnose(Odd(how), _x())


def test_a_state_that_is_not_finite_is_told_with_the_step_of_the_loop() -> None:
    torch.manual_seed(0)
    cell = nn.RNNCell(I, H, nonlinearity="relu")
    nn.init.constant_(cell.weight_hh, 1e6)
    model = CellLoop(cell, nn.Linear(H, 2), False)
    h, step = torch.zeros(B, H), -1
    while bool(h.isfinite().all()):
        step += 1
        h = cell(_x().abs()[step], h)
    report = throughtime.diagnose(model, _x().abs(), _loss, lag=12)
    (trouble,) = report.troubles
    assert f"State h of layer 0 of rnn is NaN or infinity, first at step {step} (" in str(trouble)
    assert (report.steps, report.rows, report.lag) == (T, B, 12)
    x = _x()
    x[8, 1] = torch.nan
    report = throughtime.diagnose(CellLoop(nn.GRUCell(I, H), nn.Linear(H, 2), True), x, _loss)
    assert "The input of layer rnn is NaN or infinity, first at step 8 (" in str(report)


def test_a_cure_of_a_loop_starts_its_cells() -> None:
    torch.manual_seed(0)
    model = CellLoop(nn.LSTMCell(I, 16), nn.Linear(16, 2), False)
    x = torch.randn(40, B, I)
    report = throughtime.diagnose(model, x, _loss)
    (trouble,) = report.troubles
    assert trouble.kind == "vanishing" and trouble.log10_rho_after is not None
    assert trouble.log10_rho_after > -2
    cured = throughtime.cure(model, report).model
    assert "started by throughtime.cure with time scales" in str(throughtime.diagnose(cured, x))
