"""`GradientFlow`: its numbers are those of the report, and training stops where it must."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from throughtime import GRU, LSTM, Recurrent, cells, initialise
from throughtime.diagnosis.observe.examined import ExaminedModel
from throughtime.diagnosis.quantities.lag_gradient import lag_gradients
from throughtime.errors import MissingExtra, NotFiniteError, OptionError

with warnings.catch_warnings():  # Lightning's own at its first import
    warnings.simplefilter("ignore")
    import pytorch_lightning as pl
    from pytorch_lightning.callbacks import ModelCheckpoint
    from pytorch_lightning.loggers.logger import Logger, rank_zero_experiment

from throughtime.diagnosis import GradientFlow

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pytorch_lightning")
T, B, I, H = 20, 4, 3, 8
LSTM_LIKE = ["torch", "drop_in", "batch_first", "bidirectional", "recurrent"]


class Kept(Logger):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int, dict[str, float]]] = []

    name = version = "kept"

    @property
    @rank_zero_experiment
    def experiment(self) -> None:
        return None

    def log_hyperparams(self, *_: Any, **__: Any) -> None: ...

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append((step or 0, dict(metrics)))


class Plain(nn.Module):
    """A recurrent layer, and a read-out of its last step."""

    def __init__(self, layer: nn.Module, width: int, batch_first: bool = False) -> None:
        super().__init__()
        self.encoder = layer
        self.batch_first = batch_first
        self.readout = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.encoder(x.transpose(0, 1) if self.batch_first else x)[0]
        return self.readout(y[:, -1] if self.batch_first else y[-1])


def made(kind: str) -> Plain:
    torch.manual_seed(0)
    if kind == "torch":
        return Plain(nn.LSTM(I, H, 2), H)
    if kind == "drop_in":
        return Plain(LSTM(I, H), H)
    if kind == "batch_first":
        return Plain(nn.GRU(I, H, batch_first=True), H, batch_first=True)
    if kind == "bidirectional":
        return Plain(nn.GRU(I, H, 2, bidirectional=True), 2 * H)
    return Plain(Recurrent(cells.Elman(), I, (H, 5), zoneout=0.1), 5)


class Learner(pl.LightningModule):
    """Trains a model by plain steepest descent on batches that never change."""

    def __init__(self, model: nn.Module, lr: float = 0.1) -> None:
        super().__init__()
        self.model, self.lr = model, lr

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        return nn.functional.cross_entropy(self.model(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), self.lr)


def batch(seed: int = 0, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return (
        scale * torch.randn(T, B, I, generator=draw),
        torch.randint(2, (B,), generator=draw),
    )


def fitted(
    learner: pl.LightningModule, batches: list[Any], *callbacks: pl.Callback, **options: Any
) -> Kept:
    """Trains once through the batches."""
    logger = Kept()
    options = {"enable_checkpointing": False, "max_epochs": 1, **options}
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, logger=logger, callbacks=list(callbacks),
        enable_progress_bar=False, enable_model_summary=False, **options,
    )  # fmt: skip
    trainer.fit(learner, torch.utils.data.DataLoader(batches, batch_size=None))
    return logger


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Vanishing and the like are told as warnings; the tests that look for them say so."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize("kind", LSTM_LIKE)
def test_the_numbers_are_those_of_the_report(kind: str) -> None:
    model, (x, target) = made(kind), batch()
    seen = ExaminedModel(model).run((x, target), nn.functional.cross_entropy, last_only=True)
    ((step, row),) = fitted(Learner(model), [(x, target)], GradientFlow(lag=7)).rows
    assert step == 1
    for g in lag_gradients(seen):
        place = f"model.encoder.{g.layer}{'.backward' if g.direction else ''}"
        told = row[f"flow/log10_rho/{place}"]
        assert told == pytest.approx(g.log10_rho_by_lag[7], rel=1e-4)
        horizon, exact = row[f"flow/horizon_steps/{place}"], g.horizon_1e3_steps
        assert horizon == (T if exact is None else exact)


@pytest.mark.parametrize("lr", [0.1, 1e-3])
def test_updates_and_the_gradient_norm_are_those_of_steepest_descent(lr: float) -> None:
    model, data = made("torch"), batch()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    loss = nn.functional.cross_entropy(model(data[0]), data[1])
    g = dict(zip(before, torch.autograd.grad(loss, model.parameters()), strict=True))
    ((_, row),) = fitted(Learner(model, lr), [data], GradientFlow()).rows
    whole = torch.cat([v.flatten() for v in g.values()]).norm()
    assert row["flow/gradient_norm"] == pytest.approx(whole.item(), rel=1e-4)
    ratios = {n: (lr * g[n].norm() / v.norm()).item() for n, v in before.items()}
    for name, ratio in ratios.items():
        assert row[f"flow/update/model.{name}"] == pytest.approx(ratio, rel=1e-2)
    matrices = [ratios[n] for n, v in before.items() if v.dim() > 1]
    spread = max(matrices) / min(matrices)
    assert row["flow/update_spread"] == pytest.approx(spread, rel=1e-2)
    assert "flow/clip_rate" not in row, "nothing clips"


def test_it_records_every_n_steps_and_the_clip_rate_is_that_of_the_steps_between() -> None:
    torch.manual_seed(0)
    model, data = made("torch"), [batch(seed, scale=1.0) for seed in range(9)]
    norms = []

    class Seen(pl.Callback):
        def on_before_optimizer_step(self, _: Any, module: Any, __: Any) -> None:
            norms.append(float(torch.cat([p.grad.flatten() for p in module.parameters()]).norm()))

    threshold = 0.35
    flow = GradientFlow(every=4)
    kept = fitted(Learner(model), data, Seen(), flow, gradient_clip_val=threshold)
    assert [step for step, _ in kept.rows] == [1, 5, 9]
    windows = [norms[:1], norms[1:5], norms[5:9]]
    expected = [sum(n > threshold for n in w) / len(w) for w in windows]
    assert [row["flow/clip_rate"] for _, row in kept.rows] == pytest.approx(expected)
    assert 0 < expected[1] < 1, "both kinds of steps are among them"


def test_saturation_is_the_share_at_the_ends() -> None:
    shut = Plain(nn.LSTM(I, H), H)
    with torch.no_grad():
        shut.encoder.bias_ih_l0[H : 2 * H] = 50.0  # type: ignore[index, operator]
    ((_, row),) = fitted(Learner(shut), [batch()], GradientFlow()).rows
    assert row["flow/saturated/model.encoder.0"] == 1.0
    torch.manual_seed(0)
    ((_, row),) = fitted(Learner(made("torch")), [batch()], GradientFlow()).rows
    assert row["flow/saturated/model.encoder.0"] < 0.05


def test_a_rule_that_fires_is_warned_of_once_and_a_healthy_model_not_at_all() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fitted(Learner(made("torch")), [batch(s) for s in range(4)], GradientFlow(1))
    told = [str(w.message) for w in caught if "Vanishing" in str(w.message)]
    assert len(told) == 2, "one a layer"
    assert "Training step 0: Vanishing in model.encoder.0: the gradient falls below" in told[0]
    assert "and the task needs 19." in told[0]
    healthy = Plain(initialise(LSTM(I, H), chrono=60.0), H)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fitted(Learner(healthy), [batch(s) for s in range(4)], GradientFlow(1))
    assert [w for w in caught if "Training step" in str(w.message)] == []


def test_ragged_rows_are_measured_on_the_longest() -> None:
    class Packed(Plain):
        def forward(self, x: Tensor) -> Tensor:
            lengths = torch.tensor([5, T, 9, T])
            packed = nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
            _, (h, _) = self.encoder(packed)
            return self.readout(h[-1])

    torch.manual_seed(0)
    model, (x, target) = Packed(nn.LSTM(I, H), H), batch()
    plain = Plain(model.encoder, H)
    plain.readout = model.readout
    seen = ExaminedModel(plain).run(
        (x[:, [1, 3]], target[[1, 3]]), nn.functional.cross_entropy, last_only=True
    )
    (expected,) = lag_gradients(seen)
    ((_, row),) = fitted(Learner(model), [(x, target)], GradientFlow(lag=7)).rows
    told = row["flow/log10_rho/model.encoder.0"]
    assert told == pytest.approx(expected.log10_rho_by_lag[7], rel=1e-4)


class Reader(Plain):
    """A layer that is given lengths, read at each row's own end in one of the ways there are."""

    lengths = torch.tensor([5, 17, 9, 17])

    def __init__(self, layer: nn.Module, width: int, how: str) -> None:
        super().__init__(layer, width)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        y, state = self.encoder(x, lengths=self.lengths)
        own, rows = self.lengths - 1, torch.arange(B)
        read = {
            "output": lambda: y[own, rows],
            "both": lambda: torch.cat((y[own, rows, :H], y[0, :, H:]), -1),
            "mean": lambda: y.sum(0) / self.lengths.unsqueeze(1),
            "state": lambda: state[0][-1],
        }
        return self.readout(read[self.how]())


