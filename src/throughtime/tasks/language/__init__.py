"""Language: what comes next in a text of the user's own, and text written by it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from throughtime import Stream
from throughtime.errors import DataError, OptionError
from throughtime.tasks.language.text import (
    LONGEST,
    UNKNOWN,
    Grams,
    LanguageRecipe,
    Real,
    TextFacts,
    TextUnits,
    Tokens,
    find_text,
    read_text,
    split_units,
)
from throughtime.tasks.recipe import Recipe, check_unchanged
from throughtime.tasks.tables.task import FileTask, hash_text
from throughtime.tasks.task import (
    Batch,
    BuiltWhenIndexed,
    DiagnosisInput,
    Example,
    Score,
    make_generator,
    make_layers,
)

State = tuple[tuple[Tensor, ...], ...]


class NextUnit(nn.Module):
    """Units (T, B) to logits (T, B, size) of the units after them.

        e_t = E x_t,   y_t, s_t = layers(e_t, s_{t-1}),   logits_t = W y_t + b

    The state goes on from window to window; it is in a buffer, so that a checkpoint has it.

    Args:
        recipe: cell, layers, hidden and dropout.
        size: how many units there are.
        rows: sequences that training reads side by side.
    """

    def __init__(self, recipe: Recipe, size: int, rows: int) -> None:
        super().__init__()
        hidden = recipe.hidden
        self.embedding = nn.Embedding(size, hidden)
        self.recurrent = make_layers(recipe, hidden, reads=False)
        self.dropout = nn.Dropout(recipe.dropout)
        self.readout = nn.Linear(self.recurrent.output_size, size)
        with torch.no_grad():
            _, state = self.recurrent(torch.zeros(1, rows, hidden))
        self._form = [len(states) for states in state]
        for layer, states in enumerate(state):
            for number, value in enumerate(states):
                self.register_buffer(f"carried_{layer}_{number}", torch.zeros_like(value))

    def forward(self, x: Tensor) -> Tensor:
        """Logits, from the first state."""
        logits: Tensor = self.readout(self.dropout(self.recurrent(self.embedding(x))[0]))
        return logits

    def plain_stack(self) -> list[nn.Module]:
        """The parts in the order in which a step goes through them, for an export."""
        return [self.embedding, self.recurrent, self.readout]

    def go_on(self, x: Tensor, anew: bool) -> Tensor:
        """Logits of the next window of training; its last state is carried to the next one.

        Args:
            x: (T, rows).
            anew: whether a pass begins, from the first state.
        """
        state = None if anew else self._carried()
        y, last = self.recurrent(self.embedding(x), state)
        for layer, states in enumerate(last):
            for number, value in enumerate(states):
                self.get_buffer(f"carried_{layer}_{number}").copy_(value.detach())
        logits: Tensor = self.readout(self.dropout(y))
        return logits

    def _carried(self) -> State:
        """Copies, for the next window is written over them."""
        return tuple(
            tuple(self.get_buffer(f"carried_{layer}_{n}").clone() for n in range(count))
            for layer, count in enumerate(self._form)
        )

    @torch.no_grad()
    def bits(self, x: Tensor, window: int) -> Tensor:
        """Bits (T - 1, B) of each unit but the first, from the first state on, window by window."""
        nats = []
        for part in self.recurrent.windows(x[:-1], window, encode=self.embedding):
            shares = self.readout(part.outputs).log_softmax(-1)
            following = x[part.steps.start + 1 : part.steps.stop + 1]
            nats.append(-shares.gather(-1, following[..., None])[..., 0])
        return torch.cat(nats).double() / torch.log(torch.tensor(2.0, dtype=torch.float64))

    def write(self, prompt: Tensor, length: int, temperature: float, seed: int) -> Iterator[int]:
        """Units drawn one after another, each read before the next, by a stream.

        Args:
            prompt: (T,) of at least one unit.
            length: how many.
            temperature: that the logits are divided by; 0: the likeliest.
            seed: of what is drawn.
        """
        generator = torch.Generator().manual_seed(seed)
        stream = Stream(self, 1)
        for unit in prompt.split(1):
            logits = stream(unit)[0].double()
        for _ in range(length):
            logits[UNKNOWN] = -torch.inf
            if temperature == 0:
                chosen = logits.argmax(keepdim=True)
            else:
                shares = (logits / temperature).softmax(-1)
                chosen = torch.multinomial(shares, 1, generator=generator)
            yield int(chosen)
            logits = stream(chosen)[0].double()


RULE = (
    "bits_per_character: what a unit costs by the net, and of one without a number its spelling "
    "too, over its characters; perplexity: 2 to the bits of a unit"
)
_ROWS, _EXAMPLES, _SHOWN, _UNSEEN = 16, 5, 60, 20
_NAMES = ("unigram", "bigram", "trigram", "4-gram", "5-gram")


class Language(FileTask[LanguageRecipe, TextFacts]):
    """Learns what comes next in your text, beside counts of up to five units, and writes more."""

    name = "language"
    options, facts_kind = LanguageRecipe, TextFacts
    monitor = "bits_per_character"
    item_name = "LINE"
    ignores = ("directions", "merge", "smoothing")
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "quick": {"directions": 1, "hidden": 192, "batch_size": 32, "lr": 4e-3, "steps": 1200,
                  "validate_every": 200, "length": 64, "dropout": 0.1},
        "full": {"directions": 1, "hidden": 384, "batch_size": 32, "lr": 3e-3, "steps": 6000,
                 "validate_every": 400, "length": 100, "dropout": 0.3},
    }  # fmt: skip

    @classmethod
    def find_facts(cls, recipe: LanguageRecipe) -> TextFacts:
        return find_text(recipe)

    @cached_property
    def vocabulary(self) -> TextUnits:
        return TextUnits(self.facts, self.recipe.units)

    @cached_property
    def _text(self) -> str:
        """The whole text, as it was when the run began.

        Raises:
            DataError: it is another one.
        """
        text = read_text(self.recipe.data)
        check_unchanged(self.recipe.data, hash_text(text), self.facts.digest)
        return text

    def _part(self, split: str) -> str:
        first, second = self.facts.ends
        place = {"train": slice(0, first), "validation": slice(first, second),
                 "test": slice(second, None)}[split]  # fmt: skip
        return self._text[place]

    @cached_property
    def _train(self) -> Tokens:
        return self.vocabulary.encode(self._part("train"))

    def model(self) -> nn.Module:
        return NextUnit(self.recipe, len(self.vocabulary.units), self.facts.rows)

    def epoch(self, number: int) -> Sequence[Batch]:
        """The training part in `rows` pieces side by side, from a first unit that is drawn."""
        generator = make_generator(self.recipe.seed, number)
        begin = int(torch.randint(self.recipe.length, (), generator=generator))
        return _Pass(self._train.numbers, self.facts.rows, self.recipe.length, begin)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross entropy of each unit, in nats."""
        assert isinstance(model, NextUnit)
        x, following, anew = batch
        return self.distance(model.go_on(x, bool(anew)), following)

    def score(self, model: nn.Module, split: str) -> Score:
        text = self._part(split)
        where = f"{split}: {len(text)} characters in a row, kept out of training"
        return self._score(model, text, where)

    def _score(self, model: nn.Module, text: str, where: str) -> Score:
        tokens = self.vocabulary.encode(text)
        metrics = measure(self._bits(model, tokens), tokens)
        return Score(where, RULE, len(tokens.numbers), metrics, self._examples(model, text))

    def _bits(self, model: nn.Module, tokens: Tokens) -> Real:
        """Bits of each unit but the first; in rows side by side, each with units before it."""
        assert isinstance(model, NextUnit)
        count, before = len(tokens.numbers) - 1, self.recipe.length
        rows = max(1, min(_ROWS, count // (4 * before)))
        size = -(-count // rows)
        # Row r tells units 1 + r size, ..., and reads `before` more ahead of them where there are.
        first = torch.arange(rows)[:, None] * size + torch.arange(-before, size + 1)
        inside = first.clamp(0, count)
        bits = model.bits(tokens.numbers[inside].T, before)[before:].T.flatten()[:count]
        alone = model.bits(tokens.numbers[: size + 1, None], before)[:, 0]
        bits[: len(alone)] = alone  # the first row begins with the text
        return bits.numpy()

    def chance(self, split: str) -> dict[str, float]:
        """Of the units' frequencies alone."""
        return self.baselines(split)["unigram"]

    def baselines(self, split: str) -> dict[str, dict[str, float]]:
        """Counts of one to five units."""
        return self._counted(self._part(split))

    def _counted(self, text: str) -> dict[str, dict[str, float]]:
        tokens = self.vocabulary.encode(text)
        numbers = tokens.numbers.numpy()
        return {
            name: measure(self._grams.bits(numbers, longest)[1:], tokens)
            for name, longest in zip(_NAMES, range(1, LONGEST + 1), strict=True)
        }

    @cached_property
    def _grams(self) -> Grams:
        return Grams(self._train.numbers.numpy(), len(self.vocabulary.units))

    def evaluate(self, model: nn.Module, file: str) -> tuple[Score, dict[str, dict[str, float]]]:
        """On all of another text."""
        text = read_text(file)
        if len(split_units(text, self.recipe.units)) < 2:
            raise DataError(f"{file} must hold two {self.recipe.units} or more")
        if hash_text(text) == self.facts.digest:
            text = self._part("test")
            return self._score(model, text, f"{file}: its test part"), self._counted(text)
        where = f"{file}: {len(text)} characters"
        score = replace(self._score(model, text, where), notes=tuple(self.describe_unseen([text])))
        return score, self._counted(text)

    def answer(self, model: nn.Module, items: Sequence[str]) -> list[str]:
        """Bits a character of each line, read by itself."""
        return [f"{self._of_line(model, item):.3f} bits a character" for item in items]

    def describe_unseen(self, items: Sequence[str]) -> list[str]:
        kind = self.recipe.units
        units = {unit.strip() or unit for text in items for unit in split_units(text, kind)
                 if unit not in self.vocabulary.units}  # fmt: skip
        new = sorted(units)[:_UNSEEN]
        return [f"training had no {kind} {' '.join(new)}"] if new else []

    def _of_line(self, model: nn.Module, line: str) -> float:
        """A line between the ends of two lines."""
        tokens = self.vocabulary.encode(f"\n{line}\n")
        return measure(self._bits(model, tokens), tokens)["bits_per_character"]

    def write(
        self, model: nn.Module, prompt: str, length: int, temperature: float, seed: int
    ) -> Iterator[str]:
        """Units that go on from a prompt, or from the end of a line where there is none."""
        assert isinstance(model, NextUnit)
        _check_writing(length, temperature, seed)
        numbers = self.vocabulary.encode(prompt or "\n").numbers
        written = model.write(numbers, length, temperature, seed)
        return map(self.vocabulary.units.unit, written)

    def prepare_diagnosis(self, model: nn.Module, batches: int, rows: int) -> DiagnosisInput:
        drawn = self.epoch(0)
        few = [drawn[n] for n in range(min(batches, len(drawn)))]
        return DiagnosisInput(model, [(x[:, :rows], y[:, :rows]) for x, y, _ in few], self.distance)

    def step_bytes(self) -> int:
        recipe = self.recipe
        width = recipe.hidden * recipe.layers + 2 * len(self.vocabulary.units)
        return 4 * self.facts.rows * recipe.length * width

    def _examples(self, model: nn.Module, text: str) -> tuple[Example, ...]:
        """Lines at even distances, with the bits that the net and the 5-gram give them."""
        lines = [line for line in text.splitlines() if line.strip()]
        examples = []
        for line in lines[:: max(1, len(lines) // _EXAMPLES)][:_EXAMPLES]:
            tokens = self.vocabulary.encode(f"\n{line}\n")
            counted = measure(self._grams.bits(tokens.numbers.numpy(), LONGEST)[1:], tokens)
            net, counted_bits = self._of_line(model, line), counted["bits_per_character"]
            answer = f"{net:.3f} bits a character"
            truth = f"5-gram {counted_bits:.3f}"
            examples.append(Example(line[:_SHOWN], answer, truth, net < counted_bits))
        return tuple(examples)


def _check_writing(length: int, temperature: float, seed: int) -> None:
    """Raises OptionError where a number is outside its rule."""
    if length < 1:
        raise OptionError(f"length must be a whole number of at least 1, got {length}")
    if not 0 <= temperature < math.inf:
        raise OptionError(f"temperature must be a finite number of at least 0, got {temperature}")
    if seed < 0:
        raise OptionError(f"seed must be a whole number of at least 0, got {seed}")


def measure(bits: Real, tokens: Tokens) -> dict[str, float]:
    """The metrics of bits (N - 1,), of each unit but the first."""
    whole = bits + tokens.spelled[1:]
    return {
        "bits_per_character": float(whole.sum() / tokens.characters[1:].sum()),
        "perplexity": float(2 ** min(whole.mean(), math.log2(1e300))),
    }


@dataclass(frozen=True)
class _Pass(BuiltWhenIndexed):
    """Windows of the training part, one after the other; (T, B) units, those after them, begin."""

    numbers: Tensor
    rows: int
    length: int
    begin: int

    def __len__(self) -> int:
        size = (len(self.numbers) - self.length) // self.rows
        return max(1, (size - 1) // self.length)

    def build(self, place: int) -> Batch:
        size = (len(self.numbers) - self.length) // self.rows
        whole = self.numbers[self.begin :][: size * self.rows].unflatten(0, (self.rows, size)).T
        first = place * self.length
        x = whole[first : first + self.length + 1]
        return x[:-1].contiguous(), x[1:].contiguous(), torch.tensor(place == 0)
