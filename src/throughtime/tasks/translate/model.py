"""The model, a recurrent encoder, a recurrent decoder, attention; and decoding.

Attention follows the decoder's recurrent layer and feeds nothing back into it, so a training
step is two calls of a recurrent layer and no loop over time.

    k_s = W_k e_s                          e: the encoder's outputs
    w_ts = softmax_s(o_t . k_s)            o: the decoder's outputs
    v_t = tanh(W_v [o_t, sum_s w_ts e_s])
    logits_t = W_o v_t

Translations also depend on the source units that attention looks at, x: the embedded source:

    u_t = tanh(sum_s w_ts x_s)
    logits_t += W_l (u_t + tanh(W_u u_t))

Source: Luong, Pham and Manning, Effective Approaches to Attention-based Neural Machine Translation
(2015), global attention with the general score, without input feeding; Nguyen and Chiang, Improving
Lexical Choice in Neural Machine Translation (2018) for the units that attention looks at.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from throughtime.tasks.recipe import Recipe
from throughtime.tasks.task import make_layers

PADDING = 0  # of sources
END = 0  # closes a target
START = 1  # what the decoder is given first

State = tuple[tuple[Tensor, ...], ...]
Memory = tuple[Tensor, ...]
"""What attention reads: outputs (T, B, E), units' vectors after them where they tell, their keys
(T, B, H), and where rows have lengths, what is after their ends (T, B)."""


class Translator(nn.Module):
    """Source units (T, B) to target units (S, B).

    Args:
        recipe: cell, directions, merge, layers, hidden, dropout and start; the decoder is twice as
            wide as one direction of the encoder, the embeddings half as wide.
        sources: how many units a source may have.
        targets: how many units a target may have, with the start and end.
        lexical: whether the source units that attention looks at add to the logits.
    """

    def __init__(self, recipe: Recipe, sources: int, targets: int, lexical: bool = False) -> None:
        super().__init__()
        width, narrow = 2 * recipe.hidden, max(1, recipe.hidden // 2)
        self.layers = recipe.layers
        self.dropout = nn.Dropout(recipe.dropout)
        self.source = nn.Embedding(sources, narrow)
        self.target = nn.Embedding(targets, narrow)
        self.encoder = make_layers(recipe, narrow)
        self.decoder = make_layers(replace(recipe, hidden=width, directions=1), narrow)
        read, decoded = self.encoder.output_size, self.decoder.output_size
        first = self.encoder.cell.widths(recipe.hidden), self.decoder.cell.widths(width)
        self.bridges = nn.ModuleList(  # each state: all directions to all layers of the decoder
            nn.Linear(recipe.directions * one, recipe.layers * other)
            for one, other in zip(*first, strict=True)
        )
        self.key = nn.Linear(read, decoded, bias=False)
        self.mix = nn.Linear(decoded + read, width)
        self.readout = nn.Linear(width, targets)
        self.lexical = Lexical(narrow, targets) if lexical else None

    def forward(self, source: Tensor, previous: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Logits (S, B, targets) of every next unit, from sources (T, B) and targets (S, B)."""
        memory, state = self.encode(source, lengths)
        logits: Tensor = self.decode(previous, memory, state)[0]
        return logits

    def encode(self, source: Tensor, lengths: Tensor | None = None) -> tuple[Memory, State]:
        """What attention reads, and the decoder's first state; rows end at their lengths (B,)."""
        x = self.dropout(self.source(source))
        read, last = self.encoder(x, lengths=lengths)
        values = read if self.lexical is None else torch.cat([read, x], -1)
        memory: Memory = (values, self.key(read))
        if lengths is not None:
            memory += (torch.arange(len(source))[:, None] >= lengths,)
        return memory, self._first_state(last)

    def decode(self, previous: Tensor, memory: Memory, state: State) -> tuple[Tensor, State]:
        """Logits (S, B, targets) after the units (S, B), and the decoder's last state."""
        out, state = self.decoder(self.dropout(self.target(previous)), state)
        seen = self.attend(out, memory)
        read, units = seen.tensor_split([self.encoder.output_size], -1)
        mixed = torch.tanh(self.mix(torch.cat([self.dropout(out), read], -1)))
        logits: Tensor = self.readout(self.dropout(mixed))
        return logits if self.lexical is None else logits + self.lexical(units), state

    def attend(self, out: Tensor, memory: Memory) -> Tensor:
        """What attention reads for each of the decoder's outputs (S, B, H)."""
        return torch.einsum("bst,tbe->sbe", self.weigh(out, memory), memory[0])

    def weigh(self, out: Tensor, memory: Memory) -> Tensor:
        """How much each of the decoder's outputs looks at each source unit, (B, S, T)."""
        _, keys, *ended = memory
        scores = torch.einsum("sbh,tbh->bst", out, keys)
        if ended:
            scores = scores.masked_fill(ended[0].T[:, None], -torch.inf)
        return scores.softmax(-1)

    @torch.no_grad()
    def align(self, source: Tensor, target: Tensor) -> Tensor:
        """The weights (S, T) with which each unit of one target (S,) was written."""
        memory, state = self.encode(source[:, None])
        out, _ = self.decoder(self.target(shift(target[:, None])), state)
        return self.weigh(out, memory)[0]

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


