"""What a file said is read back from a run's recipe, or refused in one sentence."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from throughtime.errors import DataError, OptionError
from throughtime.tasks.classify.items import Labels
from throughtime.tasks.forecast.windows import Facts
from throughtime.tasks.language.text import TextFacts
from throughtime.tasks.recipe import check_unchanged, parse_facts
from throughtime.tasks.tag.sentences import TagFacts
from throughtime.tasks.translate.units import TranslateFacts

PLAIN: dict[str, Any] = {"str": "", "list": [], "dict": {}, "float": 0.5, "int": 1, "bool": True}
EVERY_KIND = pytest.mark.parametrize("kind", [Labels, Facts, TextFacts, TagFacts, TranslateFacts])


def whole(kind: Any) -> dict[str, Any]:
    return {f.name: PLAIN[str(f.type).partition("[")[0]] for f in fields(kind)}


@EVERY_KIND
def test_what_was_written_is_read(kind: Any) -> None:
    assert parse_facts(kind, whole(kind)) == kind(**whole(kind))


@EVERY_KIND
def test_each_that_is_missing_too_much_or_of_another_kind_is_named(kind: Any) -> None:
    for name in whole(kind):
        without = {n: v for n, v in whole(kind).items() if n != name}
        for values in (without, whole(kind) | {name: None}):
            with pytest.raises(OptionError, match=f"finds in a file, and {name} is not"):
                parse_facts(kind, values)
    with pytest.raises(OptionError, match="and more is not"):
        parse_facts(kind, whole(kind) | {"more": 1})


def test_a_file_that_changed_is_refused() -> None:
    check_unchanged("a.csv", "1", "1")
    with pytest.raises(DataError, match="a.csv must be as it was when the run began"):
        check_unchanged("a.csv", "1", "2")