@pytest.mark.parametrize("bidirectional", [False, True])
def test_rows_that_begin_late_are_measured_on_the_longest(bidirectional: bool) -> None:
    class Late(Plain):
        def forward(self, x: Tensor) -> Tensor:
            y = self.encoder(x, starts=STARTS)[0]
            first = y[STARTS, torch.arange(B), H:] if bidirectional else y[-1, :, :0]
            return self.readout(torch.cat((y[-1, :, :H], first), -1))

    torch.manual_seed(0)
    layer = GRU(I, H, bidirectional=bidirectional)
    model, (x, target) = Late(layer, 2 * H if bidirectional else H), batch()
    seen = ExaminedModel(model).run((x, target), nn.functional.cross_entropy, last_only=True)
    expected = {}
    for path in seen.paths:
        norms = path.gradients(seen.loss)[:, [0, 2]].norm(dim=-1)
        place = f"model.encoder.0{'.backward' if path.direction else ''}"
        expected[place] = float((norms[-8] / norms[-1]).log10().mean())
    ((_, row),) = fitted(Learner(model), [(x, target)], GradientFlow(lag=7)).rows
    found = {n.removeprefix("flow/log10_rho/"): v for n, v in row.items() if "rho" in n}
    assert found == pytest.approx(expected, rel=1e-3)


