"""Sentences of tokens and labels: CoNLL-U, columns with empty lines between sentences, tables.

The options and facts they are made by too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice

from throughtime.errors import DataError
from throughtime.tasks.recipe import option
from throughtime.tasks.tables import DataTable, take
from throughtime.tasks.tables.pieces import open_text
from throughtime.tasks.tables.read import LINES, TEXTS, TOKEN_FILES, find_ending
from throughtime.tasks.tables.task import FileFacts, Vocabulary
from throughtime.tasks.tables.text import TextRecipe, find_role, make_table, read_texts

PADDING, UNKNOWN, FIRST = 0, 1, 2  # of words and characters


@dataclass(frozen=True, kw_only=True)
class TagRecipe(TextRecipe):
    """A recipe with the columns of a table and their roles."""

    task: str = option("tag", "What is learned")
    token: str = option("", "Column of tokens; empty: found")
    label: str = option("", "Column of labels; empty: found")
    series: str = option(
        "", "Column that tells sentences apart; empty: found, or a new one after . ! ?"
    )
    group: str = option("", "Column whose values stay on one side, say a book; empty: sentences")
    layers: int = option(2, "Recurrent layers on top of each other", at_least=1, below=3)


@dataclass(frozen=True, kw_only=True)
class TagFacts(FileFacts):
    """The facts in the file.

    Attributes:
        token, label, series, group: columns, "" where there is none.
        words: of the training part without case, and characters, the most frequent first.
        labels: sorted.
    """

    token: str
    label: str
    series: str
    group: str
    words: list[str] = field(default_factory=list)
    characters: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)

    @cached_property
    def word_numbers(self) -> Vocabulary:
        return Vocabulary(self.words, FIRST, UNKNOWN)

    @cached_property
    def character_numbers(self) -> Vocabulary:
        return Vocabulary(self.characters, FIRST, UNKNOWN)


TOKENS = ("token", "tokens", "word", "words", "form", "text")
LABELS = ("label", "labels", "tag", "tags", "upos", "pos", "pos_tags", "ner", "ner_tags")
SENTENCES = ("sentence", "sentence_id", "sent_id", "sentence #", "sentence_number", "sent")
_UNIVERSAL = "id form lemma upos xpos feats head deprel deps misc".split()
_ENDS = (".", "!", "?")
_SNIFFED = 500  # lines by which columns are detected


@dataclass(frozen=True)
class Sentences:
    """As in a file; `rows` are the numbers of the table's rows of each token."""

    names: list[str] = field(default_factory=list)
    tokens: list[list[str]] = field(default_factory=list)
    labels: list[list[str]] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    rows: list[list[int]] = field(default_factory=list)

    def of(self, numbers: Iterable[int]) -> Sentences:
        """Some of them."""
        return take(self, numbers)

    @property
    def words(self) -> list[str]:
        """The tokens of all, one after the other."""
        return [token for one in self.tokens for token in one]


def read_tokens(path: str, recipe: TextRecipe) -> DataTable:
    """The table in a file: a row a token, or lists of them a row.

    Raises:
        DataError: it is empty, ragged, of another encoding or form; names the line.
        OSError: it cannot be read.
    """
    if path.casefold().endswith(TOKEN_FILES):
        return _read_columns(path, universal=path.casefold().endswith(".conllu"))
    ending = find_ending(path, (*TOKEN_FILES, *TEXTS, ".parquet", *LINES))
    if ending in TEXTS and _looks_like_columns(path):
        return _read_columns(path, universal=False)
    return read_texts(path, recipe, (*TOKENS, *LABELS, *SENTENCES))


def _looks_like_columns(path: str) -> bool:
    """Whether empty lines stand between lines that have equally many cells, no commas between."""
    with open_text(path) as file:
        lines = [line.strip() for line in islice(file, _SNIFFED)]
    while lines and not lines[-1]:
        lines.pop()
    full = [line for line in lines if line and not line.startswith(("#", "-DOCSTART-"))]
    sign = "\t" if any("\t" in line for line in full) else None
    widths = {len(line.split(sign)) for line in full}
    return "" in lines and len(widths) == 1 and min(widths) > 1


def _read_columns(path: str, universal: bool) -> DataTable:
    """Lines of cells; `sentence` and, where the file has some, `document` are columns of ours."""
    rows: list[list[str]] = []
    lines: list[int] = []
    sign = "\t" if universal else None
    for number, place, line in _read_lines(path, universal):
        if not rows and "\t" in line:
            sign = "\t"
        cells = line.split(sign)
        width = len(_UNIVERSAL) if universal else len(rows[0]) - 2 if rows else len(cells)
        if len(cells) != width:
            rule = "as CoNLL-U has" if universal else f"as line {lines[0]} has"
            raise DataError(
                f"every line of {path} must have {width} cells, {rule}, and line {number} has "
                f"{len(cells)}"
            )
        if not (universal and not cells[0].isdecimal()):  # 1-2 and 1.1 are no tokens
            rows.append([*place, *cells])
            lines.append(number)
    if not rows:
        raise DataError(f"{path} must hold tokens, and none of its lines is one")
    width = len(rows[0]) - 2
    names = _UNIVERSAL if universal else [f"column_{n}" for n in range(1, width + 1)]
    form = "CoNLL-U" if universal else f"{width} columns, an empty line between sentences"
    return make_table(["sentence", "document", *names], rows, path, form, lines)


