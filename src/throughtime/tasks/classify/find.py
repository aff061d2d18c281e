"""What a table says about classes: roles of columns, sequences, splits, scales; and a table made
here, so that the task runs with no file."""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from dataclasses import replace
from typing import Any

import numpy as np

from throughtime.errors import DataError
from throughtime.tasks.classify.items import (
    ClassifyRecipe,
    Labels,
    Sequences,
    check_classes,
    find_gaps,
    items_in,
)
from throughtime.tasks.classify.leaks import check_copies, check_leaks
from throughtime.tasks.tables import DataTable, check_apart
from throughtime.tasks.tables.clock import find_time, time_columns, with_time
from throughtime.tasks.tables.read import digest, read
from throughtime.tasks.tables.task import BUILTIN, check_like_training
from throughtime.tasks.user_file import named_cell

_TEST, _VALIDATION = 0.15, 0.15
_LONG, _FRAME = 150, 24  # steps of a sequence that is read in frames, and of a frame


def source(recipe: ClassifyRecipe) -> tuple[DataTable, str]:
    """The table of a recipe and the digest of its file, and of that of the test."""
    if recipe.data == BUILTIN:
        return make_waves(), BUILTIN
    return read(recipe.data), digest(recipe.data) + (digest(recipe.test) if recipe.test else "")


def tested(recipe: ClassifyRecipe, facts: Labels) -> Sequences | None:
    """The sequences of the test's own file, where there is one.

    Raises:
        DataError: it has not the columns and classes of the other; names the row.
    """
    if not recipe.test:
        return None
    table = with_time(read(recipe.test), facts.time)
    check_like_training(table, [*facts.columns, facts.time, facts.series, facts.label])
    check_classes(table, facts)
    return items_in(table, facts, labelled=True)


def find_labels(recipe: ClassifyRecipe) -> Labels:
    """All that the file of a recipe says.

    Raises:
        DataError: the file cannot be learned from; names file, row and column.
    """
    table, seal = source(recipe)
    facts = _columns(recipe, table, seal)
    table = with_time(table, facts.time)
    found = items_in(table, facts, labelled=True)
    check_leaks(facts, table, found, recipe.group)
    other = tested(recipe, facts)
    test = 0.0 if other else _TEST
    groups = _groups(facts, table, recipe.group)
    splits = _by_groups(groups, test) if groups else _splits(found.values, found.labels, test)
    if other:
        splits["test"] = list(range(len(found.names), len(found.names) + len(other.names)))
        found = found.with_others(other)
    if not groups:
        check_copies(table.name, found.values, found.labels, splits["train"], splits["test"])
    train = splits["train"]
    step = find_gaps([found.values[n] for n in train], [found.times[n] for n in train])
    facts = replace(facts, step=step, frames=_frames(recipe, found.values))
    return _completed(facts, table, found.values, found.labels, splits)


def _frames(recipe: ClassifyRecipe, values: list[Any]) -> int:
    """As given; or for long sequences those of a frame, unless the cell reads gaps of time."""
    long = float(np.median([len(one) for one in values])) >= _LONG
    found = _FRAME if long and not named_cell(recipe.cell).inputs else 1
    return recipe.frames or found


def _columns(recipe: ClassifyRecipe, table: DataTable, seal: str) -> Labels:
    """The roles of the columns, and the classes."""
    label = recipe.label or table.roles.get("label", "")
    series = recipe.series or table.roles.get("series", "")
    if recipe.data == BUILTIN:
        label, series = label or "shape", series or "wave"
    if not label:
        raise DataError(
            f"classes need --label, a column of {table.name}, which has "
            f"{', '.join(table.frame.columns[:20])}"
        )
    roles = (("label", label), ("series", series), ("group", recipe.group))
    for name, column in roles:
        table.check_columns(name, [column] if column else [])
    time = find_time(table, recipe.time, [label, series]) if series else ""
    times = time_columns(table, time)
    check_apart([("time", times), *((name, [column]) for name, column in roles if column)])
    used = (label, *times, series, recipe.group)
    columns = [c for c in table.frame.columns if c not in used and table.is_number(c)]
    if not columns:
        raise DataError(f"{table.name} must have a column of numbers beside {label}; it has none")
    facts = Labels(
        digest=seal, read=[], label=label, time=time, series=series, columns=columns,
        classes=sorted(set(table.texts(label))), inputs=columns if series else ["value"],
    )  # fmt: skip
    if len(facts.classes) < 2:
        raise DataError(
            f"column {label} of {table.name} must hold two classes or more, and it holds "
            f"{facts.classes[0]} alone, from {table.unit} {table.first} on"
        )
    return facts


def _groups(facts: Labels, table: DataTable, group: str) -> list[str]:
    """The group of each sequence: that of its first row."""
    if not group:
        return []
    values = table.texts(group)
    if not facts.series:
        return values
    first: dict[str, str] = {}
    for name, value in zip(table.texts(facts.series), values, strict=True):
        first.setdefault(name, value)
    return list(first.values())


