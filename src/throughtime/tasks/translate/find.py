"""The facts in a file for translations: pairs, sides, and the units that training knows.

A file made here too, so that the task runs with none.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

from throughtime.errors import DataError
from throughtime.tasks.tables import DataTable, take
from throughtime.tasks.tables.task import (
    BUILTIN,
    check_sides,
    hash_data,
    join_keys,
    most_frequent,
    split_by_key,
)
from throughtime.tasks.tables.text import find_role, read_text_blocks, read_texts
from throughtime.tasks.translate.units import Cutter, TranslateFacts, TranslateRecipe, find_merges

SOURCES = ("source", "src", "input", "from", "question", "text")
TARGETS = ("target", "tgt", "trg", "output", "to", "answer", "translation")
_MOST = {"characters": 2000, "words": 20_000, "pieces": 20_000}
_FEWEST = 10  # different pairs


@dataclass(frozen=True)
class Pairs:
    """As in a file; `rows` are the numbers of the table's rows."""

    sources: list[str] = field(default_factory=list)
    targets: list[str] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)

    def of(self, numbers: Iterable[int]) -> Pairs:
        """Some of them."""
        return take(self, numbers)


def read_pairs(path: str, recipe: TranslateRecipe) -> DataTable:
    return read_texts(path, recipe, (*SOURCES, *TARGETS))


def read_pair_blocks(path: str, recipe: TranslateRecipe, rows: int) -> Iterator[DataTable]:
    return read_text_blocks(path, recipe, (*SOURCES, *TARGETS), rows)


def read_source(recipe: TranslateRecipe) -> DataTable:
    return make_pairs() if recipe.data == BUILTIN else read_pairs(recipe.data, recipe)


def find_translations(recipe: TranslateRecipe) -> TranslateFacts:
    """The facts in the file of a recipe.

    Raises:
        DataError: the file cannot be learned from; names file, row and column.
    """
    table = read_source(recipe)
    source, target = find_pair(table, recipe)
    facts = TranslateFacts(digest=hash_data(recipe.data), source=source, target=target)
    pairs, left = list_pairs(table, facts, recipe)
    different = len({*zip(pairs.sources, pairs.targets, strict=True)})
    if different < _FEWEST:
        raise DataError(
            f"{table.name} must hold at least {_FEWEST} different pairs, some for each part, and "
            f"it holds {different} of at most {recipe.longest} units; add some, or give a larger "
            "--longest"
        )
    if len({*pairs.targets}) == 1:
        raise DataError(
            f"column {target} of {table.name} must hold two texts or more, and it holds the same "
            f"in every row, from {table.place(pairs.rows[0])} on"
        )
    sides = split_pairs(pairs, table)
    train = pairs.of(sides["train"])
    facts = _find_units(facts, recipe, train)
    return replace(facts, read=_describe(recipe, facts, table, pairs, left, sides))


def _find_units(facts: TranslateFacts, recipe: TranslateRecipe, train: Pairs) -> TranslateFacts:
    """With the units of the training part."""
    if recipe.units == "pieces":
        both = [find_merges(texts) for texts in (train.sources, train.targets)]
        facts = replace(facts, source_merges=both[0], target_merges=both[1])
    cutters = facts.cutters(recipe.units)
    source, target = (
        most_frequent((unit for text in texts for unit in cut(text)), _MOST[recipe.units])
        for cut, texts in zip(cutters, (train.sources, train.targets), strict=True)
    )
    return replace(facts, source_units=source, target_units=target)


def find_pair(table: DataTable, recipe: TranslateRecipe) -> tuple[str, str]:
    """The columns of sources and targets: named, by their usual names, or the only two.

    Raises:
        DataError: one is not there, or cannot be detected.
    """
    source = find_role(table, "source", recipe.source, SOURCES, [recipe.target])
    target = find_role(table, "target", recipe.target, TARGETS, [source])
    columns = table.frame.columns
    if len(columns) == 2:
        source = source or next(name for name in columns if name != target)
        target = target or next((name for name in columns if name != source), "")
    for option, column in (("source", source), ("target", target)):
        table.check_role("translations need", option, column)
    if source == target:
        raise DataError(
            f"--source and --target must be two columns of {table.name}, got {source} for both"
        )
    return source, target


def list_pairs(
    table: DataTable, facts: TranslateFacts, recipe: TranslateRecipe
) -> tuple[Pairs, int]:
    """The pairs of a table that are not longer than `longest`, and how many are.

    Raises:
        DataError: a cell is empty; names its row.
    """
    cut = _length_cutter(recipe)
    sources, targets = (list_texts(table, name, cut) for name in (facts.source, facts.target))
    both = zip(sources, targets, strict=True)
    short = [
        row for row, pair in enumerate(both)
        if all(len(cut(text)) <= recipe.longest for text in pair)
    ]  # fmt: skip
    every = Pairs(sources, targets, [*range(len(sources))])
    return every.of(short), len(sources) - len(short)


def list_texts(table: DataTable, column: str, cut: Callable[[str], list[str]]) -> list[str]:
    """The texts of a column, which have a unit each.

    Raises:
        DataError: one has none; names its row.
    """
    texts = table.texts(column)
    for row, text in enumerate(texts):
        if not cut(text):
            raise DataError(
                f"column {column} must have text, and {table.place(row)} has none; fill it in, or "
                "take the row out"
            )
    return texts


def _length_cutter(recipe: TranslateRecipe) -> Cutter:
    """What lengths are counted by: pieces are not known before they are learned."""
    return Cutter("words" if recipe.units == "pieces" else recipe.units)


