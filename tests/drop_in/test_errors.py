"""Bad arguments and bad calls raise what torch.nn raises: the same type, the same text."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import throughtime
from tests.drop_in.pairs import KINDS
from throughtime.errors import OptionError

MINOR = tuple(map(int, torch.__version__.split(".")[:2]))

ARGUMENTS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "input_size 0": ((0, 5), {}),
    "input_size negative": ((-1, 5), {}),
    "input_size float": ((3.0, 5), {}),
    "hidden_size 0": ((3, 0), {}),
    "hidden_size negative": ((3, -2), {}),
    "hidden_size float": ((3, 5.0), {}),
    "hidden_size text": ((3, "5"), {}),
    "hidden_size a list": ((3, [5, 4]), {}),
    "num_layers 0": ((3, 5, 0), {}),
    "num_layers negative": ((3, 5), {"num_layers": -1}),
    "num_layers float": ((3, 5), {"num_layers": 1.5}),
    "bias a number": ((3, 5), {"bias": 1}),
    "batch_first a number": ((3, 5), {"batch_first": 0}),
    "dropout above 1": ((3, 5, 2), {"dropout": 1.5}),
    "dropout negative": ((3, 5, 2), {"dropout": -0.1}),
    "dropout a bool": ((3, 5, 2), {"dropout": True}),
    "dropout text": ((3, 5, 2), {"dropout": "much"}),
    "dropout None": ((3, 5, 2), {"dropout": None}),
    "proj_size negative": ((3, 5), {"proj_size": -1}),
    "proj_size too large": ((3, 5), {"proj_size": 5}),
    "several wrong": ((0, 5.0, 0), {"bias": None, "dropout": 2}),
    "sizes wrong": ((-3, 5.0, 0), {}),
    "dtype an integer": ((3, 5), {"dtype": torch.int64}),
    "device unknown": ((3, 5), {"device": "nowhere"}),
}


def zeros(*shape: int, **options: Any) -> torch.Tensor:
    return torch.zeros(*shape, **options)


def state(kind: str, *shape: int, c: tuple[int, ...] | None = None) -> Any:
    return (zeros(*shape), zeros(*(c or shape))) if "LSTM" in kind else zeros(*shape)


CALLS: dict[str, Callable[[str], tuple[Any, ...]]] = {
    "x of 1 dimension": lambda k: (zeros(3),),
    "x of 4 dimensions": lambda k: (zeros(4, 2, 3, 1),),
    "x too wide": lambda k: (zeros(4, 2, 4),),
    "x too narrow, alone": lambda k: (zeros(4, 2),),
    "x of another dtype": lambda k: (zeros(4, 2, 3, dtype=torch.float64),),
    "x of integers": lambda k: (zeros(4, 2, 3, dtype=torch.int64),),
    "x no tensor": lambda k: ([[[0.0] * 3]],),
    "x wrong in dtype and width": lambda k: (zeros(4, 2, 4, dtype=torch.float64),),
    "state for another batch": lambda k: (zeros(4, 2, 3), state(k, 2, 3, 5)),
    "state for another depth": lambda k: (zeros(4, 2, 3), state(k, 1, 2, 5)),
    "state too wide": lambda k: (zeros(4, 2, 3), state(k, 2, 2, 6)),
    "c too wide": lambda k: (zeros(4, 2, 3), state(k, 2, 2, 5, c=(2, 2, 6))),
    "state without batch": lambda k: (zeros(4, 2, 3), state(k, 2, 5)),
    "c without batch": lambda k: (zeros(4, 2, 3), state(k, 2, 2, 5, c=(2, 5))),
    "state with batch, x alone": lambda k: (zeros(4, 3), state(k, 2, 1, 5)),
    "state wrong, x alone": lambda k: (zeros(4, 3), state(k, 2, 6)),
    "state of the other kind": lambda k: (zeros(4, 2, 3), state("GRULSTM".replace(k, ""), 2, 2, 5)),
    "packed x too wide": lambda k: (pack_sequence([zeros(2, 4), zeros(1, 4)]),),
    "packed x of another dtype": lambda k: (pack_sequence([zeros(2, 3, dtype=torch.float64)]),),
    "packed, state for another batch": lambda k: (pack_sequence([zeros(2, 3)]), state(k, 2, 2, 5)),
}
# For a packed x torch.nn.LSTM leaves these to its kernel, whose texts name matrices; ours are those
# of torch.nn.GRU.
KERNELS_OWN = {"packed x too wide", "packed x of another dtype", "packed, state for another batch"}


def outcome(call: Callable[[], Any]) -> tuple[type, str] | None:
    """What a call raises, if it does."""
    try:
        call()
    except Exception as error:
        return type(error), str(error)
    return None


@pytest.mark.parametrize("wrong", ARGUMENTS)
@pytest.mark.parametrize("kind", KINDS)
def test_bad_arguments_raise_torchs_errors(kind: str, wrong: str) -> None:
    args, options = ARGUMENTS[wrong]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = outcome(lambda: getattr(nn, kind)(*args, **options))
        found = outcome(lambda: getattr(throughtime, kind)(*args, **options))
    if found is not None and found != expected and MINOR < (2, 13):
        pytest.skip("torch 2.9 refuses this in other words or not at all; ours are those of 2.13")
    assert expected is not None
    assert found == expected


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("wrong", CALLS)
@pytest.mark.parametrize("kind", KINDS)
def test_bad_calls_raise_torchs_errors(kind: str, wrong: str, backend: str) -> None:
    judge = "GRU" if wrong in KERNELS_OWN and kind == "LSTM" else kind
    theirs = getattr(nn, judge)(3, 5, 2)
    ours = getattr(throughtime, kind)(3, 5, 2, backend=backend)
    expected = outcome(lambda: theirs(*CALLS[wrong](judge)))
    found = outcome(lambda: ours(*CALLS[wrong](kind)))
    if wrong == "c too wide" or wrong == "c without batch":
        assert (expected is None) == (kind != "LSTM")
    elif expected is None:
        pytest.fail(f"torch.nn takes {wrong}")
    if judge != kind and "state" in wrong:
        assert expected is not None
        expected = expected[0], expected[1].replace("hidden", "hidden[0]")
    if expected is not None and expected[0] is AttributeError:
        expected = TypeError, NO_WORDS_OF_TORCHS[wrong].format(kind=kind)
    assert found == expected


# Where torch.nn runs into what Python says of a list, ours say what is wrong.
NO_WORDS_OF_TORCHS = {
    "x no tensor": "input must be a tensor or a PackedSequence, got list of 1; convert it with "
    "torch.tensor",
    "state of the other kind": "hx of {kind} must be one tensor h_0, got tuple of 2; an LSTM "
    "takes two",
}
X = zeros(4, 2, 3)
NO_TENSORS: dict[str, tuple[str, tuple[Any, ...], str]] = {
    "an array": ("GRU", (X.numpy(),), "input must be .* got ndarray; convert it with torch.fro"),
    "nothing": ("RNN", (None,), "input must be a tensor or a PackedSequence, got NoneType; give a"),
    "a layer's result": ("GRU", ((X, X),), r"got tuple of 2; of a layer's \(outputs, state\) give"),
    "one state of two": (
        "LSTM", (X, (zeros(1, 2, 5),)), r"LSTM must be two tensors \(h_0, c_0\), got tuple of 1",
    ),
    "h of two": ("LSTM", (X, zeros(1, 2, 5)), r"must be two tensors .*, got a tensor \(1, 2, 5\)"),
    "arrays as states": (
        "LSTM", (X, (zeros(1, 2, 5).numpy(),) * 2), "hx of LSTM must .*, got tuple of 2 of ndarray",
    ),
    "a Recurrent's state": (
        "LSTM", (X, ((zeros(1, 2, 5),) * 2,)),
        r"of a Recurrent give tuple\(torch.cat\(v\) for v in zip\(\*state\)\)",
    ),
    "a Recurrent's h": (
        "GRU", (X, ((zeros(1, 2, 5),),)), r"of a Recurrent give torch.cat\(\[h for h, in state\]\)",
    ),
    "packed, states of another kind": (
        "GRU", (pack_sequence([zeros(4, 3)]), (zeros(1, 1, 5),) * 2),
        "hx of GRU must be one tensor h_0, got tuple of 2; an LSTM takes two",
    ),
    "a cell, an array": ("GRUCell", (X[0].numpy(),), "input must be a tensor, got ndarray; conv"),
    "a cell, two states": ("RNNCell", (X[0], (X, X)), "hx of RNNCell must be one tensor h_0, got"),
    "a cell, words": ("LSTMCell", (X[0], "ab"), "hx of LSTMCell must be two tensors .*, got 'ab'"),
}  # fmt: skip


@pytest.mark.parametrize("module", [throughtime, throughtime.compat])
@pytest.mark.parametrize("wrong", NO_TENSORS)
def test_what_is_no_tensor_is_told_in_a_sentence(wrong: str, module: Any) -> None:
    kind, args, text = NO_TENSORS[wrong]
    with pytest.raises(TypeError, match=text):
        getattr(module, kind)(3, 5)(*args)


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_with_the_batch_in_front_is_recognised(kind: str) -> None:
    layer, hx = getattr(throughtime, kind)(3, 5, batch_first=True), state(kind, 2, 1, 5)
    with pytest.raises(
        RuntimeError, match=r"size \(1, 2, 5\), got \[2, 1, 5\]; states are never b"
    ):
        layer(zeros(2, 4, 3), hx)


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_on_one_layer_warns_as_torch(kind: str) -> None:
    said = []
    for module in (nn, throughtime):
        with pytest.warns(UserWarning) as caught:
            getattr(module, kind)(3, 5, dropout=0.25)
        said.append([str(w.message) for w in caught])
    assert said[0] == said[1]
    assert "dropout=0.25 and num_layers=1" in said[1][0]
    assert caught[0].filename == __file__


@pytest.mark.parametrize("name", ["sigmoid", "", None])
def test_unknown_nonlinearity(name: Any) -> None:
    expected = outcome(lambda: nn.RNN(3, 5, nonlinearity=name))
    assert expected == outcome(lambda: throughtime.RNN(3, 5, nonlinearity=name))
    assert expected == (ValueError, f"Unknown nonlinearity '{name}'. Select from 'tanh' or 'relu'.")


@pytest.mark.parametrize(
    ("hidden_size", "more", "text"),
    [
        ((5,), {}, r"hidden_size must be a number or a pair \(long, short\), got \(5,\)"),
        ((5, 0), {}, r"hidden_size as a pair .* must hold positive integers, got \(5, 0\)"),
        ((True, 5), {}, r"must hold positive integers, got \(True, 5\)"),
        ((5, 2.0), {}, r"must hold positive integers, got \(5, 2.0\)"),
        ((5, 3), {"proj_size": 3}, "so proj_size must be left out, got 3"),
    ],
)
def test_bad_pairs(hidden_size: Any, more: dict[str, Any], text: str) -> None:
    with pytest.raises(OptionError, match=text):
        throughtime.LSTM(3, hidden_size, **more)


def test_a_broken_proj_size_is_named() -> None:
    with pytest.raises(TypeError):  # torch.nn's text is that of torch.empty
        nn.LSTM(3, 5, proj_size=2.5)
    with pytest.raises(TypeError, match="proj_size must be a positive integer, got 2.5"):
        throughtime.LSTM(3, 5, proj_size=2.5)  # type: ignore[arg-type]


def test_an_unknown_backend_is_named() -> None:
    with pytest.raises(OptionError, match="backend must be one of auto, .*, got 'fast'"):
        throughtime.GRU(3, 5, backend="fast")
    with pytest.raises(OptionError, match="backend must be one of auto, .*, got 'fast'"):
        throughtime.GRUCell(3, 5, backend="fast")
