"""Wrong uses of layers, each told what, rule and cure."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from throughtime import GRU, from_torch
from throughtime.errors import BackendError


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # of torch.func
def test_forward_mode_is_refused_for_every_kernel_of_torch() -> None:
    layer = GRU(3, 4, backend="torch")
    x = torch.randn(5, 2, 3)
    text = "cannot run this call: torch's recurrent kernels have no forward-mode derivative"
    with pytest.raises(BackendError, match=text):
        torch.func.jvp(lambda v: layer(v)[0], (x,), (x,))
    with pytest.raises(BackendError, match="torch's recurrent kernels have no rule for vmap"):
        torch.func.vmap(lambda v: layer(v)[0])(x.unsqueeze(0))


@pytest.mark.parametrize("wrong", ["x", None, torch.nn.LSTM])
def test_from_torch_takes_a_module(wrong: Any) -> None:
    text = re.escape(f"model must be a torch.nn.Module, whose layers are converted, got {wrong!r}")
    with pytest.raises(TypeError, match=f"^{text}$"):
        from_torch(wrong)
