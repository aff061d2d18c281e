"""A call of a layer walked step by step, every state kept as a node of the graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from throughtime.backends import reference
from throughtime.backends.call import Call, Result
from throughtime.diagnosis.trouble import where
from throughtime.errors import NotFiniteError, OptionError, ShapeError
from throughtime.layers.batch import Batch
from throughtime.layers.sequence import SequenceLayer

State = tuple[Tensor, ...]


@dataclass(frozen=True)
class Path:
    """One call of one layer and direction; its states are nodes of the graph of the loss.

    Attributes:
        name: the module's name in the model; empty when it is the model.
        layer: number of the layer in the module.
        direction: 0 forward, 1 backward.
        x: (T, B, I), what the layer reads.
        states: T + 1 tuples over the cell's states, each (1, B, width), in the direction's own
            order: the start, then the state after each step.
    """

    name: str
    layer: int
    direction: int
    x: Tensor
    states: tuple[State, ...]

    def gradients(self, value: Tensor) -> Tensor:
        """(T, B, N): the total gradient of a value by the states side by side after each step."""
        return by_states(value, self.states[1:])


def by_states(value: Tensor, states: Sequence[State]) -> Tensor:
    """(states, B, N): the total gradient of a value by each state, its parts side by side."""
    flat = [v for state in states for v in state]
    found = iter(torch.autograd.grad(value, flat, retain_graph=True, materialize_grads=True))
    return torch.cat([torch.cat([next(found) for _ in state], -1) for state in states])


@dataclass
class Record:
    """What the layers of one run leave behind: see `Seen`."""

    paths: list[Path] = field(default_factory=list)
    batches: dict[str, Batch] = field(default_factory=dict)


def carry(
    layer: SequenceLayer, name: str, record: Record, last_only: bool, batch: Batch, *_: Any
) -> tuple[Tensor, list[Result]]:
    """`Passage.carry` step by step, its states put on record."""
    if name in record.batches:
        raise OptionError(f"layer {name or 'of the model'} runs twice on a batch; it must run once")
    record.batches[name] = batch
    _check_batch(name, batch)
    results: list[Result] = []
    count = len(layer.hidden_sizes)

    def run(number: int, call: Call) -> Tensor:
        paths = [_walk(call, name, number, d) for d in range(layer.directions)]
        for path in paths:
            _check_states(path, layer.cell.state_names)
        record.paths += paths
        cut = last_only and number + 1 == count
        outputs = torch.stack([_outputs(p, cut) for p in paths], 2)
        final = tuple(torch.cat(v) for v in zip(*(p.states[-1] for p in paths), strict=True))
        results.append(Result((outputs,), final))
        return outputs

    return layer.through(batch, run, cut=last_only), results


def _check_batch(name: str, batch: Batch) -> None:
    if batch.lengths is not None or batch.reset is not None or batch.batch_sizes is not None:
        raise OptionError(
            "states are looked at in sequences of one length without resets; give a batch of "
            "equal rows, not packed, without lengths and reset"
        )
    if not batch.x.numel():
        raise ShapeError(f"a diagnosis needs steps and rows, got x of {tuple(batch.x.shape)}")
    for what, v in (("input", batch.x), *(batch.inputs or {}).items()):
        step = first_step(v)
        if step is not None:
            raise NotFiniteError(
                f"the {what} of layer {name or 'of the model'} is NaN or infinity, first at step "
                f"{step} (counted from 0)", "input", name, step,
            )  # fmt: skip


def first_step(v: Tensor) -> int | None:
    """The first t at which (T, ...) has NaN or infinity; None where it has none."""
    bad = torch.nonzero(~v.isfinite().flatten(1).all(1))
    return int(bad[0]) if len(bad) else None


def _check_states(path: Path, names: tuple[str, ...]) -> None:
    """Every state finite; the first that is not is named, in the direction's own order."""
    bad = []
    for i, name in enumerate(names):
        step = first_step(torch.cat([state[i].detach() for state in path.states[1:]]))
        if step is not None:
            bad.append((step, i, name))
    if bad:
        step, _, name = min(bad)
        t = len(path.states) - 2 - step if path.direction else step
        layer = where(path.layer, 0, path.name) + (", backward," if path.direction else "")
        text = f"state {name} of {layer} is NaN or infinity, first at step {t} (counted from 0)"
        raise NotFiniteError(text, "state", path.name, t)


def _walk(call: Call, name: str, number: int, d: int) -> Path:
    """One step a call of the plain loop, in the direction's own order."""
    T = call.x.shape[0]
    one = call.direction(d)
    start = (v if v.requires_grad else v.detach().requires_grad_() for v in one.start())
    states = [tuple(start)]
    for t in reversed(range(T)) if d else range(T):
        step = slice(t, t + 1)
        zoneout = one.zoneout and tuple(v[:, step] for v in one.zoneout)
        inputs = call.inputs and {n: v[step] for n, v in call.inputs.items()}
        here = one._replace(x=call.x[step], state=states[-1], zoneout=zoneout, inputs=inputs)
        states.append(reference.run(here).final)
    return Path(name, number, d, call.x, tuple(states))


def _outputs(path: Path, cut: bool) -> Tensor:
    """(T, B, width) in the order of time; with `cut` all but the own last step as constants."""
    own = [state[0][0] for state in path.states[1:]]
    if cut:
        own = [v.detach() for v in own[:-1]] + own[-1:]
    return torch.stack(own[::-1] if path.direction else own)
