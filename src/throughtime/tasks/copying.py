"""Copy: ten symbols, a long silence, a signal, and then the ten symbols again.

Source: Hochreiter and Schmidhuber (1997), in the form of Tallec and Ollivier, Can Recurrent Neural
Networks Warp Time? (2018).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from throughtime.tasks.memory import MemoryTask
from throughtime.tasks.task import Batch

_SYMBOLS, _WORD = 8, 10
_BLANK, _SIGNAL = _SYMBOLS, _SYMBOLS + 1


class Copy(MemoryTask):
    """Says ten symbols again after `length` steps."""

    name = "copy"
    monitor = "nats"
    in_percent = False
    inputs, outputs, every_step = _SYMBOLS + 2, _SYMBOLS + 1, True
    rule = "nats: cross entropy a step, blanks among them; solved: half of chance"

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        """One-hot symbols (T + 20, B, 10) and what to say at each step, (T + 20, B)."""
        word = torch.randint(_SYMBOLS, (_WORD, count), generator=generator)
        symbols = torch.full((self.recipe.length + 2 * _WORD, count), _BLANK)
        truth = symbols.clone()
        symbols[:_WORD] = word
        symbols[-_WORD - 1] = _SIGNAL
        truth[-_WORD:] = word
        return one_hot(symbols, self.inputs).float(), truth

    def hide(self, inputs: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(inputs[:_WORD]), inputs[_WORD:]])

    def measure(self, answers: Tensor, truth: Tensor) -> dict[str, float]:
        return {"nats": float(self.distance(answers, truth))}

    def right(self, answers: Tensor, truth: Tensor) -> Tensor:
        return (answers.argmax(-1) == truth).all(0)

    def line(self) -> float:
        """Half of what one reaches without a word of it."""
        return self.chance("test")["nats"] / 2

    def chance(self, split: str) -> dict[str, float]:
        """Of blanks up to the signal and any of the eight symbols after it: 10 ln 8 / (T + 20)."""
        return {"nats": _WORD * math.log(_SYMBOLS) / (self.recipe.length + 2 * _WORD)}
