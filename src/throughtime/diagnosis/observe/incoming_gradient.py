"""The gradient that arrives at a layer: of a loss by its outputs, before it goes back in time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

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
from throughtime.layers.batch import Batch, States
from throughtime.layers.layer import Passage
from throughtime.layers.options import merge_directions
from throughtime.layers.recurrent import SequenceLayer


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

    Args:
        module: inside the model that the loss runs.
        loss: runs the model and returns a scalar; the module must run in it exactly once, or
            piece by piece with its state handed on.
        rows: how many rows of the module's batch, the longest; left out, all.

    Returns:
        One for each length of row, the longest first.

    Raises:
        OptionError: the module does not run exactly once, its state is changed or its outputs
            are fed back between its calls, the loss is not finite or does not depend on it, or
            none of its weights trains.
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
        batch=_detach(join_calls(chain)),
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


def _detach(batch: Batch) -> Batch:
    state, inputs = batch.state, batch.inputs
    return batch._replace(
        x=batch.x.detach(),
        state=state and tuple(tuple(v.detach() for v in s) for s in state),
        inputs=inputs and {n: v.detach() for n, v in inputs.items()},
    )


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