def _read_lines(path: str, universal: bool) -> Iterator[tuple[int, tuple[str, str], str]]:
    """Number, (sentence, document) and text of every line that is no comment."""
    sentence, document, begun = 1, "", False
    name = ""
    with open_text(path) as file:
        for number, line in enumerate(file, start=1):
            text = line.rstrip("\r\n")
            if not text.strip():
                sentence += begun
                begun, name = False, ""
            elif text.startswith("-DOCSTART-"):
                document = str(number)
            elif text.startswith("#") and (universal or (not begun and "=" in text)):
                key, _, value = text[1:].partition("=")
                name = value.strip() if key.strip() == "sent_id" else name
                document = value.strip() if key.strip() == "newdoc id" else document
            else:
                begun = True
                yield number, (name or str(sentence), document), text


def list_sentences(table: DataTable, facts: TagFacts, labelled: bool) -> Sentences:
    """The sentences of a table, in the order in which they begin.

    Raises:
        DataError: a cell is empty; names its row.
    """
    if str(table.frame[facts.token].dtype).startswith(("List", "Array")):
        return _list_from_lists(table, facts, labelled)
    tokens = table.texts(facts.token)
    labels = table.texts(facts.label) if labelled else [""] * len(tokens)
    groups = table.texts(facts.group) if facts.group else [""] * len(tokens)
    sentences = Sentences()
    places: dict[str, int] = {}
    for row, name in enumerate(_name_sentences(table, facts, tokens)):
        if name not in places:
            places[name] = len(sentences.names)
            sentences.names.append(name)
            sentences.groups.append(groups[row])
            for part in (sentences.tokens, sentences.labels, sentences.rows):
                part.append([])
        n = places[name]
        sentences.tokens[n].append(tokens[row])
        sentences.labels[n].append(labels[row])
        sentences.rows[n].append(row)
    return sentences


def _name_sentences(table: DataTable, facts: TagFacts, tokens: list[str]) -> list[str]:
    """The sentence of each row: of its column, which may be filled at the first token alone."""
    if facts.series:
        names = table.frame[facts.series].cast(str).fill_null(strategy="forward")
        return names.fill_null("1").to_list()
    numbers, number = [], 1
    for token in tokens:
        numbers.append(str(number))
        number += token in _ENDS
    return numbers


def _list_from_lists(table: DataTable, facts: TagFacts, labelled: bool) -> Sentences:
    """A row a sentence, its tokens and its labels lists of one length."""
    sentences = Sentences()
    listed = table.frame[facts.token].to_list()
    marks = table.frame[facts.label].to_list() if labelled else [None] * len(listed)
    groups = table.texts(facts.group) if facts.group else [""] * len(listed)
    for row, (tokens, labels) in enumerate(zip(listed, marks, strict=True)):
        labels = labels if labelled else [""] * len(tokens or [])
        if not isinstance(labels, list) or len(tokens or []) != len(labels) or not labels:
            raise DataError(
                f"{facts.token} and {facts.label} must be lists of one length, at least 1, and "
                f"those of {table.place(row)} are not"
            )
        if None in tokens or None in labels:
            raise DataError(f"{table.place(row)} must have no null among its tokens and labels")
        sentences.names.append(str(row + 1))
        sentences.tokens.append([str(one) for one in tokens])
        sentences.labels.append([str(one) for one in labels])
        sentences.groups.append(groups[row])
        sentences.rows.append([row] * len(tokens))
    return sentences


def find_columns(table: DataTable, recipe: TagRecipe) -> tuple[str, str, str, str]:
    """The columns of tokens, labels, sentences and groups; "" for what there is not.

    Raises:
        DataError: one is not there, or cannot be detected.
    """
    columns = [name for name in table.frame.columns if name not in ("sentence", "document")]
    of_ours = table.frame.columns[:2] == ["sentence", "document"]
    bare = of_ours and "form" not in columns  # columns without names: token first, label last
    series = find_role(table, "series", recipe.series, SENTENCES)
    token = find_role(table, "token", recipe.token, TOKENS, [series])
    usual = ("upos",) if "upos" in columns and of_ours else LABELS
    label = find_role(table, "label", recipe.label, usual, [series, token])
    rest = [name for name in columns if name != series]
    if len(rest) == 2 or bare:
        token = token or next(name for name in rest if name != label)
        label = label or next(name for name in reversed(rest) if name != token)
    for role, column in (("token", token), ("label", label)):
        table.check_role("tags need", role, column)
    group = find_role(table, "group", recipe.group, ())
    return token, label, series, group
