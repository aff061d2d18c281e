"""Value and every gradient equal torch.nn's over the whole table of options."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

import throughtime
from tests.drop_in.pairs import KINDS, Case, run, table, tensors
from tests.tolerance import TOLERANCE


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_are_torchs(
    kind: str, layers: int, bidirectional: bool, backend: str
) -> None:
    for case in table(kind, layers, bidirectional):
        theirs, ours = case.pair(backend)
        x, hx = case.draw()
        d_results: list[torch.Tensor] = []
        expected = run(theirs, x, hx, d_results)
        found = run(ours, x, hx, d_results)
        torch.testing.assert_close(
            found, expected, **TOLERANCE[torch.float64], msg=lambda m, case=case: f"{case}: {m}"
        )


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("kind", KINDS)
def test_packed_goes_out_as_it_came(kind: str, backend: str) -> None:
    case = Case(kind, "packed, unsorted", True, {"num_layers": 2, "bidirectional": True})
    theirs, ours = case.pair(backend)
    x, hx = case.draw()
    expected, found = theirs(x, hx)[0], ours(x, hx)[0]
    assert isinstance(found, PackedSequence)
    for name in ("batch_sizes", "sorted_indices", "unsorted_indices"):
        assert torch.equal(getattr(found, name), getattr(expected, name))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("form", ["batched", "batch_first", "packed"])
def test_dropout_draws_torchs_masks(kind: str, backend: str, form: str) -> None:
    options = {"num_layers": 3, "bidirectional": True, "dropout": 0.4}
    case = Case(kind, form, False, options)
    theirs, ours = case.pair(backend)
    x, _ = case.draw()
    results = []
    for layer in (theirs, ours):
        torch.manual_seed(7)
        results.append(run(layer, x, None, []))
        torch.manual_seed(8)
        results[-1] += run(layer, x, None, [])
    torch.testing.assert_close(results[1], results[0], **TOLERANCE[torch.float64])
    assert not torch.equal(results[0][0], results[0][len(results[0]) // 2])
    ours.eval()
    theirs.eval()
    torch.testing.assert_close(run(ours, x, None), run(theirs, x, None), **TOLERANCE[torch.float64])


def single(kind: str, backend: str) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Results and gradients of ours and of torch's in float32."""
    case = Case(kind, "batch_first", True, {"num_layers": 2, "bidirectional": True})
    theirs, ours = (layer.float() for layer in case.pair(backend))
    x, hx = case.draw()
    hx = tuple(v.float() for v in hx) if isinstance(hx, tuple) else hx.float()
    d_results: list[torch.Tensor] = []
    expected = run(theirs, x.float(), hx, d_results)
    return run(ours, x.float(), hx, d_results), expected


@pytest.mark.parametrize("kind", KINDS)
def test_torchs_backend_has_torchs_bits(kind: str) -> None:
    found, expected = single(kind, "torch")
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_single_precision_is_torchs_to_rounding(kind: str) -> None:
    torch.testing.assert_close(*single(kind, "auto"), **TOLERANCE[torch.float32])


SIZES = [(20, 1, 8, 16), (100, 8, 16, 64), (50, 16, 33, 65)]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_long_sequences_are_torchs_to_rounding(kind: str, size: tuple[int, int, int, int]) -> None:
    """Beside the largest number of each: sums over all steps and rows round with what they sum."""
    T, B, I, H = size
    theirs = getattr(nn, kind)(I, H, num_layers=2, bidirectional=True)
    ours = getattr(throughtime, kind)(I, H, num_layers=2, bidirectional=True)
    ours.load_state_dict(theirs.state_dict())
    x, d_results = torch.randn(T, B, I), []
    expected = run(theirs, x, None, d_results)
    found = run(ours, x, None, d_results)
    for a, b in zip(found, expected, strict=True):
        assert (a - b).abs().max() <= TOLERANCE[torch.float32]["rtol"] * b.abs().max()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_rows_bits_do_not_depend_on_the_batch(kind: str, dtype: torch.dtype) -> None:
    """torch's own kernels do not promise that."""
    layer = getattr(throughtime, kind)(5, 13, num_layers=2, bidirectional=True, dtype=dtype)
    x = torch.randn(7, 9, 5, dtype=dtype)
    y, final = layer(x)
    for rows in (slice(4, 5), slice(0, 2), slice(3, 9)):
        alone, last = layer(x[:, rows].clone())
        assert torch.equal(alone, y[:, rows])
        pairs = zip(tensors(last), tensors(final), strict=True)
        assert all(torch.equal(a, b[:, rows]) for a, b in pairs)
