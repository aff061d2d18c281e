"""Bad input at the public border: one clear error each, and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

import throughtime
from throughtime import Recurrent, cells, initialise
from throughtime.errors import BackendError, CellError, OptionError, ShapeError

ANY = (CellError, OptionError, ShapeError, TypeError, ValueError)
ARGUMENTS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "cell class": ({"cell": cells.LSTM}, CellError,
        r"must be an instance .*; build one: LSTM\(\)$"),
    "no cell": ({"cell": torch.nn.LSTM(3, 4)}, CellError,
        "^cell must be an instance of a Cell, got"),
    "cell by name": ({"cell": "LSTM"}, CellError,
        "^cell must be an instance of a Cell, got 'LSTM'$"),
    "input_size 0": ({"input_size": 0}, OptionError,
        "^input_size must be a positive integer, got 0"),
    "input_size bool": ({"input_size": True}, OptionError, "^input_size must be .*, got True$"),
    "input_size float": ({"input_size": 3.0}, OptionError, r"^input_size must be .*, got 3\.0$"),
    "hidden_size -1": ({"hidden_size": -1}, OptionError, "^hidden_size must be .*, got -1$"),
    "hidden_size text": ({"hidden_size": "4"}, OptionError, "^hidden_size must be .*, got '4'$"),
    "hidden_size None": ({"hidden_size": None}, OptionError, "^hidden_size must be .*, got None$"),
    "a size bool": ({"hidden_size": [4, True]}, OptionError, "^hidden_size must be .*, got True$"),
    "no sizes": ({"hidden_size": []}, OptionError,
        "^hidden_size must have at least one .*got none$"),
    "layers clash": ({"hidden_size": [4, 5], "num_layers": 3}, OptionError,
                     "^hidden_size has one number for each layer, so num_layers must be 2 or left"),
    "layers 0": ({"num_layers": 0}, OptionError, "^num_layers must be a positive integer, got 0$"),
    "layers bool": ({"num_layers": True}, OptionError, "^num_layers must be .*, got True$"),
    "dilation 0": ({"dilation": 0}, OptionError, "^dilation must be a positive integer, got 0$"),
    "dilation bool": ({"dilation": True}, OptionError, "^dilation must be .* got True$"),
    "dilation float": ({"dilation": 2.0}, OptionError, r"^dilation must be .* got 2\.0$"),
    "dilations": ({"dilation": [1, 2]}, OptionError,
        "^dilation must be one .* of 1 layers, got 2$"),
    "no dilation": ({"dilation": []}, OptionError, "^dilation must be one number or .*, got 0$"),
    "backend": ({"backend": "cuda"}, OptionError, "^backend must be one of auto, .* got 'cuda'$"),
    "backend None": ({"backend": None}, OptionError, "^backend must be one of auto, .* got None$"),
    "backend list": ({"backend": ["auto"]}, OptionError,
        r"^backend must be one .* got \['auto'\]$"),
    "bidirectional 2": ({"bidirectional": 2}, OptionError,
        "^bidirectional must be True .*, got 2$"),
    "bias None": ({"bias": None}, OptionError, "^bias must be True or False, got None$"),
    "batch_first 1": ({"batch_first": 1}, OptionError,
        "^batch_first must be True or False, got 1$"),
    "return_state": ({"return_state": "no"}, OptionError, "^return_state must be .*, got 'no'$"),
    "dtype": ({"dtype": torch.int64}, OptionError,
              "^dtype must be a floating point dtype of torch, got torch.int64$"),
}  # fmt: skip


@pytest.mark.parametrize("kind", ARGUMENTS)
def test_bad_arguments(kind: str) -> None:
    given, error, text = ARGUMENTS[kind]
    full = {"cell": cells.LSTM(), "input_size": 3, "hidden_size": 4, **given}
    with pytest.raises(error, match=text):
        Recurrent(full.pop("cell"), full.pop("input_size"), full.pop("hidden_size"), **full)


def x(*shape: int, **options: Any) -> Tensor:
    return torch.zeros(*shape, **options)


LAYER = dict(input_size=3, hidden_size=4, num_layers=2)
CALLS: dict[str, tuple[tuple[Any, ...], dict[str, Any], str]] = {
    "x a list": (([[1.0] * 3],), {}, "^x must be a tensor or a PackedSequence, got list of 1; "
        "convert it with torch.tensor$"),
    "x an array": ((np.zeros((5, 2, 3)),), {}, "^x must be a tensor or a Pack.*, got ndarray; "
        "convert it with torch.from_numpy$"),
    "x with a state": (((x(5, 2, 3), ()),), {}, r"layer's \(outputs, state\) give the outputs$"),
    "x words": ((x(5, 2).long(),), {}, "got torch.int64; .*, or numbers of words with an nn.Embe"),
    "x sparse": ((x(5, 2, 3).to_sparse(),), {}, r"got layout torch.sparse_coo; .*\.to_dense\(\)$"),
    "x nested": ((torch.nested.nested_tensor([x(5, 3), x(2, 3)], layout=torch.jagged),), {},
                 r"got a nested tensor; convert it with .to_padded_tensor\(0\), and give lengths$"),
    "x of 1": ((x(3),), {}, r"^x must be \(T, B, 3\), or \(T, 3\) without a batch, got \(3,\)$"),
    "x of 4": ((x(1, 5, 2, 3),), {}, r"^x must be \(T, B, 3\), .*, got \(1, 5, 2, 3\)$"),
    "x of 0": ((torch.tensor(1.0),), {}, r"^x must be \(T, B, 3\), .*, got \(\)$"),
    "x wide": ((x(5, 2, 4),), {},
        r"^the last dimension of x must be input_size 3, got 4 in \(5, 2"),
    "x float64": ((x(5, 2, 3).double(),), {},
                  r"^x must be torch.float32 as the weights, got torch.float64; convert it "),
    "x integers": ((x(5, 2, 3).long(),), {},
        "^x must be torch.float32 as the .*, got torch.int64;"),
    "x bool": ((x(5, 2, 3).bool(),), {},
        "^x must be torch.float32 as the weights, got torch.bool;"),
    "x complex": ((x(5, 2, 3).cfloat(),), {},
        "^x must be torch.float32 as .* got torch.complex64;"),
    "x elsewhere": ((x(5, 2, 3, device="meta"),), {},
                    r"^x must be on cpu as the weights, got meta; move it with \.to\('cpu'\)$"),
    "packed wide": ((pack_sequence([x(5, 2)]),), {},
        "^the last dimension of x must be input_size 3"),
    "packed 3-D": ((pack_sequence([x(5, 2, 3)]),), {},
        r"data of a PackedSequence must be \(N, 3\)"),
    "packed, lengths": ((pack_sequence([x(5, 3)]),), {"lengths": [5]},
                        "^a PackedSequence holds its own lengths .*pad_packed_sequence$"),
    "packed, reset": ((pack_sequence([x(5, 3)]),), {"reset": torch.zeros(4, 1).bool()},
                      r"^reset must be \(5, 1\) as x, got \(4, 1\)$"),
    "lengths -1": ((x(5, 2, 3),), {"lengths": [-1, 2]}, "^lengths must be from 0 to 5, .* got -1$"),
    "lengths 6": ((x(5, 2, 3),), {"lengths": [5, 6]}, "^lengths must be from 0 to 5, .* got 6$"),
    "lengths float": ((x(5, 2, 3),), {"lengths": [5.0, 1.0]},
                      "^lengths must be integers, got torch.float32$"),
    "lengths bool": ((x(5, 2, 3),), {"lengths": [True, False]},
                     "^lengths must be integers, got torch.bool$"),
    "lengths of 1": ((x(5, 2, 3),), {"lengths": [5]},
                     r"^lengths must be \(2,\), one for each row, got \(1,\)$"),
    "lengths of 2 dims": ((x(5, 2, 3),), {"lengths": [[5, 2]]},
        r"^lengths must be .* got \(1, 2\)$"),
    "lengths a number": ((x(5, 2, 3),), {"lengths": 5}, r"^lengths must be \(2,\), .* got \(\)$"),
    "lengths empty": ((x(5, 2, 3),), {"lengths": []}, r"^lengths must be \(2,\), .* got \(0,\)$"),
    "lengths text": ((x(5, 2, 3),), {"lengths": "52"}, "^lengths must be 2 integers, got '52'$"),
    "lengths ragged": ((x(5, 2, 3),), {"lengths": [[5], 2]},
        r"^lengths must be 2 integers, got \["),
    "lengths huge": ((x(5, 2, 3),), {"lengths": [2**70, 1]}, "^lengths must be 2 integers, got"),
    "reset numbers": ((x(5, 2, 3),), {"reset": x(5, 2)},
                      "^reset must be bool, True before the steps .*, got torch.float32$"),
    "reset integers": ((x(5, 2, 3),), {"reset": x(5, 2).long()}, "^reset must be bool, .*int64$"),
    "reset turned": ((x(5, 2, 3),), {"reset": x(2, 5).bool()},
                     r"^reset must be \(5, 2\) as x, got \(2, 5\)$"),
    "reset of steps": ((x(5, 2, 3),), {"reset": x(5).bool()}, r"^reset must be \(5, 2\) .*\(5,\)$"),
    "reset text": ((x(5, 2, 3),), {"reset": "yes"}, "^reset must be a bool tensor, got 'yes'$"),
    "state a tensor": ((x(5, 2, 3), x(2, 2, 4)), {},
                       r"^state must be a tuple over 2 layers of a .*, got a tensor"),
    "state torch's": ((x(5, 2, 3), (x(2, 2, 4), x(2, 2, 4))), {},
                      r"^state must be .*; layer 0 has a tensor \(2, 2, 4\); torch.nn's "
                      r"\(h_n, c_n\) becomes that with tuple\(zip\(h_n.split\(1\), c_n.split\(1"),
    "state with the batch in front": ((x(5, 2, 3), ((x(2, 1, 4), x(2, 1, 4)),) * 2), {},
        r"got a tensor \(2, 1, 4\); states are never batch-first, so turn it with .transpose\(0"),
    "state of 1 layer": ((x(5, 2, 3), ((x(1, 2, 4), x(1, 2, 4)),)), {},
                         "^state must be a tuple over 2 layers .*, got tuple of 1$"),
    "state of 1": ((x(5, 2, 3), ((x(1, 2, 4),), (x(1, 2, 4),))), {}, "layer 0 has tuple of 1$"),
    "state of numbers": ((x(5, 2, 3), ((0, 0), (0, 0))), {},
                         r"^state h of layer 0 must be \(1, 2, 4\), got 0$"),
    "state of arrays": ((x(5, 2, 3), ((np.zeros((1, 2, 4)),) * 2,) * 2), {},
                        r"^state h of layer 0 must be \(1, 2, 4\), got ndarray$"),
    "state of 1 row": ((x(5, 2, 3), ((x(1, 2, 4), x(1, 1, 4)),) * 2), {},
                       r"^state c of layer 0 must be \(1, 2, 4\), got a tensor \(1, 1, 4\)$"),
    "state float64": ((x(5, 2, 3), ((x(1, 2, 4), x(1, 2, 4).double()),) * 2), {},
                      "^state c of layer 0 must be torch.float32 as .*, got torch.float64;"),
    "state elsewhere": ((x(5, 2, 3), ((x(1, 2, 4, device="meta"),) * 2,) * 2), {},
                        "^state h of layer 0 must be on cpu as the weights, got meta;"),
    "state batched": ((x(5, 3), ((x(1, 1, 4), x(1, 1, 4)),) * 2), {},
                      r"^state h of layer 0 must be \(1, 4\), got a tensor \(1, 1, 4\)$"),
}  # fmt: skip


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("kind", CALLS)
def test_bad_calls(kind: str, backend: str) -> None:
    args, given, text = CALLS[kind]
    layer = Recurrent(cells.LSTM(), **LAYER, backend=backend)
    for call in (layer, layer.trace):
        with pytest.raises(ANY, match=text):
            call(*args, **given)


@pytest.mark.parametrize("kind", ["GRU", "LSTM"])
def test_the_state_of_torchs_layer_and_back(kind: str) -> None:
    """The cures of the error texts, followed."""
    theirs = getattr(nn, kind)(3, 4, 2, bidirectional=True)
    cell = getattr(cells, kind)()
    ours = Recurrent(cell, 3, 4, num_layers=2, bidirectional=True)
    ours.load_state_dict(theirs.state_dict())
    inputs = torch.randn(5, 2, 3)
    h_n = theirs(inputs)[1]
    with pytest.raises(ShapeError, match="; torch.nn's .* becomes that with tuple") as caught:
        ours(inputs, h_n)
    cure = str(caught.value).partition("becomes that with ")[2]
    names = {"h_n": h_n[0], "c_n": h_n[1]} if kind == "LSTM" else {"h_n": h_n}
    y, state = ours(inputs, eval(cure, names))
    torch.testing.assert_close(y, theirs(inputs, h_n)[0])
    with pytest.raises(TypeError, match="of the state of a Recurrent give") as caught_back:
        throughtime.from_torch(theirs)(inputs, state)
    cure = str(caught_back.value).partition("of a Recurrent give ")[2]
    back = eval(cure, {"torch": torch, "state": state})
    torch.testing.assert_close(back, theirs(inputs, h_n)[1])


def test_bad_batch_first_calls_speak_of_its_layout() -> None:
    layer = Recurrent(cells.LSTM(), **LAYER, batch_first=True)
    with pytest.raises(ShapeError, match=r"^x must be \(B, T, 3\), or \(T, 3\) without a batch"):
        layer(x(3))
    with pytest.raises(ShapeError, match=r"^reset must be \(2, 5\) as x, got \(5, 2\)$"):
        layer(x(2, 5, 3), reset=x(5, 2).bool())
    with pytest.raises(ShapeError, match="^lengths must be from 0 to 5, the steps of x, got 6$"):
        layer(x(2, 5, 3), lengths=[6, 1])


REFUSING: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "no equal": ({"cell": cells.LSTMPeephole()}, {}, "torch has no layer that equals LSTMPeephole"),
    "reset": ({}, {"reset": torch.zeros(5, 2).bool()}, "torch's layer does not offer resets"),
    "recurrent dropout": ({"recurrent_dropout": 0.5}, {}, "does not offer a recurrent dropout"),
    "zoneout": ({"zoneout": 0.5}, {}, "torch's layer does not offer zoneout"),
    "no steps": ({}, {"x": x(0, 2, 3)}, "torch's layer needs at least one time step"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSING)
def test_a_named_backend_runs_or_raises(kind: str) -> None:
    options, given, text = REFUSING[kind]
    cell = options.pop("cell", cells.LSTM())
    layer = Recurrent(cell, 3, 4, backend="torch", **options)
    with pytest.raises(
        BackendError, match=f"^backend 'torch' cannot run .*{text}; use backend='au"
    ):
        layer(given.get("x", x(5, 2, 3)), reset=given.get("reset"))


def test_no_trace_by_a_backend_that_keeps_the_output_alone() -> None:
    layer = Recurrent(cells.LSTM(), 3, 4, backend="torch")
    with pytest.raises(BackendError, match="does not offer the sequence of every state; use back"):
        layer.trace(x(5, 2, 3))


def test_empty_batches_take_empty_lengths() -> None:
    layer = Recurrent(cells.LSTM(), 3, 4)
    for lengths in ([], torch.zeros(0, dtype=torch.int64), np.zeros(0, int)):
        y, ((h, c),) = layer(x(5, 0, 3), lengths=lengths)
        assert (y.shape, h.shape, c.shape) == ((5, 0, 4), (1, 0, 4), (1, 0, 4))


def test_the_default_device_is_not_where_a_layer_looks() -> None:
    """Lists of numbers and what a layer tries out belong to the layer, wherever else tensors go."""
    plain = {"backend": "reference", "bidirectional": True}
    layer = Recurrent(cells.GRU(), 3, 4, **plain)
    inputs, reset = torch.randn(5, 2, 3), [[False, True]] * 5
    given: dict[str, Any] = {"lengths": [5, 4], "starts": [0, 2], "reset": reset}
    expected = layer(inputs, **given)[0]
    with torch.device("meta"):
        found = layer(inputs, **given)[0]
        other = layer(inputs, **given | {"reset": torch.tensor(reset, device="cpu")})[0]
        initialise(layer, timescales=(2, 30))
        merged = Recurrent(cells.GRU(), 3, 4, **plain, merge=torch.add, device="cpu")
    assert torch.equal(found, expected) and torch.equal(other, expected)
    assert layer.gate("z").bias.isfinite().all() and merged.output_size == 4
