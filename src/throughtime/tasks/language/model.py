"""The model: an embedding, recurrent layers forward, a line to what comes next.

    e_t = E x_t,   y_t, s_t = layers(e_t, s_{t-1}),   logits_t = W y_t + b

The state goes on from window to window; it is in a buffer, so that a checkpoint has it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from throughtime import Stream
from throughtime.tasks.language.text import UNKNOWN
from throughtime.tasks.layers import make_layers
from throughtime.tasks.recipe import Recipe

State = tuple[tuple[Tensor, ...], ...]


class NextUnit(nn.Module):
    """Units (T, B) to logits (T, B, size) of the units after them.

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
        stream = Stream(_Logits(self), 1)
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


class _Logits(nn.Module):
    """What a stream steps through."""

    def __init__(self, model: NextUnit) -> None:
        super().__init__()
        self.embedding, self.recurrent = model.embedding, model.recurrent
        self.readout = model.readout

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.readout(self.recurrent(self.embedding(x))[0])
        return logits
