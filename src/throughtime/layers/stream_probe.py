"""Whether a model's steps, one by one, are those of its whole sequence: a few random ones."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from throughtime.errors import OptionError
from throughtime.layers.passage import Passage
from throughtime.layers.stream_frozen import Frozen
from throughtime.layers.stream_given import tensors_in
from throughtime.layers.stream_layers import LayerByLayer
from throughtime.layers.stream_step import Step

STEPS: Final = (33, 5)
"""How many are taken; the second where a model takes no more."""

ROWS: Final = 3
"""At most so many."""

RAISED: Final = (
    TypeError, ValueError, RuntimeError, LookupError, AttributeError, AssertionError,
    ArithmeticError, NotImplementedError,
)  # fmt: skip
"""What a model may raise on an input that is not its own."""

_CURE: Final = (
    "a stream needs parts that look at each step alone, or carry their state as throughtime's "
    "layers do"
)


class Found(NamedTuple):
    """What a model's random steps have told.

    Attributes:
        timed: of each tensor that the model gives, whether it has a step for each step of x.
        tokens: whether x is one whole number for each row.
    """

    timed: list[bool]
    tokens: bool


@torch.no_grad()
def probe(frozen: Frozen, batch: int, like: Tensor | None = None) -> Found | None:
    """What random steps, one by one and as a whole sequence, tell of a model.

    Args:
        frozen: the model.
        batch: of the stream.
        like: x of one step, (1, B, ...) or (B, 1, ...); None: inputs are tried as the model's
            parts seem to take them.

    Returns:
        That, or None where no such input is the model's.

    Raises:
        OptionError: the steps are others, and which part they come from.
    """
    with torch.random.fork_rng(devices=[]):
        for steps in STEPS:
            for x in _inputs(frozen, min(batch, ROWS), steps, like):
                whole = _Record(copy.deepcopy(frozen.model))
                try:
                    y = whole.model(x)
                    again = whole.model(x)
                except RAISED:
                    continue
                if not all(map(_close, tensors_in(y), tensors_in(again))):
                    return None  # a model that tosses coins: nothing can be said
                timed = _compare(frozen, x, whole, y, last=steps == STEPS[-1])
                if timed is not None:
                    return Found(timed, x.dim() == 2)
                break
    return None


def _inputs(frozen: Frozen, rows: int, steps: int, like: Tensor | None) -> Iterator[Tensor]:
    """Sequences that the model may take."""
    if like is not None:
        time = int(frozen.batch_first)
        shape = list(like.shape)
        shape[time] = steps
        if like.is_floating_point():
            yield torch.randn(shape, dtype=like.dtype, device=like.device)
        else:
            yield torch.randint(int(like.max()) + 1, shape, dtype=like.dtype, device=like.device)
        return
    shape = [rows, steps] if frozen.batch_first else [steps, rows]
    seen = set()
    for module in frozen.model.modules():
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
    """What a part takes, as far as it tells."""
    if isinstance(module, Passage):
        return module.input_size
    names = ("num_embeddings", "in_features", "in_channels", "num_features", "embed_dim")
    found = next((getattr(module, n) for n in names if hasattr(module, n)), None)
    if found is None and isinstance(shape := getattr(module, "normalized_shape", None), tuple):
        found = shape[-1]
    return found if isinstance(found, int) else None


class _Record:
    """A model, and what each of its parts has taken and given in the call before.

    Attributes:
        model: the same.
        taken, given: name of a part -> its first tensor, in the order in which parts were done.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.taken: dict[str, Tensor] = {}
        self.given: dict[str, Tensor] = {}
        inner = {id(step.layer) for step in model.modules() if isinstance(step, Step)}
        for name, part in model.named_modules():
            if name and id(part) not in inner:
                part.register_forward_hook(self._hook(name))

    def _hook(self, name: str) -> Any:
        def hook(_: nn.Module, args: Any, y: Any) -> None:
            for place, value in ((self.taken, args), (self.given, y)):
                for v in tensors_in(value):
                    place[name] = v.detach().clone()
                    break

        return hook


