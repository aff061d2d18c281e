"""A graph, run node by node on real tensors: the slow plain twin of what is compiled from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from throughtime.cells import Cell
from throughtime.compiler import Graph, derivative, trace
from throughtime.compiler.graph import Node

OPS: dict[str, Callable[..., Any]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "neg": torch.neg,
    "reciprocal": torch.reciprocal,
    "square": torch.square,
    "pow": torch.pow,
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt,
    "exp": torch.exp,
    "expm1": torch.expm1,
    "log": torch.log,
    "log1p": torch.log1p,
    "sin": torch.sin,
    "cos": torch.cos,
    "atan": torch.atan,
    "erf": torch.erf,
    "abs": torch.abs,
    "sign": torch.sign,
    "detach": torch.clone,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "leaky_relu": F.leaky_relu,
    "elu": torch.ops.aten.elu,
    "softplus": F.softplus,
    "logsigmoid": F.logsigmoid,
    "silu": F.silu,
    "gelu": F.gelu,
    "hardtanh": F.hardtanh,
    "clamp": torch.clamp,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "where": torch.where,
    "gt": torch.gt,
    "ge": torch.ge,
    "lt": torch.lt,
    "le": torch.le,
    "eq": torch.eq,
    "ne": torch.ne,
    "and": torch.logical_and,
    "or": torch.logical_or,
    "not": torch.logical_not,
    "row_sum": lambda x: x.sum(-1, keepdim=True),
    "row_mean": lambda x: x.mean(-1, keepdim=True),
    "row_scale": lambda x, eps: (x.var(-1, correction=0, keepdim=True) + eps).rsqrt(),
    "normalise": lambda x, eps: F.layer_norm(x, x.shape[-1:], eps=eps),
    "softmax": lambda x: torch.softmax(x, -1),
    "row_max": lambda x, ties: x.amax(-1, keepdim=True),
    "row_norm": lambda x: x.norm(dim=-1, keepdim=True),
    "cumsum": lambda x: x.cumsum(-1),
    "cumsum_back": lambda x: x.flip(-1).cumsum(-1).flip(-1),
    "epsilon": lambda: torch.tensor(torch.finfo(torch.float64).eps, dtype=torch.float64),
    "sum_rows": lambda x: x.sum(0),
}


@dataclass
class Given:
    """Real values for all that a step of this cell reads."""

    cell: Cell
    hidden_size: int = 3
    rows: int = 2
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(1))

    def __post_init__(self) -> None:
        cell, H = self.cell, self.hidden_size
        widths = cell.widths(H)
        self.a = {g: self.random(self.rows, H) for g in cell.gates}
        self.a |= {n: self.random(self.rows, cell.width(w, H)) for n, w in cell.inputs.items()}
        self.s = {
            n: self.random(self.rows, w) for n, w in zip(cell.state_names, widths, strict=True)
        }
        self.p = {n: self.random(H) for n in cell.vectors}
        self.U = {g: self.random(H, widths[0]) for g in cell.gates}
        for n, (to, source) in cell.products.items():
            self.U[n] = self.random(cell.width(to, H), cell.width(source, H))

    def random(self, *shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=self.generator)

    def sizes(self) -> dict[str, int]:
        names = [n for n in dir(self.cell) if type(getattr(self.cell, n)) is int]
        numbers = {n: getattr(self.cell, n) for n in names}
        return {"B": self.rows, "hidden_size": self.hidden_size, **numbers}

    def named(self) -> dict[str, Tensor]:
        """Every value as the graph names it: a.i, s.h, p.u."""
        groups = {"a": self.a, "s": self.s, "p": self.p, "U": self.U}
        return {f"{w}.{n}": v for w, group in groups.items() for n, v in group.items()}


def interpret(graph: Graph, given: Mapping[str, Tensor], sizes: Mapping[str, int]) -> list[Any]:
    """The value of each node."""
    values: list[Any] = []
    for node in graph.nodes:
        value = _value(node, [values[i] for i in node.inputs], given, sizes)
        if isinstance(value, Tensor) and value.dim():
            shape = tuple(_size(w, sizes) for w in node.shape)
            assert value.shape == shape, f"{node} has {tuple(value.shape)}, says {node.shape}"
        values.append(value)
    return values


def _size(width: str, sizes: Mapping[str, int]) -> int:
    return int(width) if width.isdigit() else sizes[width]


def _value(
    node: Node, inputs: list[Any], given: Mapping[str, Tensor], sizes: Mapping[str, int]
) -> Any:
    name = str(node.constants[0]) if node.constants else ""
    if node.op in ("a", "s", "p", "d"):
        return given[f"{node.op}.{name}"]
    if node.op == "U":
        return inputs[0] @ given[f"U.{name}"].T
    if node.op == "transposed":
        return inputs[0] @ given[f"U.{name}"]
    if node.op == "number":
        return torch.tensor(node.constants[0], dtype=torch.float64)
    if node.op == "width":
        return torch.tensor(_size(name, sizes), dtype=torch.float64)
    if node.op in ("full", "spread"):
        shape = [_size(w, sizes) for w in node.shape]
        filled = torch.full(shape, 1.0, dtype=torch.float64)
        return filled * (inputs[0] if node.op == "spread" else node.constants[0])
    return OPS[node.op](*inputs, *node.constants)


class _Names:
    def __init__(self, values: Mapping[str, Any]) -> None:
        self.__dict__.update(values)


class _Matrix:
    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def __matmul__(self, v: Tensor) -> Tensor:
        return v @ self.weight.T


def step(cell: Cell, given: Given) -> tuple[Tensor, ...]:
    """The cell's own step on real tensors."""
    U = _Names({n: _Matrix(w) for n, w in given.U.items()})
    return cell.step(_Names(given.a), U, _Names(given.s), _Names(given.p))


