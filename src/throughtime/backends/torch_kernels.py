"""torch's own layer, where a cell's file names its equal there: cuDNN, MPS, oneDNN or ATen."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import torch

from throughtime.backends.call import Call, Result, is_traced, unpack
from throughtime.torch_private import UNKNOWN, dual_level, transform_depth, transforms

name = "torch"

KERNELS: dict[str, Any] = {
    "LSTM": torch.lstm,
    "GRU": torch.gru,
    "RNN_TANH": torch.rnn_tanh,
    "RNN_RELU": torch.rnn_relu,
}
STEPS: dict[str, Any] = {
    "LSTM": torch.lstm_cell,
    "GRU": torch.gru_cell,
    "RNN_TANH": torch.rnn_tanh_cell,
    "RNN_RELU": torch.rnn_relu_cell,
}


def refuses(call: Call) -> str | None:
    """Why torch's layer cannot compute this call, or None."""
    if call.cell.torch_equivalent is None:
        return f"torch has no layer that equals {type(call.cell).__name__}"
    given = {
        "resets": call.reset,
        "a recurrent dropout": call.recurrent_mask,
        "zoneout": call.zoneout,
        "the sequence of every state": call.record or None,
        "norms of gradients at each step": call.norms,
        "clipping at each step": call.clip,
    }
    for what, value in given.items():
        if value is not None:
            return f"torch's layer does not offer {what}"
    if call.x.shape[0] == 0:
        return "torch's layer needs at least one time step"
    if call.x.is_cuda and call.cell.widths(call.hidden_size)[0] > call.hidden_size:
        return "cuDNN projects to a smaller width only"
    return _transform()


def carries_stack(backend: str) -> bool:
    """Whether one call of torch's kernel may carry all layers of a plain call at once."""
    if backend not in ("auto", "torch") or torch.compiler.is_compiling():
        return False
    return _transform() is None


def _transform() -> str | None:
    """Transforms of torch that its recurrent kernels have no rule for."""
    if dual_level() >= 0:
        return "torch's recurrent kernels have no forward-mode derivative"
    if not transform_depth():
        return None
    kinds = transforms()
    if kinds is None:
        return UNKNOWN
    for kind in kinds:
        if kind not in ("Grad", "Functionalize"):
            return f"torch's recurrent kernels have no rule for {kind.lower()}"
    return None


def run(call: Call) -> Result:
    """One call of torch's kernel for the layer, both directions."""
    if call.lengths is not None:
        return _run_ragged(call)
    if "weight_hr" in call.weights[0]:
        quiet_projections()
    state = tuple(v.contiguous() for v in call.start())
    start: Any = state if len(state) > 1 else state[0]
    flat = [v for weights in call.weights for v in weights.values()]
    # A trace is made and checked with and without gradients, and must be the same.
    trains = torch.is_grad_enabled() or is_traced()
    options = ("bias_ih" in call.weights[0], 1, 0.0, trains, call.directions == 2)
    kernel = KERNELS[str(call.cell.torch_equivalent)]
    if call.batch_sizes is None:
        output, *final = kernel(call.x, start, flat, *options, False)
    else:
        output, *final = kernel(call.x, call.batch_sizes, start, flat, *options)
    return Result((output.unflatten(-1, (call.directions, -1)),), tuple(final))


@cache
def quiet_projections() -> None:
    """Take torch's one warning that oneDNN has no projections, where the kernel is our choice.

    It comes once a process, at the first projection in float32, and says nothing that a user
    could do. `proj_size=` is torch's own interface, so there it stays.
    """
    x, wide, narrow = (torch.zeros(1, 1, n, device="cpu", dtype=torch.float32) for n in (1, 2, 1))
    weights = [torch.zeros(s, device="cpu", dtype=torch.float32) for s in ((8, 1), (8, 1), (1, 2))]
    with warnings.catch_warnings(), torch.autocast("cpu", enabled=False), torch.no_grad():
        warnings.simplefilter("ignore")
        KERNELS["LSTM"](x, (narrow, wide), weights, False, 1, 0.0, False, False, False)


def _run_ragged(call: Call) -> Result:
    """Padded rows of different lengths, zero among them, through torch's packed kernel."""
    assert call.lengths is not None
    lengths, order = call.lengths.to(call.x.device).sort(descending=True, stable=True)
    count = int((lengths > 0).sum())
    T, B = call.x.shape[:2]
    start = tuple(v.index_select(1, order) for v in call.start())
    width = start[0].shape[-1]
    if count == 0:
        return Result(
            (call.x.new_zeros(T, B, call.directions, width),),
            tuple(v.clone() for v in call.start()),
        )
    alive = torch.arange(T, device=lengths.device).unsqueeze(1) < lengths[:count]
    packed = call._replace(
        x=call.x.index_select(1, order[:count])[alive],
        batch_sizes=alive.sum(1)[alive.any(1)].cpu(),
        lengths=None,
        state=tuple(v[:, :count] for v in start),
    )
    result = run(packed)
    back = order.argsort()
    output = unpack(result.sequences[0], torch.nn.functional.pad(alive, (0, B - count)))
    final = (torch.cat((f, s[:, count:]), 1) for f, s in zip(result.final, start, strict=True))
    return Result((output.index_select(1, back),), tuple(v.index_select(1, back) for v in final))
