"""Value and every gradient equal torch.nn's over the whole table of options."""

from __future__ import annotations

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence

from tests.drop_in.pairs import KINDS, Case, run, table

TOLERANCE = {"rtol": 1e-12, "atol": 1e-12}


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
            found, expected, **TOLERANCE, msg=lambda m, case=case: f"{case}: {m}"
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
    torch.testing.assert_close(results[1], results[0], **TOLERANCE)
    assert not torch.equal(results[0][0], results[0][len(results[0]) // 2])
    ours.eval()
    theirs.eval()
    torch.testing.assert_close(run(ours, x, None), run(theirs, x, None), **TOLERANCE)


@pytest.mark.parametrize("kind", KINDS)
def test_single_precision_has_torchs_bits(kind: str) -> None:
    case = Case(kind, "batch_first", True, {"num_layers": 2, "bidirectional": True})
    theirs, ours = (layer.float() for layer in case.pair())
    x, hx = case.draw()
    hx = tuple(v.float() for v in hx) if isinstance(hx, tuple) else hx.float()
    d_results: list[torch.Tensor] = []
    expected = run(theirs, x.float(), hx, d_results)
    found = run(ours, x.float(), hx, d_results)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
