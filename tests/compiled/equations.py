"""Random equations: straight-line pointwise programs over gates, states and vectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from hypothesis import strategies as st

from throughtime import Cell

Instruction = tuple[str, int, int]

# Two values that are compared differ by a constant, since rounding may break a tie either way.
TWO: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "add": lambda u, v: u + v,
    "sub": lambda u, v: u - v,
    "mul": lambda u, v: u * v,
    "mix": lambda u, v: torch.lerp(u, v, 0.3),
    "where": lambda u, v: torch.where(u > v + 0.137, u * 0.5, v),
    "maximum": lambda u, v: torch.maximum(u, 0.9 * v + 0.05),
    "minimum": lambda u, v: torch.minimum(u, 0.9 * v - 0.05),
    "gated": lambda u, v: torch.sigmoid(u) * v,
    "ratio": lambda u, v: u / (1 + v * v),
}
ONE: Final[dict[str, Callable[[Any], Any]]] = {
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "exp": lambda v: torch.exp(torch.clamp(v, -1.1, 0.9)),
    "softplus": torch.nn.functional.softplus,
    "relu": lambda v: torch.relu(v + 0.031),
    "square": torch.square,
    "neg": lambda v: -v,
    "abs": lambda v: torch.abs(v - 0.029),
    "root": lambda v: torch.sqrt(v * v + 0.5),
    "constant": lambda v: 1.5 - 0.25 * v,
    "log1p": lambda v: torch.log1p(v * v),
}
GROWING: Final = {"mul": 0, "square": 1}
DEGREE: Final = 4
"""Highest product of values that is left as it is: squares of squares of squares leave floats."""


class Program(Cell):
    """A cell that runs a list of instructions, each naming an operation and two earlier values.

    What no instruction has read makes the new states, so everything reaches one.

    Args:
        program: the instructions.
        apart: for each gate whether W and U are two values, or one sum.
        states: how many.
        vectors: how many.
        later: how many more gates multiply what the instructions gave, one after the other.
    """

    gates = ()
    state = ()

    def __init__(
        self, program: tuple[Instruction, ...], apart: tuple[bool, ...], states: int, vectors: int,
        later: int,
    ) -> None:  # fmt: skip
        self.program, self.apart, self.later = program, apart, later
        self.gates = tuple(f"g{i}" for i in range(len(apart) + later))
        self.state = ("h", "c", "m")[:states]
        self.vectors = dict.fromkeys(("p", "q")[:vectors], 0.4)

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any, ...]:
        values: list[tuple[Any, int]] = []
        for gate, apart in zip(self.gates, self.apart, strict=False):
            of_x, of_h = getattr(a, gate), getattr(U, gate) @ s.h
            values += [(of_x, 1), (of_h, 1)] if apart else [(of_x + of_h, 1)]
        values += [(getattr(s, name), 1) for name in self.state]
        first = values[0][0]  # one number a unit is no value by itself: it joins a row's
        values += [(getattr(p, name) * first, 1) for name in self.vectors]
        loose = set(range(len(values)))
        for number, (op, i, j) in enumerate(self.program):
            read = {i % len(values)} | ({j % len(values)} if op in TWO else set())
            loose = (loose - read) | {len(values)}
            values.append(_applied(op, values[i % len(values)], values[j % len(values)]))
            if number < self.later:
                values[-1] = (self._multiplied(a, U, number, values[-1][0]), 1)
        ends = [values[i][0] for i in sorted(loose)] * len(self.state)
        each = -(-len(ends) // len(self.state))
        return tuple(torch.tanh(0.5 * sum(ends[k * each :][:each])) for k in range(len(self.state)))

    def _multiplied(self, a: Any, U: Any, number: int, v: Any) -> Any:
        gate = self.gates[len(self.apart) + number]
        return getattr(a, gate) + getattr(U, gate) @ torch.tanh(v)


def _applied(op: str, u: tuple[Any, int], v: tuple[Any, int]) -> tuple[Any, int]:
    """The value and the highest product in it."""
    (x, degree), (y, other) = u, v
    grown = degree + (other if op in TWO else degree)
    if op in GROWING and grown > DEGREE:
        return torch.tanh(x), 1
    if op in TWO:
        return TWO[op](x, y), grown if op == "mul" else max(degree, other)
    return ONE[op](x), grown if op == "square" else degree


def programs() -> st.SearchStrategy[Program]:
    """Cells of random equations."""
    number = st.integers(0, 40)
    instruction = st.tuples(st.sampled_from([*TWO, *ONE]), number, number)
    return st.builds(
        Program,
        st.lists(instruction, min_size=3, max_size=14).map(tuple),
        st.lists(st.booleans(), min_size=1, max_size=5).map(tuple),
        st.integers(1, 3),
        st.integers(0, 2),
        st.integers(0, 3),
    )
