"""Cells of a user's own that the compiler takes, each odd in one way."""

from __future__ import annotations

from typing import Any

import torch

from throughtime import Cell


class Trace(Cell):
    """One gate, and no U at all: no product reads the state."""

    gates = ("h",)
    state = ("h",)

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any]:
        return (0.8 * s.h + 0.3 * torch.tanh(a.h),)


class FiveGates(Cell):
    """An LSTM with a second input gate."""

    gates = ("i", "f", "g", "o", "e")
    state = ("h", "c")

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any, Any]:
        i, f = torch.sigmoid(a.i + U.i @ s.h), torch.sigmoid(a.f + U.f @ s.h)
        o, e = torch.sigmoid(a.o + U.o @ s.h), torch.sigmoid(a.e + U.e @ s.h)
        g = torch.tanh(a.g + U.g @ s.h)
        c = f * s.c + i * g - e * torch.square(g)
        return o * torch.tanh(c), c


class ThreeStates(Cell):
    """A fast and a slow memory behind one output."""

    gates = ("f", "g")
    state = ("h", "fast", "slow")

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any, Any, Any]:
        f = torch.sigmoid(a.f + U.f @ s.h)
        fast = f * s.fast + (1 - f) * torch.tanh(a.g + U.g @ s.h)
        slow = 0.9 * s.slow + 0.1 * fast * fast
        return torch.tanh(fast - slow), fast, slow


class Rates(Cell):
    """Per-unit vectors through nonlinearities, one of them twice."""

    gates = ("h",)
    state = ("h",)
    vectors = {"leak": 0.5, "gain": 0.1}

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any]:
        keep = torch.sigmoid(p.leak)
        new = torch.tanh(torch.exp(p.gain) * a.h + U.h @ s.h)
        return (keep * s.h + (1 - keep) * new * torch.reciprocal(1 + p.leak * p.leak),)


class Apart(Cell):
    """Gates declared in an order of their own; a.n and U.n are used apart, as in a GRU."""

    gates = ("n", "z", "r")
    state = ("h",)

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any]:
        r, z = torch.sigmoid(a.r + U.r @ s.h), torch.sigmoid(U.z @ s.h + a.z)
        return ((1 - z) * torch.tanh(a.n + r * (U.n @ s.h)) + z * s.h,)


class Unlike(Cell):
    """The gates of W are others than those of U, and in another order."""

    gates = ("x", "both", "u", "more")
    state = ("h",)

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any]:
        u, more = torch.sigmoid(U.u @ s.h), U.more @ s.h
        return (torch.tanh(a.both + U.both @ s.h) * u + 0.3 * a.x * torch.sigmoid(more),)


class Kinks(Cell):
    """Branches, borders and functions that are large on one side."""

    gates = ("h", "k")
    state = ("h",)

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any]:
        v, k = a.h + U.h @ s.h, a.k + U.k @ s.h
        grown = torch.exp(torch.clamp(k, -1.5, 0.7)) * 0.3
        taken = torch.where(v > 0.1, torch.nn.functional.softplus(v) - 0.7, v * grown)
        return (torch.maximum(taken, -torch.abs(k)) * 0.8,)


class HandedOn(Cell):
    """A delay line: the older states are only handed on, the last one is read."""

    gates = ("h",)
    state = ("h", "one", "two")

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any, Any, Any]:
        return torch.tanh(a.h + U.h @ s.h + 0.3 * s.two), s.h, s.one


class Blind(Cell):
    """Never reads h, which is an output only; the memory never changes h's products."""

    gates = ("g", "o")
    state = ("h", "c")

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any, Any]:
        c = torch.sigmoid(a.g) * s.c + torch.tanh(a.g)
        return torch.sigmoid(a.o) * torch.tanh(c), c


class Constant(Cell):
    """A state that no step changes, and one that is the output once more."""

    gates = ("h",)
    state = ("h", "kept", "same")

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any, Any, Any]:
        h = torch.tanh(a.h + U.h @ s.h + 0.5 * s.kept)
        return h, s.kept, h


class Forgetful(Cell):
    """No state is read at all."""

    gates = ("h", "g")
    state = ("h",)

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any]:
        return (torch.tanh(a.h) * torch.sigmoid(a.g),)


class Deaf(Cell):
    """Hears no input: U alone, and a vector in the place of the bias."""

    gates = ("h",)
    state = ("h",)
    vectors = {"push": 0.3}

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any]:
        return (torch.tanh(U.h @ s.h + p.push) + 0.1 * s.h,)


class Chain(Cell):
    """Four phases, each multiplying what the one before gave; U is apart from W in two of them."""

    gates = ("f", "g", "m", "o", "q")
    state = ("h", "c")

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any, Any]:
        f = torch.sigmoid(a.f + U.f @ s.h)
        v = f * s.h + 0.3 * s.c
        g, m = torch.tanh(a.g + U.g @ v), U.m @ v
        w = torch.sigmoid(m + a.m) * g
        c = 0.7 * torch.tanh(a.q + f * (U.q @ w)) + 0.3 * s.c
        return torch.tanh(U.o @ c) + 0.2 * v, c


class OfInput(Cell):
    """Multiplies what x alone gives, and the other state; the old output meets no matrix."""

    gates = ("e", "g", "k", "n")
    state = ("h", "c")
    vectors = {"slope": 0.4}

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any, Any]:
        e = torch.tanh(a.e * p.slope)
        g = torch.sigmoid(a.g + U.g @ e + U.k @ s.c)
        return g * s.h + (1 - g) * e, torch.tanh(U.n @ e + 0.5 * s.c)


class Lost(Cell):
    """A later product that reaches nothing, and one whose vector is the new state itself."""

    gates = ("g", "lost", "n")
    state = ("h", "c")

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any, Any]:
        h = torch.tanh(a.g + U.g @ s.h)
        gone = U.lost @ (h * s.h)
        return h, torch.sigmoid(U.n @ h) * s.c + 0 * torch.sign(gone)


OWN: list[Cell] = [
    Trace(), FiveGates(), ThreeStates(), Rates(), Apart(), Unlike(), Kinks(), HandedOn(), Blind(),
    Constant(), Forgetful(), Deaf(), Chain(), OfInput(), Lost(),
]  # fmt: skip
