"""The model, recurrent layers both ways; and what it must beat: the majority, a linear model."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from throughtime.tasks.classify.items import Items, Labels
from throughtime.tasks.layers import make_layers, run_layers
from throughtime.tasks.recipe import Recipe


class Classifier(nn.Module):
    """Sequences (T, B, width) with lengths (B,) to logits (B, classes).

    Mean and maximum of the outputs and the last states are read:

        logits = W [mean_t y_t, max_t y_t, h_1, ..., h_D] + b      h_d: each direction's last state

    Long sequences are read in frames of F steps, a new one every F / 6, of which the level is read
    apart from the shape: y are the outputs over

        e_k = relu(E [x_k - m_k, ..., x_{k+F-1} - m_k, m_k] + c)      m_k: the frame's mean

    Args:
        recipe: cell, directions, merge, layers, hidden and dropout.
        labels: columns, classes and frames.
    """

    def __init__(self, recipe: Recipe, labels: Labels) -> None:
        super().__init__()
        self.inputs, self.gaps, self.frames = len(labels.inputs), labels.step > 0, labels.frames
        self.every = max(1, self.frames // 6)
        width, one = labels.width, labels.frames == 1
        self.embedding = None if one else nn.Linear((self.frames + 1) * width, recipe.hidden)
        self.recurrent = make_layers(recipe, width if one else recipe.hidden, reads=one)
        self.dropout = nn.Dropout(recipe.dropout)
        last = self.recurrent.cell.widths(recipe.hidden)[0]
        read = 2 * self.recurrent.output_size + recipe.directions * last
        self.readout = nn.Linear(read, len(labels.classes))

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Logits."""
        if self.embedding is not None:
            x, lengths = self._framed(x, lengths)
            out, state = self.recurrent(self.dropout(x), lengths=lengths)
        else:
            seen = x[..., self.inputs : 2 * self.inputs].amax(-1, keepdim=True)
            gap = torch.ones_like(seen)
            if self.gaps:
                gap = torch.expm1(x[..., 2 * self.inputs, None] + math.log(2))
            out, state = run_layers(self.recurrent, x, gap, seen, lengths=lengths)
        inside = torch.arange(len(out))[:, None, None] < lengths[:, None]
        mean = out.sum(0) / lengths[:, None]  # outputs after a row's end are zero
        most = out.masked_fill(~inside, -math.inf).amax(0)
        last = torch.cat([*state[-1][0]], -1)
        logits: Tensor = self.readout(self.dropout(torch.cat([mean, most, last], -1)))
        return logits

    def _framed(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Frames (K, B, hidden), and how many whole ones each row has, at least one."""
        assert self.embedding is not None
        lacking = max(0, self.frames - len(x))
        cut = nn.functional.pad(x, (0, 0, 0, 0, 0, lacking)).unfold(0, self.frames, self.every)
        means = cut.mean(-1, keepdim=True)
        whole = torch.cat([cut - means, means], -1).flatten(2)
        count = (lengths - self.frames).div(self.every, rounding_mode="floor").clamp(min=0) + 1
        return torch.relu(self.embedding(whole)), count


class Unpadded(nn.Module):
    """A classifier of one input: sequences of one length.

    Args:
        classifier: the model.
    """

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.classifier(x, torch.full((x.shape[1],), len(x)))
        return logits


def augment(
    x: Tensor, lengths: Tensor, inputs: int, noise: float, crop: float
) -> tuple[Tensor, Tensor]:
    """A batch as training has it: with noise, and of each sequence a part.

    Args:
        x: (T, B, width), its first `inputs` columns the values.
        lengths: (B,).
        inputs: how many columns get noise.
        noise: in deviations.
        crop: the largest share that is cut off.
    """
    if crop:
        kept = (lengths * (1 - crop * torch.rand(len(lengths)))).ceil().long().clamp(min=1)
        first = (torch.rand(len(lengths)) * (lengths - kept + 1)).long()
        places = first + torch.arange(int(kept.max()))[:, None]
        x = x.gather(0, places.clamp(max=len(x) - 1)[..., None].expand(-1, -1, x.shape[-1]))
        x = x.masked_fill((torch.arange(len(x))[:, None] >= kept)[..., None], 0.0)
        lengths = kept
    if noise:
        drawn = noise * torch.randn(*x.shape[:2], inputs)
        x = torch.cat([x[..., :inputs] + drawn, x[..., inputs:]], -1)
    return x, lengths


_RIDGE = 1e-3


def make_baselines(train: Items, classes: int) -> dict[str, Callable[[Items], Tensor]]:
    """Name -> from sequences to logits (N, classes)."""
    shares = (one_hot(train.truth, classes).double().mean(0) + 1e-9).log()
    return {
        "majority": lambda items: shares.expand(len(items.names), classes),
        "linear on means": _fit_linear(train, classes),
    }


def _fit_linear(train: Items, classes: int) -> Callable[[Items], Tensor]:
    """Logistic regression on the mean of each input, fitted to its optimum by L-BFGS."""
    x = _mean_inputs(train)
    weights = torch.zeros(x.shape[1], classes, dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        search.zero_grad()
        loss = cross_entropy(x @ weights, train.truth) + _RIDGE * weights.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        search.step(closure)
    fitted = weights.detach()
    return lambda items: _mean_inputs(items) @ fitted


def _mean_inputs(items: Items) -> Tensor:
    means = torch.stack([one.double().mean(0) for one in items.steps])
    return torch.cat([torch.ones(len(means), 1, dtype=torch.float64), means], 1)
