"""English and Spanish sentences made here, so that the task runs with no file.

Adjectives change their place and agree with their noun, verbs with their subject, so that word by
word is not enough.
"""

from __future__ import annotations

import random

from throughtime.tasks.tables.table import DataTable

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
    """Pairs of 5 to some 15 words."""
    import polars as pl

    draw = random.Random(5)
    rows = [_sentence(draw) for _ in range(_PAIRS)]
    frame = pl.DataFrame(rows, schema=["english", "spanish"], orient="row")
    return DataTable(frame, "builtin", "made here")


def _sentence(draw: random.Random) -> tuple[str, str]:
    one, uno, several = _phrase(draw)
    other, otro, _ = _phrase(draw)
    verb, ve, ven = draw.choice(_VERBS)
    verb = verb.replace("_", " ") if several else _third_person(verb)
    return f"{one} {verb} {other}.", f"{uno} {ven if several else ve} {otro}."


def _third_person(verb: str) -> str:
    first, _, rest = verb.partition("_")
    return {"have": "has"}.get(first, f"{first}s") + (f" {rest}" if rest else "")


def _phrase(draw: random.Random) -> tuple[str, str, bool]:
    """A noun with its article and perhaps an adjective, in both languages; whether it is plural."""
    noun, sustantivo, gender = draw.choice(_NOUNS)
    kind = draw.choice(["the", "a", "number"])
    several = kind == "number" or (kind == "the" and draw.random() < 0.4)
    if kind == "number":
        article, artículo = draw.choice(_NUMBERS)
    else:
        article, artículo = kind, _ARTICLES[kind][2 * several + (gender == "f")]
    words, palabras = [article], [artículo, _plural(sustantivo) if several else sustantivo]
    if draw.random() < 0.6:
        adjective, adjetivo = draw.choice(_ADJECTIVES)
        words.append(adjective)
        palabras.append(adjetivo[:-1] + ("a" if gender == "f" else "o") + "s" * several)
    if words == ["a", "old"]:
        words[0] = "an"
    return " ".join([*words, f"{noun}s" if several else noun]), " ".join(palabras), several


def _plural(noun: str) -> str:
    """Spanish: -s behind a vowel, else -es, and the accent of the last syllable falls."""
    if noun[-1] in "aeiou":
        return f"{noun}s"
    return {"jardín": "jardines"}.get(noun, f"{noun}es")
