"""The drop-ins as subclasses of torch's own classes, for programs that check or build on those.

`throughtime.LSTM` is a torch.nn.RNNBase; `throughtime.compat.LSTM` is the same layer, and
`isinstance(layer, torch.nn.LSTM)` holds too. Prefer the plain ones: torch.compile (2.9 to 2.15)
refuses every instance of torch.nn.RNN, LSTM and GRU, subclasses included, and so refuses these.
"""

from __future__ import annotations

from torch import nn

from throughtime.layers import drop_in
from throughtime.layers.drop_in import cells


class RNN(drop_in.RNN, nn.RNN):  # type: ignore[misc, override]
    """`throughtime.RNN` that also is a torch.nn.RNN; torch.compile refuses it."""


class LSTM(drop_in.LSTM, nn.LSTM):  # type: ignore[misc, override]
    """`throughtime.LSTM` that also is a torch.nn.LSTM; torch.compile refuses it."""


class GRU(drop_in.GRU, nn.GRU):  # type: ignore[misc, override]
    """`throughtime.GRU` that also is a torch.nn.GRU; torch.compile refuses it."""


class RNNCell(cells.RNNCell, nn.RNNCell):
    """`throughtime.RNNCell` that also is a torch.nn.RNNCell."""


class LSTMCell(cells.LSTMCell, nn.LSTMCell):
    """`throughtime.LSTMCell` that also is a torch.nn.LSTMCell."""


class GRUCell(cells.GRUCell, nn.GRUCell):
    """`throughtime.GRUCell` that also is a torch.nn.GRUCell."""


def become_torchs(model: nn.Module) -> None:
    """Every plain drop-in inside a model becomes one of these, in place and with its weights."""
    torchs = {kind.__bases__[0]: kind for kind in (RNN, LSTM, GRU, RNNCell, LSTMCell, GRUCell)}
    for module in model.modules():
        if type(module) in torchs:
            module.__class__ = torchs[type(module)]
