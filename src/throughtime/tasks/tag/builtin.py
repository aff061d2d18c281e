"""Tagged sentences made here, so that the task runs with no file: words that are two things.

Whether `walk` is a noun or a verb hangs on the words around it, and the ends of rare words say
what they are.
"""

from __future__ import annotations

import random

from throughtime.tasks.tables.table import DataTable

_SENTENCES = 1500
_BOTH = "walk plan dance drink watch paint hope step race cook guard visit answer".split()
_NOUNS = "garden teacher river window child letter friend house bird road market".split()
_VERBS = "see find follow remember carry describe keep love".split()
_ADJECTIVES = "old small quiet green famous clean light open dry slow".split()
_ROOTS = "bal cor dim fen gul har jos kel lom mir nop pel ros sul tav ven wex yor zil".split()
_MADE = {"NOUN": ("ness", "tion", "ment"), "ADJ": ("ous", "ful", "ish"), "ADV": ("ly",)}
_PREPOSITIONS = "in near behind with over".split()

Tagged = list[tuple[str, str]]


def make_tagged() -> DataTable:
    """Sentences of 4 to some 20 tokens with their parts of speech."""
    import polars as pl

    draw = random.Random(7)
    rows = []
    for number in range(_SENTENCES):
        sentence = [*_clause(draw), (".", "PUNCT")]
        if draw.random() < 0.3:
            sentence = [*_clause(draw), ("that", "SCONJ"), *sentence]
        rows += [(f"s{number:04}", token, tag) for token, tag in sentence]
    frame = pl.DataFrame(rows, schema=["sentence", "token", "upos"], orient="row")
    return DataTable(frame, "builtin", "made here")


def _clause(draw: random.Random) -> Tagged:
    subject: Tagged = [(draw.choice(["they", "we", "you"]), "PRON")]
    if draw.random() < 0.5:
        subject = [*_noun_phrase(draw)]
    verb = (draw.choice([*_VERBS, *_BOTH]), "VERB")
    helped: Tagged = [("to", "PART"), (draw.choice(_BOTH), "VERB")]
    clause = [*subject, verb, *(helped if draw.random() < 0.2 else _noun_phrase(draw))]
    if draw.random() < 0.4:
        clause += [(draw.choice(_PREPOSITIONS), "ADP"), *_noun_phrase(draw)]
    if draw.random() < 0.3:
        clause += [(_made(draw, "ADV"), "ADV")]
    return clause


def _noun_phrase(draw: random.Random) -> Tagged:
    phrase: Tagged = [(draw.choice(["the", "that", "a", "her"]), "DET")]
    if draw.random() < 0.5:
        made = draw.random() < 0.3
        phrase += [(_made(draw, "ADJ") if made else draw.choice(_ADJECTIVES), "ADJ")]
    made = draw.random() < 0.3
    return [*phrase, (_made(draw, "NOUN") if made else draw.choice([*_NOUNS, *_BOTH]), "NOUN")]


def _made(draw: random.Random, kind: str) -> str:
    """A word that nobody knows, with the ending of its kind."""
    return draw.choice(_ROOTS) + draw.choice(["", draw.choice(_ROOTS)]) + draw.choice(_MADE[kind])
