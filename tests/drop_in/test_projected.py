"""Projections in compiled code equal torch's own, at sizes that fill no vector or several."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import throughtime
from tests.drop_in.pairs import run
from tests.tolerance import TOLERANCE

SIZES = [(9, 37, 5), (3, 37, 36), (5, 64, 1), (1, 130, 33)]


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("I", "H", "P"), SIZES)
def test_values_and_gradients_are_torchs(
    I: int, H: int, P: int, dtype: torch.dtype, packed: bool
) -> None:
    options = {"num_layers": 2, "bidirectional": True, "proj_size": P, "dtype": dtype}
    theirs, ours = nn.LSTM(I, H, **options), throughtime.LSTM(I, H, backend="cpu", **options)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(6, 3, I, dtype=dtype)
    hx = tuple(torch.randn(4, 3, width, dtype=dtype) for width in (P, H))
    given = pack_padded_sequence(x, [6, 4, 1]) if packed else x
    d_results: list[torch.Tensor] = []
    expected = run(theirs, given, hx, d_results)
    found = run(ours, given, hx, d_results)
    torch.testing.assert_close(found, expected, **TOLERANCE[dtype])


def test_a_projection_to_more_units_equals_the_reference() -> None:
    layers = [
        throughtime.LSTM(3, (17, 50), bidirectional=True, dtype=torch.float64, backend=backend)
        for backend in ("cpu", "reference")
    ]
    layers[1].load_state_dict(layers[0].state_dict())
    x = torch.randn(6, 3, 3, dtype=torch.float64)
    d_results: list[torch.Tensor] = []
    expected = run(layers[1], x, None, d_results)
    found = run(layers[0], x, None, d_results)
    torch.testing.assert_close(found, expected, **TOLERANCE[torch.float64])