def _compare(frozen: Frozen, x: Tensor, whole: _Record, y: Any, last: bool) -> list[bool] | None:
    """Which outputs of all steps are those of one step after the other.

    None where a recurrent layer alone differs, which makes much of little: fewer steps tell more,
    and of the fewest, the `last`, it is believed.
    """
    outputs, taken, given = _stepped(frozen, x, whole)
    wanted = _without_states(y, outputs[0])
    timed = [_joins(v, [o[i] for o in outputs]) for i, v in enumerate(wanted)]
    same = len(wanted) == len(outputs[0]) and all(
        joined or _close(v, outputs[-1][i])
        for i, (v, joined) in enumerate(zip(wanted, timed, strict=True))
    )
    name = "" if same else _culprit(whole, taken, given)
    if name and isinstance(whole.model.get_submodule(name), Passage):
        return timed if last else None
    if not same:
        raise OptionError(
            f"{_said(whole, name)} looks over time: its steps, one by one, are not "
            f"those of a whole sequence; {_CURE}"
        )
    return timed


def _stepped(
    frozen: Frozen, x: Tensor, whole: _Record
) -> tuple[list[list[Tensor]], list[dict[str, Tensor]], list[dict[str, Tensor]]]:
    """Of each step what the model gives, and what its parts have taken and given."""
    time = int(frozen.batch_first)
    layered = LayerByLayer(frozen, x.shape[1 - time])
    single = _Record(layered.model)
    outputs, taken, given = [], [], []
    for v in x.split(1, time):
        try:
            outputs.append([t.clone() for t in tensors_in(layered.call(v, {}))])
        except RAISED as error:
            if isinstance(error, OptionError):
                raise
            raise OptionError(
                f"{_next(whole, single)} takes whole sequences and no single step ({error}); "
                f"{_CURE}"
            ) from error
        taken.append(dict(single.taken))
        given.append(dict(single.given))
    return outputs, taken, given


def _without_states(y: Any, like: list[Tensor]) -> list[Tensor]:
    """The tensors of a whole call, as many as a step gives: states come last."""
    found = list(tensors_in(y))
    return found[: len(like)] if isinstance(y, tuple) else found


def _culprit(whole: _Record, taken: list[dict[str, Tensor]], given: list[dict[str, Tensor]]) -> str:
    """The first part that gives other numbers than those of the whole on the same ones, or ""."""
    for name, y in whole.given.items():
        steps = [v[name] for v in given if name in v]
        if len(steps) == len(given) and (_joins(y, steps) or _close(y, steps[-1])):
            continue
        x = whole.taken.get(name)
        before = [v[name] for v in taken if name in v]
        if x is not None and len(before) == len(taken) and _joins(x, before):
            return name
        break
    return ""


def _said(whole: _Record, name: str) -> str:
    """A part in words."""
    if not name:
        return f"the forward of {type(whole.model).__name__}"
    return f"{name}, a {type(whole.model.get_submodule(name)).__name__},"


def _next(whole: _Record, single: _Record) -> str:
    """The first part that a step has not reached."""
    return _said(whole, next((n for n in whole.given if n not in single.given), ""))


def _joins(whole: Tensor, steps: list[Tensor]) -> bool:
    """Whether what steps gave, one behind the other along some dimension, is the whole."""
    one, count = steps[0], len(steps)
    if any(v.shape != one.shape for v in steps) or whole.dim() != one.dim():
        return False
    for d in range(one.dim()):
        if whole.shape[d] != count * one.shape[d]:
            continue
        rest = [*whole.shape[:d], *whole.shape[d + 1 :]]
        if rest != [*one.shape[:d], *one.shape[d + 1 :]]:
            continue
        inner = torch.stack(steps, d + 1).flatten(d, d + 1)
        if _close(whole, torch.cat(steps, d)) or _close(whole, inner):
            return True
    return whole.shape == one.shape and all(_close(whole, v) for v in steps)


def _close(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not a.is_floating_point():
        return a.numel() == 0 or float((a != b).float().mean()) < 0.1
    tolerance = 1e-3 if a.dtype in (torch.float32, torch.float64) else 0.05
    return torch.allclose(a, b, rtol=tolerance, atol=tolerance * _size(a), equal_nan=True)


def _size(v: Tensor) -> float:
    finite = v[v.isfinite()].abs()
    return float(finite.max()) if finite.numel() else 1.0
