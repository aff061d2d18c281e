"""Probes: what a linear read-out of each layer knows, against what it could memorise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from throughtime.diagnosis.observe import one_thread
from throughtime.diagnosis.observe.batches import list_batches
from throughtime.diagnosis.observe.examined import ExaminedModel, ModelRun
from throughtime.errors import OptionError, ShapeError
from throughtime.layers import SequenceLayer
from throughtime.layers.batch import Batch

DECAY = 1e-3
"""Weight decay of the read-outs, whose inputs have deviation 1."""

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)

Place = tuple[str, int | None]
"""Name of a module and number of its layer, None for what the module reads."""


@dataclass(frozen=True)
class Probe:
    """A linear classifier of one layer's outputs, on held-out rows.

    Attributes:
        module: its name in the model, "" for the model itself.
        layer: its number; None for the module's raw input.
        classes: the number of labels.
        accuracy: share of correct labels.
        control_accuracy: the same for a classifier of shuffled labels.
        majority_share: share of the most frequent label of the fit: the accuracy of a constant.
        held_out_count: labels that were held out.
    """

    module: str
    layer: int | None
    classes: int
    accuracy: float
    control_accuracy: float
    majority_share: float
    held_out_count: int

    @property
    def selectivity(self) -> float:
        """Accuracy beyond that of shuffled labels: what the layer knows, not the classifier."""
        return self.accuracy - self.control_accuracy

    def __str__(self) -> str:
        place = "input" if self.layer is None else f"layer {self.layer}"
        return (
            f"{self.module or 'model'}, {place}: {100 * self.accuracy:.1f} %, "
            f"shuffled labels {100 * self.control_accuracy:.1f} %, "
            f"most frequent label {100 * self.majority_share:.1f} %"
        )


def probe(
    model: nn.Module, batches: Any, labels: Tensor | Sequence[Tensor], *,
    types: Tensor | Sequence[Tensor] | None = None, seed: int = 0,
) -> tuple[Probe, ...]:  # fmt: skip
    """Measure what a linear read-out of each recurrent layer knows, against two controls.

    The model runs in eval mode on a copy. On the outputs of every layer, all directions side by
    side, a softmax regression is fitted to the labels of half of the rows and predicts those of
    the other half. The controls are the same on each module's input and with shuffled labels. A
    layer knows what it predicts better than both.

    Args:
        model: a recurrent layer of torch.nn or of this package, or a module with some in it.
        batches: a batch or an iterable of them, as `diagnose` takes them.
        labels: of each batch, integers from 0: one a step, (T, B), or (B, T) for layers that
            have the batch in front, -1 where there is none; or (B,), of a row's final state.
            Modules that run over other steps or rows are left out.
        types: as labels: what is at each place (a word, a letter). Shuffled labels are then drawn
            by type, so that a classifier can memorise them; else one by one.
        seed: of the halves and the shuffled labels.

    Returns:
        For each module its input and its layers, in the order of the run.

    Raises:
        ShapeError: labels or types that fit no module, or fewer than two rows.
        OptionError: labels that are no integers; fewer than two labels among those fitted.
        NotFiniteError: the model comes to NaN or infinity.

    Source: Hewitt and Liang, Designing and Interpreting Probes with Control Tasks (2019).
    """
    batches_listed = list_batches(batches)
    marks = _list_each("labels", labels, len(batches_listed))
    for mark in marks:
        if mark.dtype not in _INTEGERS:
            raise OptionError(f"labels must be integers, got {mark.dtype}")
    marks = [mark.long() for mark in marks]
    kinds: list[Tensor | None] = [None] * len(batches_listed)
    if types is not None:
        kinds = [*_list_each("types", types, len(batches_listed))]
    for mark, kind in zip(marks, kinds, strict=True):
        if kind is not None and kind.shape != mark.shape:
            raise ShapeError(
                f"types must be {tuple(mark.shape)} as labels, got {tuple(kind.shape)}"
            )
    examined = ExaminedModel(model)
    with one_thread():
        runs = [examined.run(batch) for batch in batches_listed]
        names = [n for n in runs[0].batches if all(n in run.batches for run in runs)]
        probes = [_probe_module(n, examined.layers[n], runs, marks, kinds, seed) for n in names]
    if not any(probes):
        shapes = [tuple(runs[0].batches[n].x.shape[:2]) for n in names]
        raise ShapeError(
            f"labels must be (T, B) or (B,), and of a module's batch (T, B) is one of {shapes}; "
            f"got {tuple(marks[0].shape)}"
        )
    return tuple(one for ones in probes for one in ones)


def _list_each(what: str, values: Tensor | Sequence[Tensor], batches: int) -> list[Tensor]:
    if not isinstance(values, Tensor | list | tuple):
        raise OptionError(f"{what} must be a tensor, or one a batch, got {type(values).__name__}")
    several = [values] if isinstance(values, Tensor) else list(values)
    if len(several) != batches:
        raise ShapeError(f"{what} must be one tensor a batch, {batches}, got {len(several)}")
    for v in several:
        if not isinstance(v, Tensor):
            raise OptionError(f"{what} must be tensors, got {type(v).__name__}")
    return several


def _probe_module(
    name: str, layer: SequenceLayer, runs: list[ModelRun], labels: list[Tensor],
    types: list[Tensor | None], seed: int,
) -> list[Probe]:  # fmt: skip
    """The probes of one module; none where the labels are not of its steps and rows."""
    batches = [run.batches[name] for run in runs]
    turned = [_make_time_major(layer, v, batch) for v, batch in zip(labels, batches, strict=True)]
    if name in runs[0].not_whole or not all(v is not None for v in turned):
        return []
    marks = [v for v in turned if v is not None]
    kinds = [None if v is None else _make_time_major(layer, v, b)
             for v, b in zip(types, batches, strict=True)]  # fmt: skip
    rows = sum(v.shape[-1] for v in marks)
    if rows < 2:
        raise ShapeError(f"a probe needs at least 2 rows, one to hold out, got {rows}")
    draw = torch.Generator().manual_seed(seed)
    order = torch.randperm(rows, generator=draw, device="cpu").split([v.shape[-1] for v in marks])
    fitted = [(o < (rows + 1) // 2).expand(v.shape) for o, v in zip(order, marks, strict=True)]
    control = _draw_control(marks, kinds, draw)
    labelled = [_find_labelled(v, batch) for v, batch in zip(marks, batches, strict=True)]

    def chosen(values: Sequence[Tensor]) -> Tensor:
        return torch.cat([v[k] for v, k in zip(values, labelled, strict=True)])

    rest = chosen(marks), chosen(control), chosen(fitted)
    features = [_find_features(layer, b, v.dim() == 2) for b, v in zip(batches, marks, strict=True)]
    return [
        _probe((name, number), chosen([f[number] for f in features]), *rest)
        for number in features[0]
    ]


def _make_time_major(layer: SequenceLayer, v: Tensor, batch: Batch) -> Tensor | None:
    """Labels (T, B) or (B,), from the layout of the layer; None where they do not fit."""
    T, B = batch.x.shape[:2]
    if layer.batch_first and v.dim() == 2:
        v = v.transpose(0, 1)
    return v if tuple(v.shape) in ((T, B), (B,)) else None


def _find_labelled(labels: Tensor, batch: Batch) -> Tensor:
    """Where a row has a label."""
    labelled = labels >= 0
    if labels.dim() == 2 and batch.lengths is not None:
        steps = torch.arange(len(labels), device="cpu").unsqueeze(1)
        labelled = labelled & (steps < batch.lengths.cpu())
    return labelled


@torch.no_grad()
def _find_features(
    layer: SequenceLayer, batch: Batch, every_step: bool
) -> dict[int | None, Tensor]:
    """The input (T, B, I) and the outputs of each layer (T, B, D W), or final ones (B, D W)."""
    results = layer.carry(batch)[1]
    features: dict[int | None, Tensor] = {None: batch.x if every_step else _find_last(batch)}
    for number, r in enumerate(results):
        final = r.final[0].transpose(0, 1).flatten(1)
        features[number] = r.sequences[0].flatten(-2) if every_step else final
    return {number: v.double().cpu() for number, v in features.items()}


def _find_last(batch: Batch) -> Tensor:
    """Each row's last input (B, I)."""
    T, B = batch.x.shape[:2]
    if batch.lengths is None:
        return batch.x[T - 1]
    ends = batch.lengths.to(batch.x.device) - 1
    return batch.x[ends.clamp(0), torch.arange(B, device=batch.x.device)]