STARTS = torch.tensor([3, 12, 3, 9])


@pytest.mark.parametrize(
    ("layer", "width", "how"),
    [
        (lambda: LSTM(I, H), H, "output"),
        (lambda: GRU(I, H, bidirectional=True), 2 * H, "both"),
        (lambda: Recurrent(cells.GRU(), I, H), H, "mean"),
        (lambda: LSTM(I, H, 2), H, "state"),
    ],
)
def test_rows_with_lengths_are_measured_on_the_longest(layer: Any, width: int, how: str) -> None:
    """With NaN behind every row's end."""
    torch.manual_seed(0)
    model, (x, target) = Reader(layer(), width, how), batch()
    x = torch.where(torch.arange(T).view(T, 1, 1) < model.lengths.unsqueeze(1), x, math.nan)
    seen = ExaminedModel(model).run((x, target), nn.functional.cross_entropy, last_only=True)
    expected = {}
    for path in seen.paths:
        norms = path.gradients(seen.loss)[:, [1, 3]].norm(dim=-1)
        place = f"model.encoder.{path.layer}{'.backward' if path.direction else ''}"
        expected[place] = float((norms[-8] / norms[-1]).log10().mean())
    ((_, row),) = fitted(Learner(model), [(x, target)], GradientFlow(lag=7)).rows
    found = {n.removeprefix("flow/log10_rho/"): v for n, v in row.items() if "rho" in n}
    assert found == pytest.approx(expected, rel=1e-3)


