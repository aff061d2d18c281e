"""A frozen copy of a model that can go step by step, tried on random steps, for all its streams."""

from __future__ import annotations

import copy
import io
import pickle
import weakref
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from throughtime.backends.cpu.stream.stack import Stack
from throughtime.backends.cpu.stream.stream import CompiledStream
from throughtime.errors import OptionError
from throughtime.layers.batch import States, list_tensors
from throughtime.layers.layer import Passage
from throughtime.layers.stream.parts import RAISED, Parts, find_parts


def check_streamable(model: nn.Module) -> None:
    """Every recurrent layer can go step by step, and no other part of the model has a state."""
    _check_carried(model)
    layers = [m for m in model.modules() if isinstance(m, Passage)]
    if not layers:
        raise OptionError("a stream needs a model with a recurrent layer of throughtime in it")
    for layer in layers:
        if layer.directions == 2:
            raise OptionError(
                "a bidirectional layer needs the whole sequence, so it has no stream; "
                "build it with bidirectional=False"
            )
        if set(layer.dilations) != {1}:
            raise OptionError(
                "a dilated layer keeps no old states, so it has no stream; use dilation=1"
            )
    children = [m for parent in model.modules() for m in parent._modules.values()]
    if any(children.count(layer) > 1 for layer in layers):
        raise OptionError(
            "a layer is in the model twice, and a stream cannot tell its two states apart; "
            "use a copy.deepcopy of it, or a second layer"
        )
    if len({layer.batch_first for layer in layers}) > 1:
        raise OptionError("the layers of a stream must agree on batch_first")


def _check_carried(model: nn.Module) -> None:
    """No part of the model has a state that the stream does not carry."""
    for name, part in model.named_modules():
        kind, place = type(part), name or "the model"
        if isinstance(part, nn.RNNCellBase):
            raise OptionError(
                f"{place} is a {kind.__name__}, one step whose state a stream does not carry; "
                f"use a layer in its place: throughtime.RNN, LSTM or GRU"
            )
        if isinstance(part, nn.RNNBase) and not isinstance(part, Passage):
            raise OptionError(
                f"{place} is a torch.nn {kind.__name__}, which would start from zero at every "
                f"step; convert it, as in Stream(throughtime.from_torch(model))"
            )


@torch.no_grad()
def copy_frozen(model: nn.Module, copies: dict[int, Any] | None = None) -> nn.Module:
    """A copy in eval mode, without gradient, its weights as the next call would find them.

    Args:
        model: the model.
        copies: filled with id of an object of the model -> its copy.
    """
    copies = {} if copies is None else copies
    # torch refuses to copy results of a computation, such as weight_norm's last weight.
    results = [v for m in model.modules() for v in vars(m).values()
               if isinstance(v, Tensor) and not v.is_leaf]  # fmt: skip
    copies.update({id(v): v.detach().clone() for v in results})
    try:
        copied = copy.deepcopy(model, copies)
    except RuntimeError as error:
        raise OptionError(
            f"a stream runs a copy of the model, and torch cannot copy this one ({error}); let the "
            f"model hold no tensors that were computed from its weights"
        ) from error
    copied.eval().requires_grad_(False)
    for layer in copied.modules():
        if isinstance(layer, Passage):  # a stream does not run the layer's hooks, so run them now
            for hook in layer._forward_pre_hooks.values():
                if type(hook).__module__.startswith("torch.nn.utils"):
                    hook(layer, ())
    return copied


@torch.no_grad()
def round_matrices(model: nn.Module, dtype: torch.dtype | None) -> None:
    """Round the matrices of a frozen model's layers and linear parts to bfloat16, unless None.

    Raises:
        OptionError: another dtype, or weights that are not float32 or are computed from others.
    """
    if dtype is None:
        return
    if dtype != torch.bfloat16:
        raise OptionError(f"weights must be torch.bfloat16 or None, got {dtype!r}")
    for name, part in model.named_modules():
        if not isinstance(part, Passage | nn.Linear):
            continue
        if part._forward_pre_hooks or "parametrizations" in part._modules:
            raise OptionError(
                f"weights={dtype} rounds weights once, and {name or 'the model'} computes its own "
                f"anew at each call; remove its parametrizations or hooks first"
            )
        for kind, v in part.named_parameters(recurse=False):
            if v.dtype != torch.float32:
                raise OptionError(f"weights={dtype} needs a float32 model, got {v.dtype} in {kind}")
            if v.dim() == 2:
                v.copy_(v.to(dtype))