def _draw_control(
    labels: list[Tensor], types: list[Tensor | None], draw: torch.Generator
) -> list[Tensor]:
    """Random labels, as frequent as the true ones; one a type, or one a place."""
    pool = torch.cat([v[v >= 0] for v in labels])
    if not len(pool):
        raise OptionError("there are no labels; give integers from 0, -1 where there is none")
    places = [v.numel() for v in labels]
    if any(v is None for v in types):
        number = torch.arange(sum(places), device="cpu")
    else:
        number = torch.cat([v.flatten() for v in types if v is not None]).unique(
            return_inverse=True
        )[1]
    count = int(number.max()) + 1 if len(number) else 0
    drawn = pool[torch.randint(len(pool), (count,), generator=draw, device="cpu")][number]
    return [d.view(v.shape) for d, v in zip(drawn.split(places), labels, strict=True)]


def _probe(place: Place, f: Tensor, labels: Tensor, control: Tensor, fitted: Tensor) -> Probe:
    known = labels[fitted]
    if len(known.unique()) < 2 or bool(fitted.all()):
        raise OptionError(
            "a probe needs two different labels among the rows it is fitted on, and one label "
            "among those held out; give more rows"
        )
    classes = int(labels.max()) + 1
    counts = torch.bincount(known, minlength=classes)
    return Probe(
        module=place[0],
        layer=place[1],
        classes=len(labels.unique()),
        accuracy=_measure_accuracy(f, labels, fitted, classes),
        control_accuracy=_measure_accuracy(f, control, fitted, classes),
        majority_share=float((labels[~fitted] == counts.argmax()).double().mean()),
        held_out_count=int((~fitted).sum()),
    )


def _measure_accuracy(f: Tensor, labels: Tensor, fitted: Tensor, classes: int) -> float:
    """The accuracy of a softmax regression on held-out rows."""
    mean, deviation = f[fitted].mean(0), f[fitted].std(0, correction=0)
    f = (f - mean) / torch.where(deviation > 0, deviation, 1)
    weights = fit_softmax_regression(f[fitted], labels[fitted], classes)
    predicted = (f[~fitted] @ weights[:-1] + weights[-1]).argmax(1)
    return float((predicted == labels[~fitted]).double().mean())


def fit_softmax_regression(f: Tensor, labels: Tensor, classes: int) -> Tensor:
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
