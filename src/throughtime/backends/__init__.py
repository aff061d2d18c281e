"""Who carries a cell through time. The order is that of preference; the reference takes all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from throughtime.backends import cpu, reference, torch_kernels
from throughtime.backends.call import Call, Gradients, Result
from throughtime.compiler.runtime.threads import runtime
from throughtime.errors import BackendError, OptionError


class Backend(Protocol):
    """What every backend offers."""

    name: str

    def refuses(self, call: Call) -> str | None:
        """Why this backend cannot take the call, or None."""


class Open(Backend, Protocol):
    """A backend made of torch's own operations, which every transform of torch sees through."""

    def run(self, call: Call) -> Result:
        """Carry the cell through time."""


class Opaque(Backend, Protocol):
    """A backend that computes its own derivative, since nothing sees inside."""

    def forward(
        self, call: Call, keep: bool, to: Sequence[Tensor] = (), kept: Sequence[Tensor] = (),
        queue: Any = None,
    ) -> tuple[Result, list[Tensor]]:  # fmt: skip
        """The result, and what `backward` needs beside it; nothing with keep=False.

        With `to`, contiguous and of their shapes, the sequences are written there; with `kept`,
        from a call of at least as many steps, that is written over.
        """

    def for_segments(self, call: Call) -> Call:
        """The call as its segments take it, so that none of them copies what all have."""

    def queue_for(self, call: Call) -> Any:
        """Where the work on segments of a call may wait, to be done with `run`; None: nowhere.

        With it, what `forward` and `backward` write is there once it has run; `backward` gives
        gradients by the state at the start alone.
        """

    def kept_shapes(self, call: Call) -> list[tuple[int, ...]]:
        """The shapes of what `forward` keeps, in the numbers of x."""

    def sums_for(self, call: Call) -> Any:
        """Where backward passes of calls with the same weights add up what they say of them."""

    def backward(
        self, call: Call, kept: Sequence[Tensor], d_results: Sequence[Tensor | None],
        wants_x: bool, wants_weights: bool, sums: Any = None, d_x: Tensor | None = None,
        queue: Any = None,
    ) -> Gradients:  # fmt: skip
        """The derivative; `kept` is the output sequence and what `forward` kept.

        With `sums` the gradients by weights and by `initial` are those of all calls so far; with
        `d_x`, contiguous and of x's shape, the gradient by x is written there.
        """


OPAQUE: Mapping[str, Opaque] = {"cpu": cpu}
OPEN: Mapping[str, Open] = {"torch": torch_kernels, "reference": reference}
BACKENDS: Mapping[str, Backend] = {**OPAQUE, **OPEN}


@dataclass(frozen=True)
class Choice:
    """Which backend runs a call, and why those before it do not.

    Attributes:
        name: the backend's name.
        refused: name -> reason, of every backend that was preferred and cannot.
    """

    name: str
    refused: dict[str, str]

    def __str__(self) -> str:
        return "\n".join([self.name, *(f"  not {n}: {why}" for n, why in self.refused.items())])


def check_backend(backend: str) -> str:
    """The name itself, if there is such a backend."""
    if not isinstance(backend, str) or backend not in ("auto", *BACKENDS):
        raise OptionError(f"backend must be one of auto, {', '.join(BACKENDS)}, got {backend!r}")
    return backend


def choose(call: Call, backend: str = "auto") -> Choice:
    """The backend for a call: a named one runs or raises, "auto" takes the first that can."""
    if backend != "auto":
        reason = BACKENDS[check_backend(backend)].refuses(call)
        if reason is not None:
            raise BackendError(
                f"backend {backend!r} cannot run this call: {reason}; use backend='auto'"
            )
        return Choice(backend, {})
    refused: dict[str, str] = {}
    for name, candidate in BACKENDS.items():
        reason = candidate.refuses(call)
        if reason is None:
            return Choice(name, refused)
        refused[name] = reason
    raise AssertionError("the reference takes every call")


def explain(call: Call, backend: str = "auto") -> str:
    """The choice for a call in words; a named backend that refuses is told too."""
    try:
        choice = choose(call, backend)
    except BackendError as error:
        return f"none, since {error}"
    if choice.name in OPAQUE and runtime() is None:
        return f"{choice}\n  on one thread, since torch's OpenMP runtime was not found"
    return str(choice)
