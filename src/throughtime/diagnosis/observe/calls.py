"""The calls of a model's recurrent modules in one run, and which continues which.

A module may be called once with whole sequences, piece by piece with the state handed on (as cells
are, one step at a time), or on several separate batches. A sequence is a chain of calls; the
sequences of a module are the rows of one batch of ragged lengths.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from throughtime.diagnosis.observe.steps import (
    find_alive_steps,
    join_batches,
    move_to_front,
    pad_packed,
    restructure,
)
from throughtime.errors import NotFiniteError, OptionError
from throughtime.layers import SequenceLayer
from throughtime.layers.batch import Batch, States, list_tensors

State = tuple[Tensor, ...]


@dataclass(eq=False)
class ModuleCall:
    """One call of a recurrent module.

    Attributes:
        batch: padded and time-major; `lengths` where its rows differ.
        alive: (T, B) bool, step t lies inside row b.
        before: the call whose final state this one continues; None where sequences begin.
        masked: some rows have the state from before that call, as after a mask.
        changed: some rows have other states than either.
        fed_back: the input depends on the module's earlier outputs.
        walks: over layers and directions, T + 1 states in the direction's order, where the call
            ran step by step.
        computed: outputs and final states as the layer made them.
        returned: the same as the caller has them.
        continued: whether a later call continues it.
        continued_rows: (B,) bool, rows that a later call continues; None where there is none.
    """

    batch: Batch
    alive: Tensor
    before: ModuleCall | None = None
    masked: bool = False
    changed: bool = False
    fed_back: bool = False
    walks: list[tuple[State, ...]] = field(default_factory=list)
    computed: tuple[Tensor, ...] = ()
    returned: tuple[Tensor, ...] = ()
    continued: bool = False
    continued_rows: Tensor | None = None

    @property
    def first_step(self) -> int:
        """The number of steps before it in its chain."""
        return 0 if self.before is None else self.before.first_step + len(self.before.alive)


class Calls:
    """Every call of every recurrent module in one run.

    Args:
        last_only: outputs before a module's last step are constants, except for the module's
            later steps.
        direct: gradients by a call's outputs leave out paths through the module's later steps;
            and an input that comes through another module counts as fed back, too.

    Attributes:
        by_name: module's name -> its calls in order.
        fault: the first input or state that is not finite; the run continues, so that its steps
            can be counted.
        joining: whether a gradient is passing from one call of a module to those before.
    """

    def __init__(self, last_only: bool = False, direct: bool = False) -> None:
        self.last_only, self.direct = last_only, direct
        self.by_name: dict[str, list[ModuleCall]] = {}
        self.fault: NotFiniteError | None = None
        self.joining = False

    def begin(self, name: str, layer: SequenceLayer, batch: Batch) -> ModuleCall:
        """Register a call with its batch, of which the steps must have one order, and no resets."""
        words = f"layer {name or 'of the model'}"
        if batch.reset is not None:
            raise OptionError(
                f"{words} is given resets, across which no lag is counted; give each sequence a "
                f"row of its own"
            )
        call = _pad(batch)
        earlier = self.by_name.setdefault(name, [])
        self._find_before(call, earlier, layer, words)
        earlier.append(call)
        return call

    def end(self, call: ModuleCall, y: Tensor, final: States) -> tuple[Tensor, States]:
        """Register a call's results; returns them with the call on their graph."""
        call.computed = (y, *(v for s in final for v in s))
        call.returned = _Gate.apply(self, call, *call.computed)  # type: ignore[no-untyped-call]
        values = iter(call.returned[1:])
        return call.returned[0], tuple(tuple(next(values) for _ in s) for s in final)

    def _find_before(
        self, call: ModuleCall, earlier: list[ModuleCall], layer: SequenceLayer, words: str
    ) -> None:
        """Find the call that this one continues, and join the two where gradients need it."""
        batch = call.batch
        states = list(list_tensors(batch.state))
        read = [batch.x, *(batch.inputs or {}).values()]
        groups = _find_sources(states), _find_sources(read, earlier if self.direct else None)
        by_state, by_input = ([c for c in earlier if c in group] for group in groups)
        before = by_state[-1] if by_state else None
        chain = set(_walk_back(before))
        if not chain.issuperset(by_input) or not chain.issuperset(by_state):
            raise OptionError(
                f"{words} runs twice on a batch; it must run once, or on from the state it gave, "
                f"and not on outputs of its own as if they were another layer's"
            )
        if before is None:
            return
        _check_chain(before, call, layer, words)
        call.before, call.fed_back = before, bool(by_input)
        self._continue(call, before, layer)
        if self.last_only and call.changed:
            call.batch = _join(self, call.batch, [c for c in earlier if c in chain])
        elif self.last_only and by_input:
            call.batch = _join(self, call.batch, by_input, inputs_only=True)

    def _continue(self, call: ModuleCall, before: ModuleCall, layer: SequenceLayer) -> None:
        """Compare a state with the final state before; where equal, take it from there."""
        states, old = ([*list_tensors(one.batch.state)] for one in (call, before))
        old = old or list(list_tensors(layer.initial_state(before.alive.shape[1])))
        new, same = before.computed[1:], _compare_rows(states, before.returned[1:])
        call.masked = not bool(same.all())
        call.changed = call.masked and not bool((same | _compare_rows(states, old)).all())
        before.continued = True
        if call.changed:
            return
        before.alive = before.alive & same
        if self.last_only or self.direct:
            taken = [torch.where(same.unsqueeze(1), v, w) if call.masked else v
                     for v, w in zip(new, old, strict=True)]  # fmt: skip
            call.batch = call.batch._replace(state=restructure(call.batch.state, iter(taken)))

    def finish(self, loss: Tensor) -> None:
        """Find where the rows of every chain end, from the loss.

        Under a mask the last call is a step of those rows where the loss depends on it; where a
        state is changed in between, a row ends with the last call that the loss depends on.
        """
        for name in self.by_name:
            for chain in self.sequences(name):
                later = torch.zeros_like(chain[0].alive.any(0))
                read = self._find_read_rows(chain, loss)
                for call, rows in zip(reversed(chain), reversed(read), strict=True):
                    call.continued_rows = later if call.continued else None
                    later = later | (call.alive.any(0) if rows is None else rows)

    def _find_read_rows(self, chain: list[ModuleCall], loss: Tensor) -> list[Tensor | None]:
        """(B,) bool for each call, rows whose states the loss depends on; None: all alive ones."""
        changed = any(call.changed for call in chain)
        if not changed and not any(call.masked for call in chain):
            return [None] * len(chain)
        read = chain if changed else chain[-1:]
        returned = [v for call in read for v in call.returned]
        last_only, self.last_only = self.last_only, False  # all gates open
        d = gradients_by(loss, returned)
        self.last_only = last_only
        each = iter((v != 0).any(-1).any(0) for v in d)
        rows = [torch.stack([next(each) for _ in call.returned]).any(0) for call in read]
        if changed:
            return [*rows]
        chain[-1].alive = chain[-1].alive & rows[0]
        return [None] * len(chain)

    def sequences(self, name: str) -> list[list[ModuleCall]]:
        """The chains of a module's calls, in the order in which they begin."""
        chains: dict[ModuleCall, list[ModuleCall]] = {}
        for call in self.by_name[name]:
            chain = chains.pop(call.before) if call.before is not None else []
            chains[call] = [*chain, call]
        begun = {id(call): i for i, call in enumerate(self.by_name[name])}
        return sorted(chains.values(), key=lambda chain: begun[id(chain[0])])

    def explain_split(self, name: str) -> str:
        """Why a module's calls are not whole sequences of its layer; empty where they are."""
        if any(call.changed for call in self.by_name[name]):
            return (
                f"between two calls of {name or 'the model'} its state is changed, so that its "
                f"equations alone are not what one step does"
            )
        return ""

    def batch(self, name: str, layer: SequenceLayer) -> Batch:
        """All sequences of a module as the rows of one batch.

        Where a state is changed in between, each call is a short sequence from its state.
        """
        chains = self.sequences(name)
        if self.explain_split(name):
            chains = [[call] for chain in chains for call in chain]
        parts = [join_calls(chain) for chain in chains]
        return parts[0] if len(parts) == 1 else join_batches(parts, layer)


