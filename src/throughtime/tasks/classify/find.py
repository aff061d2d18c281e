"""The facts in a table about classes: roles of columns, sequences, splits, scales.

Refused are columns that give a class away, and items on both sides of the split.
"""

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
    list_sequences,
    make_waves,
)
from throughtime.tasks.recipe import build_cell
from throughtime.tasks.tables import DataTable, Numbers, check_roles
from throughtime.tasks.tables.clock import find_time, merge_time, time_columns
from throughtime.tasks.tables.read import hash_files, read
from throughtime.tasks.tables.task import BUILTIN, SIDES, check_like_training, hash_data, hash_text

_TEST, _VALIDATION = 0.15, 0.15
_LONG, _FRAME = 150, 24  # steps of a sequence that is read in frames, and of a frame


def read_source(recipe: ClassifyRecipe) -> DataTable:
    return make_waves() if recipe.data == BUILTIN else read(recipe.data)


def hash_source(recipe: ClassifyRecipe) -> str:
    """The digest of its file, followed by that of the test's."""
    return hash_data(recipe.data) + (hash_files(recipe.test) if recipe.test else "")


def read_test(recipe: ClassifyRecipe, facts: Labels) -> Sequences | None:
    """The sequences of the test's own file, where there is one.

    Raises:
        DataError: it has not the columns and classes of the other; names the row.
    """
    if not recipe.test:
        return None
    table = merge_time(read(recipe.test), facts.time)
    check_like_training(table, [*facts.columns, facts.time, facts.series, facts.label])
    check_classes(table, facts)
    return list_sequences(table, facts, labelled=True)


def find_labels(recipe: ClassifyRecipe) -> Labels:
    """The facts in the file of a recipe.

    Raises:
        DataError: the file cannot be learned from; names file, row and column.
    """
    table = read_source(recipe)
    facts = _find_roles(recipe, table)
    table = merge_time(table, facts.time)
    sequences = list_sequences(table, facts, labelled=True)
    check_leaks(facts, table, sequences, recipe.group)
    other = read_test(recipe, facts)
    test = 0.0 if other else _TEST
    groups = _list_groups(facts, table, recipe.group)
    splits = _split_groups(groups, test) if groups else _split_sequences(sequences, test)
    if other:
        splits["test"] = list(range(len(sequences.names), len(sequences.names) + len(other.names)))
        sequences = sequences.with_others(other)
    values, train = sequences.values, splits["train"]
    if not groups:
        check_copies(table.name, values, sequences.labels, train, splits["test"])
    step = find_gaps([values[n] for n in train], [sequences.times[n] for n in train])
    facts = replace(facts, step=step, frames=_find_frames(recipe, values))
    return _complete(facts, table, sequences, splits)


def _find_frames(recipe: ClassifyRecipe, values: list[Numbers]) -> int:
    """As given; or for long sequences those of a frame, unless the cell reads gaps of time."""
    long = float(np.median([len(one) for one in values])) >= _LONG
    usual = _FRAME if long and not build_cell(recipe.cell).inputs else 1
    return recipe.frames or usual


def _find_roles(recipe: ClassifyRecipe, table: DataTable) -> Labels:
    """The roles of the columns, and the classes."""
    label = recipe.label or table.roles.get("label", "")
    series = recipe.series or table.roles.get("series", "")
    if recipe.data == BUILTIN:
        label, series = label or "shape", series or "wave"
    table.check_role("classes need", "label", label)
    roles = (("label", label), ("series", series), ("group", recipe.group))
    for name, column in roles:
        table.check_columns(name, [column] if column else [])
    time = find_time(table, recipe.time, [label, series]) if series else ""
    times = time_columns(table, time)
    check_roles([("time", times), *((name, [column]) for name, column in roles if column)])
    used = (label, *times, series, recipe.group)
    columns = [c for c in table.frame.columns if c not in used and table.is_number(c)]
    if not columns:
        raise DataError(f"{table.name} must have a column of numbers beside {label}; it has none")
    facts = Labels(
        digest=hash_source(recipe), label=label, time=time, series=series, columns=columns,
        classes=sorted(set(table.texts(label))), inputs=columns if series else ["value"],
    )  # fmt: skip
    if len(facts.classes) < 2:
        raise DataError(
            f"column {label} of {table.name} must hold two classes or more, and it holds "
            f"{facts.classes[0]} alone, from {table.unit} {table.first} on"
        )
    return facts


def _list_groups(facts: Labels, table: DataTable, group: str) -> list[str]:
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


def _split_groups(groups: list[str], test: float) -> dict[str, list[int]]:
    """Whole groups in the order of their hashes: test, validation, rest."""
    names = sorted(set(groups), key=hash_text)
    places: dict[str, list[int]] = defaultdict(list)
    for number, name in enumerate(groups):
        places[name].append(number)
    sides: dict[str, list[int]] = {side: [] for side in SIDES}
    wanted = {"test": test * len(groups), "validation": _VALIDATION * len(groups)}
    for name in names:
        side = next((s for s, many in wanted.items() if len(sides[s]) < many), "train")
        sides[side] += places[name]
    return {name: sorted(part) for name, part in sides.items()}


