"""One run of a study: it ends when its task is solved, and says what it came to."""

from __future__ import annotations

import pytest
import torch

from tests.study.small import recipe
from throughtime.errors import OptionError
from throughtime.train.study import Grid, learn, make_run_key, plan


def test_it_ends_when_a_validation_is_well_below_the_line() -> None:
    made = recipe(cell="rnn", start="orthogonal", hidden=16, lr=0.01, steps=400, validate_every=20)
    found = learn(made)
    assert found.solved and found.failed is None and found.steps < 400
    below = [step for step, metric in found.validations if metric <= 0.02]
    assert found.solved_at_step == below[0]
    assert found.validations[-1][0] == found.steps
    assert [metric <= 0.01 for _, metric in found.validations].index(True) + 1 == len(
        found.validations
    )
    assert found.metric is not None and found.metric <= 0.02
    assert found.solved_at_seconds is not None and 0 < found.solved_at_seconds <= found.seconds
    assert 0 < found.step_milliseconds


def test_what_is_not_learned_goes_to_the_last_step() -> None:
    found = learn(recipe(cell="lstm", length=40, steps=6, validate_every=4))
    assert not found.solved and found.solved_at_step is None and found.failed is None
    assert found.steps == 6 and [step for step, _ in found.validations] == [4, 6]
    assert found.metric == pytest.approx(0.5, abs=0.1)


def test_a_loss_that_is_not_finite_is_a_reason() -> None:
    found = learn(recipe("adding", cell="rnn", lr=1e38, clip="none", steps=50))
    assert found.failed is not None and not found.solved and found.metric is None
    assert "must stay finite, and it is " in found.failed
    assert found.failed.endswith(f"at step {found.steps}")


def test_the_length_of_published_data_is_its_own() -> None:
    found = learn(recipe("digits", cell="rnn", steps=1))
    assert found.length == 64 and len(found.validations) == 1


def test_the_grid_has_every_combination_once_and_seed_by_seed() -> None:
    grid = Grid(["lstm", "gru", "lstm"], ["torch", "forget"], [6, 9], 2)
    recipes, skipped = plan(recipe(), grid)
    keys = [make_run_key(one) for one in recipes]
    assert skipped == [] and len(keys) == len(set(keys)) == 2 * 2 * 2 * 2
    assert {one[0] for one in keys} == {"lstm", "gru"}
    assert [one[3] for one in keys] == [0] * 8 + [1] * 8
    assert all(one.hidden == 4 and one.task == "latch" for one in recipes)


def test_what_does_not_go_together_is_left_out_with_a_sentence() -> None:
    grid = Grid(["rnn", "gru"], ["orthogonal", "forget", "chrono", "timescales"], [6, 9], 1)
    recipes, skipped = plan(recipe(), grid)
    assert {one.start for one in recipes if one.cell == "rnn"} == {"orthogonal"}
    assert sum(one.cell == "gru" for one in recipes) == 8
    assert [one.partition(":")[0] for one in skipped] == [
        "rnn from chrono",
        "rnn from forget",
        "rnn from timescales",
    ]
    assert all("no gate that keeps its state, so no bias sets its time scale" in s for s in skipped)


@pytest.mark.parametrize(
    ("task", "grid", "said"),
    [
        ("latch", Grid(["rnn"], ["chrono"], [6], 1), "a cell and a start that go together; rnn fr"),
        ("latch", Grid(["rnn"], ["torch"], [6], 0), "seeds must be a whole number of at least 1"),
        ("latch", Grid(["rnn"], ["torch"], [10**9], 1), "GiB of memory, and it needs at least"),
        ("latch", Grid(["rnm"], ["torch"], [6], 1), "cell must be one of .*did you mean rnn"),
        ("latch", Grid(["rnn"], ["othogonal"], [6], 1), "start must be .*did you mean orthogonal"),
        ("latch", Grid(["rnn"], ["torch"], [3], 1), "length must be a whole number of at least 4"),
        ("digits", Grid(["rnn"], ["torch"], [50], 1), "length must be left out, since digits"),
        ("pronounce", Grid(["rnn"], ["torch"], [100], 1), "memory task, adding, .* pronounce is n"),
    ],
)
def test_a_grid_that_cannot_be_is_one_sentence(task: str, grid: Grid, said: str) -> None:
    shared = recipe(task, **({} if task == "latch" else {"length": 100}))
    with pytest.raises(OptionError, match=said):
        plan(shared, grid)


def test_chance_of_a_run_is_its_seed_alone() -> None:
    made = recipe(cell="gru", steps=4, validate_every=2)
    first = learn(made)
    torch.manual_seed(99)
    second, other = learn(made), learn(recipe(cell="gru", steps=4, validate_every=2, seed=1))
    assert first.validations == second.validations != other.validations
