"""The model: a recurrent encoder over letters, a recurrent decoder over sounds, attention between.

Attention stands behind the decoder's recurrent layer and feeds nothing back into it, so a training
step is two calls of a recurrent layer and no loop over time.

    k_s = W_k e_s                          e: the encoder's outputs
    w_ts = softmax_s(o_t . k_s)            o: the decoder's outputs
    v_t = tanh(W_v [o_t, sum_s w_ts e_s])
    logits_t = W_o v_t

Source: Luong, Pham and Manning, Effective Approaches to Attention-based Neural Machine Translation
(2015), global attention with the general score, without input feeding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from throughtime import Recurrent
from throughtime.tasks.recipe import Recipe, cell_called

State = tuple[tuple[Tensor, ...], ...]
Memory = tuple[Tensor, Tensor]  # what attention reads: outputs (T, B, E) and their keys (T, B, H)


class Speller(nn.Module):
    """Letters (T, B) to sounds (S, B).

    Args:
        recipe: cell, directions, merge, layers, hidden and dropout; the decoder is twice as wide
            as one direction of the encoder, the embeddings half as wide.
        letters: how many letters there are.
        symbols: how many sounds there are, with the start and end symbols.
    """

    def __init__(self, recipe: Recipe, letters: int, symbols: int) -> None:
        super().__init__()
        width, narrow = 2 * recipe.hidden, max(1, recipe.hidden // 2)
        between = recipe.dropout if recipe.layers > 1 else 0.0
        self.layers = recipe.layers
        self.dropout = nn.Dropout(recipe.dropout)
        self.letters = nn.Embedding(letters, narrow)
        self.sounds = nn.Embedding(symbols, narrow)
        self.encoder = Recurrent(
            cell_called(recipe.cell),
            narrow,
            recipe.hidden,
            num_layers=recipe.layers,
            bidirectional=recipe.directions == 2,
            merge=recipe.merge,
            dropout=between,
        )
        self.decoder = Recurrent(
            cell_called(recipe.cell), narrow, width, num_layers=recipe.layers, dropout=between
        )
        read = self.encoder.output_size
        self.bridges = _bridges(recipe, width)
        self.key = nn.Linear(read, width, bias=False)
        self.mix = nn.Linear(width + read, width)
        self.readout = nn.Linear(width, symbols)

    def forward(self, letters: Tensor, given: Tensor) -> Tensor:
        """Logits (S, B, symbols) of every next sound, from letters (T, B) and sounds (S, B)."""
        memory, state = self.encode(letters)
        logits: Tensor = self.decode(given, memory, state)[0]
        return logits

    def encode(self, letters: Tensor) -> tuple[Memory, State]:
        """What attention reads, and the decoder's first state."""
        read, last = self.encoder(self.dropout(self.letters(letters)))
        return (read, self.key(read)), self._first_state(last)

    def decode(self, given: Tensor, memory: Memory, state: State) -> tuple[Tensor, State]:
        """Logits (S, B, symbols) behind the given sounds (S, B), and the decoder's last state."""
        out, state = self.decoder(self.dropout(self.sounds(given)), state)
        read, keys = memory
        weights = torch.einsum("tbh,sbh->bts", out, keys).softmax(-1)
        seen = torch.einsum("bts,sbe->tbe", weights, read)
        mixed = torch.tanh(self.mix(torch.cat([self.dropout(out), seen], -1)))
        return self.readout(self.dropout(mixed)), state

    def _first_state(self, last: State) -> State:
        """The decoder's state from the states (D, B, H) of the encoder's last layer.

        h is squashed as a cell's output is; a long memory is not.
        """
        rows = [
            bridge(torch.cat([*s], -1)) for bridge, s in zip(self.bridges, last[-1], strict=True)
        ]
        rows[0] = torch.tanh(rows[0])
        layers = self.layers
        split = [row.unflatten(-1, (layers, 1, -1)).movedim(0, 2).contiguous() for row in rows]
        return tuple(tuple(state[layer] for state in split) for layer in range(layers))


def _bridges(recipe: Recipe, width: int) -> nn.ModuleList:
    """One linear map a state: all directions of the encoder to all layers of the decoder."""
    states = len(cell_called(recipe.cell).state)
    read = recipe.directions * recipe.hidden
    return nn.ModuleList(nn.Linear(read, recipe.layers * width) for _ in range(states))


class Reader(nn.Module):
    """A speller of one input: letters (T, B) above the sounds (S, B) that it is given.

    Args:
        speller: the model.
        letters: T.
    """

    def __init__(self, speller: Speller, letters: int) -> None:
        super().__init__()
        self.speller = speller
        self.count = letters

    def forward(self, both: Tensor) -> Tensor:
        """Logits (S, B, symbols)."""
        logits: Tensor = self.speller(both[: self.count], both[self.count :])
        return logits
