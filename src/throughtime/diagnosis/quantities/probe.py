"""Probes: what a linear read-out of each layer knows, beside what it could merely memorise."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from throughtime.errors import OptionError, ShapeError
from throughtime.layers.batch import Batch
from throughtime.layers.passage import Passage

DECAY = 1e-3
"""Weight decay of the read-outs, whose inputs have deviation 1."""


@dataclass(frozen=True)
class Probe:
    """A linear classifier of a layer's outputs, on rows that were held out.

    Attributes:
        layer: its number.
        classes: how many labels there are.
        accuracy: share of labels said right.
        control_accuracy: the same for a classifier of random labels.
        majority_share: share of the most frequent label of the fit: what knowing nothing gives.
        held_out_count: labels that were held out.
    """

    layer: int
    classes: int
    accuracy: float
    control_accuracy: float
    majority_share: float
    held_out_count: int

    @property
    def selectivity(self) -> float:
        """Accuracy beyond that of random labels: what the layer knows, not the classifier."""
        return self.accuracy - self.control_accuracy


def probes(
    layer: Passage, batch: Batch, labels: Tensor, *, types: Tensor | None = None, seed: int = 0
) -> tuple[Probe, ...]:
    """Probe every layer of a stack, all its directions side by side.

    Args:
        layer: a recurrent layer of this package; it is run in eval mode.
        batch: time-major and padded, in the layer's own layout; half of its rows is held out.
        labels: (T, B) integers from 0, one a step, -1 where there is none; or (B,), of a row's
            final state.
        types: as labels: what kind of thing stands there (a word, a letter). Random labels are
            then drawn by kind, so that a classifier can memorise them; else one by one.
        seed: of the halves and the random labels.

    Raises:
        ShapeError: labels or types of another shape, or fewer than two rows.
        OptionError: fewer than two labels among those fitted, or states that are not finite.

    Source: Hewitt and Liang, Designing and Interpreting Probes with Control Tasks (2019).
    """
    T, B = batch.x.shape[:2]
    if tuple(labels.shape) not in ((T, B), (B,)):
        raise ShapeError(f"labels must be ({T}, {B}) or ({B},), got {tuple(labels.shape)}")
    if types is not None and types.shape != labels.shape:
        raise ShapeError(f"types must be {tuple(labels.shape)} as labels, got {tuple(types.shape)}")
    if B < 2:
        raise ShapeError(f"a probe needs at least 2 rows, one to hold out, got {B}")
    draw = torch.Generator().manual_seed(seed)
    fitted = (torch.randperm(B, generator=draw, device="cpu") < (B + 1) // 2).expand(labels.shape)
    control = _control(labels, types, draw)
    kept = labels >= 0
    if labels.dim() == 2 and batch.lengths is not None:
        kept = kept & (torch.arange(T, device="cpu").unsqueeze(1) < batch.lengths.cpu())
    return tuple(
        _probe(number, f[kept], labels[kept], control[kept], fitted[kept])
        for number, f in enumerate(_features(layer, batch, labels.dim() == 2))
    )


@torch.no_grad()
def _features(layer: Passage, batch: Batch, every_step: bool) -> list[Tensor]:
    """Of each layer (T, B, D W), or the final ones (B, D W)."""
    was_training = layer.training
    layer.eval()
    try:
        results = layer.carry(batch)[1]
    finally:
        layer.train(was_training)
    if every_step:
        return [r.sequences[0].flatten(-2).double().cpu() for r in results]
    return [r.final[0].transpose(0, 1).flatten(1).double().cpu() for r in results]


def _control(labels: Tensor, types: Tensor | None, draw: torch.Generator) -> Tensor:
    """Random labels, as frequent as the true ones; one a type, or one a place."""
    pool = labels[labels >= 0]
    if not len(pool):
        raise OptionError("there are no labels; give integers from 0, -1 where there is none")
    if types is None:
        return pool[torch.randint(len(pool), labels.shape, generator=draw, device="cpu")]
    kinds, number = types.unique(return_inverse=True)
    return pool[torch.randint(len(pool), kinds.shape, generator=draw, device="cpu")][number]


def _probe(number: int, f: Tensor, labels: Tensor, control: Tensor, fitted: Tensor) -> Probe:
    if not bool(f.isfinite().all()):
        raise OptionError(f"layer {number} gives NaN or infinity, so there is nothing to probe")
    known = labels[fitted]
    if len(known.unique()) < 2 or bool(fitted.all()):
        raise OptionError(
            "a probe needs two different labels among the rows it is fitted on, and one label "
            "among those held out; give more rows"
        )
    classes = int(labels.max()) + 1
    counts = torch.bincount(known, minlength=classes)
    return Probe(
        layer=number,
        classes=len(labels.unique()),
        accuracy=_accuracy(f, labels, fitted, classes),
        control_accuracy=_accuracy(f, control, fitted, classes),
        majority_share=float((labels[~fitted] == counts.argmax()).double().mean()),
        held_out_count=int((~fitted).sum()),
    )


def _accuracy(f: Tensor, labels: Tensor, fitted: Tensor, classes: int) -> float:
    """Of a softmax regression, on what it was not fitted on."""
    mean, deviation = f[fitted].mean(0), f[fitted].std(0, correction=0)
    f = (f - mean) / torch.where(deviation > 0, deviation, 1)
    weights = softmax_regression(f[fitted], labels[fitted], classes)
    said = (f[~fitted] @ weights[:-1] + weights[-1]).argmax(1)
    return float((said == labels[~fitted]).double().mean())


def softmax_regression(f: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Weights (S + 1, classes), the bias last: least cross entropy + decay / 2 ||weights||^2.

    Args:
        f: (n, S), float64.
        labels: (n,), integers below `classes`.
    """
    weights = torch.zeros(
        f.shape[1] + 1, classes, dtype=f.dtype, device=f.device, requires_grad=True
    )
    solver = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        loss = cross_entropy(f @ weights[:-1] + weights[-1], labels)
        loss = loss + DECAY / 2 * weights[:-1].square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        solver.step(closure)
    return weights.detach()