def test_what_stands_behind_a_rows_end_is_no_fault() -> None:
    torch.manual_seed(0)
    model, (x, target) = Reader(LSTM(I, H), H, "output"), batch()
    x = torch.where(torch.arange(T).view(T, 1, 1) < model.lengths.unsqueeze(1), x, math.nan)

    class Broken(Learner):
        def training_step(self, batch: tuple[Tensor, Tensor], number: int) -> Tensor:
            return super().training_step(batch, number) * math.nan

    with pytest.raises(NotFiniteError, match="the outputs of all recurrent layers are finite"):
        fitted(Broken(model), [(x, target)], GradientFlow())
    x[3, 2] = math.nan
    with pytest.raises(NotFiniteError, match="the input of layer model.encoder .* time step 3 "):
        fitted(Broken(model), [(x, target)], GradientFlow())


class Faulty(Learner):
    """Goes wrong in one way at training step 3."""

    def __init__(self, model: nn.Module, fault: str) -> None:
        super().__init__(model)
        self.fault = fault

    def training_step(self, batch: tuple[Tensor, Tensor], number: int) -> Tensor:
        x, target = batch
        if number < 3:
            return super().training_step(batch, number)
        if self.fault == "input":
            x = x.clone()
            x[11, 2] = math.nan
        y = self.model.encoder(x)[0]
        if self.fault == "gradient":
            y = y + 0 * (y[13:14] - y[13:14]).abs().sqrt()  # 0 * infinity, at step 13 alone
        loss = nn.functional.cross_entropy(self.model.readout(y[-1]), target)
        return loss * (math.nan if self.fault == "loss" else 1.0)

    def optimizer_step(self, epoch: int, number: int, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(epoch, number, *args, **kwargs)
        if self.fault == "weights" and number == 3:
            with torch.no_grad():
                self.model.encoder.weight_hh_l0[2, 1] = math.inf


@pytest.mark.parametrize("exceptional", [False, True])
@pytest.mark.parametrize(
    ("fault", "tensor", "t", "said"),
    [
        ("input", "input", 11, "the input of layer model.encoder has NaN or infinity, first at"),
        ("loss", "loss", None, "the loss is NaN or infinity, and the outputs of all recurrent"),
        ("gradient", "gradient", 13, "the gradient sent back to the outputs of layer model.enc"),
        ("weights", "parameter", None, "the weight model.encoder.weight_hh_l0 has NaN or inf"),
    ],
)
def test_it_stops_at_the_first_fault_and_keeps_the_last_good_checkpoint(
    fault: str, tensor: str, t: int | None, said: str, exceptional: bool, tmp_path: Path
) -> None:
    keeper = ModelCheckpoint(
        tmp_path, every_n_train_steps=1, save_last=True, save_on_exception=exceptional
    )
    data = [batch(s) for s in range(6)]
    with pytest.raises(NotFiniteError) as raised:
        fitted(
            Faulty(made("drop_in"), fault), data, keeper, GradientFlow(100),
            enable_checkpointing=True,
        )  # fmt: skip
    text = str(raised.value)
    assert text.startswith("at training step 3 ") and said in text
    assert (raised.value.tensor, raised.value.step) == (tensor, t)
    if t is not None:
        assert f"at time step {t} (counted from 0)" in text
    assert f"the last good checkpoint is {tmp_path / 'last.ckpt'}" in text
    for file in tmp_path.glob("*.ckpt"):
        state = torch.load(file, weights_only=True)
        assert all(bool(v.isfinite().all()) for v in state["state_dict"].values()), file
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 3


def test_an_exploding_gradient_is_named_at_the_step_where_it_overflows() -> None:
    torch.manual_seed(0)
    layer = nn.RNN(I, H, bias=False)
    with torch.no_grad():
        layer.weight_hh_l0.copy_(1e6 * torch.eye(H))  # at states of zero, 1e6 a step going back
    model, (x, target) = Plain(layer, H), batch()
    end = torch.zeros(B, H, requires_grad=True)
    nn.functional.cross_entropy(model.readout(end), target).backward()
    assert end.grad is not None
    largest = end.grad.abs().max().item()
    lag = next(k for k in range(T) if largest * 1e6**k > torch.finfo(torch.float32).max)
    with pytest.raises(NotFiniteError, match="going back first at time step") as raised:
        fitted(Learner(model), [(0 * x, target)], GradientFlow())
    assert (raised.value.tensor, raised.value.step) == ("gradient", T - 1 - lag)


def test_nothing_is_left_on_the_model_after_training() -> None:
    model = made("torch")
    hooks = len(model.encoder._forward_hooks)
    fitted(Learner(model), [batch()], GradientFlow())
    assert len(model.encoder._forward_hooks) == hooks


def test_training_is_the_same_with_it_and_without() -> None:
    found = []
    for callbacks in ([], [GradientFlow(1)]):
        model = made("drop_in")
        torch.manual_seed(3)
        fitted(Learner(model), [batch(s) for s in range(3)], *callbacks)
        found.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        found.append(torch.rand(1))
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[1], found[3]), "and so is what is drawn after it"


