"""Where the weight gradient comes from: its parts by the lag between loss and weight."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import zip_longest

import torch
from torch import Tensor, nn

from throughtime.diagnosis.observe import as_layer
from throughtime.diagnosis.observe.incoming_gradient import (
    IncomingGradient,
    find_incoming_gradients,
    split_merge,
)
from throughtime.diagnosis.observe.steps import list_steps
from throughtime.errors import OptionError
from throughtime.layers.checks import check_size
from throughtime.layers.recurrent import SequenceLayer


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
    times as much, so give it few rows then.

    Weights that are frozen are left out.

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