class Frozen:
    """A copy of a model in eval mode, which many streams read and none changes.

    Args:
        model: the copy.
        narrow: whether its matrices hold bfloat16 values in float32.

    Attributes:
        model, narrow: as above.
        layers: its recurrent layers.
        batch_first: of all of them.
        parts: the parts of one call of compiled code, or why there are none.
    """

    def __init__(self, model: nn.Module, narrow: bool) -> None:
        self.model, self.narrow = model, narrow
        self.layers = [m for m in model.modules() if isinstance(m, Passage)]
        self.batch_first = bool(self.layers[0].batch_first)
        self.parts: Parts | str
        self.parts, self._followed = find_parts(model)

    @cached_property
    def stack(self) -> Stack | None:
        """The whole model as one call, or None where compiled code does not take it."""
        if isinstance(self.parts, str):
            return None
        stack = Stack(self.parts, self.narrow)
        if self._followed and not agrees(self.model, self.layers, stack):
            name = type(self.model).__name__
            self.parts = f"the model holds a {name}, whose forward does more than call its parts"
            return None
        return stack

    @cached_property
    def stacks(self) -> list[Stack | None]:
        """Each of its layers as one call, or None where compiled code does not take it."""
        parts = [find_parts(layer)[0] for layer in self.layers]
        return [None if isinstance(p, str) else Stack(p, self.narrow) for p in parts]

    def __reduce__(self) -> tuple[Any, ...]:
        return Frozen, (self.model, self.narrow)


class _Cached:
    """A frozen model, as long as a stream reads it, and the source it was made of.

    Args:
        frozen: the frozen model.
        outline: the source in bytes, without its tensors.
        values: constant copies of these; they live as long as the frozen model.
    """

    def __init__(self, frozen: Frozen, outline: bytes, values: list[Tensor]) -> None:
        self.frozen = weakref.ref(frozen)
        self._outline = outline
        self._values: list[Callable[[], Tensor | None]] = [
            partial(_same, v) if frozen.narrow else weakref.ref(v) for v in values
        ]

    def fits(self, outline: bytes, tensors: list[Tensor]) -> bool:
        """Whether a model is unchanged since it was frozen."""
        if outline != self._outline or len(tensors) != len(self._values):
            return False
        for value, v in zip(self._values, tensors, strict=True):
            old = value()
            if old is None or old.dtype != v.dtype or old.device != v.device:
                return False
            if old.shape != v.shape or not _equal(old, v):
                return False
        return True


def _equal(one: Tensor, other: Tensor) -> bool:
    """Whether the bits are equal; without torch's threads, which hang in a forked process."""
    if not one.is_cpu:
        return torch.equal(one, other)
    a, b = (v.detach().reshape(-1).view(torch.uint8).numpy() for v in (one, other))
    return np.array_equal(a, b)


def _same(value: Tensor) -> Tensor:
    return value


_CACHE: Final[weakref.WeakKeyDictionary[nn.Module, dict[Any, _Cached]]] = (
    weakref.WeakKeyDictionary()
)


def freeze(source: nn.Module, weights: torch.dtype | None) -> Frozen:
    """The frozen copy of a model: that of another stream, if the model is unchanged since."""
    outline, tensors = _outline(source)
    cached = _CACHE.get(source, {}).get(weights)
    shared = cached.frozen() if cached is not None else None
    if shared is not None and cached is not None and outline is not None:
        if cached.fits(outline, tensors):
            return shared
    check_streamable(source)
    copies: dict[int, Any] = {}
    model = copy_frozen(source, copies)
    values = [copies.get(id(v), v) for v in tensors]
    if weights is not None:
        values = [v.detach().clone() for v in values]
    round_matrices(model, weights)
    frozen = Frozen(model, weights is not None)
    if outline is not None:
        _CACHE.setdefault(source, {})[weights] = _Cached(frozen, outline, values)
    return frozen


