"""What a region's words point to lives until the region has run, and nobody's cache decides it."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from throughtime import Recurrent, cells
from throughtime.backends.cpu import rows


def _mortal(make: Callable[..., rows.Rows]) -> Callable[..., rows.Rows]:
    """The same rows, which no cache keeps; once they are dead no step has a row any more."""

    def made(*sizes: bytes | int) -> rows.Rows:
        found = make(*sizes)
        arrays = found.alive, found.offset, found.order
        weakref.finalize(found, lambda alive, *_: alive.fill(0), *arrays)
        return found

    return made


def _gradients(layer: Recurrent, x: Tensor, **given: Tensor) -> list[Tensor]:
    """y, and gradients by all that wants one."""
    y = layer(x, **given)[0]
    leaves = [v for v in (x, *layer.parameters()) if v.requires_grad]
    return [y, *torch.autograd.grad(y.square().sum(), leaves)]


@pytest.mark.parametrize("wants_x", [True, False])
def test_rows_of_segments_that_wait(wants_x: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fifty segments of a ragged batch, each with other rows."""
    monkeypatch.setattr(rows, "_ragged_rows", _mortal(rows._ragged_rows.__wrapped__))
    ours, plain = (
        Recurrent(cells.LSTM(), 3, 8, dtype=torch.float64, backend=backend, checkpoint_every=every)
        for backend, every in (("cpu", 8), ("reference", None))
    )
    plain.load_state_dict(ours.state_dict())
    x = torch.randn(400, 40, 3, dtype=torch.float64, requires_grad=wants_x)
    lengths = torch.randint(0, 401, (40,))
    found = _gradients(ours, x, lengths=lengths)
    assert_close(found, _gradients(plain, x, lengths=lengths), rtol=1e-10, atol=1e-10)
