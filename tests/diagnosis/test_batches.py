"""What a batch is, and what a model and a loss are called with."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import throughtime
from throughtime.errors import OptionError, ShapeError

draw = torch.Generator().manual_seed(0)
X = torch.rand(12, 4, 3, generator=draw)
OTHER = torch.rand(12, 4, 2, generator=draw)
Y = torch.rand(12, 4, 8, generator=draw)


class Two(nn.Module):
    """Reads two sequences side by side, or one after a scale of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(5, 8)

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        y: Tensor = self.rnn(torch.cat((x, other), -1))[0]
        return y


class Both(nn.Module):
    """The same as one argument."""

    def __init__(self, two: Two) -> None:
        super().__init__()
        self.rnn = two.rnn

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.rnn(x)[0]
        return y


@pytest.mark.parametrize("many", [tuple, list])
def test_a_model_with_two_inputs_has_the_numbers_of_one_that_reads_them_as_one(many: Any) -> None:
    torch.manual_seed(0)
    model, loss = Two(), nn.functional.mse_loss
    expected = throughtime.diagnose(Both(model), (torch.cat((X, OTHER), -1), Y), loss)
    report = throughtime.diagnose(model, (many((X, OTHER)), Y), loss)
    assert report.loss == expected.loss and report.steps == 12
    assert report.lag_gradients == expected.lag_gradients
    assert report.weight_lags == expected.weight_lags
    loaded = throughtime.diagnose(model, [[many((X, OTHER)), Y]], loss)
    assert loaded.lag_gradients == expected.lag_gradients, "as torch's loaders give it"


def test_two_inputs_without_a_target() -> None:
    torch.manual_seed(0)
    model = Two()
    expected = throughtime.diagnose(Both(model), torch.cat((X, OTHER), -1))
    report = throughtime.diagnose(model, ((X, OTHER),))
    assert report.lag_gradients == expected.lag_gradients


def test_a_layer_is_given_the_state_it_starts_from() -> None:
    torch.manual_seed(0)
    layer, state = nn.LSTM(3, 8), (torch.rand(1, 4, 8), torch.rand(1, 4, 8))
    report = throughtime.diagnose(layer, ((X, state), Y), nn.functional.mse_loss)
    value = nn.functional.mse_loss(layer(X, state)[0], Y).item()
    assert report.loss == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize("batch_first", [False, True])
def test_the_layout_of_the_user_changes_no_number(batch_first: bool) -> None:
    torch.manual_seed(0)
    layer = nn.GRU(3, 8, batch_first=batch_first)
    torch.manual_seed(0)
    plain = nn.GRU(3, 8)
    turned = X.transpose(0, 1) if batch_first else X
    found, expected = throughtime.diagnose(layer, turned), throughtime.diagnose(plain, X)
    assert (found.steps, found.rows) == (12, 4)
    assert found.lag_gradients == expected.lag_gradients


def loss_of_two(y: Tensor, target: Tensor) -> Tensor:
    return (y - target).square().mean()


