"""`GradientFlow` on what it is not made for: right numbers, or one sentence."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.diagnosis.test_flow import (
    B,
    H,
    I,
    Learner,
    Plain,
    T,
    batch,
    fitted,
    made,
    pl,
    quiet,
)  # fmt: skip
from throughtime import Recurrent, cells
from throughtime.diagnosis import GradientFlow
from throughtime.errors import NotFiniteError, OptionError

with warnings.catch_warnings():  # Lightning's own at its import
    warnings.simplefilter("ignore")
    from pytorch_lightning.plugins import MixedPrecision

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pytorch_lightning")
__all__ = ["quiet"]
PLACE = "model.encoder.0"


def told(learner: pl.LightningModule, data: Any, **options: Any) -> tuple[Any, list[str]]:
    """What is logged, and warned of by the callback."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rows = fitted(learner, data, GradientFlow(1), **options).rows
    said = [str(w.message) for w in caught]
    return [row for _, row in rows], [s for s in said if "logged" in s or "Training step" in s]


class Behind(Plain):
    """A linear layer before the recurrent one, so that autocast rounds what that reads."""

    def __init__(self) -> None:
        super().__init__(nn.LSTM(I, H), H)
        self.before = nn.Linear(I, I)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.before(x))


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "16-true", "64-true"])
@pytest.mark.parametrize("kind", ["behind", "torch", "drop_in"])
def test_half_precision_has_the_numbers_of_float32_but_for_rounding(
    kind: str, precision: Any
) -> None:
    torch.manual_seed(0)
    model = Behind() if kind == "behind" else made(kind)
    start = {n: v.clone() for n, v in model.state_dict().items()}
    ((expected,), _) = told(Learner(model), [batch()])
    model.load_state_dict(start)
    ((found,), _) = told(Learner(model), [batch()], precision=precision)
    assert found.keys() == expected.keys()
    for name in (f"flow/log10_rho/{PLACE}", f"flow/horizon_steps/{PLACE}", "flow/gradient_norm"):
        assert found[name] == pytest.approx(expected[name], rel=0.03), name


def _scaled(scale: float, backoff: float = 0.5) -> Any:
    """Training in float16 with a scaled loss."""
    scaler = torch.amp.GradScaler("cpu", scale, backoff_factor=backoff)
    return MixedPrecision("16-mixed", "cpu", scaler)


@pytest.mark.parametrize("clip", [None, 0.1])
def test_a_scaled_loss_has_the_numbers_of_float32_but_for_rounding(clip: float | None) -> None:
    """Lightning scales gradients back before the optimizer's step, and a ratio has no scale."""
    torch.manual_seed(0)
    model = Behind()
    start = {n: v.clone() for n, v in model.state_dict().items()}
    ((expected,), _) = told(Learner(model), [batch()], gradient_clip_val=clip)
    model.load_state_dict(start)
    plugins = [_scaled(1024.0)]
    ((found,), _) = told(Learner(model), [batch()], gradient_clip_val=clip, plugins=plugins)
    assert found.keys() == expected.keys() and ("flow/clip_rate" in found) == (clip is not None)
    for name in expected:
        assert found[name] == pytest.approx(expected[name], rel=0.03, abs=1e-6), name


def test_a_step_that_a_scaled_loss_overflows_in_is_none() -> None:
    torch.manual_seed(0)
    model, data = Behind(), [batch(), batch(1)]
    start = {n: v.clone() for n, v in model.state_dict().items()}
    ((expected,), _) = told(Learner(model), data[1:])
    model.load_state_dict(start)
    plugins = [_scaled(2.0**100, 2.0**-90)]
    ((found,), _) = told(Learner(model), data, plugins=plugins)
    assert found["flow/gradient_norm"] == pytest.approx(expected["flow/gradient_norm"], rel=0.03)


def test_gradients_that_a_fused_optimizer_unscales_are_told_of_once() -> None:
    class Fused(Learner):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), self.lr, fused=True)

    rows, said = told(Fused(Behind()), [batch(), batch(1)], plugins=[_scaled(1024.0)])
    assert rows == []
    assert said == [
        "Gradients of a scaled loss are not looked at where the optimizer itself unscales them, "
        "so nothing is logged; give it fused=False, or train in bf16-mixed."
    ]
    rows, said = told(Fused(Behind()), [batch(), batch(1)])
    assert len(rows) == 2 and not any("scaled loss" in s for s in said)


class Wrapped(Learner):
    """The model behind something that stands for it."""

    def __init__(self, model: nn.Module, wrap: Any) -> None:
        super().__init__(model)
        self.model = wrap(model)


@pytest.mark.parametrize("kind", ["torch", "drop_in"])
@pytest.mark.parametrize("wrap", ["compiled", "parallel"])
def test_a_wrapped_model_has_the_numbers_of_the_plain_one(kind: str, wrap: str) -> None:
    wraps = {
        "compiled": lambda m: torch.compile(m, backend="eager"),
        "parallel": nn.DataParallel,
    }
    inside = {"compiled": "_orig_mod.", "parallel": "module."}[wrap]
    (expected, _) = told(Learner(made(kind)), [batch(), batch(1)])
    torch.compiler.reset()
    (found, _) = told(Wrapped(made(kind), wraps[wrap]), [batch(), batch(1)])
    plain = [{n.replace(inside, ""): v for n, v in row.items()} for row in found]
    assert len(plain) == 2
    for row, other in zip(plain, expected, strict=True):
        assert row == pytest.approx(other, rel=1e-4)


