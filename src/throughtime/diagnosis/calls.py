"""The calls that one run of a model makes of its recurrent modules, and which goes on from which.

A module may be called once with whole sequences, piece by piece with the state handed on (as cells
are, one step at a time), or on several batches apart. A sequence is a chain of calls; the sequences
of a module are the rows of one batch, each of its own length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from throughtime.backends.call import Result, packed_mask, unpack
from throughtime.diagnosis.alignment import alive_steps, side_by_side, to_the_front
from throughtime.errors import NotFiniteError, OptionError
from throughtime.layers.batch import Batch, States
from throughtime.layers.drop_in_cell import DropInCell
from throughtime.layers.drop_in_checks import check_cell_dimensions, check_cell_sizes
from throughtime.layers.recurrent import Recurrent
from throughtime.layers.sequence import SequenceLayer

State = tuple[Tensor, ...]
Carry = Callable[[str, SequenceLayer, Batch], tuple[Tensor, list[Result]]]
"""Module's name, layer and batch -> outputs and each layer's result, as `Passage.carry`."""


@dataclass(eq=False)
class ModuleCall:
    """One call of a recurrent module.

    Attributes:
        batch: padded and time-major; `lengths` where its rows differ.
        alive: (T, B) bool, step t lies inside row b.
        before: the call from whose final state this one goes on; None where sequences begin.
        changed: the state came with other numbers than that call had given out.
        fed_back: the input depends on what the module gave before.
        walks: over layers and directions, T + 1 states in the direction's own order, where the
            call was walked step by step.
        computed: outputs and final states as the layer made them.
        returned: the same as its caller has them.
        goes_on: (B,) bool, rows that a later call carries on; None before one does.
    """

    batch: Batch
    alive: Tensor
    before: ModuleCall | None = None
    changed: bool = False
    fed_back: bool = False
    walks: list[tuple[State, ...]] = field(default_factory=list)
    computed: tuple[Tensor, ...] = ()
    returned: tuple[Tensor, ...] = ()
    goes_on: Tensor | None = None

    @property
    def first_step(self) -> int:
        """How many steps the calls before it in its chain have taken."""
        return 0 if self.before is None else self.before.first_step + len(self.before.alive)


class Calls:
    """Every call of every recurrent module in one run.

    Args:
        last_only: what a module gave before its own last step counts as a constant for all but
            the module's own later steps.
        direct: what a caller is given is felt apart from the module's own later steps; and an
            input counts as fed back that comes by way of another module, too.

    Attributes:
        by_name: module's name -> its calls in order.
        fault: the first input or state that is not finite; the run goes on, so that its steps
            can be counted.
    """

    def __init__(self, last_only: bool = False, direct: bool = False) -> None:
        self.last_only, self.direct = last_only, direct
        self.by_name: dict[str, list[ModuleCall]] = {}
        self.fault: NotFiniteError | None = None

    def enter(self, name: str, layer: SequenceLayer, batch: Batch) -> ModuleCall:
        """A call that begins, with what it is given.

        Raises:
            OptionError: its state or input depends on the module's own outputs in a way that
                leaves its steps without one order; resets.
        """
        words = f"layer {name or 'of the model'}"
        if batch.reset is not None:
            raise OptionError(
                f"{words} is given resets, across which no lag is counted; give each sequence a "
                f"row of its own"
            )
        call = _padded(batch)
        earlier = self.by_name.setdefault(name, [])
        self._place(call, earlier, layer, words)
        earlier.append(call)
        return call

    def leave(
        self, call: ModuleCall, y: Tensor, final: States
    ) -> tuple[Tensor, States]:  # fmt: skip
        """What the caller is given: the same numbers, of which it is known whose they are."""
        call.computed = (y, *(v for s in final for v in s))
        call.returned = _Gate.apply(call, self.last_only, *call.computed)  # type: ignore[no-untyped-call]
        values = iter(call.returned[1:])
        return call.returned[0], tuple(tuple(next(values) for _ in s) for s in final)

    def _place(
        self, call: ModuleCall, earlier: list[ModuleCall], layer: SequenceLayer, words: str
    ) -> None:
        """Find the call that this one goes on from, and join the two where gradients need it."""
        batch = call.batch
        states = _flat(batch.state)
        read = [batch.x, *(batch.inputs or {}).values()]
        among = earlier if self.direct else None
        by_state, by_input = (
            [c for c in earlier if c in found]
            for found in (_sources(states), _sources(read, among))
        )
        before = by_state[-1] if by_state else None
        chain = set(_chain_to(before))
        if not chain.issuperset(by_input) or not chain.issuperset(by_state):
            raise OptionError(
                f"{words} runs twice on a batch; it must run once, or on from the state it gave, "
                f"and not on outputs of its own as if they were another layer's"
            )
        if before is None:
            return
        _check_chain(before, call, layer, words)
        returned = before.returned[1:]
        call.before, call.fed_back = before, bool(by_input)
        call.changed = any(not torch.equal(v, w) for v, w in zip(states, returned, strict=True))
        before.goes_on = call.alive.any(0)
        if self.last_only:
            call.batch = _joined(batch, [*by_state, *(c for c in by_input if c not in by_state)])
        elif self.direct:
            call.batch = batch._replace(state=alike(batch.state, iter(before.computed[1:])))

    def sequences(self, name: str) -> list[list[ModuleCall]]:
        """The chains of a module's calls, in the order in which they begin."""
        chains: dict[ModuleCall, list[ModuleCall]] = {}
        for call in self.by_name[name]:
            chain = chains.pop(call.before) if call.before is not None else []
            chains[call] = [*chain, call]
        begun = {id(call): i for i, call in enumerate(self.by_name[name])}
        return sorted(chains.values(), key=lambda chain: begun[id(chain[0])])

    def reason_apart(self, name: str) -> str:
        """Why a module's calls are not whole sequences of its layer; empty where they are."""
        if any(call.changed for call in self.by_name[name]):
            return (
                f"between two calls of {name or 'the model'} its state is changed, so that its "
                f"equations alone are not what one step does"
            )
        return ""

    def batch(self, name: str, layer: SequenceLayer) -> Batch:
        """All sequences of a module as the rows of one batch.

        Those whose state is changed in between are many short ones, each from what it was given.
        """
        chains = self.sequences(name)
        if self.reason_apart(name):
            chains = [[call] for chain in chains for call in chain]
        parts = [whole(chain) for chain in chains]
        return parts[0] if len(parts) == 1 else side_by_side(parts, layer)


