"""Bar 9 (i) and (ii): what clipping does to a gradient that explodes.

A tanh network of 64 units reads adding over 100 steps, 20 sequences a batch, its recurrent matrix
drawn from N(0, (2 / sqrt(64))^2), so that gradients explode. Weights stay as they are.

(i) Over 60 batches, the cosine of the mean clipped gradient with the mean gradient as the report
computes it, beside one computed by backward and torch's clippers: norm 1.0, value 0.1.
(ii) Over 1000 batches, ||sum of (u - g)|| / ||sum of g|| for plain clipping and for `UClip`. The
threshold is a quartile of the first 100 norms; the bar holds at the third, where a quarter of the
batches is clipped. The nearer it comes to the size of the mean gradient, the longer U-Clip owes.
A row names the smallest and the largest norm and how many thresholds the largest is.

(iii), whether ours needs clipping, is asked of the trainings of bars 2 and 4.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from throughtime import UClip
from throughtime.diagnosis.quantities.clipping import clipping, gradients
from throughtime.tasks import find
from throughtime.tasks.memory import MemoryTask
from throughtime.tasks.recipe import Recipe

H, B, GAIN = 64, 20, 2.0
FEW, MANY, FIRST = 60, 1000, 100
CLIPS: dict[str, tuple[Any, float]] = {
    "norm": (nn.utils.clip_grad_norm_, 1.0),
    "value": (nn.utils.clip_grad_value_, 0.1),
}
CLOSE, LITTLE, MUCH = 0.02, 0.05, 0.30


def rows(seeds: list[int]) -> Iterator[dict[str, Any]]:
    """The cosines and the sums of every seed."""
    for seed in seeds:
        task, model = _set_up(seed)
        for kind in CLIPS:
            yield {"seed": seed, **cosines(task, model, kind)}
        found = torch.stack(list(gradients(model, _losses(task, model, MANY))))
        for quartile in (1, 2, 3):
            yield {"seed": seed, "quartile": quartile, **sums(found, quartile)}


def verdicts(found: list[dict[str, Any]]) -> dict[str, bool]:
    """Each part apart, for every seed."""
    same = [abs(row["report"] - row["direct"]) <= CLOSE for row in found if "kind" in row]
    third = [row for row in found if row.get("quartile") == 3]
    owes = [row["uclip"] < LITTLE and row["plain"] > MUCH for row in third]
    return {"bar 9 (i), cosines": all(same), "bar 9 (ii), sums": all(owes)}


def _set_up(seed: int) -> tuple[MemoryTask, nn.Module]:
    kind = find("adding")
    own: dict[str, Any] = {"task": "adding", "length": 100, "hidden": H, "cell": "rnn"}
    task = kind(Recipe(**{**kind.presets["quick"], **own, "seed": seed}))
    assert isinstance(task, MemoryTask)
    torch.manual_seed(seed)
    model = task.model()
    nn.init.normal_(model.get_parameter("recurrent.weight_hh_l0"), std=GAIN / math.sqrt(H))
    return task, model


def _losses(task: MemoryTask, model: nn.Module, count: int) -> Iterator[Tensor]:
    return (task.loss(model, task.batch("train", n, B)) for n in range(count))


def cosines(task: MemoryTask, model: nn.Module, kind: Any) -> dict[str, Any]:
    """The report's cosine and a direct one, over the same batches."""
    clip, threshold = CLIPS[kind]
    told = clipping(gradients(model, _losses(task, model, FEW)), threshold, kind).mean_cosine
    raw, cut = [], []
    for loss in _losses(task, model, FEW):
        model.zero_grad()
        loss.backward()
        raw.append(_flat(model))
        clip(model.parameters(), threshold)
        cut.append(_flat(model))
    direct = torch.cosine_similarity(torch.stack(raw).mean(0), torch.stack(cut).mean(0), 0)
    assert told is not None
    return {"kind": kind, "report": round(told, 3), "direct": round(float(direct), 3)}


def _flat(model: nn.Module) -> Tensor:
    parts = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return torch.cat(parts).double()


def sums(found: Tensor, quartile: int) -> dict[str, Any]:
    """How far the sum of the clipped gradients is from that of the raw ones, (M, P)."""
    norms = found.norm(dim=1)
    threshold = float(norms[:FIRST].quantile(quartile / 4))
    total = found.sum(0)
    plain = (found * (threshold / norms).clamp(max=1)[:, None]).sum(0)
    held = nn.Parameter(torch.zeros_like(total))
    optimizer = UClip(torch.optim.SGD([held], lr=1.0), threshold)
    for g in found:
        held.grad = g.clone()
        optimizer.step()
    carried = -held.detach()  # plain steps of length 1: minus the sum of all u
    off = {"plain": plain - total, "uclip": carried - total}
    share = {name: round(float(v.norm() / total.norm()), 4) for name, v in off.items()}
    clipped = float((norms > threshold).double().mean())
    most = float(norms.max())
    return {
        "threshold": _short(threshold), "clip_rate": round(clipped, 3), **share,
        "norms": [_short(float(norms.min())), _short(most)],
        "largest_in_thresholds": _short(most / threshold),
    }  # fmt: skip


def _short(value: float) -> float:
    return float(f"{value:.3g}")