class _Outline(pickle.Pickler):
    """Writes a model without its tensors, which it collects."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.tensors: list[Tensor] = []

    def persistent_id(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return None
        self.tensors.append(value)
        return type(value).__name__, len(self.tensors)


def _outline(model: nn.Module) -> tuple[bytes | None, list[Tensor]]:
    """A model in bytes, without its tensors; None where it cannot be pickled or compared."""
    file = io.BytesIO()
    writer = _Outline(file)
    try:
        writer.dump(model)
    except (pickle.PicklingError, TypeError, ValueError, AttributeError, RuntimeError, OSError):
        return None, []
    plain = all(
        type(v) in (Tensor, nn.Parameter) and v.layout == torch.strided and v.device.type != "meta"
        for v in writer.tensors
    )
    return (file.getvalue() if plain else None), writer.tensors


STEPS: Final = (33, 5)
"""Numbers of steps to try; the second where a model takes no more."""

ROWS: Final = 3
"""The most rows to try."""


def make_inputs(
    model: nn.Module, batch_first: bool, rows: int, steps: int, like: Tensor | None = None
) -> Iterator[Tensor]:
    """Sequences that the model may take."""
    if like is not None:
        time = int(batch_first)
        shape = list(like.shape)
        shape[time] = steps
        if like.is_floating_point():
            yield torch.randn(shape, dtype=like.dtype, device=like.device)
        else:
            yield torch.randint(int(like.max()) + 1, shape, dtype=like.dtype, device=like.device)
        return
    shape = [rows, steps] if batch_first else [steps, rows]
    seen = set()
    for module in model.modules():
        weight = next(module.parameters(recurse=False), None)
        width = _width(module)
        if weight is None or width is None or (type(module) is nn.Embedding, width) in seen:
            continue
        seen.add((type(module) is nn.Embedding, width))
        if type(module) is nn.Embedding:
            yield torch.randint(width, shape, device=weight.device)
        elif weight.is_floating_point():
            yield torch.randn(*shape, width, dtype=weight.dtype, device=weight.device)


def _width(module: nn.Module) -> int | None:
    """A part's input width, if it has an attribute for it."""
    if isinstance(module, Passage):
        return module.input_size
    names = ("num_embeddings", "in_features", "in_channels", "num_features", "embed_dim")
    width = next((getattr(module, n) for n in names if hasattr(module, n)), None)
    if width is None and isinstance(shape := getattr(module, "normalized_shape", None), tuple):
        width = shape[-1]
    return width if isinstance(width, int) else None


@torch.no_grad()
def agrees(model: nn.Module, layers: list[Passage], stack: Stack) -> bool:
    """Whether a stack's random steps equal the model's whole sequence; False if it takes none."""
    batch_first = bool(layers[0].batch_first)
    with torch.random.fork_rng(devices=[]):
        for x in make_inputs(model, batch_first, ROWS, STEPS[-1]):
            try:
                y = model(x.clone())
            except RAISED:
                continue
            first: list[States] = [layer.initial_state(ROWS) for layer in layers]
            stream = CompiledStream(stack, ROWS)
            stream.write([s for state in first for s in state])
            steps = [stream.step(v.squeeze(int(batch_first)), None, {}) for v in
                     x.split(1, int(batch_first))]  # fmt: skip
            whole = next(list_tensors(y), None)
            return (
                whole is not None
                and all(v is not None for v in steps)
                and is_close(whole, torch.stack(steps, int(batch_first)))
            )
    return False


def is_close(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not a.is_floating_point():
        return a.numel() == 0 or float((a != b).float().mean()) < 0.1
    tolerance = 1e-3 if a.dtype in (torch.float32, torch.float64) else 0.05
    return torch.allclose(a, b, rtol=tolerance, atol=tolerance * _size(a), equal_nan=True)


def _size(v: Tensor) -> float:
    finite = v[v.isfinite()].abs()
    return float(finite.max()) if finite.numel() else 1.0
