"""What a task shows of a trained model on a run's page, as plain numbers: it draws nothing itself.

That includes what each layer knows, read by linear maps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from throughtime import probe
from throughtime.errors import OptionError, ShapeError

_MOST = 20  # classes of a matrix
_WORST = 3  # mistakes that are named

Numbers = Sequence[float]


@dataclass(frozen=True)
class Curve:
    """Numbers over numbers.

    Attributes:
        name: as the legend has it.
        x, y: as many of each.
        kind: a line, points, or the ground between y and `high`.
        high: of the ground, its upper edge.
        beside: whether the run's own is compared with it; drawn in grey.
    """

    name: str
    x: Numbers
    y: Numbers
    kind: Literal["line", "points", "band"] = "line"
    high: Numbers = ()
    beside: bool = False


@dataclass(frozen=True)
class Plot:
    """Curves on two axes, or a map of colours.

    Attributes:
        says: what it shows, in words, for those who cannot see it.
        x, y: the axes with their units.
        curves: what is drawn; for a map nothing.
        rows: of a map, the name of each row and its numbers.
        columns: names along the horizontal axis, at 0, 1, 2, ...; numbers where it is empty.
        line: a height to be marked, with its words.
        of: whose it is, above it.
    """

    says: str
    x: str
    y: str
    curves: tuple[Curve, ...] = ()
    rows: tuple[tuple[str, Numbers], ...] = ()
    columns: tuple[str, ...] = ()
    line: tuple[float, str] | None = None
    of: str = ""


@dataclass(frozen=True)
class Picture:
    """A question to a run, and its answer.

    Attributes:
        title: the question.
        lead: how to read the plots.
        says: the answer, a sentence each.
        plots: in their order.
        head, table: all numbers.
    """

    title: str
    lead: str
    says: tuple[str, ...] = ()
    plots: tuple[Plot, ...] = ()
    head: tuple[str, ...] = ()
    table: tuple[tuple[str | float, ...], ...] = ()


def draw_confusion(
    predicted: Tensor, truth: Tensor, classes: Sequence[str], kind: str = "classes"
) -> Picture:
    """How often each class was taken for each; of many classes the most frequent ones.

    Args:
        predicted, truth: (N,) numbers of classes.
        classes: their names.
        kind: what they are, in the plural.
    """
    counts = torch.zeros(len(classes), len(classes), dtype=torch.long)
    counts.index_put_((truth, predicted), torch.tensor(1), accumulate=True)
    shown = counts.sum(1).sort(descending=True, stable=True).indices[:_MOST].sort().values
    shares = (counts / counts.sum(1, keepdim=True).clamp(min=1))[shown][:, shown].tolist()
    names = tuple(classes[n] for n in shown.tolist())
    pairs = [(a, b) for a in range(len(classes)) for b in range(len(classes)) if a != b]
    worst = sorted(((int(counts[a, b]), a, b) for a, b in pairs if counts[a, b]), reverse=True)
    says = [f"{n} of {classes[a]} are taken for {classes[b]}." for n, a, b in worst[:_WORST]]
    if len(classes) > _MOST:
        says.append(f"Of {len(classes)} {kind} the {_MOST} most frequent ones are shown.")
    plot = Plot("confusion matrix", "what the net says", "what is right",
                rows=tuple(zip(names, shares, strict=True)), columns=names)  # fmt: skip
    return Picture(
        title=f"Which {kind} does it take for which?",
        lead="Rows are what is right, columns what the net says, as shares of the row. A net that "
        "is always right is a diagonal.",
        says=tuple(says),
        plots=(plot,),
        head=("right", *(f"said {name}" for name in names)),
        table=tuple(zip(names, *counts[shown][:, shown].T.tolist(), strict=True)),
    )


def draw_attention(
    looks: Sequence[tuple[Sequence[str], Sequence[str], Tensor]], read: str, written: str
) -> Picture:
    """Where a decoder looks as it writes each unit of some sequences.

    Args:
        looks: the units read, those written, and the weights (written, read) of each sequence.
        read, written: what they are, for the axes.
    """
    plots = tuple(
        Plot(f"weights of attention over {''.join(source)}", read, written,
             rows=tuple(zip(target, weights.tolist(), strict=True)), columns=tuple(source))
        for source, target, weights in looks
    )  # fmt: skip
    return Picture(
        title="Where does it look?",
        lead="The weights of attention as it writes: a row for each unit that it writes, a column "
        "for each that it reads; each row sums to 1.",
        plots=plots,
    )


_LABELS, _TEXTS, _BATCHES = 12, 60, 6  # most frequent units as labels; sequences; batches


def probe_layers(
    name: str, model: nn.Module, inputs: Sequence[Tensor], truth: Sequence[Tensor],
    kinds: Sequence[Tensor] | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """A row for the input and each layer; one that says why where there are too few sequences.

    Args:
        name: of what is asked for.
        model: of one input.
        inputs: batches.
        truth: labels (T, B) of each, -1 where there is none.
        kinds: what stands at each place, (T, B); shuffled labels are drawn by it.
    """
    try:
        readouts = probe(model, inputs, truth, types=kinds)
    except (OptionError, ShapeError) as error:
        return [{"of": name, "not measured": str(error)}]
    return [
        {
            "of": name, "place": "input" if readout.layer is None else f"layer {readout.layer}",
            "accuracy": readout.accuracy, "shuffled_labels": readout.control_accuracy,
            "most_frequent": readout.majority_share, "held_out": readout.held_out_count,
        }
        for readout in readouts
    ]  # fmt: skip


def probe_neighbours(
    model: nn.Module, sources: Sequence[Tensor], padding: int
) -> list[dict[str, Any]]:
    """A row for the input and each layer, of the unit before and of the one after.

    The labels are the most frequent units. Where there are too few sources, a row says why
    nothing was measured.
    """
    few = list(sources[:_TEXTS])
    parts = [few[k::_BATCHES] for k in range(min(_BATCHES, len(few)))]
    counted = Counter(int(unit) for one in few for unit in one)
    label = {unit: n for n, (unit, _) in enumerate(counted.most_common(_LABELS))}
    inputs = [pad_sequence(part, padding_value=padding) for part in parts]
    rows: list[dict[str, Any]] = []
    for name, by in (("unit before", 1), ("unit behind", -1)):
        marks = [_label_neighbours(x, label, by, padding) for x in inputs]
        rows += probe_layers(name, model, inputs, marks)
    return rows


def _label_neighbours(source: Tensor, label: dict[int, int], by: int, padding: int) -> Tensor:
    """Of each place of sources (T, B), the label of the unit `by` steps before; -1 for none."""
    moved = source.roll(by, 0)
    moved[0 if by > 0 else -1] = padding
    marks = torch.full_like(source, -1)
    for unit, n in label.items():
        marks[moved == unit] = n
    marks[source == padding] = -1
    return marks


def draw_knowledge(rows: Sequence[dict[str, Any]]) -> Picture:
    """What a linear map reads of each layer, from the rows of `probe_layers`."""
    kinds = dict.fromkeys(row["of"] for row in rows)
    groups = {name: [row for row in rows if row["of"] == name] for name in kinds}
    measured = {name: few for name, few in groups.items() if "accuracy" in few[0]}
    head = tuple(next(iter(measured.values()))[0]) if measured else ()
    return Picture(
        title="What does each layer know?",
        lead="A linear map of what each layer gives is fitted on half of the sequences and asked "
        "for the other half. A layer knows what it tells better than the map tells labels that "
        "were shuffled, which can only be memorised.",
        says=tuple(map(_describe_best, groups.values())),
        plots=tuple(map(_plot_layers, measured.values())),
        head=head,
        table=tuple(tuple(row.values()) for few in measured.values() for row in few),
    )


def _describe_best(rows: Sequence[dict[str, Any]]) -> str:
    name = rows[0]["of"]
    if "accuracy" not in rows[0]:
        return f"Of the {name} nothing was measured: {rows[0]['not measured']}."
    best = max(rows, key=lambda row: float(row["accuracy"]))
    place = "the input" if best["place"] == "input" else best["place"]
    return (
        f"The {name} is read best from {place}, {100 * best['accuracy']:.1f} %; there "
        f"shuffled labels are read to {100 * best['shuffled_labels']:.1f} %."
    )


def _plot_layers(rows: Sequence[dict[str, Any]]) -> Plot:
    x = range(len(rows))
    curves = (
        Curve("as it is", x, [row["accuracy"] for row in rows]),
        Curve("shuffled labels", x, [row["shuffled_labels"] for row in rows], beside=True),
    )
    most = rows[0]["most_frequent"]
    return Plot(
        f"share read right of the {rows[0]['of']}, by layer", "place", "share read right", curves,
        columns=tuple(row["place"] for row in rows), line=(most, "the most frequent one"),
        of=rows[0]["of"],
    )  # fmt: skip
