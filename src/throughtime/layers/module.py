"""A module with the weights of a cell: what torch's tools expect of it, and its gates by name."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, NoReturn

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from throughtime.cells import Cell
from throughtime.compiler.passes import find_unsupported
from throughtime.compiler.runtime import machine
from throughtime.errors import OptionError, ShapeError, TransformError


class CellModule(nn.Module):
    """A module with the weights of a cell, with what torch's tools expect of it."""

    _quantised_otherwise = "a Stream of it takes weights=torch.bfloat16"
    _observer: Callable[..., Any] | None = None

    def __prepare_scriptable__(self) -> NoReturn:
        # torch.jit.script reads source and knows torch.nn's own layers.
        raise TransformError(
            f"torch.jit.script reads Python, and a {type(self).__name__} of throughtime is made of "
            f"machine code; give it throughtime.to_torch(model), or use torch.jit.trace"
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._prepare()

    def _prepare(self) -> None:
        """Do now what cannot be done in a first call inside a compiler or a transform of torch."""
        cell: Any = self.cell
        cell.prepare()

    @contextmanager
    def observe(self, carry: Callable[..., Any]) -> Iterator[None]:
        """Inside, every call of the module runs `carry` in place of the module's own method.

        Args:
            carry: for a layer, from a batch to outputs and results, as `Passage.carry`; for a
                cell, from an input and a state or None to the new state.
        """
        vars(self)["_observer"] = carry
        try:
            yield
        finally:
            vars(self).pop("_observer", None)

    @property
    def is_plain(self) -> bool:
        """Whether no option acts around the cell, except dropout between layers."""
        return True

    def plain_parameters(self) -> Mapping[str, Tensor | None]:
        """The parameters that can be read without `getattr`.

        There are none in a user's class with its own `__getattr__`, as in Pyro, whose modules
        register a weight when it is read.
        """
        return self._parameters if type(self).__getattr__ is nn.Module.__getattr__ else {}

    @property
    def qconfig(self) -> Any:
        """How torch.ao.quantization would treat the module; it skips all classes but torch's."""
        try:
            return vars(self)["qconfig"]
        except KeyError as error:
            raise AttributeError("qconfig") from error

    @qconfig.setter
    def qconfig(self, value: Any) -> None:
        excluded = vars(self).get("qconfig", self) is None
        vars(self)["qconfig"] = value
        level, by_torch = count_frames_to_user()
        if by_torch and not excluded:
            warnings.warn(
                f"torch's quantisation knows torch.nn's own classes only, so it leaves this "
                f"throughtime {type(self).__name__} as it is; {self._quantised_otherwise}",
                stacklevel=level,
            )

    @qconfig.deleter
    def qconfig(self) -> None:
        del vars(self)["qconfig"]


def check_writable(owner: Any, names: Iterable[str]) -> None:
    """The weights are parameters: writing into one computed by a parametrisation has no effect."""
    for name in names:
        if name not in owner._parameters:
            raise OptionError(
                f"{name} of {type(owner).__name__} is parametrised, so writing into it has no "
                f"effect; write before its parametrisation"
            )


class GateRows:
    """A gate's rows of the weights: views, so that writing into them changes the layer.

    Attributes:
        name: the gate's name in the cell's equations.
    """

    def __init__(self, owner: Any, name: str, layer: int, reverse: bool) -> None:
        if name not in owner.cell.gates:
            raise OptionError(f"gate must be one of {', '.join(owner.cell.gates)}, got {name!r}")
        layers = len(owner.hidden_sizes)
        if type(layer) is not int or not 0 <= layer < layers:
            raise OptionError(f"layer must be from 0 to {layers - 1}, got {layer!r}")
        if reverse and owner.directions == 1:
            raise OptionError("reverse is for layers of two directions, this one has one")
        self.name = name
        self._owner, self._layer, self._direction = owner, layer, int(reverse)

    @property
    def weight_ih(self) -> Tensor | None:
        """W_g, (H, I); None when the equations never read it."""
        return self._rows("weight_ih")

    @property
    def weight_hh(self) -> Tensor | None:
        """U_g, (H, width of the output); None when the equations never read it."""
        return self._rows("weight_hh")

    @property
    def bias_ih(self) -> Tensor | None:
        """The bias added to W_g x, (H,), if there is one."""
        return self._rows("bias_ih")

    @property
    def bias_hh(self) -> Tensor | None:
        """The bias added to U_g h, (H,), if there is one."""
        return self._rows("bias_hh")

    @property
    def bias(self) -> Tensor:
        """The sum of the gate's biases, (H,); setting it writes the first and zeroes the other."""
        return torch.stack(self._biases()).sum(0)

    @bias.setter
    def bias(self, value: Tensor | float) -> None:
        first, *rest = self._biases()
        names = self._owner.weight_names(self._layer, self._direction)
        check_writable(self._owner, (n for short, n in names.items() if short.startswith("bias_")))
        new = torch.as_tensor(value, dtype=first.dtype, device=first.device)
        if new.dim() and new.shape != first.shape:
            raise ShapeError(
                f"the bias of gate {self.name} must be a number or {tuple(first.shape)}, "
                f"got {tuple(new.shape)}"
            )
        with torch.no_grad():
            first.copy_(new)
            for other in rest:
                other.zero_()

    def _biases(self) -> list[Tensor]:
        biases = [v for v in (self.bias_ih, self.bias_hh) if v is not None]
        if not biases:
            read = any(n.startswith("bias_") for n in self._owner.weights(0, 0))
            cure = "the equations never read it" if read else "build the layer with bias=True"
            raise OptionError(f"gate {self.name} has no bias; {cure}")
        return biases

    def _rows(self, name: str) -> Tensor | None:
        weights = self._owner.weights(self._layer, self._direction)
        layout = self._owner.cell.layout
        gates = layout.input_gates if name.endswith("_ih") else layout.recurrent_gates
        if name not in weights or self.name not in gates:
            return None
        hidden = self._owner.hidden_sizes[self._layer]
        start = gates.index(self.name) * hidden
        rows: Tensor = weights[name][start : start + hidden]
        return rows


def write_node(layer: nn.Module, x: Proxy, *arguments: Any, **keywords: Any) -> Proxy:
    """The call as one node of a graph of torch.fx, like those of torch.nn's layers."""
    tracer: Any = x.tracer
    if getattr(tracer, "root", None) is layer:
        raise TransformError(
            f"torch.fx writes a {type(layer).__name__} as one node of a model's graph and cannot "
            f"look inside it; trace a model that holds it: torch.nn.Sequential(layer)"
        )
    while arguments and arguments[-1] is None:
        arguments = arguments[:-1]
    options = {name: value for name, value in keywords.items() if value is not None}
    path = tracer.path_of_module(layer)
    node: Proxy = tracer.create_proxy("call_module", path, (x, *arguments), options)
    return node


def check_nothing_more(layer: nn.Module, values: tuple[Any, ...]) -> None:
    """After x and the state come keywords only; torch.onnx.export passes their None by position.

    Raises:
        TypeError: one of them is not None, in Python's own words.
    """
    if any(value is not None for value in values):
        raise TypeError(
            f"{type(layer).__name__}.forward() takes from 2 to 3 positional arguments but "
            f"{3 + len(values)} were given; give lengths, starts and reset by name"
        )


def count_frames_to_user() -> tuple[int, bool]:
    """The `stacklevel` of the user's line, and whether torch's quantisation is on the way."""
    frame, level, by_torch = sys._getframe(1), 1, False
    while frame.f_back is not None:
        name = str(frame.f_globals.get("__name__"))
        if name.partition(".")[0] not in ("torch", "throughtime", "typing_extensions"):
            break
        by_torch = by_torch or name.startswith("torch.ao.quantization")
        frame, level = frame.f_back, level + 1
    return level, by_torch


_WARNED: Final[set[str]] = set()
"""Classes and lines; cells of one class that differ in a number are warned of once."""


def warn_uncompiled(cell: Cell, sizes: tuple[int, ...], device: Any) -> None:
    """Warn once that "auto" runs a layer of this cell on the reference, and why.

    Args:
        cell: the equations.
        sizes: of the layer.
        device: where the layer is built; only the CPU compiles.
    """
    unsupported = [v for H in sizes if (v := find_unsupported(cell, H)) is not None]
    on_cpu = torch.device(device or torch.get_default_device()).type == "cpu"
    if not unsupported or not on_cpu or machine.host() is None:
        return
    operation, line = unsupported[0]
    place = f"{type(cell).__qualname__} {line}"
    if place in _WARNED:
        return
    _WARNED.add(place)
    warnings.warn(
        f"{type(cell).__name__} runs on the reference, one operation of torch after the other, "
        f"which is far slower than compiled code: {operation} has no rule; write it with "
        f"operations that have one (docs/compiler.md), or ask for backend='reference'\n"
        f"  at {line}",
        stacklevel=count_frames_to_user()[0],
    )