def _complete(
    facts: Labels, table: DataTable, sequences: Sequences, splits: dict[str, list[int]]
) -> Labels:
    values, labels = sequences.values, sequences.labels
    count, total = Counter(labels[n] for n in splits["train"]), Counter(labels)
    for name in facts.classes:
        if total[name] < 3:
            raise DataError(
                f"a class must have at least 3 sequences, one for each part, and {name} of column "
                f"{facts.label} of {table.name} has {total[name]}; add some, or take it out"
            )
        if not count[name]:
            raise DataError(
                f"a class must have sequences to train on, and the {total[name]} of {name} of "
                f"column {facts.label} of {table.name} are held out, since equal ones and those of "
                "a group stay together; add others, or take it out"
            )
    train = np.concatenate([values[n] for n in splits["train"]])
    seen = np.isfinite(train)
    known = np.maximum(seen.sum(0), 1)
    means = np.where(seen, train, 0).sum(0) / known
    spread = np.sqrt(np.where(seen, (train - means) ** 2, 0).sum(0) / known)
    weights = [len(splits["train"]) / (len(facts.classes) * count[name]) for name in facts.classes]
    deviations = np.where(spread > 0, spread, 1.0).tolist()
    return replace(
        facts, read=_describe(facts, table, sequences, splits), splits=splits, weights=weights,
        means=means.tolist(), deviations=deviations,
    )  # fmt: skip


def _describe(
    facts: Labels, table: DataTable, sequences: Sequences, splits: dict[str, list[int]]
) -> list[list[str]]:
    values, count = sequences.values, Counter(sequences.labels)
    lengths = [len(one) for one in values]
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


def _split_sequences(sequences: Sequences, share: float) -> dict[str, list[int]]:
    """In each class the sequences in the order of their content's hash: test, validation, rest.

    Equal sequences have one hash and stay on one side. `share` of each class is the test; 0 where
    it has a file of its own.
    """
    by_class: dict[str, list[tuple[str, int]]] = defaultdict(list)
    pairs = zip(sequences.values, sequences.labels, strict=True)
    for number, (one, label) in enumerate(pairs):
        digest = hashlib.sha256(np.ascontiguousarray(one).tobytes()).hexdigest()
        by_class[label].append((digest, number))
    sides: dict[str, list[int]] = {side: [] for side in SIDES}
    for rows in by_class.values():
        rows.sort()
        test = max(1, math.floor(share * len(rows))) if share else 0
        validation = test + max(1, math.floor(_VALIDATION * len(rows)))
        side, before = "validation", ""
        for place, (digest, number) in enumerate(rows):
            if digest != before:
                side = "test" if place < test else "validation" if place < validation else "train"
            sides[side].append(number)
            before = digest
    return {name: sorted(part) for name, part in sides.items()}


_LEAST, _TIGHT, _NEAR, _MANY, _TRIED = 10, 0.01, 0.02, 0.2, 200

_CURE = "take that column out of the file"


def check_leaks(facts: Labels, table: DataTable, sequences: Sequences, group: str) -> None:
    """Refuses columns that give the class away, or show that an item is on both sides.

    Args:
        facts: roles of columns and classes.
        table: the file.
        sequences: of the file; where each row is one, its steps are the columns.
        group: the column whose values stay on one side; "" for none.

    Raises:
        DataError: names the column and how.
    """
    if len(sequences.names) < _LEAST:
        return
    labels = np.array(sequences.labels)
    for number, column in enumerate(facts.columns):
        by_item = _values_by_sequence(facts, table, sequences, number)
        leak = _describe_leak(facts, by_item, labels)
        if leak:
            raise DataError(
                f"column {column} of {table.name} must not tell {facts.label}, and it {leak}; "
                f"{_CURE}"
            )
    roles = {facts.label, facts.time, facts.series, group}
    for column in table.frame.columns:
        if group or column in roles:
            continue
        values = _texts_by_sequence(facts, table, column)
        if values and _is_group(values, sequences.labels):
            raise DataError(
                f"an item must stand on one side of the split, and column {column} of {table.name} "
                f"has {len(set(values))} values for {len(values)} sequences, each of one class; "
                f"keep them together with --group {column}, or {_CURE}"
            )