def gradients_by(value: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of a value by tensors; zeros where it does not depend on one."""
    recorded = [v for v in tensors if v.requires_grad]
    each = iter(torch.autograd.grad(value, recorded, retain_graph=True, materialize_grads=True)
                 if recorded else ())  # fmt: skip
    return [next(each) if v.requires_grad else torch.zeros_like(v) for v in tensors]


class _Gate(torch.autograd.Function):
    """The identity; gradients of rows that a later call continues are stopped."""

    @staticmethod
    def forward(ctx: Any, calls: Calls, call: ModuleCall, *values: Tensor) -> Any:
        ctx.set_materialize_grads(False)
        ctx.calls, ctx.call = calls, call
        return tuple(v.view_as(v) for v in values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        continued_rows = ctx.call.continued_rows if ctx.calls.last_only else None
        if ctx.calls.joining or (continued_rows is not None and bool(continued_rows.all())):
            return (None,) * (2 + len(gradients))
        if continued_rows is not None:
            gradients = tuple(_select_gradient(d, ~continued_rows) for d in gradients)
        return None, None, *gradients


class _Join(torch.autograd.Function):
    """The identity on a module's input, with gradients to its earlier calls past their gates."""

    @staticmethod
    def forward(
        ctx: Any, calls: Calls, sources: list[tuple[ModuleCall, Tensor]], *tensors: Tensor
    ) -> Any:
        """From the values and one tensor a source, which receives the source's gradient."""
        ctx.set_materialize_grads(False)
        ctx.calls, ctx.sources = calls, sources
        ctx.values = tensors[: len(tensors) - len(sources)]
        return tuple(v.view_as(v) for v in ctx.values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        back: Sequence[Tensor | None] = [None] * len(ctx.sources)
        read = [(v, d) for v, d in zip(ctx.values, gradients, strict=True) if d is not None]
        if read and ctx.calls.last_only:
            values, sent = zip(*read, strict=True)
            returned = [v for _, v in ctx.sources]
            ctx.calls.joining = True  # so that gradients stop at every gate
            try:
                back = torch.autograd.grad(
                    values, returned, sent, retain_graph=True, allow_unused=True
                )
            finally:
                ctx.calls.joining = False
        calls = (call for call, _ in ctx.sources)
        rows = [
            _select_gradient(d, call.continued_rows) for call, d in zip(calls, back, strict=True)
        ]
        return None, None, *gradients, *rows


def _select_gradient(d: Tensor | None, rows: Tensor) -> Tensor | None:
    """The gradient (., B, .) of some rows, zero of the others."""
    return None if d is None else torch.where(rows.unsqueeze(1), d, 0)


def _join(
    calls: Calls, batch: Batch, earlier: list[ModuleCall], *, inputs_only: bool = False
) -> Batch:
    """The batch, with gradients that also reach the results of these calls."""
    states = [] if inputs_only else list(list_tensors(batch.state))
    values = [batch.x, *(batch.inputs or {}).values(), *states]
    values_read = [v for v in values if v.requires_grad]
    pairs = [(c, v, w) for c in earlier for v, w in zip(c.returned, c.computed, strict=True)
             if v.requires_grad]  # fmt: skip
    sources, computed = [(c, v) for c, v, _ in pairs], [w for *_, w in pairs]
    new = iter(_Join.apply(calls, sources, *values_read, *computed))  # type: ignore[no-untyped-call]
    x, *rest = [next(new) if v.requires_grad else v for v in values]
    parts = iter(rest)
    inputs = batch.inputs and {n: next(parts) for n in batch.inputs}
    state = batch.state if inputs_only else restructure(batch.state, parts)
    return batch._replace(x=x, state=state, inputs=inputs)


def _compare_rows(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """(B,) bool: rows of which all states (D, B, width) are equal."""
    return torch.stack([(v == w).all(-1).all(0) for v, w in zip(a, b, strict=True)]).all(0)


def _find_sources(
    values: Iterable[Tensor], among: Sequence[ModuleCall] | None = None
) -> set[ModuleCall]:  # fmt: skip
    """The calls whose outputs values depend on, with no other call of these in between."""
    stack: list[Any] = [v.grad_fn for v in values]
    visited, calls = set(), set()
    while stack:
        node = stack.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        call = getattr(node, "call", None)
        if isinstance(call, ModuleCall) and (among is None or call in among):
            calls.add(call)
        else:
            stack += [n for n, _ in node.next_functions]
    return calls


def _walk_back(call: ModuleCall | None) -> Iterator[ModuleCall]:
    """The call and all before it."""
    while call is not None:
        yield call
        call = call.before


def _check_chain(before: ModuleCall, call: ModuleCall, layer: SequenceLayer, words: str) -> None:
    if before.continued:
        raise OptionError(
            f"two calls of {words} go on from one state, so that its steps have no one order; "
            f"give a batch on which each state is carried on once"
        )
    if layer.directions > 1:
        raise OptionError(
            f"{words} runs piece by piece and both ways, so that its backward direction has no "
            f"one order; give it whole sequences"
        )
    rows = before.alive.shape[1], call.alive.shape[1]
    if rows[0] != rows[1]:
        raise OptionError(
            f"the rows of {words} change from {rows[0]} to {rows[1]} between two of its calls; "
            f"give a batch of rows that all run to the end"
        )


def _pad(batch: Batch) -> ModuleCall:
    """The call of a batch; one of packed rows is padded."""
    batch = pad_packed(batch._replace(norms=None))
    alive = find_alive_steps(batch)
    return ModuleCall(batch._replace(lengths=None) if bool(alive.all()) else batch, alive)


def join_calls(chain: list[ModuleCall]) -> Batch:
    """The rows of a chain of calls as whole sequences."""
    first = chain[0].batch
    if len(chain) == 1:
        return first
    alive = torch.cat([c.alive for c in chain])
    x = torch.cat([c.batch.x for c in chain])
    inputs = first.inputs and {
        n: torch.cat([(c.batch.inputs or {})[n] for c in chain]) for n in first.inputs
    }
    return first._replace(
        x=move_to_front(x, alive),
        inputs=inputs and {n: move_to_front(v, alive) for n, v in inputs.items()},
        lengths=None if bool(alive.all()) else alive.sum(0),
    )
