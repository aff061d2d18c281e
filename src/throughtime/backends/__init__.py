"""Who carries a cell through time. The order is that of preference; the reference takes all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

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

    def forward(self, call: Call, keep: bool) -> tuple[Result, list[Tensor]]:
        """The result, and what `backward` needs besides it; nothing with keep=False."""

    def kept_shapes(self, call: Call) -> list[tuple[int, ...]]:
        """The shapes of what `forward` keeps, in the numbers of x."""

    def backward(
        self, call: Call, kept: Sequence[Tensor], d_results: Sequence[Tensor | None],
        wants_x: bool, wants_weights: bool,
    ) -> Gradients:  # fmt: skip
        """The derivative; `kept` is the output sequence and what `forward` kept."""

    def segments(self, call: Call) -> Segments:
        """The call in segments of time, which share what each would need anew."""


class Segments(Protocol):
    """A call of one direction, carried or differentiated segment by segment.

    Attributes:
        call: of which segments are cut.
    """

    call: Call

    def forward(self, segment: Call, to: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The final states; sequences are written to `to`, contiguous and of their shapes."""

    def backward(
        self, segment: Call, d_results: Sequence[Tensor | None], wants_x: bool,
        wants_weights: bool, d_x: Tensor | None,
    ) -> Gradients:  # fmt: skip
        """The derivative of a segment, which is run once more for it.

        Gradients by weights and by `initial` are those of all segments so far; that by x is written
        to `d_x`, contiguous and of its shape.
        """

    def finish(self) -> None:
        """Until now values may have been missing; from now on they are there at once."""


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
    """The choice for a call in words; says too which named backend refuses."""
    try:
        choice = choose(call, backend)
    except BackendError as error:
        return f"none, since {error}"
    if choice.name in OPAQUE and runtime() is None:
        return f"{choice}\n  on one thread, since torch's OpenMP runtime was not found"
    return str(choice)
