"""The verdict: every planted fault is named, and nothing is named on healthy networks."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import throughtime
from throughtime import GRU, LSTM, RNN, initialise
from throughtime.diagnosis.cure import CuredCopy
from throughtime.diagnosis.quantities.lag_gradient import LagGradient
from throughtime.diagnosis.report import Report
from throughtime.diagnosis.verdict import exploding

T, LAG, H = 50, 20, 32
SEEDS = [pytest.param(s, marks=pytest.mark.soak if s > 2 else ()) for s in range(20)]


class Net(nn.Module):
    """A recurrent layer and a read-out of its last output."""

    def __init__(self, rnn: nn.Module, width: int = H) -> None:
        super().__init__()
        self.rnn, self.head = rnn, nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.rnn(x)[0][-1])
        return y


def _x(seed: int, count: int = 1) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.rand(T, 8, 4, generator=draw) for _ in range(count)]


def _loss(y: Tensor) -> Tensor:
    return (y - 1).square().mean()


def _healthy(kind: str) -> nn.Module:
    if kind == "RNN":
        return initialise(RNN(4, H), "orthogonal")
    return initialise((LSTM if kind == "LSTM" else GRU)(4, H), chrono=3.0 * LAG)


def _norms(model: nn.Module, batches: list[Tensor]) -> list[float]:
    """||g|| of each batch, by .grad."""
    found = []
    for x in batches:
        model.zero_grad()
        _loss(model(x)).backward()
        squares = [p.grad.double().square().sum() for p in model.parameters() if p.grad is not None]
        found.append(float(torch.stack(squares).sum().sqrt()))
    model.zero_grad()
    return found


def _kinds(report: Report) -> list[str]:
    return [t.kind for t in report.troubles]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_nothing_is_named_on_healthy_networks(kind: str, seed: int) -> None:
    torch.manual_seed(seed)
    model, batches = Net(_healthy(kind)), _x(seed, 16)
    clip = float(np.quantile(_norms(model, _x(seed + 100, 64)), 0.95))
    report = throughtime.diagnose(model, batches, _loss, LAG, clip=clip)
    assert report.troubles == () and report.missing == ()
    assert "No trouble found." in str(report)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_torch_s_own_start_vanishes_and_the_advice_is_measured(kind: str, seed: int) -> None:
    torch.manual_seed(seed)
    report = throughtime.diagnose(Net(getattr(nn, kind)(4, H)), _x(seed), _loss, LAG)
    assert _kinds(report) == ["vanishing"]
    (trouble,) = report.troubles
    horizon = report.lag_gradients[0].horizon_1e3_steps
    assert horizon is not None and horizon < LAG and f"after {horizon} steps" in trouble.sentence
    assert trouble.log10_rho_before is not None and trouble.log10_rho_after is not None
    assert trouble.log10_rho_before < -3 and trouble.log10_rho_after > -2
    assert f"10^{trouble.log10_rho_after:.1f}" in trouble.advice
    assert kind == "RNN" or "1/1000 nowhere in the sequence" in trouble.advice


def test_a_start_is_spelt_out_once_and_a_whole_sequence_is_said() -> None:
    torch.manual_seed(0)
    report = throughtime.diagnose(nn.GRU(4, H, bidirectional=True), _x(0))
    first, second = report.troubles
    assert "and the task needs 49, the whole sequence." in first.sentence
    assert first.advice.startswith("Start anew with throughtime.cure (GRU: ")
    assert second.advice.startswith("The same start: on a copy started so, the gradient 49 steps")
    assert first.log10_rho_after != second.log10_rho_after


@pytest.mark.parametrize("seed", SEEDS)
def test_large_weights_explode(seed: int) -> None:
    """Of 128 units, since fewer may fall into a cycle that forgets instead of into chaos."""
    torch.manual_seed(seed)
    layer = nn.RNN(4, 128)
    nn.init.normal_(layer.get_parameter("weight_hh_l0"), std=3 / math.sqrt(128))
    report = throughtime.diagnose(Net(layer, 128), _x(seed), _loss, LAG)
    assert _kinds(report) == ["exploding"]
    (trouble,) = report.troubles
    assert trouble.log10_rho_after is not None and abs(trouble.log10_rho_after) < 2


@pytest.mark.parametrize("seed", SEEDS)
def test_saturated_gates_are_frozen(seed: int) -> None:
    """The gates r and z of a GRU pushed to their ends, each unit to one, and still carrying."""
    torch.manual_seed(seed)
    layer = _healthy("GRU")
    with torch.no_grad():
        bias = layer.get_parameter("bias_ih_l0")
        bias[: 2 * H] = 20
        bias[H : H + H // 2] = -20
    report = throughtime.diagnose(Net(layer), _x(seed), _loss, LAG)
    trouble = next(t for t in report.troubles if t.kind == "frozen gates")
    assert "r, z stand at an end" in trouble.sentence and "100% or more" in trouble.sentence
    assert "on a copy started so" in trouble.advice
    assert set(_kinds(report)) <= {"vanishing", "frozen gates", "dead units", "written too weakly"}


@pytest.mark.parametrize(("step", "named"), [(1e-3, False), (1e-6, True)])
def test_gates_that_saturate_are_frozen_only_where_updates_are_tiny(
    step: float, named: bool
) -> None:
    """A chrono LSTM keeps: two thirds of its forget gates stand above 0.95."""
    torch.manual_seed(0)
    model = Net(_healthy("LSTM"))
    before = {n: v * (1 + step) for n, v in model.state_dict().items()}
    report = throughtime.diagnose(model, _x(0), _loss, LAG, before=before)
    high = next(s.share_high for s in report.modules[0].gates[0].saturation if s.name == "f")
    assert high > 0.5
    assert _kinds(report) == ["frozen gates"] * named
    if named:
        assert "the update is at most 1e-06 of their weights" in report.troubles[0].sentence


@pytest.mark.parametrize("seed", SEEDS)
def test_dead_units_are_counted(seed: int) -> None:
    torch.manual_seed(seed)
    layer = _healthy("RNN")
    with torch.no_grad():
        layer.get_parameter("bias_ih_l0")[:8] = 20
    report = throughtime.diagnose(Net(layer), _x(seed), _loss, LAG)
    assert "dead units" in _kinds(report)
    trouble = next(t for t in report.troubles if t.kind == "dead units")
    assert f": 8 of {H} outputs" in trouble.sentence
    assert f"0 of {H} are dead" in trouble.advice


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_a_clip_threshold_far_too_low_is_named(kind: str, seed: int) -> None:
    torch.manual_seed(seed)
    model, batches = Net(_healthy(kind)), _x(seed, 16)
    norms = _norms(model, batches)
    report = throughtime.diagnose(model, batches, _loss, LAG, clip=min(norms) / 100)
    assert _kinds(report) == ["clipping"]
    (trouble,) = report.troubles
    assert "far too low" in trouble.sentence and "changes 100%" in trouble.sentence
    assert f"{np.quantile(norms, 0.9):.3g}" in trouble.advice and "changes 12%" in trouble.advice
    assert "UClip" not in trouble.advice  # below the mean's norm what it carries grows for ever


def test_uclip_is_advised_only_above_the_norm_of_the_mean_gradient() -> None:
    torch.manual_seed(0)
    model, signs = Net(_healthy("GRU")), torch.tensor([1.0, -1.0, 1.0, 1.0] * 4)
    batches = list(zip(_x(0, 16), signs, strict=True))  # gradients that differ from their mean

    def loss(y: torch.Tensor, sign: torch.Tensor) -> torch.Tensor:
        return sign * _loss(y)

    found = throughtime.diagnose(model, batches, loss, LAG).clipping
    assert found is not None and found.mean_norm < 0.8 * min(found.norms)
    for c, advised in ((0.9 * found.mean_norm, False), (1.1 * found.mean_norm, True)):
        told = throughtime.diagnose(model, batches, loss, LAG, clip=c).troubles
        (trouble,) = (t for t in told if t.kind == "clipping")
        assert ("UClip" in trouble.advice) == advised


def test_a_start_that_leaves_units_dead_is_not_advised() -> None:
    torch.manual_seed(0)
    silent = throughtime.cure(nn.RNN(2, 16), lag=50).model  # no biases: nothing in, nothing out
    report = throughtime.diagnose(silent, torch.zeros(60, 8, 2), lag=50)
    (dead,) = (t for t in report.troubles if t.kind == "dead units")
    assert "16 of 16 outputs" in dead.sentence
    assert "A new start does not help, 16 of 16 are dead on a copy" in dead.advice
    assert "mean 0 and deviation 0: look at what comes before it." in dead.advice


def test_inputs_too_small_to_move_a_unit_are_named_with_what_scaling_gives() -> None:
    torch.manual_seed(0)
    model = throughtime.cure(nn.RNN(2, 16), lag=50).model  # no biases that move alone
    report = throughtime.diagnose(model, 1e-6 * torch.randn(60, 8, 2) + 3e-6, lag=50)
    (dead,) = (t for t in report.troubles if t.kind == "dead units")
    assert (
        "The module's inputs have mean 3e-06 and deviation 1e-06. Standardise them: " in dead.advice
    )
    assert dead.advice.endswith(": 0 of 16 are then dead on that copy.")


@pytest.mark.parametrize(
    ("constant", "ulp"), [(0.1, False), (0.1, True), (-3e4, False), (-3e4, True), (0.0, False)]
)
def test_a_feature_that_never_varies_but_by_rounding_is_set_to_0(
    constant: float, ulp: bool
) -> None:
    """In float32 the mean of a constant is not that constant."""
    torch.manual_seed(0)
    model, x = nn.RNN(2, 16), 1e-6 * torch.randn(60, 8, 2)
    x[..., 0] = constant
    if ulp:
        x[::7, 3, 0] = torch.nextafter(x[::7, 3, 0], torch.tensor(math.inf))
    found = CuredCopy(model, [x], None, 50).inputs[""]
    even = np.zeros(x.shape)
    own = x[..., 1].double().numpy()
    even[..., 1] = (own - own.mean()) / own.std()
    torch.manual_seed(0)
    y = throughtime.cure(model, lag=50).model(torch.tensor(even, dtype=torch.float32))[0]
    dead = int((y.flatten(0, 1).std(0) < 1e-3).sum())
    assert dead == 0 and found.dead_units == {("", 0, 0): dead}
    still = CuredCopy(model, [x[..., :1].expand(60, 8, 2).clone()], None, 50).inputs[""]
    assert still.deviation == 0 and still.mean == pytest.approx(constant)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_first_step_of_nan_is_named(seed: int) -> None:
    """A relu network whose state leaves float32, at the step a loop by hand finds."""
    torch.manual_seed(seed)
    layer = nn.RNN(4, H, nonlinearity="relu")
    nn.init.constant_(layer.get_parameter("weight_hh_l0"), 10.0 + seed)
    (x,) = _x(seed)
    cell = nn.RNNCell(4, H, nonlinearity="relu")
    cell.load_state_dict({n.removesuffix("_l0"): v for n, v in layer.state_dict().items()})
    h, step = torch.zeros(8, H), -1
    while bool(h.isfinite().all()):
        step += 1
        h = cell(x[step], h)
    report = throughtime.diagnose(Net(layer), x, _loss, LAG)
    (trouble,) = report.troubles
    assert trouble.kind == "not finite" and trouble.name == "rnn"
    assert f"State h of layer 0 of rnn is NaN or infinity, first at step {step} " in str(report)
    assert "a copy started so is finite, with a gradient 20 steps back of 10^-0." in trouble.advice
    assert report.loss is None and {m.quantity for m in report.missing} >= {"lag_gradients"}
    assert Report.from_json(report.to_json()) == report


def _nan_input(model: Net, x: Tensor) -> Any:
    x[17, 3] = math.nan
    return _loss


def _nan_weight(model: Net, x: Tensor) -> Any:
    nn.init.constant_(model.rnn.get_parameter("weight_ih_l0"), math.nan)
    return _loss


def _nan_head(model: Net, x: Tensor) -> Any:
    model.head.register_forward_hook(lambda *_: torch.full((8, 1), math.inf, requires_grad=True))
    return _loss


def _nan_loss(model: Net, x: Tensor) -> Any:
    return lambda y: (y - y).sum().log() * 0


def _nan_gradient(model: Net, x: Tensor) -> Any:
    return lambda y: (y - y).square().sum().sqrt()


@pytest.mark.parametrize(
    ("plant", "words"),
    [
        (_nan_input, r"The input of layer rnn is NaN or infinity, first at step 17 "),
        (_nan_weight, r"Parameter rnn\.weight_ih_l0 has NaN or infinity"),
        (_nan_head, r"The model's output is NaN or infinity, while all states"),
        (_nan_loss, r"The loss must be finite from the start, got nan of a finite output"),
        (_nan_gradient, r"The gradient by the state of layer 0 of rnn .* first at step 49 "),
    ],
)
def test_what_is_not_finite_first_is_named(plant: Any, words: str) -> None:
    torch.manual_seed(0)
    model, (x,) = Net(nn.LSTM(4, H)), _x(0)
    report = throughtime.diagnose(model, x, plant(model, x))
    (trouble,) = report.troubles
    assert trouble.kind == "not finite"
    assert re.match(words, trouble.sentence)
    assert (report.steps, report.rows) == (T, 8)
    helps = plant is _nan_weight  # there a new start helps, and is measured
    assert ("a copy started so is finite, with a gradient" in trouble.advice) == helps


@pytest.mark.parametrize(
    ("rank", "named"), [(15, False), (10, False), (9, False), (8, True), (0, True)]
)
def test_a_few_clipped_batches_may_be_chance(rank: int, named: bool) -> None:
    """With p = 0.2, 16 draws give 7 or more with 2.7 %, 8 or more with 0.7 %."""
    torch.manual_seed(0)
    model, batches = Net(_healthy("GRU")), _x(0, 16)
    norms = sorted(_norms(model, batches))
    clip = (norms[rank] + norms[rank - 1]) / 2 if rank else norms[0] * 0.99
    report = throughtime.diagnose(model, batches, _loss, LAG, clip=clip)
    assert report.clipping is not None and report.clipping.clip_rate == (16 - rank) / 16
    assert ("clipping" in _kinds(report)) == named


def test_input_that_is_never_written_is_named() -> None:
    torch.manual_seed(0)
    layer = initialise(LSTM(4, H), timescales=(3.0 * LAG, 6.0 * LAG))
    nn.init.zeros_(layer.get_parameter("weight_ih_l0"))
    report = throughtime.diagnose(Net(layer), _x(0), _loss, LAG)
    trouble = next(t for t in report.troubles if t.kind == "written too weakly")
    assert "100% of the time scales are above 20 steps" in trouble.sentence
    assert "r^2(20) is 0." in trouble.advice


def test_a_cured_plain_network_is_not_told_of_gates() -> None:
    """Of 32 units no more than 32 lags can be read, and yet the gradient goes back 99 steps."""
    torch.manual_seed(0)
    model = throughtime.cure(Net(nn.RNN(4, H)), lag=99).model
    report = throughtime.diagnose(model, 0.05 * torch.randn(100, 8, 4), _loss)
    assert report.capacities[0].r2_by_lag[99] == 0
    assert report.modules[0].gates[0].share_above(99) > 0.5
    assert "written too weakly" not in _kinds(report)


def test_a_lag_too_far_to_be_read_in_any_network_is_no_trouble() -> None:
    torch.manual_seed(0)
    model = initialise(LSTM(4, H), timescales=(500.0, 900.0))
    report = throughtime.diagnose(model, torch.rand(400, 2, 4), lag=399)
    assert report.modules[0].gates[0].share_above(399) > 0.5
    assert report.capacities[0].r2_by_lag[399] == 0
    assert "written too weakly" not in _kinds(report)


def test_a_truncation_that_points_elsewhere_is_named() -> None:
    torch.manual_seed(0)
    model = Net(_healthy("GRU"))
    (x,) = _x(0)
    report = throughtime.diagnose(model, x, _loss, LAG, truncation=2)
    (trouble,) = report.troubles
    (lags,) = report.weight_lags
    assert trouble.kind == "truncation" and f"{lags.cosine_by_lag[2]:.2f}" in trouble.sentence
    enough = lags.steps_to(0.9)
    assert f"over {enough} steps" in trouble.advice
    assert throughtime.diagnose(model, x, _loss, LAG, truncation=enough).troubles == ()


def test_the_rules_speak_in_their_order() -> None:
    torch.manual_seed(0)
    layer = nn.GRU(4, H)
    with torch.no_grad():
        layer.get_parameter("bias_ih_l0")[H : 2 * H] = 20  # z open: nothing is ever written
    report = throughtime.diagnose(Net(layer), _x(0, 16), _loss, LAG, clip=1e-9)
    kinds = _kinds(report)
    order = ["exploding", "vanishing", "written too weakly", "frozen gates", "dead units",
             "truncation", "clipping"]  # fmt: skip
    assert kinds == sorted(kinds, key=order.index) and len(kinds) >= 3


class BothWays(nn.Module):
    """A two-way layer whose read-out looks at one end, or at each direction's own."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where, self.rnn = where, nn.LSTM(4, 16, bidirectional=True)
        self.head = nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        y, (h, _) = self.rnn(x)
        read = {
            "last": lambda: y[-1], "first": lambda: y[0],
            "third": lambda: torch.cat((y[-1, :, :16], y[-3, :, 16:]), -1),
            "middle": lambda: torch.cat((y[-1, :, :16], y[T // 2, :, 16:]), -1),
            "states": lambda: torch.cat((h[0], h[1]), -1),
            "mean": lambda: y.mean(0), "ends": lambda: torch.cat((y[-1, :, :16], y[0, :, 16:]), -1),
            "forward": lambda: torch.cat((h[0], h[0]), -1),
        }  # fmt: skip
        out: Tensor = self.head(read[self.where]())
        return out


def _of_both(where: str) -> Report:
    torch.manual_seed(0)
    cured = throughtime.cure(BothWays(where), lag=LAG).model
    return throughtime.diagnose(cured, _x(0), _loss, LAG)


@pytest.mark.parametrize(
    ("where", "direction", "read", "words"),
    [
        ("last", 1, 1, "after 1 of its 50 steps at the latest, when it has read one input only, "
         "and never after its own last step, at the beginning of the sequence."),
        ("first", 0, 1, "after 1 of its 50 steps at the latest, when it has read one input only, "
         "and never after its own last step, at the end of the sequence."),
        ("third", 1, 3, "after 3 of its 50 steps at the latest, when it has read 3 inputs, and"),
        ("forward", 1, 0, "The loss cannot see layer 0 of rnn, backward: its gradient by every "),
    ],
)  # fmt: skip
def test_a_direction_that_the_loss_cannot_see_is_named(
    where: str, direction: int, read: int, words: str
) -> None:
    report = _of_both(where)
    assert _kinds(report) == ["not seen"]
    (trouble,), (blind,) = report.troubles, report.unseen
    assert (blind.direction, blind.read_steps, blind.steps) == (direction, read, T)
    place = f"layer 0 of rnn{', backward' if direction else ''}"
    assert place in trouble.sentence and words in trouble.sentence
    cure = "the final states of both" if read else "Let the loss depend on its output"
    assert cure in trouble.advice
    assert [(g.layer, g.direction) for g in report.lag_gradients] == [(0, 1 - direction)]
    row = next(line for line in str(report).splitlines()
               if line.startswith(f"rnn.0{' backward' if direction else ''}  "))  # fmt: skip
    assert "not     seen" in row
    assert Report.from_json(report.to_json()) == report


@pytest.mark.parametrize("where", ["states", "mean", "ends"])
def test_directions_that_are_read_at_their_ends_get_no_word(where: str) -> None:
    report = _of_both(where)
    assert report.unseen == () and report.troubles == ()
    for word in ("cannot see", "one step", "one input", "its own last"):
        assert word not in str(report)


def test_a_direction_that_is_read_far_enough_is_no_trouble_but_has_a_reason() -> None:
    report = _of_both("middle")
    assert [u.read_steps for u in report.unseen] == [25] and report.troubles == ()
    reasons = [m.reason for m in report.missing if m.quantity == "lag_gradients"]
    assert reasons == [
        "the loss reads layer 0, backward after 25 of its 50 steps at the latest, and lags are "
        "counted from the last",
    ]


def test_a_branch_without_a_gradient_is_named_and_its_gates_are_not_frozen() -> None:
    class Branches(Net):
        def __init__(self) -> None:
            super().__init__(_healthy("GRU"))
            self.other = _healthy("GRU")
            with torch.no_grad():  # saturated, too
                self.other.get_parameter("bias_ih_l0")[: 2 * H] = 20

        def forward(self, x: Tensor) -> Tensor:
            shut = (self.other(x)[0][-1] - 9).relu().sum()
            return super().forward(x) + shut

    torch.manual_seed(0)
    report = throughtime.diagnose(Branches(), _x(0), _loss, LAG)
    named = [t for t in report.troubles if t.name == "other"]
    assert [t.kind for t in named if t.kind != "dead units"] == ["not seen"]
    assert "cannot see layer 0 of other: its gradient by every state" in named[0].sentence
    assert "a ReLU below 0" in named[0].advice


class Stacked(nn.Module):
    """Two two-way layers, read at the last step or at each direction's own."""

    def __init__(self, ends: bool) -> None:
        super().__init__()
        self.ends, self.rnn = ends, nn.GRU(4, 16, 2, bidirectional=True)
        self.head = nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        y, h = self.rnn(x)
        out: Tensor = self.head(torch.cat((h[2], h[3]), -1) if self.ends else y[-1])
        return out


@pytest.mark.parametrize("ends", [False, True])
def test_below_a_two_way_layer_a_gradient_that_arrives_late_is_no_explosion(ends: bool) -> None:
    """What the upper layer sends to the first steps is large beside what went all the way."""
    torch.manual_seed(0)
    report = throughtime.diagnose(Stacked(ends), _x(0), _loss, LAG)
    assert max(g.largest_log10_rho for g in report.lag_gradients if g.layer == 0) > 1 or ends
    assert "exploding" not in _kinds(report)
    assert [t.name for t in report.troubles if t.kind == "not seen"] == ["rnn"] * (not ends)
    assert [(u.layer, u.direction) for u in report.unseen] == [(1, 1)] * (not ends)


@pytest.mark.parametrize("cut", ["detach", "no_grad"])
def test_a_layer_that_is_cut_off_is_not_seen(cut: str) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.low, self.high = nn.GRU(4, 8), nn.GRU(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            if cut == "detach":
                y = self.low(x)[0].detach()
            else:
                with torch.no_grad():
                    y = self.low(x)[0]
            out: Tensor = self.high(y)[0][-1]
            return out

    torch.manual_seed(0)
    report = throughtime.diagnose(Two(), _x(0, 2), _loss, LAG)
    (trouble, *_) = report.troubles
    assert trouble.kind == "not seen" and trouble.name == "low"
    assert "its gradient by every state of it is zero" in trouble.sentence
    assert [(m.quantity, m.reason) for m in report.missing] == [
        ("weight_lags", "the loss does not depend on what the layer gives")
    ]
    assert len(report.capacities) == 2 and len(report.modules) == 2


def test_a_row_of_one_step_says_nothing_of_a_direction() -> None:
    """Its first step is its last, so that alone it would pass for a direction that is seen."""

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = GRU(4, 16, bidirectional=True), nn.Linear(32, 1)

        def forward(self, x: Tensor, n: Tensor) -> Tensor:
            y = self.rnn(x, lengths=n)[0]
            out: Tensor = self.head(y[n - 1, torch.arange(8)])
            return out

    torch.manual_seed(0)
    lengths = torch.tensor([50, 1, 30, 1, 12, 44, 7, 20])
    report = throughtime.diagnose(Last(), ((_x(0)[0], lengths),), _loss, LAG)
    assert [(u.direction, u.read_steps) for u in report.unseen] == [(1, 1)]
    (forward,) = report.lag_gradients
    assert forward.rows_by_lag[:2] == (6, 6) and report.troubles[0].kind == "not seen"


def _growing(report: Report, rho: float, exponent: float) -> list[str]:
    """The kinds named where log10 rho rises to a number, and the largest exponent is another."""
    (g,), (module,) = report.lag_gradients, report.modules
    curve = tuple(rho * k / 49 for k in range(50))
    j = replace(module.jacobians[0], lyapunov_nats_per_step=(exponent,))
    changed: LagGradient = replace(g, log10_rho_by_lag=curve, horizon_1e3_steps=None)
    report = replace(
        report, lag_gradients=(changed,), modules=(replace(module, jacobians=(j,)),), unseen=()
    )
    model = Net(_healthy("RNN"))
    return [t.kind for t in exploding(report, CuredCopy(model, _x(0), _loss, LAG))]


def test_a_gradient_that_shrinks_is_not_said_to_explode() -> None:
    torch.manual_seed(0)
    report = throughtime.diagnose(Net(_healthy("RNN")), _x(0), _loss, LAG)
    assert _growing(report, -0.5, 0.2) == []  # states that grow, and a gradient that does not
    assert _growing(report, 0.1, 0.2) == []
    assert _growing(report, 0.5, 0.2) == ["exploding"]
    assert _growing(report, 0.5, 0.01) == []
    assert _growing(report, 1.5, -0.1) == ["exploding"]


@pytest.mark.parametrize(("lag", "units", "said"), [(39, 16, True), (99, 32, True), (5, 32, False)])
def test_a_reach_without_memory_is_no_plain_health(lag: int, units: int, said: bool) -> None:
    """r^2 at the lag under a twentieth is told beside gradients that reach."""
    torch.manual_seed(0)
    model = throughtime.cure(Net(nn.LSTM(4, units), units), lag=lag).model
    report = throughtime.diagnose(model, torch.rand(lag + 1, 8, 4), _loss)
    most = report.capacities[0].r2_by_lag[lag]
    assert report.troubles == () and (most < 0.05) == said
    assert bool(report.cautions) == said and ("No trouble found." in str(report)) == (not said)
    if said:
        (caution,) = report.cautions
        assert caution.kind == "remembers little"
        assert f"r^2({lag}) = {most:.2g} at most, in layer 0 of rnn," in str(report)
        assert Report.from_json(report.to_json()) == report


def test_a_memory_is_no_news_where_the_gradient_vanishes() -> None:
    torch.manual_seed(0)
    report = throughtime.diagnose(Net(nn.LSTM(4, H)), _x(0), _loss, LAG)
    assert _kinds(report) == ["vanishing"] and report.cautions == ()
