"""What a batch is, and what a model and a loss are called with."""

from __future__ import annotations

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


PACKED = nn.utils.rnn.pack_padded_sequence(X, torch.tensor([12, 12, 12, 12]))


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
        (nn.GRU(3, 8), [({"x": X}, Y)], None, OptionError, "inputs must be tensors, got dict"),
        (nn.GRU(3, 8), [X.numpy()], None, OptionError, r"a batch must be a tensor .* got ndarray"),
        (nn.GRU(3, 8), (), None, ShapeError, "a batch without input was given; a batch is the mod"),
        (nn.GRU(3, 8), PACKED, None, OptionError, "of equal rows, not packed, without lengths"),
        (nn.GRU(3, 8), (PACKED, Y), None, OptionError, "of equal rows, not packed, without len"),
    ],
)  # fmt: skip
def test_a_batch_of_another_form_is_one_sentence(
    model: Any, batches: Any, loss: Any, error: Any, words: str
) -> None:
    with pytest.raises(error, match=words):
        throughtime.diagnose(model, batches, loss)