def test_a_layer_compiled_before_this_training_is_told_of() -> None:
    torch.compiler.reset()
    learner = Wrapped(made("drop_in"), lambda m: torch.compile(m, backend="eager"))
    fitted(learner, [batch()])
    ((row,), (said,)) = told(learner, [batch()])
    assert said.startswith("No recurrent layer was seen to run in a training step, so nothing is")
    assert "flow/gradient_norm" in row and not any("encoder.0" in n for n in row)
    torch.compiler.reset()  # as the sentence says
    ((row,), (said,)) = told(learner, [batch()])
    assert "flow/log10_rho/model._orig_mod.encoder.0" in row and "Vanishing" in said


def test_of_a_frozen_layer_saturation_alone_is_logged() -> None:
    model = made("torch")
    model.encoder.requires_grad_(False)
    ((row,), said) = told(Learner(model), [batch()])
    assert f"flow/saturated/{PLACE}" in row and f"flow/log10_rho/{PLACE}" not in row
    assert {n for n in row if "update/" in n} == {
        "flow/update/model.readout.weight", "flow/update/model.readout.bias",
    }  # fmt: skip
    assert said == []


def test_several_modules_are_logged_each() -> None:
    class Chain(Plain):
        def __init__(self) -> None:
            super().__init__(nn.LSTM(I, H), H)
            self.second = Recurrent(cells.GRU(), H, H)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.readout(self.second(self.encoder(x)[0])[0][-1])
            return y

    torch.manual_seed(0)
    ((row,), _) = told(Learner(Chain()), [batch()])
    assert {n.removeprefix("flow/log10_rho/") for n in row if "rho" in n} == {
        PLACE, "model.second.0",
    }  # fmt: skip


def test_nothing_that_trains_is_one_sentence() -> None:
    model = made("torch").requires_grad_(False)
    with pytest.raises(OptionError, match="the loss depends on nothing that trains; unfreeze"):
        fitted(Learner(model), [batch()], GradientFlow())


class Odd(Learner):
    """Its loss is odd in one way."""

    def __init__(self, model: nn.Module, how: str) -> None:
        super().__init__(model)
        self.how = how

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Any:
        x, target = batch
        if self.how == "none":
            return None
        if self.how == "sum":
            return nn.functional.cross_entropy(self.model(x), target, reduction="sum")
        if self.how == "blind":
            self.model.encoder(x)
            return self.model.readout.weight.square().sum()
        loss = nn.functional.cross_entropy(self.model(x), target)
        return loss * {"nan": float("nan"), "zero": 0.0}[self.how]


def test_a_step_without_any_gradient_is_not_logged() -> None:
    (rows, said) = told(Odd(made("torch"), "none"), [batch(), batch()])
    assert rows == []
    assert said == ["No parameter has a gradient, so a training step is not logged."]


@pytest.mark.parametrize("how", ["zero", "blind"])
def test_a_loss_blind_to_the_layer_has_no_reach(how: str) -> None:
    ((row,), said) = told(Odd(made("torch"), how), [batch()])
    assert not any("rho" in n or "horizon" in n for n in row) and said == []
    assert f"flow/saturated/{PLACE}" in row
    assert (row["flow/gradient_norm"] == 0) == (how == "zero")


def test_a_loss_that_is_nan_from_the_start_stops_at_step_0() -> None:
    with pytest.raises(NotFiniteError, match="at training step 0 the loss is NaN or infinity, and"):
        fitted(Odd(made("drop_in"), "nan"), [batch()], GradientFlow())


@pytest.mark.parametrize("kind", ["torch", "drop_in"])
def test_sequences_of_one_step_are_told_of_and_of_two_are_measured(kind: str) -> None:
    x, target = batch()
    ((row,), (said,)) = told(Learner(made(kind)), [(x[:1], target)])
    assert said == (
        "Nothing is logged of a layer: layer model.encoder is given sequences of one step."
    )
    assert "flow/gradient_norm" in row and not any("encoder.0" in n for n in row)
    ((row,), _) = told(Learner(made(kind)), [(x[:2], target)])
    assert row[f"flow/horizon_steps/{PLACE}"] == 2 and row[f"flow/log10_rho/{PLACE}"] < 0


@pytest.mark.parametrize("kind", ["torch", "drop_in"])
def test_an_empty_batch_is_told_of(kind: str) -> None:
    x, target = batch()
    empty = x[:, :0], target[:0]
    with pytest.raises(NotFiniteError, match=r"no steps or rows, x of \(20, 0, 3\); leave empty"):
        fitted(Learner(made(kind)), [empty], GradientFlow())
    ((row,), (said,)) = told(Odd(made(kind), "sum"), [empty])
    assert f"given no steps or rows, x of ({T}, 0, {I})" in said
    assert not any("saturated" in n or "rho" in n for n in row)


def test_a_layer_that_fills_norms_of_its_users_is_measured_all_the_same() -> None:
    class Seen(Plain):
        def forward(self, x: Tensor) -> Tensor:
            norms = [torch.zeros(T, B, 1, 2)]
            return self.readout(self.encoder(x, gradient_norms=norms)[0][-1])

    found = []
    for kind in (Plain, Seen):
        torch.manual_seed(0)
        ((row,), said) = told(Learner(kind(Recurrent(cells.LSTM(), I, H), H)), [batch()])
        assert not any("logged" in s for s in said)
        found.append(row)
    assert found[0] == found[1]
