"""How torch's activation functions become nodes, their arguments named as in torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from throughtime.compiler.symbols import Symbol, left_out, write


def _plain(op: str) -> Callable[..., Symbol]:
    return lambda input, inplace=False: write(op, input)


def _hardtanh(input: Any, min_val: float = -1, max_val: float = 1, inplace: bool = False) -> Symbol:
    return write("hardtanh", input, constants=(float(min_val), float(max_val)))


def _relu6(input: Any, inplace: bool = False) -> Symbol:
    return write("hardtanh", input, constants=(0.0, 6.0))


def _softplus(input: Any, beta: float = 1, threshold: float = 20) -> Symbol:
    return write("softplus", input, constants=(float(beta), float(threshold)))


def _elu(input: Any, alpha: float = 1, inplace: bool = False) -> Symbol:
    return write("elu", input, constants=(float(alpha), 1.0, 1.0))


def _selu(input: Any, inplace: bool = False) -> Symbol:
    constants = (1.6732632423543772848170429916717, 1.0507009873554804934193349852946, 1.0)
    return write("elu", input, constants=constants)


def _celu(input: Any, alpha: float = 1, inplace: bool = False) -> Symbol:
    return write("elu", input, constants=(float(alpha), 1.0, 1.0 / alpha))


def _leaky_relu(input: Any, negative_slope: float = 0.01, inplace: bool = False) -> Symbol:
    return write("leaky_relu", input, constants=(float(negative_slope),))


def _gelu(input: Any, approximate: str = "none") -> Symbol:
    left_out(None if approximate == "none" else approximate)
    return write("gelu", input)


def _softsign(input: Any) -> Symbol:
    return write("div", input, write("add", write("abs", input), 1))


def _tanhshrink(input: Any) -> Symbol:
    return write("sub", input, write("tanh", input))


def _mish(input: Any, inplace: bool = False) -> Symbol:
    return write("mul", input, write("tanh", _softplus(input)))


ACTIVATIONS: Final[dict[str, Callable[..., Symbol]]] = {
    "sigmoid": _plain("sigmoid"),
    "special_expit": _plain("sigmoid"),
    "tanh": _plain("tanh"),
    "relu": _plain("relu"),
    "silu": _plain("silu"),
    "logsigmoid": _plain("logsigmoid"),
    "log_sigmoid": _plain("logsigmoid"),
    "gelu": _gelu,
    "hardtanh": _hardtanh,
    "relu6": _relu6,
    "softplus": _softplus,
    "elu": _elu,
    "selu": _selu,
    "celu": _celu,
    "leaky_relu": _leaky_relu,
    "mish": _mish,
    "softsign": _softsign,
    "tanhshrink": _tanhshrink,
}