@pytest.mark.parametrize("given", [{"every": 0}, {"every": 1.5}, {"lag": 0}, {"lag": True}])
def test_steps_that_are_none_are_refused(given: Any) -> None:
    with pytest.raises(OptionError, match="must be a positive number of steps, got"):
        GradientFlow(**given)


def test_a_model_without_recurrent_layer_is_refused() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out = nn.Linear(I, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(x[-1])

    with pytest.raises(OptionError, match="no recurrent layer of torch.nn or throughtime"):
        fitted(Learner(Flat()), [batch()], GradientFlow())


def test_what_cannot_be_measured_is_told_once_and_the_rest_is_logged() -> None:
    class Reset(Plain):
        def forward(self, x: Tensor) -> Tensor:
            reset = torch.zeros(x.shape[:2], dtype=torch.bool)
            return self.readout(self.encoder(x, reset=reset)[0][-1])

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        kept = fitted(Learner(Reset(LSTM(I, H), H)), [batch(), batch()], GradientFlow(1))
    told = [str(w.message) for w in caught if "Nothing is logged of a layer" in str(w.message)]
    assert len(told) == 1 and "without resets and dilation" in told[0]
    assert all("flow/gradient_norm" in row for _, row in kept.rows)


def test_without_lightning_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_lightning", None)
    monkeypatch.delitem(sys.modules, "throughtime.diagnosis.training.flow")
    with pytest.raises(MissingExtra, match=r"pytorch_lightning, which the extra lightning brings"):
        import_module("throughtime.diagnosis.training.flow")


def test_clipping_is_warned_of_when_it_is_no_chance() -> None:
    data = [batch(s) for s in range(12)]
    for threshold, expected in ((1e-3, 1), (1e3, 0)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            fitted(Learner(made("drop_in")), data, GradientFlow(5), gradient_clip_val=threshold)
        told = [str(w.message) for w in caught if "Clipping: 100% of the steps" in str(w.message)]
        assert len(told) == expected


def test_gates_that_are_shut_and_do_not_move_are_frozen() -> None:
    model = made("drop_in")
    with torch.no_grad():
        model.encoder.bias_ih_l0[:H] = 50.0  # type: ignore[index, operator]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fitted(Learner(model, lr=1e-7), [batch()], GradientFlow())
    told = [str(w.message) for w in caught if "Frozen gates in model.encoder.0" in str(w.message)]
    assert len(told) == 1 and "100% of the values of a gate" in told[0]