class Lexical(nn.Module):
    """Mean vectors of the source units that attention looks at (S, B, X), to logits.

    Args:
        width: X.
        targets: how many units a target may have.
    """

    def __init__(self, width: int, targets: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width)
        self.readout = nn.Linear(width, targets, bias=False)

    def forward(self, units: Tensor) -> Tensor:
        """Logits (S, B, targets)."""
        squashed = torch.tanh(units)
        logits: Tensor = self.readout(squashed + torch.tanh(self.inner(squashed)))
        return logits


class Encoder(nn.Module):
    """The encoder of a translator, of one input: sources (T, B).

    Args:
        translator: the model.
    """

    def __init__(self, translator: Translator) -> None:
        super().__init__()
        self.source, self.encoder = translator.source, translator.encoder

    def forward(self, source: Tensor) -> Tensor:
        """The encoder's outputs (T, B, E)."""
        lengths = (source != PADDING).sum(0)
        read: Tensor = self.encoder(self.source(source), lengths=lengths)[0]
        return read


class TeacherForced(nn.Module):
    """A translator of one input: sources (T, B) above the targets (S, B) that it is given.

    Args:
        translator: the model.
        steps: T.
    """

    def __init__(self, translator: Translator, steps: int) -> None:
        super().__init__()
        self.translator = translator
        self.steps = steps

    def forward(self, both: Tensor) -> Tensor:
        """Logits (S, B, targets)."""
        logits: Tensor = self.translator(both[: self.steps], both[self.steps :])
        return logits


def shift(target: Tensor) -> Tensor:
    """What the decoder reads, (S, B): the unit before each one."""
    first = torch.full_like(target[:1], START)
    return torch.cat([first, target[:-1].clamp(min=0)])


@torch.no_grad()
def decode_greedily(model: Translator, source: Tensor, lengths: Tensor | None = None) -> Tensor:
    """The likeliest units (S, B) of sources (T, B); what follows a row's END means nothing.

    Stops when every row has its END, or after 2 T + 8 units, more than any word has sounds.
    """
    training = model.training
    model.eval()
    memory, state = model.encode(source, lengths)
    previous = torch.full((1, source.shape[1]), START, device=source.device)
    done = torch.zeros(source.shape[1], dtype=torch.bool, device=source.device)
    written = []
    for _ in range(2 * len(source) + 8):
        logits, state = model.decode(previous, memory, state)
        previous = logits.argmax(-1)
        written.append(previous)
        done |= previous[0] == END
        if done.all():
            break
    model.train(training)
    return torch.cat(written)


def decode_with_attention(model: Translator, source: Tensor) -> tuple[list[int], Tensor]:
    """What is written greedily for one source (T,), END with it, and the attention (S, T)."""
    units = decode_greedily(model, source[:, None])[:, 0]
    ends = (units == END).nonzero()
    units = units[: int(ends[0]) + 1] if len(ends) else units
    return units.tolist(), model.align(source, units)


@torch.no_grad()
def search_beam(model: Translator, source: Tensor, lengths: Tensor, width: int) -> Tensor:
    """As `decode_greedily`, with the `width` likeliest beginnings of each row followed at once.

    Of those left in the end, the one with the largest mean log probability of a unit wins.
    The model is in eval mode.
    """
    rows = torch.arange(source.shape[1]).repeat_interleave(width)
    memory, state = model.encode(source, lengths)
    memory = tuple(one[:, rows] for one in memory)
    state = _take_rows(state, rows)
    first = torch.arange(len(rows)).view(-1, width)[:, :1]  # number of each source's first row
    total = torch.full((source.shape[1], width), -torch.inf)
    total[:, 0] = 0
    previous = torch.full((1, len(rows)), START)
    done = torch.zeros_like(total, dtype=torch.bool)
    written = torch.zeros(*total.shape, 0, dtype=torch.int64)
    for _ in range(2 * len(source) + 8):
        logits, state = model.decode(previous, memory, state)
        shares = logits[0].log_softmax(-1).view(*total.shape, -1)
        total, best = _find_likeliest(total, shares, done)
        parent, unit = best // shares.shape[-1], best % shares.shape[-1]
        written = torch.cat(
            [written.gather(1, parent[..., None].expand_as(written)), unit[..., None]], -1
        )
        done = done.gather(1, parent) | (unit == END)
        if done.all():
            break
        state, previous = _take_rows(state, (first + parent).flatten()), unit.view(1, -1)
    units = (written != END).sum(-1) + 1
    chosen = (total / units).argmax(1)
    return written[torch.arange(len(written)), chosen].T


def _find_likeliest(total: Tensor, shares: Tensor, done: Tensor) -> tuple[Tensor, Tensor]:
    """The best ways to go on from each row's beginnings (B, K), as log shares and as numbers
    parent * V + unit; an ended one goes on with END alone, for nothing."""
    nothing = torch.full_like(shares, -torch.inf)
    nothing[..., END] = 0
    scores = total[..., None] + torch.where(done[..., None], nothing, shares)
    best = scores.flatten(1).topk(total.shape[1])
    return best.values, best.indices


def _take_rows(state: State, rows: Tensor) -> State:
    """A state (D, B, W) of these rows."""
    return tuple(tuple(one[:, rows] for one in layer) for layer in state)