def by_graph(cell: Cell, given: Given, d: list[Tensor]) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The new state, and the gradient by everything given, from the graphs."""
    graph = trace(cell)
    assert not graph.unsupported, graph.unsupported
    back = derivative(graph)
    values = dict(zip((f"d.{n}" for n in cell.state_names), d, strict=True)) | given.named()
    forward = interpret(graph, values, given.sizes())
    backward = interpret(back, values, given.sizes())
    gradients = {n: torch.zeros_like(v) for n, v in given.named().items()}
    for name, index in back.outputs:
        gradients[name.removeprefix("d_")] = backward[index]
    for product in back.products:
        matrix = f"U.{product.matrix}"
        gradients[matrix] = (
            gradients[matrix] + backward[product.result].T @ backward[product.vector]
        )
    return [forward[i] for _, i in graph.outputs], gradients


def by_autograd(
    cell: Cell, given: Given, d: list[Tensor]
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The same from the cell's own step and autograd."""
    named = given.named()
    for value in named.values():
        value.requires_grad_()
    new = step(cell, given)
    loss = [(n, dn) for n, dn in zip(new, d, strict=True) if n.requires_grad]
    gradients = torch.autograd.grad(
        [n for n, _ in loss], list(named.values()), [dn for _, dn in loss], materialize_grads=True
    )
    for value in named.values():
        value.requires_grad_(False)
    return [n.detach() for n in new], dict(zip(named, gradients, strict=True))


def assert_equal_to_autograd(
    cell: Cell, given: Given | None = None, tolerance: float = 1e-12
) -> None:
    """Value and every gradient of the graphs equal those of autograd through `step`."""
    given = given or Given(cell)
    d = [given.random(given.rows, w) for w in cell.widths(given.hidden_size)]
    values, gradients = by_graph(cell, given, d)
    expected, expected_gradients = by_autograd(cell, given, d)
    for value, other in zip(values, expected, strict=True):
        torch.testing.assert_close(value, other, rtol=tolerance, atol=tolerance, equal_nan=True)
    for name, gradient in gradients.items():
        torch.testing.assert_close(
            gradient,
            expected_gradients[name],
            rtol=tolerance,
            atol=tolerance,
            equal_nan=True,
            msg=lambda text, name=name: f"gradient by {name}: {text}",
        )