def _by_groups(groups: list[str], test: float) -> dict[str, list[int]]:
    """Whole groups in the order of their hashes: test, validation, rest."""
    names = sorted(set(groups), key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    places: dict[str, list[int]] = defaultdict(list)
    for number, name in enumerate(groups):
        places[name].append(number)
    found: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    wanted = {"test": test * len(groups), "validation": _VALIDATION * len(groups)}
    for name in names:
        side = next((s for s, many in wanted.items() if len(found[s]) < many), "train")
        found[side] += places[name]
    return {name: sorted(part) for name, part in found.items()}


def _completed(
    facts: Labels, table: DataTable, values: list[Any], labels: list[str],
    splits: dict[str, list[int]],
) -> Labels:  # fmt: skip
    count = Counter(labels[n] for n in splits["train"])
    for name in facts.classes:
        if count[name] < 1 or Counter(labels)[name] < 3:
            raise DataError(
                f"a class must have at least 3 sequences, one for each part, and {name} of column "
                f"{facts.label} of {table.name} has {Counter(labels)[name]}; add some, or take "
                "it out"
            )
    train = np.concatenate([values[n] for n in splits["train"]])
    seen = np.isfinite(train)
    total = np.maximum(seen.sum(0), 1)
    means = np.where(seen, train, 0).sum(0) / total
    spread = np.sqrt(np.where(seen, (train - means) ** 2, 0).sum(0) / total)
    weights = [len(splits["train"]) / (len(facts.classes) * count[name]) for name in facts.classes]
    deviations = np.where(spread > 0, spread, 1.0).tolist()
    return replace(
        facts, read=_shown(facts, table, values, labels, splits), splits=splits, weights=weights,
        means=means.tolist(), deviations=deviations,
    )  # fmt: skip


def _shown(
    facts: Labels, table: DataTable, values: list[Any], labels: list[str],
    splits: dict[str, list[int]],
) -> list[list[str]]:  # fmt: skip
    """What was read, for people."""
    lengths, count = [len(one) for one in values], Counter(labels)
    return [
        ["file", f"{table.name}: {table.form}, {len(table.frame)} rows"],
        ["sequences", f"{len(values)}, {f'by {facts.series}' if facts.series else 'a row each'}"],
        ["steps", f"{min(lengths)} to {max(lengths)}, "
                  f"in the order of {facts.time or ('rows' if facts.series else 'columns')}"],
        ["frames", f"of {facts.frames} steps" if facts.frames > 1 else "none: step by step"],
        ["times", "uneven, or values missing: read with the time since something was seen"
                  if facts.step else "as even as the steps"],
        ["inputs", f"{len(facts.columns)} columns: {', '.join(facts.columns[:8])}"],
        ["missing", f"{sum(int((~np.isfinite(one)).sum()) for one in values)} values"],
        ["classes", ", ".join(f"{name} {count[name]}" for name in facts.classes)],
        ["split by hash", ", ".join(f"{name} {len(part)}" for name, part in splits.items())],
    ]  # fmt: skip


def _splits(values: list[Any], labels: list[str], share: float) -> dict[str, list[int]]:
    """In each class the sequences in the order of their content's hash: test, validation, rest.

    Args:
        values, labels: of the sequences.
        share: of each class that is the test; 0 where it has a file of its own.

    Equal sequences have one hash and stay on one side.
    """
    by_class: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for number, (one, label) in enumerate(zip(values, labels, strict=True)):
        seal = hashlib.sha256(np.ascontiguousarray(one).tobytes()).hexdigest()
        by_class[label].append((seal, number))
    found: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    for rows in by_class.values():
        rows.sort()
        test = max(1, math.floor(share * len(rows))) if share else 0
        validation = test + max(1, math.floor(_VALIDATION * len(rows)))
        side, before = "validation", ""
        for place, (seal, number) in enumerate(rows):
            if seal != before:
                side = "test" if place < test else "validation" if place < validation else "train"
            found[side].append(number)
            before = seal
    return {name: sorted(part) for name, part in found.items()}


_SHAPES, _WAVES = ("chirp", "saw", "sine"), 240


def make_waves() -> DataTable:
    """Three shapes in two channels, 20 to 40 steps with noise, whose means say nothing."""
    import polars as pl

    generator = np.random.default_rng(11)
    parts = []
    for number in range(_WAVES):
        shape = _SHAPES[number % len(_SHAPES)]
        steps = int(generator.integers(20, 41))
        phase = np.arange(steps) / 8 + generator.random()
        turn = phase * (1 + phase / 6) if shape == "chirp" else phase
        wave = 2 * (turn % 1) - 1 if shape == "saw" else np.sin(2 * np.pi * turn)
        noise = 0.3 * generator.standard_normal((2, steps))
        parts.append(
            pl.DataFrame({
                "wave": [f"w{number:03}"] * steps, "shape": [shape] * steps,
                "a": np.round(wave + noise[0], 4), "b": np.round(-wave / 2 + noise[1], 4),
            })
        )  # fmt: skip
    return DataTable(pl.concat(parts), "builtin", "made here")
