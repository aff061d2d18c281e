"""When a bar of the memory benchmark is passed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.memory import clipped, published, reach
from benchmarks.memory.protocol import BARS, Bar
from benchmarks.memory.verdict import free, passed, rare


def _rows(**other: Any) -> list[dict[str, Any]]:
    """Rows of two seeds that meet every bar of 0.4 and of all seeds, some replaced."""
    errors = {"default": [0.5, 0.5], "ours": [0.0, 0.02], "leak": [0.5, 0.5]}
    found = {"forget": [0.5, 0.5], "ours unclipped": [0.0, 0.0], **errors, **other}
    steps = {"forget": [100, 300], "ours": [80, 120]}
    return [
        {
            "what": what, "cell": "lstm", "errors": e, "seeds": 2, "steps": steps.get(what),
            "solved": sum(v <= 0.02 for v in e), "clipped": [0.04, None],
        }
        for what, e in found.items()
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("errors", "passes"),
    [
        ({}, True),
        ({"default": [0.5, 0.39]}, False),  # torch's start learned it, too
        ({"ours": [0.0, 0.5]}, False),  # one seed of two is less than five of five
        ({"leak": [0.0, 0.5]}, False),  # solved without its label
        ({"leak": [0.3, 0.5]}, False),  # not solved, yet better than chance
        ({"default lr": [0.0, 0.0]}, True),  # published, and no part of the bar
        ({"ours unclipped": [0.5, 0.5]}, True),  # of bar 9, not of this
    ],
)
def test_a_bar_is_passed_by_every_seed_it_asks_for(
    errors: dict[str, list[float]], passes: bool
) -> None:
    assert passed(BARS["2"], _rows(**errors)) is passes


@pytest.mark.parametrize(
    ("bar", "chance", "solved"),
    [("2", 1 / 2, 0.02), ("3", 1 / 2, 0.02), ("4", 1 / 6, 0.02), ("5", 3 / 4, 0.02),
     ("8b", 9 / 10, 0.438)],
)  # fmt: skip
def test_with_the_label_hidden_errors_stay_near_chance(
    bar: str, chance: float, solved: float
) -> None:
    """The line lies between what is guessed and what is learned, and nearer to the guess."""
    line = BARS[bar].blind_above
    assert (chance + solved) / 2 < line < chance


@pytest.mark.parametrize(("share", "passes"), [(0.5, True), (0.49, False)])
def test_ours_must_be_sooner_than_forget_bias_1_by_a_share(share: float, passes: bool) -> None:
    """Means of 100 and 200 steps."""
    bar = Bar("adding", 100, 300, ("lstm",), 0.4, 0.4, 4, sooner=share)
    assert passed(bar, _rows()) is passes


@pytest.mark.parametrize(("ours", "passes"), [([0.30, 0.32], True), ([0.34, 0.38], False)])
def test_ours_must_beat_torchs_start_by_two_deviations(ours: list[float], passes: bool) -> None:
    """Of the wider row: 0.09 > 2 x 0.0283; 0.04 < 2 x 0.0283, from a mean of 0.40."""
    bar = Bar("mnist1d", 40, 300, ("lstm",), 0.0, 0.4, 0, beats=2.0)
    assert passed(bar, _rows(default=[0.38, 0.42], ours=ours)) is passes


def test_clipping_is_honest_when_rare_and_not_needed() -> None:
    assert free(BARS["2"], _rows())
    assert not free(BARS["2"], _rows(**{"ours unclipped": [0.0, 0.5]}))
    assert rare(_rows())
    assert not rare([{**row, "clipped": [0.01, 0.05]} for row in _rows()])


def test_the_reach_of_every_seed_counts() -> None:
    rows: list[dict[str, Any]] = [
        {"cell": "lstm", "start": "torch", "log10_rho_199": ["-inf", -20.0]},
        {"cell": "lstm", "start": "forget", "log10_rho_199": [-1.0, -9.0]},
        {"cell": "lstm", "start": "timescales", "log10_rho_199": [-1.5, 0.5]},
    ]
    assert reach.verdicts(rows) == {"bar 1": True}
    for place, value in ((0, -14.0), (2, 0.6), (2, "-inf")):
        other = [dict(row) for row in rows]
        other[place]["log10_rho_199"] = [-1.0, value]
        assert reach.verdicts(other) == {"bar 1": False}


def test_our_gru_must_be_as_good_as_torchs_and_good_enough() -> None:
    def rows(torchs: float, ours: float) -> list[dict[str, Any]]:
        return [{"layer": "torch", "percent": [50.0, torchs]},
                {"layer": "throughtime", "percent": [50.0, ours]}]  # fmt: skip

    assert published.verdicts(rows(91.0, 90.0)) == {"bar 8 (a)": True}
    assert published.verdicts(rows(91.5, 90.0)) == {"bar 8 (a)": False}
    assert published.verdicts(rows(89.9, 89.9)) == {"bar 8 (a)": False}


def test_the_published_model_has_the_published_number_of_parameters() -> None:
    assert sum(p.numel() for p in published.Tagger().parameters()) == 5134


def test_sums_of_clipped_gradients_by_hand() -> None:
    """Norms 1, 1, 1, 5: the third quartile is 2. U-Clip owes the 3 it cut off the last one."""
    found = torch.tensor([[1.0], [1.0], [1.0], [5.0]], dtype=torch.float64)
    told = clipped.sums(found, 3)
    assert (told["threshold"], told["clip_rate"]) == (2.0, 0.25)
    assert told["plain"] == told["uclip"] == 0.375
    assert (told["norms"], told["largest_in_thresholds"]) == ([1.0, 5.0], 2.5)
    first = clipped.sums(found.flip(0), 3)
    assert (first["plain"], first["uclip"]) == (0.375, 0.0)


def test_clipping_passes_by_its_third_quartile_alone() -> None:
    same = {"seed": 0, "kind": "norm", "report": 0.5, "direct": 0.51}
    first = {"seed": 0, "quartile": 1, "uclip": 0.2, "plain": 0.9}
    third = {"seed": 0, "quartile": 3, "uclip": 0.04, "plain": 0.31}
    assert list(clipped.verdicts([same, first, third]).values()) == [True, True]
    for worse in ({**third, "uclip": 0.05}, {**third, "plain": 0.3}):
        assert list(clipped.verdicts([same, first, third, worse]).values()) == [True, False]
    worse = {**same, "direct": 0.53}
    assert list(clipped.verdicts([same, first, third, worse]).values()) == [False, True]
