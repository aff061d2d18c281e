"""Which target a translator says: greedily, or with several beginnings followed at once."""

from __future__ import annotations

import torch
from torch import Tensor

from throughtime.tasks.translate.model import END, START, State, Translator


@torch.no_grad()
def greedy(model: Translator, source: Tensor, lengths: Tensor | None = None) -> Tensor:
    """The likeliest units (S, B) behind sources (T, B); what follows a row's END means nothing.

    Stops when every row has its END, or after 2 T + 8 units, more than any word has sounds.
    """
    training = model.training
    model.eval()
    memory, state = model.encode(source, lengths)
    given = torch.full((1, source.shape[1]), START, device=source.device)
    done = torch.zeros(source.shape[1], dtype=torch.bool, device=source.device)
    said = []
    for _ in range(2 * len(source) + 8):
        logits, state = model.decode(given, memory, state)
        given = logits.argmax(-1)
        said.append(given)
        done |= given[0] == END
        if done.all():
            break
    model.train(training)
    return torch.cat(said)


def write_looking(model: Translator, source: Tensor) -> tuple[list[int], Tensor]:
    """What is written greedily for one source (T,), END with it, and the attention (S, T)."""
    units = greedy(model, source[:, None])[:, 0]
    ends = (units == END).nonzero()
    units = units[: int(ends[0]) + 1] if len(ends) else units
    return units.tolist(), model.looks(source, units)


@torch.no_grad()
def beam(model: Translator, source: Tensor, lengths: Tensor, width: int) -> Tensor:
    """As `greedy`, with the `width` likeliest beginnings of each row followed at once.

    Of those that are left in the end, the one with the largest mean log share of its units is said.
    The model is in eval mode.
    """
    rows = torch.arange(source.shape[1]).repeat_interleave(width)
    memory, state = model.encode(source, lengths)
    memory = tuple(one[:, rows] for one in memory)
    state = _of_rows(state, rows)
    first = torch.arange(len(rows)).view(-1, width)[:, :1]  # number of each source's first row
    total = torch.full((source.shape[1], width), -torch.inf)
    total[:, 0] = 0
    given = torch.full((1, len(rows)), START)
    done = torch.zeros_like(total, dtype=torch.bool)
    said = torch.zeros(*total.shape, 0, dtype=torch.int64)
    for _ in range(2 * len(source) + 8):
        logits, state = model.decode(given, memory, state)
        shares = logits[0].log_softmax(-1).view(*total.shape, -1)
        total, best = _likeliest(total, shares, done)
        parent, unit = best // shares.shape[-1], best % shares.shape[-1]
        said = torch.cat([said.gather(1, parent[..., None].expand_as(said)), unit[..., None]], -1)
        done = done.gather(1, parent) | (unit == END)
        if done.all():
            break
        state, given = _of_rows(state, (first + parent).flatten()), unit.view(1, -1)
    units = (said != END).sum(-1) + 1
    chosen = (total / units).argmax(1)
    return said[torch.arange(len(said)), chosen].T


def _likeliest(total: Tensor, shares: Tensor, done: Tensor) -> tuple[Tensor, Tensor]:
    """The best ways to go on from each row's beginnings (B, K), as log shares and as numbers
    parent * V + unit; an ended one goes on with END alone, for nothing."""
    nothing = torch.full_like(shares, -torch.inf)
    nothing[..., END] = 0
    scores = total[..., None] + torch.where(done[..., None], nothing, shares)
    best = scores.flatten(1).topk(total.shape[1])
    return best.values, best.indices


def _of_rows(state: State, rows: Tensor) -> State:
    """A state (D, B, W) of these rows."""
    return tuple(tuple(one[:, rows] for one in layer) for layer in state)