def split_pairs(pairs: Pairs, table: DataTable) -> dict[str, list[int]]:
    """The pairs of each side; pairs that share a source or a target, case aside, are on one side.

    Raises:
        DataError: a side is empty, since too many are connected.
    """
    plain = [[" ".join(text.casefold().split()) for text in texts]
             for texts in (pairs.sources, pairs.targets)]  # fmt: skip
    sides = split_by_key(join_keys(zip(*plain, strict=True)))
    reason = "since pairs that share a source or a target stand together; add others"
    check_sides(sides, "pairs", table, reason)
    return sides


def _describe(
    recipe: TranslateRecipe, facts: TranslateFacts, table: DataTable, pairs: Pairs, left: int,
    sides: dict[str, list[int]],
) -> list[list[str]]:  # fmt: skip
    cut = _length_cutter(recipe)
    lengths = [[len(cut(text)) for text in texts] for texts in (pairs.sources, pairs.targets)]
    units = facts.source_units, facts.target_units
    twice = len(pairs.sources) - len({*zip(pairs.sources, pairs.targets, strict=True)})
    parts = ", ".join(f"{side} {len(numbers)}" for side, numbers in sides.items())
    lines = [f"{facts.source}: {min(lengths[0])} to {max(lengths[0])}, {len(units[0])} different"]
    lines += [f"{facts.target}: {min(lengths[1])} to {max(lengths[1])}, {len(units[1])} different"]
    return [
        ["file", f"{table.name}: {table.form}, {len(table.frame)} rows"],
        ["pairs", f"from {facts.source} into {facts.target}: {len(pairs.sources)}, {twice} of them "
                  "said before"],
        ["left out", f"{left} with more than {recipe.longest} {cut.kind}"],
        [recipe.units, "; ".join(lines)],
        ["split by hash", parts],
    ]  # fmt: skip


_PAIRS = 2500
# English noun, Spanish noun, whether it is feminine.
_NOUNS = [
    line.split() for line in (
        "cat gato m|dog perro m|house casa f|table mesa f|book libro m|car coche m|friend amigo m|"
        "river río m|letter carta f|door puerta f|garden jardín m|street calle f|window ventana f|"
        "bird pájaro m|horse caballo m|chair silla f|school escuela f|tree árbol m"
    ).split("|")
]  # fmt: skip
_ADJECTIVES = [
    word.split() for word in (
        "white blanco|black negro|small pequeño|red rojo|old viejo|new nuevo|long largo|good bueno|"
        "clean limpio|beautiful hermoso|quiet tranquilo|dark oscuro"
    ).split("|")
]  # fmt: skip
# English verb, Spanish for one and for several.
_VERBS = [
    word.split() for word in (
        "see ve ven|find encuentra encuentran|want quiere quieren|buy compra compran|"
        "paint pinta pintan|look_for busca buscan|have tiene tienen|clean limpia limpian"
    ).split("|")
]  # fmt: skip
_ARTICLES = {"the": ("el", "la", "los", "las"), "a": ("un", "una", "unos", "unas")}
_NUMBERS = [("two", "dos"), ("three", "tres"), ("four", "cuatro"), ("five", "cinco")]


def make_pairs() -> DataTable:
    """English and Spanish pairs of 5 to some 15 words.

    Adjectives change their place and agree with their noun, verbs with their subject, so that word
    by word is not enough.
    """
    import polars as pl

    draw = random.Random(5)
    rows = [_make_sentence(draw) for _ in range(_PAIRS)]
    frame = pl.DataFrame(rows, schema=["english", "spanish"], orient="row")
    return DataTable(frame, "builtin", "made here")


def _make_sentence(draw: random.Random) -> tuple[str, str]:
    one, uno, several = _make_phrase(draw)
    other, otro, _ = _make_phrase(draw)
    verb, ve, ven = draw.choice(_VERBS)
    verb = verb.replace("_", " ") if several else _make_third_person(verb)
    return f"{one} {verb} {other}.", f"{uno} {ven if several else ve} {otro}."


def _make_third_person(verb: str) -> str:
    first, _, rest = verb.partition("_")
    return {"have": "has"}.get(first, f"{first}s") + (f" {rest}" if rest else "")


def _make_phrase(draw: random.Random) -> tuple[str, str, bool]:
    """A noun with its article and perhaps an adjective, in both languages; whether it is plural."""
    noun, sustantivo, gender = draw.choice(_NOUNS)
    kind = draw.choice(["the", "a", "number"])
    several = kind == "number" or (kind == "the" and draw.random() < 0.4)
    if kind == "number":
        article, artículo = draw.choice(_NUMBERS)
    else:
        article, artículo = kind, _ARTICLES[kind][2 * several + (gender == "f")]
    words, palabras = [article], [artículo, _make_plural(sustantivo) if several else sustantivo]
    if draw.random() < 0.6:
        adjective, adjetivo = draw.choice(_ADJECTIVES)
        words.append(adjective)
        palabras.append(adjetivo[:-1] + ("a" if gender == "f" else "o") + "s" * several)
    if words == ["a", "old"]:
        words[0] = "an"
    return " ".join([*words, f"{noun}s" if several else noun]), " ".join(palabras), several


def _make_plural(noun: str) -> str:
    """Spanish: -s after a vowel, else -es, and the accent of the last syllable falls."""
    if noun[-1] in "aeiou":
        return f"{noun}s"
    return {"jardín": "jardines"}.get(noun, f"{noun}es")
