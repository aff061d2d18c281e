"""Columns that give a class away, and items that stand on both sides: refused."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np

from throughtime.errors import DataError
from throughtime.tasks.classify.items import Labels, Sequences
from throughtime.tasks.tables import DataTable, Numbers

_LEAST, _TIGHT, _NEAR, _MANY, _TRIED = 10, 0.01, 0.02, 0.2, 200

_CURE = "take that column out of the file"


def check_leaks(facts: Labels, table: DataTable, found: Sequences, group: str) -> None:
    """Refuses columns that give the class away, or say that an item stands on both sides.

    Args:
        facts: roles of columns and classes.
        table: the file.
        found: its sequences; where each row is one, its steps are the columns.
        group: the column whose values stay on one side; "" for none.

    Raises:
        DataError: names the column and how.
    """
    if len(found.names) < _LEAST:
        return
    labels = np.array(found.labels)
    for number, column in enumerate(facts.columns):
        by_item = _of_items(facts, table, found, number)
        told = _told(facts, by_item, labels)
        if told:
            raise DataError(
                f"column {column} of {table.name} must not tell {facts.label}, and it {told}; "
                f"{_CURE}"
            )
    roles = {facts.label, facts.time, facts.series, group}
    for column in table.frame.columns:
        values = _texts(facts, table, column) if column not in roles and not group else []
        if values and _is_group(values, found.labels):
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
            there = np.stack(others)
            spread = there.std(0)
            steps = (there - np.nan_to_num(values[one]).ravel()) / np.where(spread > 0, spread, 1)
            apart = np.sort(np.linalg.norm(steps, axis=1))
            near += bool(apart[0] < _NEAR * apart[3])
            tried += 1
    if tried >= 3 and near > _MANY * tried:
        raise DataError(
            f"the test part of {name} must be new, and {near} of {tried} of its sequences are all "
            "but equal to one of the training part; keep copies together with --group"
        )


def _of_items(facts: Labels, table: DataTable, found: Sequences, number: int) -> list[Numbers]:
    """The values of a column in each sequence; where rows are sequences, one each."""
    if facts.series:
        return [one[:, number] for one in found.values]
    rows = table.numbers(facts.columns[number])
    later = np.zeros(len(rows), bool)
    for column in facts.columns[number + 1 :]:
        later |= np.isfinite(table.numbers(column))
    # Behind a sequence's end nothing is missing.
    ended = ~np.isfinite(rows) & ~later
    return [np.zeros(0) if over else rows[n : n + 1] for n, over in enumerate(ended)]


def _told(facts: Labels, by_item: list[Numbers], labels: Any) -> str:
    """How a column gives the class away, in words, or ""."""
    there = [n for n, one in enumerate(by_item) if len(one)]
    seen = np.array([bool(np.isfinite(by_item[n]).any()) for n in there])
    kinds = [set(labels[there][seen == side]) for side in (False, True)]
    if len(there) >= _LEAST and all(kinds) and not kinds[0] & kinds[1]:
        return f"is missing in all of {min(kinds[0])} and in nothing of the others"
    if not seen.all() or len(there) < len(by_item):
        return ""
    if _apart(facts, by_item, labels):
        return "is another number for each class, whatever the step"
    parts = [one[np.isfinite(one)] for one in by_item]
    if all(float(np.ptp(part)) == 0 for part in parts):
        return _of_constants(facts, np.array([part[0] for part in parts]), labels)
    return ""


def _apart(facts: Labels, by_item: list[Numbers], labels: Any) -> bool:
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


def _of_constants(facts: Labels, values: Numbers, labels: Any) -> str:
    """Of a number for each sequence: whether it is a code of the class, or counts by class."""
    different = np.unique(values)
    classes = {one: set(labels[values == one]) for one in different.tolist()}
    pure = all(len(kinds) == 1 for kinds in classes.values())
    if pure and len(different) <= 2 * len(facts.classes):
        return f"has {len(different)} values, each of one class"
    whole = bool((values == np.round(values)).all())
    if (
        whole
        and len(different) == len(values)
        and np.ptp(values) < 2 * len(facts.classes) * len(values)
    ):
        ordered = labels[np.argsort(values)]
        if int((ordered[1:] != ordered[:-1]).sum()) < len(facts.classes):
            return "numbers the sequences class by class"
        for base in range(2, 2 * len(facts.classes) + 1):
            rests = [set(labels[values % base == rest]) for rest in range(base)]
            if all(len(one) <= 1 for one in rests):
                return f"numbers the sequences so that its rest by {base} is the class"
    return ""


def _texts(facts: Labels, table: DataTable, column: str) -> list[str]:
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
    """Whether values stand for several items each, and each for one class."""
    classes: dict[str, set[str]] = defaultdict(set)
    for value, label in zip(values, labels, strict=True):
        classes[value].add(label)
    several = len(set(labels)) < len(classes) <= len(values) // 2
    return several and all(len(one) == 1 for one in classes.values())
