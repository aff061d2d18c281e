"""Whether a model's steps, one by one, are those of its whole sequence: a few random ones."""

from __future__ import annotations

import copy
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from throughtime.errors import OptionError
from throughtime.layers.layer import Passage
from throughtime.layers.stream.frozen import Frozen
from throughtime.layers.stream.layers import LayerByLayer
from throughtime.layers.stream.parts import tensors_in
from throughtime.layers.stream.step import Step
from throughtime.layers.stream.trial import RAISED, ROWS, STEPS, close, trial_inputs

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
            for x in trial_inputs(frozen.model, frozen.batch_first, min(batch, ROWS), steps, like):
                whole = _Record(copy.deepcopy(frozen.model))
                try:
                    y = whole.model(x)
                    again = whole.model(x)
                except RAISED:
                    continue
                if not all(map(close, tensors_in(y), tensors_in(again))):
                    return None  # a model that tosses coins: nothing can be said
                timed = _compare(frozen, x, whole, y, last=steps == STEPS[-1])
                if timed is not None:
                    return Found(timed, x.dim() == 2)
                break
    return None


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
        joined or close(v, outputs[-1][i])
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
        if len(steps) == len(given) and (_joins(y, steps) or close(y, steps[-1])):
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
        if close(whole, torch.cat(steps, d)) or close(whole, inner):
            return True
    return whole.shape == one.shape and all(close(whole, v) for v in steps)
