"""What a region's words point to lives until the region has run, and nobody's cache decides it."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import lru_cache

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from throughtime import Recurrent, cells
from throughtime.backends.cpu import active_rows, backward_pass, block, forward_pass


def _mortal(make: Callable[..., active_rows.Rows]) -> Callable[..., active_rows.Rows]:
    """The same rows, which no cache keeps; once they are dead, all are the first one."""
    memory = []  # lives on, so that who reads it then gives wrong numbers and no crash

    def made(*sizes: bytes | int) -> active_rows.Rows:
        found = make(*sizes)
        memory.append((found.alive, found.offset, found.order, found._bounds))
        weakref.finalize(found, found.order.fill, 0)
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
    monkeypatch.setattr(active_rows, "_ragged_rows", _mortal(active_rows._ragged_rows.__wrapped__))
    ours, plain = (
        Recurrent(cells.LSTM(), 3, 8, dtype=torch.float64, backend=backend, checkpoint_every=every)
        for backend, every in (("cpu", 8), ("reference", None))
    )
    plain.load_state_dict(ours.state_dict())
    x = torch.randn(400, 40, 3, dtype=torch.float64, requires_grad=wants_x)
    lengths = torch.randint(0, 401, (40,))
    found = _gradients(ours, x, lengths=lengths)
    assert_close(found, _gradients(plain, x, lengths=lengths), rtol=1e-10, atol=1e-10)


def test_rows_of_a_template(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its words are used by calls long after it was made."""
    mortal = _mortal(active_rows.full_rows.__wrapped__)
    for module in (active_rows, block):
        monkeypatch.setattr(module, "full_rows", mortal)
    for made in (forward_pass, backward_pass):
        monkeypatch.setattr(made, "template_for", lru_cache(made.template_for.__wrapped__))
    ours, plain = (Recurrent(cells.GRU(), 3, 8, backend=name) for name in ("cpu", "reference"))
    plain.load_state_dict(ours.state_dict())
    x = torch.randn(200, 3, 3, requires_grad=True)
    for _ in range(2):
        assert_close(_gradients(ours, x), _gradients(plain, x), rtol=1e-4, atol=1e-4)