class Own(nn.Module):
    """Gives its loss, in one of the ways that models do."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.rnn = how, nn.GRU(3, 8)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Any:
        out = self.rnn(x)[0]
        loss = None if y is None else loss_of_two(out, y)
        gives: dict[str, Any] = {
            "number": loss, "first": (loss, out), "second": (out, loss),
            "dict": {"logits": out, "loss": loss}, "object": SimpleNamespace(logits=out, loss=loss),
            "both": {"first": loss, "second": loss}, "nothing": {"out": None},
        }  # fmt: skip
        return gives[self.how]


@pytest.mark.parametrize("how", ["number", "first", "second", "dict", "object"])
@pytest.mark.parametrize("form", ["dict", "list of dicts", "tuple"])
def test_a_model_that_gives_its_loss_has_the_numbers_of_one_that_is_given_it(
    how: str, form: str
) -> None:
    torch.manual_seed(0)
    model = Own(how)
    batch = {"dict": {"x": X, "y": Y}, "list of dicts": [{"x": X, "y": Y}] * 2,
             "tuple": ((X, Y),)}[form]  # fmt: skip
    report = throughtime.diagnose(model, batch)
    expected = throughtime.diagnose(Both(model), (X, Y), loss_of_two)
    assert report.loss == expected.loss
    assert report.lag_gradients == expected.lag_gradients
    assert report.weight_lags == expected.weight_lags
    assert (report.clipping is None) == (form != "list of dicts")


@pytest.mark.parametrize("how", ["dict", "object"])
def test_a_loss_is_given_the_dict_or_object_that_a_model_gives(how: str) -> None:
    torch.manual_seed(0)
    model = Own(how)

    def loss(output: Any, target: Tensor) -> Tensor:
        logits = output["logits"] if how == "dict" else output.logits
        return loss_of_two(logits, target)

    expected = throughtime.diagnose(Both(model), (X, Y), loss_of_two)
    assert throughtime.diagnose(model, (X, Y), loss).lag_gradients == expected.lag_gradients
    free = throughtime.diagnose(model, X)
    assert free.lag_gradients == throughtime.diagnose(Both(model), X).lag_gradients


class Whole(Both):
    """Takes the whole batch."""

    def forward(self, batch: Any) -> Tensor:
        return super().forward(batch["x"])


@pytest.mark.parametrize(
    ("kind", "batch", "loss"),
    [
        (Both, {"x": X, "y": Y}, loss_of_two),
        (Both, {"y": Y, "x": X}, lambda output, y: loss_of_two(output, y)),
        (Both, {"x": X, "target": Y, "number": 3}, lambda output, *, target, number: loss_of_two(
            output, target)),
        (Both, ({"x": X}, Y), loss_of_two),
        (Whole, {"x": X, "y": Y}, lambda output, batch: loss_of_two(output, batch["y"])),
        (Whole, ({"x": X}, Y), loss_of_two),
        (Both, {"x": X, "name": "of no use"}, None),
    ],
)  # fmt: skip
def test_a_dict_is_given_by_name_and_what_is_left_is_the_losss(
    kind: Any, batch: Any, loss: Any
) -> None:
    torch.manual_seed(0)
    both = Both(Two())
    both.rnn = nn.GRU(3, 8)
    model = kind(both)
    plain = (X, Y) if loss is not None else X
    expected = throughtime.diagnose(both, plain, loss and loss_of_two)
    report = throughtime.diagnose(model, batch, loss)
    assert report.loss == expected.loss and report.lag_gradients == expected.lag_gradients


def test_lengths_may_be_numbers() -> None:
    torch.manual_seed(0)

    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = throughtime.GRU(3, 8)

        def forward(self, x: Tensor, lengths: Any) -> Tensor:
            y: Tensor = self.rnn(x, lengths=lengths)[1]
            return y

    model, lengths = Reader(), [12, 5, 7, 3]
    found, expected = (
        throughtime.diagnose(model, ((X, n),)) for n in (lengths, torch.tensor(lengths))
    )
    assert found == expected and found.lengths == tuple(lengths)


@pytest.mark.parametrize(
    ("model", "batches", "loss", "error", "words"),
    [
        (nn.GRU(3, 8), [X, Y], loss_of_two, OptionError,
         r"loss cannot be called with the output alone.* it takes \(y.*target.*a list is several"),
        (nn.GRU(3, 8), (X, Y), lambda y: y.mean(), OptionError,
         r"loss cannot be called with output and target, it takes \(y\)"),
        (nn.GRU(3, 8), X, nn.MSELoss(), OptionError, "loss cannot be called with the output alone"),
        (Two(), (X, OTHER), None, OptionError,
         r"model cannot be called with 1 input, it takes \(x.*other.*is given as several arg"),
        (Both(Two()), ((X, OTHER), Y), None, OptionError, "model cannot be called with 2 inputs"),
        (Both(Two()), ((X, Y), (X, Y)), None, OptionError, "a list is several batches"),
        (nn.GRU(3, 8), [({"x": X}, Y)], None, OptionError,
         r"model cannot be called with a dict of x, it takes \(input.*a dict by their names"),
        (nn.GRU(3, 8), [({"input": 3}, Y)], None, OptionError, "inputs must be tensors, got int"),
        (nn.GRU(3, 8), [{}], None, ShapeError, "a batch without input was given; a batch is the m"),
        (nn.GRU(3, 8), [(X.numpy(), Y)], None, OptionError, "must be tensors, got ndarray"),
        (nn.GRU(3, 8), [X.numpy()], None, OptionError, r"a batch must be a tensor .* got ndarray"),
        (nn.GRU(3, 8), (), None, ShapeError, "a batch without input was given; a batch is the mod"),
        (Own("both"), {"x": X, "y": Y}, None, OptionError,
         r"the model gives several numbers \(first, second\); say which is the loss, as in loss=l"),
        (Own("nothing"), {"x": X, "y": Y}, None, OptionError, "must give a tensor, or a tuple"),
    ],
)  # fmt: skip
def test_a_batch_of_another_form_is_one_sentence(
    model: Any, batches: Any, loss: Any, error: Any, words: str
) -> None:
    with pytest.raises(error, match=words):
        throughtime.diagnose(model, batches, loss)