def check_copies(name: str, values: list[Numbers], labels: list[str], train: list[int],
                 test: list[int]) -> None:  # fmt: skip
    """Refuses a test part that has sequences of the training part again, but for a little noise.

    Near is a fiftieth of the way to the fourth nearest of its class and length, which is rare where
    nothing is copied: of points on a line 6 in 100 are so, and fewer in more dimensions.

    Raises:
        DataError: names how many.
    """
    by_form = defaultdict(list)
    for one in train:
        by_form[labels[one], values[one].shape].append(np.nan_to_num(values[one]).ravel())
    near = tried = 0
    for one in test[:_TRIED]:
        others = by_form[labels[one], values[one].shape]
        if len(others) >= 4:
            neighbours = np.stack(others)
            spread = neighbours.std(0)
            steps = neighbours - np.nan_to_num(values[one]).ravel()
            distances = np.sort(np.linalg.norm(steps / np.where(spread > 0, spread, 1), axis=1))
            near += bool(distances[0] < _NEAR * distances[3])
            tried += 1
    if tried >= 3 and near > _MANY * tried:
        raise DataError(
            f"the test part of {name} must be new, and {near} of {tried} of its sequences are all "
            "but equal to one of the training part; keep copies together with --group"
        )


def _values_by_sequence(
    facts: Labels, table: DataTable, sequences: Sequences, number: int
) -> list[Numbers]:
    """The values of a column in each sequence; where rows are sequences, one each."""
    if facts.series:
        return [one[:, number] for one in sequences.values]
    rows = table.numbers(facts.columns[number])
    later = np.zeros(len(rows), bool)
    for column in facts.columns[number + 1 :]:
        later |= np.isfinite(table.numbers(column))
    # Behind a sequence's end nothing is missing.
    ended = ~np.isfinite(rows) & ~later
    return [np.zeros(0) if over else rows[n : n + 1] for n, over in enumerate(ended)]


def _describe_leak(facts: Labels, by_item: list[Numbers], labels: Any) -> str:
    """How a column gives the class away, in words, or ""."""
    nonempty = [n for n, one in enumerate(by_item) if len(one)]
    seen = np.array([bool(np.isfinite(by_item[n]).any()) for n in nonempty])
    kinds = [set(labels[nonempty][seen == side]) for side in (False, True)]
    if len(nonempty) >= _LEAST and all(kinds) and not kinds[0] & kinds[1]:
        return f"is missing in all of {min(kinds[0])} and in nothing of the others"
    if not seen.all() or len(nonempty) < len(by_item):
        return ""
    if _is_separated(facts, by_item, labels):
        return "is another number for each class, whatever the step"
    parts = [one[np.isfinite(one)] for one in by_item]
    if all(float(np.ptp(part)) == 0 for part in parts):
        return _describe_constants(facts, np.array([part[0] for part in parts]), labels)
    return ""


def _is_separated(facts: Labels, by_item: list[Numbers], labels: Any) -> bool:
    """Whether all values of a class lie next to each other, far from those of the others."""
    middles, widths = [], []
    for name in facts.classes:
        values = np.concatenate([one for one, label in zip(by_item, labels, strict=True)
                                 if label == name])  # fmt: skip
        values = values[np.isfinite(values)]
        middles.append(float(values.mean()))
        widths.append(float(values.std()))
    gap = float(np.diff(np.sort(middles)).min())
    return gap > 0 and max(widths) < _TIGHT * gap


def _describe_constants(facts: Labels, values: Numbers, labels: Any) -> str:
    """Of a number for each sequence: whether it is a code of the class, or counts by class."""
    different = np.unique(values)
    classes = {one: set(labels[values == one]) for one in different.tolist()}
    pure = all(len(kinds) == 1 for kinds in classes.values())
    if pure and len(different) <= 2 * len(facts.classes):
        return f"has {len(different)} values, each of one class"
    whole = bool((values == np.round(values)).all()) and len(different) == len(values)
    if whole and np.ptp(values) < 2 * len(facts.classes) * len(values):
        ordered = labels[np.argsort(values)]
        if int((ordered[1:] != ordered[:-1]).sum()) < len(facts.classes):
            return "numbers the sequences class by class"
        for base in range(2, 2 * len(facts.classes) + 1):
            rests = [set(labels[values % base == rest]) for rest in range(base)]
            if all(len(one) <= 1 for one in rests):
                return f"numbers the sequences so that its rest by {base} is the class"
    return ""


def _texts_by_sequence(facts: Labels, table: DataTable, column: str) -> list[str]:
    """A column of words or whole numbers, for each sequence; [] where it is none of that."""
    import polars as pl

    values = table.frame[column]
    kinds = ("String", "Categorical", "Int64", "Boolean")
    if str(values.dtype) not in kinds or values.null_count():
        return []
    if not facts.series:
        return list(map(str, values.to_list()))
    by_series = table.frame.group_by(pl.col(facts.series).cast(pl.String), maintain_order=True)
    parts = by_series.agg(pl.col(column).n_unique().alias("many"), pl.col(column).first())
    return list(map(str, parts[column].to_list())) if (parts["many"] == 1).all() else []


def _is_group(values: list[str], labels: list[str]) -> bool:
    """Whether each value is that of several items, all of one class."""
    classes: dict[str, set[str]] = defaultdict(set)
    for value, label in zip(values, labels, strict=True):
        classes[value].add(label)
    several = len(set(labels)) < len(classes) <= len(values) // 2
    return several and all(len(one) == 1 for one in classes.values())
