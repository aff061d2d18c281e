"""starts: a batch padded on the left is each of its rows alone, whatever stands before them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.nn.utils.rnn import pack_sequence

import throughtime
from tests.layers.own import Decaying
from tests.layers.plain import agree, build, flat, random
from tests.layers.test_options import start
from throughtime import Recurrent, cells
from throughtime.errors import OptionError, ShapeError

BACKENDS = ("reference", "auto")
STARTS, ENDS = [0, 3, 5, 2, 6], [6, 5, 6, 2, 6]  # a whole row, a middle, one step, and two empty


def rows_of(v: Any, b: int) -> Any:
    """Row b of the states of a layer, as a batch of one."""
    return tuple(tuple(s[:, b : b + 1] for s in part) for part in v)


def rows_alone(
    layer: Recurrent, x: Tensor, starts: Any, ends: Any, state: Any = None, **given: Tensor
) -> tuple[Tensor, Any]:
    """Every row run alone, without its padding."""
    T, B = x.shape[:2]
    outputs, finals = [], []
    for b in range(B):
        steps = slice(starts[b], ends[b])
        own = {n: v[steps, b : b + 1] for n, v in given.items() if n != "inputs"}
        if "inputs" in given:
            own["inputs"] = {n: v[steps, b : b + 1] for n, v in given["inputs"].items()}  # type: ignore[attr-defined]
        y, final = layer(x[steps, b : b + 1], state and rows_of(state, b), **own)
        outputs.append(nn.functional.pad(y, (0, 0, 0, 0, starts[b], T - ends[b])))
        finals.append(final)
    together = tuple(tuple(torch.cat(v, 1) for v in zip(*part, strict=True))
                     for part in zip(*finals, strict=True))  # fmt: skip
    return torch.cat(outputs, 1), together


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_a_reset_at_the_start_is_the_row_alone_too(kind: str) -> None:
    layer = getattr(throughtime, kind)(3, 4, num_layers=2, bidirectional=True)
    x, starts = torch.randn(6, 3, 3), [0, 3, 5]
    reset = torch.zeros(6, 3, dtype=torch.bool)
    reset[starts[1], 1] = reset[starts[2], 2] = True
    found, expected = layer(x, reset=reset), layer(x, starts=starts)
    torch.testing.assert_close(found[1], expected[1], rtol=0, atol=0)
    for b, first in enumerate(starts):
        torch.testing.assert_close(found[0][first:, b], expected[0][first:, b], rtol=0, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cell", [cells.LSTM(), cells.GRU(), cells.Elman("relu")], ids=repr)
def test_every_row_is_the_row_alone(cell: Any, backend: str) -> None:
    layer = build(cell, 3, [4, 2], bidirectional=True, learn_initial=True, backend=backend)
    x, state = random(6, 5, 3), start(layer, 5)
    for lengths in (ENDS, None):
        ends = lengths or [6] * 5
        for given in (None, state):
            found = layer(x, given, lengths=lengths, starts=STARTS)
            expected = rows_alone(layer, x, STARTS, ends, given)
            agree(found, expected, [x, *flat(given or ()), *layer.parameters()])


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
@pytest.mark.parametrize("form", ["time first", "batch first", "alone"])
def test_the_drop_ins_are_torchs_layer_on_each_row(kind: str, form: str) -> None:
    options = {"bidirectional": True, "batch_first": form != "time first", "dtype": torch.float64}
    theirs, ours = (getattr(m, kind)(3, 4, **options) for m in (nn, throughtime))
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(6, 3, dtype=torch.float64)
    starts, batch = ([2], x) if form == "alone" else ([2, 0], torch.stack((x, x)))
    batch = batch.transpose(0, 1) if form == "time first" else batch
    y, final = ours(batch, starts=starts)
    expected, last = theirs(x[2:])
    if form != "alone":
        y = y[:, 0] if form == "time first" else y[0]
        final = tuple(v[:, 0] for v in final) if kind == "LSTM" else final[:, 0]
    torch.testing.assert_close(y, nn.functional.pad(expected, (0, 0, 2, 0)), rtol=0, atol=1e-12)
    torch.testing.assert_close(final, last, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_stands_before_a_start_is_never_looked_at(backend: str) -> None:
    layer = build(cells.LSTM(), 3, 4, bidirectional=True, backend=backend)
    x = torch.randn(6, 5, 3, dtype=torch.float64)
    outside = torch.tensor([[not s <= t < n for s, n in zip(STARTS, ENDS, strict=True)]
                            for t in range(6)])  # fmt: skip
    poisoned = x.masked_fill(outside.unsqueeze(-1), torch.nan).requires_grad_()
    y, final = layer(poisoned, lengths=ENDS, starts=STARTS)
    assert torch.equal(y == 0, outside.unsqueeze(-1).expand_as(y))
    agree((y, final), layer(x, lengths=ENDS, starts=STARTS))
    y.square().sum().backward()
    assert poisoned.grad is not None and not poisoned.grad[outside].any()
    assert poisoned.grad[~outside].all()


def test_starts_of_zero_change_no_bit() -> None:
    layer = build(cells.GRU(), 3, 4, bidirectional=True)
    x = torch.randn(6, 4, 3, dtype=torch.float64)
    found, expected = layer(x, starts=[0] * 4, lengths=[6, 2, 0, 4]), layer(x, lengths=[6, 2, 0, 4])
    assert all(torch.equal(a, b) for a, b in zip(flat(found), flat(expected), strict=True))


OPTIONS: dict[str, dict[str, Any]] = {
    "dilation": {"dilation": 2},
    "checkpoints": {"checkpoint_every": 2},
    "zoneout, residual, a merge": {"zoneout": 0.3, "residual": True, "merge": torch.maximum},
    "clipping": {"clip_gradient": 0.1},
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", OPTIONS)
def test_with_options(name: str, backend: str) -> None:
    options = OPTIONS[name]
    layer = build(cells.LSTM(), 3, [4, 4], bidirectional=True, backend=backend, **options).eval()
    x = random(6, 5, 3)
    found = layer(x, lengths=ENDS, starts=STARTS)
    agree(found, rows_alone(layer, x, STARTS, ENDS), [x, *layer.parameters()])


def test_resets_and_direct_inputs_move_along() -> None:
    layer = build(Decaying(), 3, 4)
    x, inputs = random(6, 5, 3), {"dt": random(6, 5, 1), "gain": random(6, 5, 4)}
    reset = torch.rand(6, 5) < 0.4
    found = layer(x, lengths=ENDS, starts=STARTS, inputs=inputs, reset=reset)
    expected = rows_alone(layer, x, STARTS, ENDS, inputs=inputs, reset=reset)  # type: ignore[arg-type]
    agree(found, expected, [x, *inputs.values(), *layer.parameters()])


def test_traces_and_windows() -> None:
    layer = build(cells.LSTM(), 3, 4, batch_first=True, learn_initial=True)
    x = random(6, 5, 3)
    given = {"lengths": ENDS, "starts": STARTS}
    y, final = layer(x.transpose(0, 1), **given)
    trace = layer.trace(x.transpose(0, 1), **given)
    agree(trace[0]["h"].squeeze(2), y)
    for b in range(5):
        alone = layer.trace(x[None, STARTS[b] : ENDS[b], b])[0]["c"]
        agree(trace[0]["c"][b : b + 1, STARTS[b] : ENDS[b]], alone)
    for k in (1, 2, 4, 6):
        found = list(layer.windows(x.transpose(0, 1), k, **given))
        agree(torch.cat([w.outputs for w in found], 1), y)
        agree(found[-1].state, final)


def test_forms_of_starts() -> None:
    layer = build(cells.GRU(), 3, 4)
    x = torch.randn(5, 3, 3, dtype=torch.float64)
    expected = layer(x, starts=[0, 4, 2])
    for starts in (
        torch.tensor([0, 4, 2], dtype=torch.uint8), np.array([0, 4, 2]), iter((0, 4, 2)), (0, 4, 2)
    ):  # fmt: skip
        assert torch.equal(layer(x, starts=starts)[0], expected[0])
    assert layer(x[:0], starts=[0, 0, 0])[0].shape == (0, 3, 4)
    assert layer(x[:, :0], starts=[])[0].shape == (5, 0, 4)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_below_compilers_and_transforms() -> None:
    layer = build(cells.GRU(), 3, 4)
    x, starts = torch.randn(5, 3, 3, dtype=torch.float64), torch.tensor([0, 4, 2])
    expected = layer(x, starts=starts)[0]
    step = torch.compile(layer, fullgraph=True, backend="eager")
    torch.testing.assert_close(step(x, starts=starts)[0], expected)
    torch._dynamo.reset()
    found = vmap(lambda s: layer(x, starts=s)[0])(torch.stack((starts, starts.flip(0))))
    torch.testing.assert_close(found[0], expected)
    torch.testing.assert_close(found[1], layer(x, starts=starts.flip(0))[0])


@pytest.mark.parametrize("layer", [Recurrent(cells.GRU(), 3, 4), throughtime.GRU(3, 4)], ids=type)
def test_starts_that_do_not_fit(layer: Any) -> None:
    x = torch.randn(5, 3, 3)
    text = r"starts must be from 0 to each row's end, which is {} for row {}, got {}$"
    with pytest.raises(ShapeError, match=text.format(5, 1, 6)):
        layer(x, starts=[0, 6, 2])
    with pytest.raises(ShapeError, match=text.format(5, 2, -1)):
        layer(x, starts=[0, 5, -1])
    with pytest.raises(ShapeError, match=text.format(2, 0, 3)):
        layer(x, starts=[3, 0, 0], lengths=[2, 5, 5])
    with pytest.raises(ShapeError, match=r"starts must be \(3,\), one for each row, got \(2,\)"):
        layer(x, starts=[0, 1])
    with pytest.raises(TypeError, match="starts must be integers, got torch.float32"):
        layer(x, starts=torch.zeros(3))
    with pytest.raises(TypeError, match="starts must be 3 integers, got 'left'"):
        layer(x, starts="left")
    with pytest.raises(OptionError, match="so lengths, starts and inputs go with a padded x only"):
        layer(pack_sequence([x[:, 0]]), starts=[2])


def test_norms_do_not_go_with_starts() -> None:
    layer, x = Recurrent(cells.GRU(), 3, 4), torch.randn(5, 3, 3)
    with pytest.raises(OptionError, match="with no starts; .* on the right instead of giving st"):
        layer(x, starts=[0, 1, 2], gradient_norms=[torch.zeros(5, 3, 1, 1)])