@contextmanager
def observed(
    modules: Mapping[str, tuple[nn.Module, SequenceLayer]], carry: Carry
) -> Iterator[None]:
    """Inside, every call of these modules is carried by a function of the caller's.

    Args:
        modules: name -> a layer or cell, and it or the layer that stands for it.
        carry: what is called instead of the layer's own `carry`.
    """
    for name, (module, layer) in modules.items():
        attributes, carried = vars(module), partial(carry, name, layer)
        if isinstance(module, DropInCell):
            attributes["_step"] = partial(_step, module, carried)
            continue
        attributes["carry"] = lambda batch, *_, carried=carried: carried(batch)
        attributes["_takes_stack"] = lambda _: False  # torch's kernel would go past `carry`
    try:
        yield
    finally:
        for module, _ in modules.values():
            for name in ("_step", "carry", "_takes_stack"):
                vars(module).pop(name, None)


def as_layer(module: nn.Module) -> SequenceLayer:
    """A layer of the same equations and the very same weights; a layer is its own."""
    if isinstance(module, SequenceLayer):
        return module
    assert isinstance(module, DropInCell)
    layer = Recurrent(
        module.cell, module.input_size, module.hidden_size, bias=module.bias, device="meta"
    )
    for short, name in layer.weight_names(0, 0).items():
        if isinstance(weight := module._parameters.get(short), nn.Parameter):
            layer._parameters[name] = weight
        else:  # a parametrised one comes anew at each call
            del layer._parameters[name]
    vars(layer)["weights"] = lambda *_: module.weights()
    return layer.train(module.training)


def _step(
    cell: DropInCell, carry: Callable[[Batch], tuple[Tensor, list[Result]]], input: Tensor,
    state: State | None,
) -> State:  # fmt: skip
    """`DropInCell._step` through a layer of one step."""
    check_cell_dimensions(cell, input, state)
    single = input.dim() == 1
    x = input.unsqueeze(0) if single else input
    if state is not None:
        state = tuple(v.unsqueeze(0) for v in state) if single else state
    zeros = tuple(x.new_zeros(x.shape[0], cell.hidden_size) for _ in cell.cell.state_names)
    check_cell_sizes(cell, x, zeros if state is None else state)
    start = None if state is None else (tuple(v.unsqueeze(0) for v in state),)
    (result,) = carry(Batch(x.unsqueeze(0), start))[1]
    return tuple(v[0, 0] if single else v[0] for v in result.final)


