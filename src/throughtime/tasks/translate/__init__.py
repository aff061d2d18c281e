"""Translate: a target text for each source text of the users' own pairs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from throughtime.errors import DataError
from throughtime.tasks.picture import Picture, draw_attention, probe_neighbours
from throughtime.tasks.recipe import check_unchanged
from throughtime.tasks.tables import DataTable
from throughtime.tasks.tables.task import TableTask, check_like_training, find_unseen, hash_data
from throughtime.tasks.task import (
    IGNORED,
    Batch,
    Batches,
    DiagnosisInput,
    Example,
    Score,
    find_usual_length,
    group_by_length,
)
from throughtime.tasks.translate.find import (
    Pairs,
    find_translations,
    list_pairs,
    list_texts,
    read_pair_blocks,
    read_pairs,
    read_source,
    split_pairs,
)
from throughtime.tasks.translate.model import (
    END,
    PADDING,
    Encoder,
    TeacherForced,
    Translator,
    decode_greedily,
    decode_with_attention,
    search_beam,
    shift,
)
from throughtime.tasks.translate.units import (
    RULE,
    Cutter,
    Lexicon,
    TranslateFacts,
    TranslateRecipe,
    join_until_end,
    load_scorers,
    measure,
)

if TYPE_CHECKING:
    import polars as pl

_EXAMPLES = 6
_AT_ONCE = 256  # rows that are decoded side by side
_DRAWN = 3  # sources
_LOOKED_AT = {"characters": 40, "words": 16, "pieces": 20}  # the longest of them
_VALIDATED = 200  # pairs that a validation translates; its nats are of all


@dataclass(frozen=True)
class Encoded:
    """Pairs as numbers: sources, and targets that END closes."""

    sources: list[Tensor]
    targets: list[Tensor]

    def batch(self, rows: Sequence[int]) -> Batch:
        """Sources (T, B), their lengths (B,), targets (S, B), IGNORED after their END."""
        chosen = [self.sources[n] for n in rows]
        targets = pad_sequence([self.targets[n] for n in rows], padding_value=IGNORED)
        return pad_sequence(chosen, padding_value=PADDING), _lengths(chosen), targets


class Translate(TableTask[TranslateRecipe, TranslateFacts]):
    """Writes a target for each source of your pairs, beside copying and word by word."""

    name = "translate"
    options, facts_kind = TranslateRecipe, TranslateFacts
    monitor = "nats"
    higher_is_better = True
    lines = True
    together = 8 * _AT_ONCE
    item_name = "'TEXT'"
    ignores = ("length",)
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "quick": {"hidden": 96, "batch_size": 32, "lr": 4e-3, "steps": 1200, "warmup": 100,
                  "validate_every": 200, "dropout": 0.1},
        "full": {"hidden": 192, "batch_size": 64, "lr": 2e-3, "steps": 12000, "warmup": 300,
                 "validate_every": 500, "dropout": 0.2},
    }  # fmt: skip

    @classmethod
    def find_facts(cls, recipe: TranslateRecipe) -> TranslateFacts:
        load_scorers()  # refuses before a run what its end would
        return find_translations(recipe)

    def table(self, path: str) -> DataTable:
        return read_pairs(path, self.recipe)

    def blocks(self, path: str) -> Iterator[DataTable]:
        return read_pair_blocks(path, self.recipe, self.together)

    @cached_property
    def _pairs(self) -> dict[str, Pairs]:
        """The pairs of each side.

        Raises:
            DataError: the file is another one than when the run began.
        """
        recipe = self.recipe
        check_unchanged(recipe.data, hash_data(recipe.data), self.facts.digest)
        table = read_source(recipe)
        pairs, _ = list_pairs(table, self.facts, recipe)
        return {side: pairs.of(numbers) for side, numbers in split_pairs(pairs, table).items()}

    @cached_property
    def _encoded(self) -> dict[str, Encoded]:
        return {side: self._encode(one) for side, one in self._pairs.items()}

    def _encode(self, pairs: Pairs) -> Encoded:
        number = self.facts.targets.number
        cut = self._cutters[1]
        targets = [[*map(number, cut(text)), END] for text in pairs.targets]
        return Encoded(self._numbers(pairs.sources), [torch.tensor(one) for one in targets])

    def _numbers(self, sources: Sequence[str]) -> list[Tensor]:
        number = self.facts.sources.number
        return [torch.tensor([number(unit) for unit in self._cut(text)]) for text in sources]

    def _cut(self, text: str) -> list[str]:
        return self._cutters[0](text)

    @cached_property
    def _cutters(self) -> tuple[Cutter, Cutter]:
        return self.facts.cutters(self.recipe.units)

    def model(self) -> nn.Module:
        sources, targets = len(self.facts.sources), len(self.facts.targets)
        return Translator(self.recipe, sources, targets, lexical=True)

    def epoch(self, number: int) -> Sequence[Batch]:
        """Every training pair once, in an order that only (seed, number) decides."""
        pairs = self._encoded["train"]
        lengths = _lengths(pairs.targets)
        return Batches(lambda _, rows: pairs.batch(rows.tolist()), [lengths], self.recipe, number)

    @property
    def row_axes(self) -> tuple[int, ...]:
        return (1, 0, 1)

    def weight(self, batch: Batch) -> float:
        """The units whose cross entropy is averaged."""
        return float((batch[2] != IGNORED).sum())

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross entropy a unit of the target, its end included."""
        source, lengths, target = batch
        return self.distance(model(source, shift(target), lengths), target)

    def score(self, model: nn.Module, split: str) -> Score:
        """On the test by the beam; on the validation greedily on some pairs, and nats on all."""
        pairs = self._pairs[split]
        where = f"{split}: {len(pairs.sources)} pairs kept out of training, split by hash"
        if split == "test":
            return self._score(model, pairs, self.recipe.beam, where)
        few = pairs.of(range(min(_VALIDATED, len(pairs.sources))))
        score = self._score(model, few, 1, where)
        nats = self._nats(model, self._encoded[split])
        return replace(score, metrics=score.metrics | {"nats": nats})

    def _score(self, model: nn.Module, pairs: Pairs, width: int, where: str) -> Score:
        answers = self._translate(model, pairs.sources, width)
        count = len(answers)
        examples = [
            Example(pairs.sources[n], answers[n], pairs.targets[n], answers[n] == pairs.targets[n])
            for n in range(0, count, max(1, count // _EXAMPLES))
        ]
        where = f"{where}; {'greedy' if width == 1 else f'the best of {width} beginnings'}"
        figures = measure(answers, pairs.targets)
        return Score(where, RULE, count, figures, tuple(examples[:_EXAMPLES]))

    @torch.no_grad()
    def _nats(self, model: nn.Module, encoded: Encoded) -> float:
        """Cross entropy a unit, each given the true ones before it."""
        total = units = 0.0
        for rows in group_by_length(encoded.targets, _AT_ONCE):
            source, lengths, target = encoded.batch(rows)
            logits = model(source, shift(target), lengths).flatten(0, 1).double()
            total += float(cross_entropy(logits, target.flatten(), ignore_index=IGNORED,
                                         reduction="sum"))  # fmt: skip
            units += float((target != IGNORED).sum())
        return total / units

    def _translate(self, model: nn.Module, sources: Sequence[str], width: int) -> list[str]:
        """Translations of texts that have a unit each."""
        assert isinstance(model, Translator)
        numbers = self._numbers(sources)
        texts: dict[int, str] = {}
        for rows in group_by_length(numbers, _AT_ONCE // width):
            chosen = [numbers[n] for n in rows]
            source, lengths = pad_sequence(chosen, padding_value=PADDING), _lengths(chosen)
            units = (decode_greedily(model, source, lengths) if width == 1
                     else search_beam(model, source, lengths, width))  # fmt: skip
            for n, one in zip(rows, units.T.tolist(), strict=True):
                texts[n] = join_until_end(one, self.facts.targets, self.recipe.units)
        return [texts[n] for n in range(len(sources))]

    def baselines(self, split: str) -> dict[str, dict[str, float]]:
        """The source as it is, and each word's likeliest one."""
        return self._simple_on(self._pairs[split])

    def _simple_on(self, pairs: Pairs) -> dict[str, dict[str, float]]:
        by_word = [self._lexicon(text) for text in pairs.sources]
        return {
            "copy": measure(pairs.sources, pairs.targets),
            "lexicon": measure(by_word, pairs.targets),
        }

    @cached_property
    def _lexicon(self) -> Lexicon:
        train = self._pairs["train"]
        return Lexicon(train.sources, train.targets)

    def findings(self, model: nn.Module) -> dict[str, list[dict[str, Any]]]:
        """What the encoder's layers know, and the figures of greedy decoding next to the beam's."""
        assert isinstance(model, Translator)
        tables = {"probe": probe_neighbours(Encoder(model), self._encoded["test"].sources, PADDING)}
        if self.recipe.beam == 1:
            return tables
        pairs = self._pairs["test"]
        answers = self._translate(model, pairs.sources, width=1)
        return {"greedy": [dict(measure(answers, pairs.targets))], **tables}

    def pictures(self, model: nn.Module) -> list[Picture]:
        """Where it looks as it writes for some short sources of the test part."""
        assert isinstance(model, Translator)
        units, targets = self.recipe.units, self.facts.targets
        sources = sorted(self._pairs["test"].sources, key=lambda text: len(self._cut(text)))
        fit = [text for text in sources if len(self._cut(text)) <= _LOOKED_AT[units]]
        chosen = fit[:: -max(1, len(fit) // _DRAWN)][:_DRAWN]
        looks = []
        for text, source in zip(chosen, self._numbers(chosen), strict=True):
            units_written, weights = decode_with_attention(model, source)
            names = ["end" if n == END else targets.unit(n) for n in units_written]
            looks.append((self._cut(text), names, weights))
        return [draw_attention(looks, f"{units} read", f"{units} written")]

    def measure_on(
        self, model: nn.Module, table: DataTable
    ) -> tuple[Score, dict[str, dict[str, float]]]:
        """On the pairs of a table whose sources no training saw."""
        check_like_training(table, [self.facts.source, self.facts.target])
        every, long = list_pairs(table, self.facts, self.recipe)
        trained_on = (self._pairs["train"], self._pairs["validation"])
        old = (text for side in trained_on for text in side.sources)
        new = find_unseen(table, "sources", every.sources, old)
        pairs, left = every.of(new), len(every.sources) - len(new)
        where = f"{table.name}: {len(new)} pairs; {left} that the training saw and {long} long"
        where += " ones are left out"
        score = self._score(model, pairs, self.recipe.beam, where)
        notes = tuple(self.describe_unseen(pairs.sources))
        return replace(score, notes=notes), self._simple_on(pairs)

    def predict(self, model: nn.Module, table: DataTable) -> tuple[pl.DataFrame, list[str]]:
        """The target of each source of a table."""
        import polars as pl

        check_like_training(table, [self.facts.source])
        sources = list_texts(table, self.facts.source, self._cut)
        answers = self._translate(model, sources, self.recipe.beam)
        frame = pl.DataFrame({self.facts.source: sources, self.facts.target: answers})
        return frame, self.describe_unseen(sources)

    def describe_unseen(self, items: Sequence[str]) -> list[str]:
        units = {unit for text in items for unit in self._cut(text)}
        new = sorted(unit for unit in units if unit not in self.facts.sources)
        kind = self.recipe.units
        return [f"training had no {kind} {' '.join(new[:20])}"] if new else []

    def answer(self, model: nn.Module, items: Sequence[str]) -> list[str]:
        return self._translate(model, items, self.recipe.beam) if items else []

    def check_item(self, item: str) -> None:
        super().check_item(item)
        if not self._cut(item):
            raise DataError(f"a text must have at least one unit, got {item!r}; leave it out")

    def prepare_diagnosis(self, model: nn.Module, batches: int, rows: int) -> DiagnosisInput:
        """Training pairs whose sources have the most frequent length."""
        assert isinstance(model, Translator)
        train = self._encoded["train"]
        alike = find_usual_length([*map(len, train.sources)], batches * rows)
        usual = find_usual_length([len(train.targets[n]) for n in alike], batches * rows)
        chosen, steps = [alike[n] for n in usual], len(train.sources[alike[0]])
        parts = []
        for k in range(0, len(chosen), rows):
            source, _, target = train.batch(chosen[k : k + rows])
            parts.append((torch.cat([source, shift(target)]), target))
        return DiagnosisInput(TeacherForced(model, steps), parts, self.distance)


def _lengths(texts: Sequence[Tensor]) -> Tensor:
    return torch.tensor([len(one) for one in texts])
