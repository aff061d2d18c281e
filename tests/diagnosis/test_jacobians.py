"""Jacobians: a spectrum that is known, and a plain twin for the rest."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from throughtime import GRU, RNN, Recurrent, cells
from throughtime.diagnosis.observe.steps import list_steps
from throughtime.diagnosis.quantities.jacobians import compute_step_jacobians, jacobians
from throughtime.errors import ShapeError
from throughtime.layers.batch import Batch


def _x(T: int, B: int, width: int) -> Tensor:
    draw = torch.Generator().manual_seed(3)
    return torch.randn(T, B, width, dtype=torch.float64, generator=draw)


def _linear(U: Tensor) -> Recurrent:
    layer = Recurrent(cells.Elman("identity"), 2, len(U), dtype=torch.float64)
    with torch.no_grad():
        layer.weights(0, 0)["weight_hh"].copy_(U)
    return layer


def test_a_linear_network_has_the_spectrum_of_its_matrix() -> None:
    torch.manual_seed(0)
    values = torch.tensor([1.02, 0.9, 0.7, 0.5, 0.2], dtype=torch.float64)
    basis = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64))[0]
    (found,) = jacobians(_linear(basis @ values.diag() @ basis.T), Batch(_x(400, 2, 2)))
    assert found.lyapunov_nats_per_step == pytest.approx(values.log().tolist(), abs=1e-3)
    (matrix,) = found.matrices
    assert matrix.spectral_radius == pytest.approx(1.02)
    assert matrix.largest_singular_value == pytest.approx(1.02)


def test_an_orthogonal_linear_network_keeps_every_direction() -> None:
    torch.manual_seed(0)
    U = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64))[0]
    (found,) = jacobians(_linear(U), Batch(_x(30, 2, 2)))
    assert found.lyapunov_nats_per_step == pytest.approx([0.0] * 5, abs=1e-12)
    assert found.singular_values == pytest.approx((1.0, 1.0, 1.0))
    assert found.condition_number == pytest.approx(1.0)
    assert found.matrices[0].orthogonality_defect == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("cell", [cells.GRU(), cells.LSTM(), cells.Elman()], ids=repr)
def test_each_jacobian_is_that_of_torch_autograd(cell: cells.Cell) -> None:
    torch.manual_seed(0)
    layer = Recurrent(cell, 2, 3, dtype=torch.float64, backend="reference")
    x = _x(3, 2, 2)
    (steps,) = list_steps(layer, Batch(x))
    found = list(compute_step_jacobians(steps, 3))
    state = layer(x[:2])[1][0]
    before = torch.cat([v[0, 1] for v in state])

    def step(flat: Tensor) -> Tensor:
        parts = tuple(v.view(1, 1, -1) for v in flat.split(3))
        return torch.cat([v.flatten() for v in layer(x[2:, 1:], (parts,))[1][0]])

    J = torch.autograd.functional.jacobian(step, before)
    assert torch.allclose(found[2][1], J, rtol=1e-12, atol=1e-12)


def test_the_backward_direction_goes_its_own_way() -> None:
    torch.manual_seed(0)
    layer = GRU(2, 3, bidirectional=True, dtype=torch.float64)
    with torch.no_grad():
        for name, p in list(layer.named_parameters()):
            if name.endswith("_reverse"):
                p.copy_(layer.get_parameter(name.removesuffix("_reverse")))
    x = _x(15, 2, 2)
    backward, forward = jacobians(layer, Batch(x))[1], jacobians(layer, Batch(x.flip(0)))[0]
    assert backward.lyapunov_nats_per_step == pytest.approx(forward.lyapunov_nats_per_step)


def test_what_is_lost_for_good_is_minus_infinity() -> None:
    layer = RNN(2, 3, nonlinearity="relu")
    nn.init.zeros_(layer.weight_hh_l0)
    (found,) = jacobians(layer, Batch(_x(12, 2, 2).float()))
    assert found.lyapunov_nats_per_step == (-math.inf,) * 3


def test_short_sequences_are_refused() -> None:
    with pytest.raises(ShapeError, match="more than 10 steps"):
        jacobians(RNN(2, 3), Batch(torch.ones(10, 2, 2)))


def test_a_wide_state_gives_the_largest_exponents() -> None:
    values = torch.cat((torch.linspace(1.3, 0.7, 16), torch.full((114,), 0.1))).double()
    values = values[torch.randperm(130, generator=torch.Generator().manual_seed(1))]
    (found,) = jacobians(_linear(values.diag()), Batch(_x(300, 1, 2) * 0))
    expected = values.sort(descending=True).values[:16].log().tolist()
    assert found.lyapunov_nats_per_step == pytest.approx(expected, abs=1e-2)
