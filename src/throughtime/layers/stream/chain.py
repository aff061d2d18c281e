"""The chain of parts that becomes a compiled stream, and functions of rows among them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from throughtime.backends.cpu.stream.part import (
    LookupTable,
    Part,
    Placed,
    RowFunction,
    like,
    output_width,
)
from throughtime.compiler.row_plan import row_plan

Parts = list[Placed]


class NoParts(Exception):
    """The model is no plain stack of parts that compiled streams take; the text is the reason."""


class PartChain:
    """Parts that follow each other, while they are collected.

    Args:
        width: of the first part's input.

    Attributes:
        parts: so far.
        last: the place that the next part reads: 0 is the input, k + 1 the output of part k.
        with_state: whether that is (outputs, state), which few parts take.
        layers: the layers among the parts, in order.
        traced: whether a user's `forward` was traced.
    """

    def __init__(self, width: int | None) -> None:
        self.parts: Parts = []
        self.last = 0
        self.with_state = False
        self.layers: list[nn.Module] = []
        self.traced = False
        self._widths = [width]
        self._kinds: dict[Any, None] = {}

    @property
    def width(self) -> int:
        """How many numbers a row has at the last place."""
        width = self._widths[self.last]
        if width is None:
            raise NoParts("the model does not begin with a layer, a linear part or an embedding")
        return width

    def width_of(self, place: int) -> int | None:
        """How many numbers a row has at a place."""
        return self._widths[place]

    def add(self, part: Part, *sources: int) -> None:
        """Add a part that reads the last place, or these."""
        if self.with_state:
            raise NoParts("a layer that gives its state stands before a part that takes none")
        below = self._widths[self.last] if self.parts else None
        tensor = like(part)
        takes = self._widths[self.last]
        if tensor is not None:
            takes = tensor.shape[-1]
            if not isinstance(part, LookupTable) and below not in (None, takes):
                raise NoParts(f"a part takes {takes} numbers and the one before it gives {below}")
            self.hold(tensor)
        assert takes is not None
        self.parts.append(Placed(part, sources or (self.last,)))
        self._widths.append(output_width(part, takes))
        self.last = len(self.parts)

    def hold(self, tensor: Tensor) -> None:
        """Note the dtype and device of a tensor; `end` requires one of each."""
        self._kinds[tensor.dtype, tensor.device] = None

    def end(self) -> None:
        """Check the complete chain."""
        if self.last != len(self.parts):
            raise NoParts("the model returns something else than its last part does")
        if len(self._kinds) > 1:
            raise NoParts("the parts of the model have different dtypes or devices")


def add_function(chain: PartChain, function: Callable[[Any], Any], name: str) -> None:
    """Add a function of each row alone, if the compiler knows its operations."""
    message = f"the model holds a {name}, which its own code computes"
    module = function if isinstance(function, nn.Module) else None
    if chain.with_state or (module is not None and module._modules):
        raise NoParts(message)
    width = chain.width
    tensors = {} if module is None else _find_vectors(module, width)
    run = _make_runner(module, tuple(tensors)) if module is not None else lambda x, p: function(x)
    plan = row_plan(name, run, width, tuple(tensors))
    if isinstance(plan, str):
        raise NoParts(f"{message}: {plan}")
    for v in tensors.values():
        chain.hold(v)
    if not _is_of_rows(function, width, next(iter(tensors.values()), torch.empty(0, device="cpu"))):
        raise NoParts(f"{message}: it does not look at each row of a sequence alone")
    chain.add(RowFunction(plan, tensors, width))


@torch.no_grad()
def _is_of_rows(function: Callable[[Any], Any], width: int, like: Tensor) -> bool:
    """Whether a sequence (T, B, width) gives the same as its rows one by one."""
    with torch.random.fork_rng(devices=[]):
        x = torch.randn(3, 2, width, dtype=like.dtype, device=like.device)
        try:
            whole = function(x.clone())
            rows = torch.cat([function(row.clone()) for row in x.flatten(0, 1).split(1)])
        except (TypeError, ValueError, RuntimeError, IndexError):
            return False
    if whole.shape != x.shape or rows.shape != (6, width):
        return False
    return torch.allclose(whole.flatten(0, 1), rows, rtol=1e-3, atol=1e-5, equal_nan=True)


def _find_vectors(module: nn.Module, width: int) -> dict[str, Any]:
    """The module's parameters and buffers of a row's width."""
    tensors = {**module._parameters, **module._buffers}
    return {n: v for n, v in tensors.items() if v is not None and tuple(v.shape) == (width,)}


def _make_runner(module: nn.Module, names: tuple[str, ...]) -> Callable[[Any, Any], Any]:
    """The module's forward as a function of x and of these tensors."""

    def run(x: Any, p: Any) -> Any:
        twin = object.__new__(type(module))
        twin.__dict__.update(module.__dict__)
        for kind in ("_parameters", "_buffers"):
            rest = {n: v for n, v in module.__dict__[kind].items() if n not in names}
            twin.__dict__[kind] = rest
        twin.__dict__.update({n: p[n] for n in names})
        if twin.__dict__.get("inplace") is True:  # no other part reads its input
            twin.__dict__["inplace"] = False
        return twin.forward(x)

    return run
