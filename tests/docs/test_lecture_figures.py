"""The claims docs/lecture.md draws from its figures, as inequalities; no figure is repeated."""

from __future__ import annotations

import pytest

from tests.docs.test_lecture_page import computed


@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
def test_the_gradient_vanishes_at_torchs_default_start(name: str) -> None:
    """Of an LSTM and a GRU as of a vanilla network: dead at lag 100, nothing at lag 199."""
    found = computed("reach")
    assert 0 < found[f"reach.{name}.100"] < 1e-18
    assert found[f"reach.{name}.199"] < 1e-36
    assert found[f"reach.{name}.float32"] == 0


def test_the_forget_gates_start_decides_how_far_an_lstm_learns() -> None:
    found = computed("reach")
    default, one, three = (
        found[f"reach.{name}.100"] for name in ("LSTM", "LSTM_forget_1", "LSTM_forget_3")
    )
    assert default < 1e-18 < 1e-9 < one < 1e-6 < 0.1 < three < 10


def test_larger_weights_make_the_gradient_explode() -> None:
    found = computed("reach")
    assert 1 < found["reach.RNN_times_3.10"] < found["reach.RNN_times_3.100"]
    assert found["reach.RNN_times_3.199"] > 1e3


@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
def test_the_state_forgets_its_first_input(name: str) -> None:
    found = computed("memory")
    assert 1e-3 < found[f"memory.{name}.10"] < 0.1
    assert found[f"memory.{name}.50"] < 1e-8


def test_norm_clipping_bends_the_mean_only_where_gradients_explode() -> None:
    """Each batch keeps its direction; the mean bends once a few huge batches no longer rule it."""
    found = computed("clip")
    for gain in ("1", "2"):
        assert found[f"clip.{gain}.batch_by_norm"] > 1 - 1e-12
    assert found["clip.1.mean_by_norm"] > 0.999
    assert found["clip.2.mean_by_norm"] < 0.95


def test_value_clipping_turns_even_a_benign_gradient() -> None:
    found = computed("clip")
    for gain in ("1", "2"):
        assert found[f"clip.{gain}.batch_by_value"] < 0.85
        assert found[f"clip.{gain}.mean_by_value"] < 0.85


def test_an_exploded_gradient_is_noise_before_it_is_clipped() -> None:
    """Two halves of the batches agree on the mean gradient, or they do not."""
    found = computed("clip")
    assert found["clip.1.halves"] > 0.99
    assert found["clip.2.halves"] < 0.5


@pytest.mark.parametrize("d", [2, 4, 8, 16])
def test_a_skip_costs_d_states_and_dilation_one(d: int) -> None:
    found = computed("skip_bytes")
    assert found[f"bytes.skip_{d}.state"] == d * found["bytes.plain.state"]
    assert found[f"bytes.dilation_{d}.state"] == found["bytes.plain.state"]
    assert found[f"bytes.skip_{d}.weights"] > 1.9 * found["bytes.plain.weights"]
    assert found[f"bytes.dilation_{d}.weights"] == found["bytes.plain.weights"]


@pytest.mark.parametrize("d", [2, 4, 8, 16])
def test_back_propagation_keeps_old_states_anyway(d: int) -> None:
    """So neither way costs a whole sequence in training much more than no skip at all."""
    found = computed("skip_bytes")
    for kind in ("skip", "dilation"):
        assert 1 < found[f"bytes.{kind}_{d}.saved"] / found["bytes.plain.saved"] < 1.1


def test_steps_that_dilation_does_not_divide_keep_more() -> None:
    found = computed("skip_bytes")
    ratio = found["bytes.dilation_16.saved_239"] / found["bytes.dilation_16.saved"]
    assert 1.5 < ratio < 2.5


def test_a_skip_reaches_further_back() -> None:
    found = computed("skip_reach")
    for kind in ("skip", "dilation"):
        reached = [found[f"skip.{kind}_{d}.96"] for d in (2, 4, 8, 16)]
        assert found["skip.plain.96"] < 1e-15 and reached == sorted(reached)
        assert reached[0] > 1e3 * found["skip.plain.96"] and reached[-1] > 1e-3


def test_weights_of_the_cells_stand_as_one_to_three_to_four() -> None:
    found = computed("weights")
    assert found["weights.GRU.numbers"] == 3 * found["weights.RNN.numbers"]
    assert found["weights.LSTM.numbers"] == 4 * found["weights.RNN.numbers"]


def test_the_backward_direction_knows_what_follows() -> None:
    """The sign of the next input: a coin toss for one direction, learned by two."""
    found = computed("sides")
    assert found["sides.1"] > 0.98
    assert found["sides.2"] < 0.1