class _Gate(torch.autograd.Function):
    """The values as they are; gradients of rows that a later call carries on are stopped."""

    @staticmethod
    def forward(ctx: Any, call: ModuleCall, last_only: bool, *values: Tensor) -> Any:
        ctx.call, ctx.last_only = call, last_only
        return tuple(v.view_as(v) for v in values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        goes_on = ctx.call.goes_on if ctx.last_only else None
        if goes_on is not None:
            gradients = tuple(torch.where(goes_on.unsqueeze(1), 0, d) for d in gradients)
        return None, None, *gradients


class _Join(torch.autograd.Function):
    """What a module is given, which its own earlier calls feel although their gates are shut."""

    @staticmethod
    def forward(ctx: Any, sources: tuple[Tensor, ...], count: int, *tensors: Tensor) -> Any:
        ctx.sources, ctx.values = sources, tensors[:count]
        return tuple(v.view_as(v) for v in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        back = torch.autograd.grad(
            ctx.values, ctx.sources, gradients, retain_graph=True, allow_unused=True
        )
        return None, None, *gradients, *back


def _joined(batch: Batch, sources: list[ModuleCall]) -> Batch:
    """The batch, whose gradients also reach what these calls made of their steps."""
    states = _flat(batch.state)
    values = [batch.x, *states, *(batch.inputs or {}).values()]
    felt = [v for v in values if v.requires_grad]
    pairs = [(v, w) for c in sources for v, w in zip(c.returned, c.computed, strict=True)]
    returned, computed = zip(*((v, w) for v, w in pairs if v.requires_grad), strict=True)
    new = iter(_Join.apply(returned, len(felt), *felt, *computed))  # type: ignore[no-untyped-call]
    x, *rest = [next(new) if v.requires_grad else v for v in values]
    parts = iter(rest)
    state = batch.state and tuple(tuple(next(parts) for _ in s) for s in batch.state)
    inputs = batch.inputs and {n: next(parts) for n in batch.inputs}
    return batch._replace(x=x, state=state, inputs=inputs)


def _sources(
    values: Iterable[Tensor], among: Sequence[ModuleCall] | None = None
) -> set[ModuleCall]:  # fmt: skip
    """The calls whose outputs values depend on, with no other call of these in between."""
    stack: list[Any] = [v.grad_fn for v in values]
    seen, calls = set(), set()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        call = getattr(node, "call", None)
        if isinstance(call, ModuleCall) and (among is None or call in among):
            calls.add(call)
        else:
            stack += [n for n, _ in node.next_functions]
    return calls


def _chain_to(call: ModuleCall | None) -> Iterator[ModuleCall]:
    """The call and all before it."""
    while call is not None:
        yield call
        call = call.before


def _check_chain(before: ModuleCall, call: ModuleCall, layer: SequenceLayer, words: str) -> None:
    if before.goes_on is not None:
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


def _padded(batch: Batch) -> ModuleCall:
    """The call of a batch; one of packed rows is padded."""
    batch = batch._replace(norms=None)
    if batch.batch_sizes is not None:
        alive = packed_mask(batch.batch_sizes.to(batch.x.device))
        batch = batch._replace(
            x=unpack(batch.x, alive),
            lengths=alive.sum(0),
            batch_sizes=None,
            inputs=batch.inputs and {n: unpack(v, alive) for n, v in batch.inputs.items()},
        )
    alive = alive_steps(batch)
    return ModuleCall(batch._replace(lengths=None) if bool(alive.all()) else batch, alive)


def whole(chain: list[ModuleCall]) -> Batch:
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
        x=to_the_front(x, alive),
        inputs=inputs and {n: to_the_front(v, alive) for n, v in inputs.items()},
        lengths=None if bool(alive.all()) else alive.sum(0),
    )


def arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
    """x, state and what else the batch of a call is made of, whatever its layer calls them."""
    others = ("x", "input", "state", "hx", "gradient_norms")
    given = {k: v for k, v in kwargs.items() if k not in others}
    x = args[0] if args else kwargs.get("x", kwargs.get("input"))
    state = args[1] if len(args) > 1 else kwargs.get("state", kwargs.get("hx"))
    return x, state, given


def tensors(value: Any) -> list[Tensor]:
    """All tensors in a tuple of tuples, in order."""
    if isinstance(value, Tensor):
        return [value]
    return [] if value is None else [v for part in value for v in tensors(part)]


def alike(form: Any, values: Any) -> Any:
    """The values in the form of a tuple of tuples."""
    if isinstance(form, Tensor):
        return next(values)
    return tuple(alike(part, values) for part in form)


def _flat(states: States | None) -> list[Tensor]:
    return [v for s in states or () for v in s]
