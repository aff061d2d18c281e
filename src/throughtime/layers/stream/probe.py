"""Whether a model's steps, one by one, equal its whole sequence, on random inputs."""

from __future__ import annotations

import copy
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from throughtime.errors import OptionError
from throughtime.layers.batch import list_tensors
from throughtime.layers.layer import Passage
from throughtime.layers.stream.frozen import ROWS, STEPS, Frozen, is_close, make_inputs
from throughtime.layers.stream.layers import LayerByLayer, Step
from throughtime.layers.stream.parts import RAISED

_CURE: Final = (
    "a stream needs parts that compute each step alone, or carry their state as throughtime's "
    "layers do"
)


class StepForm(NamedTuple):
    """The form of a model's inputs and outputs, as random steps show it.

    Attributes:
        timed: for each tensor that the model returns, whether it has a step for each step of x.
        tokens: whether x is one whole number for each row.
    """

    timed: list[bool]
    tokens: bool


@torch.no_grad()
def probe(frozen: Frozen, batch: int, like: Tensor | None = None) -> StepForm | None:
    """Compare random steps of a model, one by one, with the whole sequence.

    Args:
        frozen: the model.
        batch: of the stream.
        like: x of one step, (1, B, ...) or (B, 1, ...); None: inputs that the model's parts seem
            to take.

    Returns:
        The form of the model's steps, or None where it takes no such input.

    Raises:
        OptionError: the steps differ; the text names the part.
    """
    with torch.random.fork_rng(devices=[]):
        for steps in STEPS:
            for x in make_inputs(frozen.model, frozen.batch_first, min(batch, ROWS), steps, like):
                whole = _Record(copy.deepcopy(frozen.model))
                try:
                    y = whole.model(x)
                    again = whole.model(x)
                except RAISED:
                    continue
                if not all(map(is_close, list_tensors(y), list_tensors(again))):
                    return None  # a random model: its steps cannot be compared
                timed = _compare(frozen, x, whole, y, last=steps == STEPS[-1])
                if timed is not None:
                    return StepForm(timed, x.dim() == 2)
                break
    return None


class _Record:
    """A model that records the input and the result of each of its parts in the last call.

    Attributes:
        model: the model.
        inputs, results: name of a part -> its first tensor, in the order of the calls.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.inputs: dict[str, Tensor] = {}
        self.results: dict[str, Tensor] = {}
        inner = {id(step.layer) for step in model.modules() if isinstance(step, Step)}
        for name, part in model.named_modules():
            if name and id(part) not in inner:
                part.register_forward_hook(self._hook(name))

    def _hook(self, name: str) -> Any:
        def hook(_: nn.Module, args: Any, y: Any) -> None:
            for place, value in ((self.inputs, args), (self.results, y)):
                for v in list_tensors(value):
                    place[name] = v.detach().clone()
                    break

        return hook


def _compare(frozen: Frozen, x: Tensor, whole: _Record, y: Any, last: bool) -> list[bool] | None:
    """Which outputs of the whole sequence are those of single steps, one after the other.

    None where only a recurrent layer differs, which can be chaos: fewer steps are tried then, and
    with the fewest, the `last`, the difference is accepted.
    """
    outputs, inputs, results = _run_steps(frozen, x, whole)
    tensors = list(list_tensors(y))  # states come last
    wanted = tensors[: len(outputs[0])] if isinstance(y, tuple) else tensors
    timed = [_is_joined(v, [o[i] for o in outputs]) for i, v in enumerate(wanted)]
    same = len(wanted) == len(outputs[0]) and all(
        joined or is_close(v, outputs[-1][i])
        for i, (v, joined) in enumerate(zip(wanted, timed, strict=True))
    )
    name = "" if same else _find_culprit(whole, inputs, results)
    if name and isinstance(whole.model.get_submodule(name), Passage):
        return timed if last else None
    if not same:
        raise OptionError(
            f"{_describe(whole, name)} computes across steps: its steps, one by one, are not "
            f"those of a whole sequence; {_CURE}"
        )
    return timed


def _run_steps(
    frozen: Frozen, x: Tensor, whole: _Record
) -> tuple[list[list[Tensor]], list[dict[str, Tensor]], list[dict[str, Tensor]]]:
    """For each step the model's outputs, and the inputs and results of its parts."""
    time = int(frozen.batch_first)
    layered = LayerByLayer(frozen, x.shape[1 - time])
    single = _Record(layered.model)
    outputs, inputs, results = [], [], []
    for v in x.split(1, time):
        try:
            outputs.append([t.clone() for t in list_tensors(layered.call(v, {}))])
        except RAISED as error:
            if isinstance(error, OptionError):
                raise
            reached = next((n for n in whole.results if n not in single.results), "")
            raise OptionError(
                f"{_describe(whole, reached)} takes whole sequences and no single step "
                f"({error}); {_CURE}"
            ) from error
        inputs.append(dict(single.inputs))
        results.append(dict(single.results))
    return outputs, inputs, results


def _find_culprit(
    whole: _Record, inputs: list[dict[str, Tensor]], results: list[dict[str, Tensor]]
) -> str:
    """The first part whose results differ from the whole's on equal inputs, or ""."""
    for name, y in whole.results.items():
        steps = [v[name] for v in results if name in v]
        if len(steps) == len(results) and (_is_joined(y, steps) or is_close(y, steps[-1])):
            continue
        x = whole.inputs.get(name)
        before = [v[name] for v in inputs if name in v]
        if x is not None and len(before) == len(inputs) and _is_joined(x, before):
            return name
        break
    return ""


def _describe(whole: _Record, name: str) -> str:
    """A part in words."""
    if not name:
        return f"the forward of {type(whole.model).__name__}"
    return f"{name}, a {type(whole.model.get_submodule(name)).__name__},"


def _is_joined(whole: Tensor, steps: list[Tensor]) -> bool:
    """Whether the steps' results, joined along some dimension, equal the whole's."""
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
        if is_close(whole, torch.cat(steps, d)) or is_close(whole, inner):
            return True
    return whole.shape == one.shape and all(is_close(whole, v) for v in steps)
