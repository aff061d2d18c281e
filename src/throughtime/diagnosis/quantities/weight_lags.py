"""Where the weight gradient comes from: its parts by the lag between loss and weight.

They are taken apart from the gradient that arrives at a layer: of a loss by its outputs, before it
goes back in time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import zip_longest

import torch
from torch import Tensor, nn

from throughtime.backends.call import Result
from throughtime.diagnosis.observe import as_layer, observe_modules
from throughtime.diagnosis.observe.calls import Calls, ModuleCall, gradients_by, join_calls
from throughtime.diagnosis.observe.steps import (
    eval_mode,
    group_by_length,
    list_steps,
    move_to_front,
    take_rows,
)
from throughtime.errors import OptionError
from throughtime.layers import SequenceLayer
from throughtime.layers.batch import Batch, States, map_tensors
from throughtime.layers.checks import check_size
from throughtime.layers.layer import Passage
from throughtime.layers.options import merge_directions


@dataclass(frozen=True)
class WeightLags:
    """The gradient g of a layer's weights as the sum of G_k over lags k.

    G_k is what the use of the weights at step t - k adds to the loss at step t, over all t. All
    layers of a stack are one step, so a path through any of them counts the steps it crosses.

    Attributes:
        direction: 0 forward, 1 backward (where the loss is k steps before the weights' use).
        norm_by_lag: ||G_k||, k = 0 to T - 1; 0 once all that comes back is below 1e6 times the
            smallest normal number (1e-32 in float32).
        share_by_lag: F(K) = ||sum of G_k, k <= K|| / ||g||.
        cosine_by_lag: cos(sum of G_k, k <= K; g): how well back-propagation that reaches K steps
            back points.
        unexplained_share: ||sum of all G_k - g|| / ||g||, with g as autograd gives it: rounding.
        name: the module's name in the model, in a report.
    """

    direction: int
    norm_by_lag: tuple[float, ...]
    share_by_lag: tuple[float, ...]
    cosine_by_lag: tuple[float, ...]
    unexplained_share: float
    name: str = ""

    def steps_to(self, cosine: float = 0.99) -> int:
        """The first K from which on the cosine stays at or above so much."""
        low = [k for k, c in enumerate(self.cosine_by_lag) if c < cosine]
        return low[-1] + 1 if low else 0


def weight_lags(
    module: nn.Module, loss: Callable[[], Tensor], rows: int | None = None
) -> tuple[WeightLags, ...]:
    """Split the gradient of a layer's weights by lag, exactly; one result a direction.

    A loss of one step costs a few times one back-propagation; a loss of all T steps up to T / 2
    times as much, so give it few rows then. Weights that are frozen are left out.

    Args:
        module: a layer or cell inside the model that the loss runs.
        loss: runs the model and returns a scalar; computed once, in eval mode of the module.
        rows: how many rows of the module's batch, the longest; left out, all.

    Raises:
        OptionError: what `find_incoming_gradients` refuses; dilation, zoneout or several
            bidirectional layers, where a lag is not one number; or no gradient at all.

    Source: the sum over time of back-propagation through time (Werbos, 1990) with its terms
    sorted by distance; Williams and Peng (1990) for truncation.
    """
    if rows is not None:
        check_size("rows", rows)
    layer = as_layer(module)
    _check(layer)
    by_length = find_incoming_gradients(module, loss, rows)
    return tuple(_measure_direction(layer, by_length, d) for d in range(layer.directions))


def _check(layer: SequenceLayer) -> None:
    options = layer.options
    if options.has_zoneout or max(layer.dilations, default=1) > 1:
        raise OptionError("lags are taken apart for layers without zoneout and dilation")
    names = {layer.weight_names(i, d)[n] for i in range(len(layer.hidden_sizes))
             for d in range(layer.directions) for n in layer.weight_names(i, d)}  # fmt: skip
    if not names <= set(dict(layer.named_parameters())):
        raise OptionError("the layer's weights are parametrised; remove the parametrisations first")
    if layer.directions == 2 and len(layer.hidden_sizes) > 1:
        raise OptionError(
            "with several bidirectional layers a path goes back and forth in time, so it has no "
            "lag; look at a layer alone"
        )


def _measure_direction(
    layer: SequenceLayer, by_length: list[IncomingGradient], d: int
) -> WeightLags:
    if not by_length:
        raise OptionError("a diagnosis needs at least one step, and every row has none")
    stacks = [_Stack(layer, incoming, d) for incoming in by_length]
    names = stacks[0].names
    each = [torch.cat([incoming.d_weights[n].flatten() for n in names]) for incoming in by_length]
    g = torch.stack(each).double().sum(0)
    size = float(g.norm())
    if size == 0 or not bool(g.isfinite().all()):
        what = "zero" if size == 0 else "not finite"
        raise OptionError(f"the gradient of the layer's weights is {what}, so it has no parts")
    norms, shares, cosines, total = [], [], [], torch.zeros_like(g)
    for parts in zip_longest(*(stack.parts() for stack in stacks)):
        part = torch.stack([p for p in parts if p is not None]).sum(0)
        total += part
        norms.append(float(part.norm()))
        shares.append(float(total.norm()) / size)
        cosines.append(float(total @ g) / max(size * float(total.norm()), 1e-300))
    rest = max(len(incoming.d_outputs) for incoming in by_length) - len(norms)
    return WeightLags(
        direction=d,
        norm_by_lag=(*norms, *([0.0] * rest)),
        share_by_lag=(*shares, *(shares[-1:] * rest)),
        cosine_by_lag=(*cosines, *(cosines[-1:] * rest)),
        unexplained_share=float((total - g).norm()) / size,
    )


class _Stack:
    """All layers of one direction as one step, at any of the T steps."""

    def __init__(self, layer: SequenceLayer, incoming: IncomingGradient, d: int) -> None:
        self.B = incoming.batch.x.shape[1]
        self.residual = layer.options.residual
        steps = [s for s in list_steps(layer, incoming.batch, None) if s.direction == d]
        self.layers = [replace(s, weights=_make_leaves(s.weights)) for s in steps]
        weights = {layer.weight_names(s.layer, d)[n]: v
                 for s in self.layers for n, v in s.weights.items()}  # fmt: skip
        self.names = [n for n in weights if n in incoming.d_weights]  # frozen ones are left out
        self.trained = [weights[n] for n in self.names]
        self.back = 1 if d else -1  # where the step before lies
        self.d_y = split_merge(layer, incoming, d)
        self.d_s = [v[:, :, d] for s in incoming.d_states for v in s]

    def parts(self) -> Iterator[Tensor]:
        """G_0, G_1, ... while any gradient is left; each a vector in float64."""
        d_y, d_s = self.d_y, self.d_s
        T = len(d_y)
        for _ in range(T):
            alive = (d_y != 0).flatten(1).any(1)
            for v in d_s:
                alive = alive | (v != 0).flatten(1).any(1)
            at = torch.nonzero(alive).flatten()
            if not len(at):
                return
            part, before = self._back(at, d_y, d_s)
            yield part
            d_y, d_s = torch.zeros_like(d_y), [torch.zeros_like(v) for v in d_s]
            to = at + self.back
            inside = (to >= 0) & (to < T)
            for v, new in zip(d_s, before, strict=True):
                v[to[inside]] = _flush_small(new).unflatten(0, (len(at), self.B))[inside]

    @torch.enable_grad()
    def _back(self, at: Tensor, d_y: Tensor, d_s: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """One step back from the steps `at`: by the weights, and by the states before."""
        rows = (at.unsqueeze(1) * self.B + torch.arange(self.B, device=at.device)).flatten()
        befores: list[Tensor] = []
        afters: list[Tensor] = []
        y = None
        for s in self.layers:
            below = s.x[rows] if y is None else y
            before = tuple(v[rows].requires_grad_() for v in s.before)
            inputs = {n: v[rows] for n, v in s.inputs.items()}
            new = replace(s, x=below, inputs=inputs).again(before)
            y = new[0] + below if self.residual and s.layer else new[0]
            befores += before
            afters += new
        assert y is not None
        wanted = [*befores, *self.trained]
        sent = [d_y[at].flatten(0, 1), *(v[at].flatten(0, 1) for v in d_s)]
        gradients = torch.autograd.grad([y, *afters], wanted, sent, materialize_grads=True)
        weights = torch.cat([v.flatten() for v in gradients[len(befores) :]]).double()
        return weights, list(gradients[: len(befores)])


def _flush_small(v: Tensor) -> Tensor:
    """Flush tiny numbers to zero, since processors are slow with subnormal ones."""
    return torch.where(v.abs() < 1e6 * torch.finfo(v.dtype).tiny, 0, v)


def _make_leaves(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies that train, without the initial states, which no step uses."""
    used = {n: v for n, v in weights.items() if not n.startswith("initial_")}
    return {n: v.clone().requires_grad_() for n, v in used.items()}


@dataclass(frozen=True)
class IncomingGradient:
    """Sequences of a layer inside a model, and the gradients of a loss that arrive at them.

    Attributes:
        batch: the layer's batch, rows of one length in its layout.
        d_outputs: (T, B, O), of the loss by the outputs of each step, without paths through later
            steps of this layer.
        d_states: over layers and states (T, B, D, width): of the loss by the states that were
            returned after a step, likewise.
        d_weights: parameter's name -> gradient of the loss, all paths together.
    """

    batch: Batch
    d_outputs: Tensor
    d_states: States
    d_weights: dict[str, Tensor]


def find_incoming_gradients(
    module: nn.Module, loss: Callable[[], Tensor], rows: int | None = None
) -> list[IncomingGradient]:
    """Compute a loss in eval mode and the gradients that arrive at one layer or cell.

    One result for each length of row, the longest first.

    Raises:
        OptionError: the module runs neither once nor piece by piece with its state handed on, its
            state is changed or its outputs are fed back between its calls, the loss is not finite
            or does not depend on it, or none of its weights trains.
    """
    layer, calls = as_layer(module), Calls(direct=True)

    def carried(name: str, layer: SequenceLayer, batch: Batch) -> tuple[Tensor, list[Result]]:
        call = calls.begin(name, layer, batch)
        y, results = Passage.carry(layer, call.batch)
        y, states = calls.end(call, y, tuple(r.final for r in results))
        results = [r._replace(final=s) for r, s in zip(results, states, strict=True)]
        return y if batch.batch_sizes is None else y[call.alive], results

    observed = observe_modules({"": (module, layer)}, carried)
    with eval_mode(module), torch.enable_grad(), observed:
        value = loss()
    return list(_split_by_length(layer, _collect(layer, calls, value), rows))


def _find_chain(calls: Calls) -> list[ModuleCall]:
    """The calls of the module's one sequence."""
    chains = calls.sequences("") if "" in calls.by_name else []
    if len(chains) != 1:
        raise OptionError(f"the layer must run once in the loss, it ran {len(chains)} times")
    if reason := calls.explain_split(""):
        raise OptionError(reason)
    if any(call.fed_back for call in chains[0]):
        raise OptionError(
            "what the layer is given is made of what it gave before, so that a path from a loss "
            "back to a weight has no one lag"
        )
    return chains[0]


def _collect(layer: SequenceLayer, calls: Calls, loss: Tensor) -> IncomingGradient:
    """The gradients of a loss that arrive at all rows of a chain of calls, padded."""
    chain = _find_chain(calls)
    if loss.numel() != 1 or not bool(loss.isfinite().all()):
        raise OptionError(f"the loss must be one finite number, got {loss.tolist()!r}")
    weights = {n: p for n, p in layer.named_parameters() if p.requires_grad}
    if not weights or not loss.requires_grad:
        raise OptionError("no weight of the layer trains, or the loss depends on none; unfreeze it")
    calls.finish(loss)
    returned = [v for call in chain for v in call.returned]
    recorded = [v for v in returned if v.requires_grad]
    if not recorded or all(
        d is None for d in torch.autograd.grad(loss, recorded, retain_graph=True, allow_unused=True)
    ):
        raise OptionError("the loss does not depend on what the layer gives")
    sent = iter(gradients_by(loss, returned))
    by_call = [tuple(next(sent) for _ in call.returned) for call in chain]
    d_weights = gradients_by(loss, [*weights.values()])
    return IncomingGradient(
        batch=map_tensors(join_calls(chain), Tensor.detach),
        d_outputs=move_to_front(
            torch.cat([d[0] for d in by_call]), torch.cat([c.alive for c in chain])
        ),
        d_states=_collect_states(layer, chain, [d[1:] for d in by_call]),
        d_weights=dict(zip(weights, d_weights, strict=True)),
    )


def _collect_states(
    layer: SequenceLayer, chain: list[ModuleCall], by_call: list[tuple[Tensor, ...]]
) -> States:
    """The gradients by the final states of each call, at the steps after which they were."""
    T, B = sum(len(c.alive) for c in chain), chain[0].alive.shape[1]
    rows = torch.arange(B, device=chain[0].alive.device)
    flat = [d.new_zeros(T, B, layer.directions, d.shape[-1]) for d in by_call[0]]
    taken = torch.zeros_like(rows)
    for call, sent in zip(chain, by_call, strict=True):
        taken = taken + call.alive.sum(0)
        begun = taken > 0  # a row without a step returns its starting state
        for d, end in zip(flat, sent, strict=True):
            for way in range(layer.directions):
                at = torch.zeros_like(taken) if way else taken - 1
                d[at[begun], rows[begun], way] += end[way, begun]
    parts = iter(flat)
    return tuple(tuple(next(parts) for _ in layer.cell.state_names) for _ in layer.hidden_sizes)


def _split_by_length(
    layer: SequenceLayer, incoming: IncomingGradient, rows: int | None
) -> Iterator[IncomingGradient]:
    """The longest `rows` rows, one result a length."""
    batch = incoming.batch
    if batch.lengths is None and rows is None:
        yield incoming
        return
    for n, at in group_by_length(batch, rows):
        yield _run_rows(
            layer,
            take_rows(batch, n, at),
            incoming.d_outputs[:n, at],
            tuple(tuple(d[:n, at] for d in s) for s in incoming.d_states),
            [*incoming.d_weights],
        )


def _run_rows(
    layer: SequenceLayer, batch: Batch, d_y: Tensor, d_states: States, names: list[str]
) -> IncomingGradient:
    """Run the layer again on a few rows, with the same arriving gradients."""
    weights = [dict(layer.named_parameters())[n] for n in names]
    with eval_mode(layer), torch.enable_grad():
        y, results = layer.carry(batch, record=True)
    values = [y, *(v for r in results for v in r.sequences)]
    sent = [d_y, *(d for s in d_states for d in s)]
    gradients = torch.autograd.grad(values, weights, sent, materialize_grads=True)
    return IncomingGradient(batch, d_y, d_states, dict(zip(names, gradients, strict=True)))


def split_merge(layer: SequenceLayer, incoming: IncomingGradient, d: int) -> Tensor:
    """(T, B, width): the gradient by one direction's outputs of the last layer."""
    if layer.directions == 1:
        return incoming.d_outputs
    both = [s.after[0] for s in list_steps(layer, incoming.batch, None)]
    T, B = incoming.batch.x.shape[:2]
    y = torch.stack([v.unflatten(0, (T, B)) for v in both], 2).requires_grad_()
    with torch.enable_grad():
        out = merge_directions(y, layer.options.merge)
    return torch.autograd.grad(out, y, incoming.d_outputs)[0][:, :, d]
