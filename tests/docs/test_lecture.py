"""The statements of docs/lecture.md on networks, unrolling, back-propagation and its troubles."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from throughtime import Recurrent, cells
from throughtime.errors import OptionError
from throughtime.layers.stream import Stream

F64 = {"dtype": torch.float64}


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, **F64)


def test_a_vanilla_network_is_its_equation() -> None:
    """h_t = s_h(W_h x_t + U_h h_{t-1} + b_h), with s_h of any kind."""
    x = randn(5, 3, 2)
    for name, s_h in (("tanh", torch.tanh), ("sigmoid", torch.sigmoid), (torch.sin, torch.sin)):
        layer = Recurrent(cells.Elman(name), 2, 4, **F64)
        W_h, U_h, b_h = layer.weight_ih_l0, layer.weight_hh_l0, layer.bias_ih_l0 + layer.bias_hh_l0
        h, expected = torch.zeros(3, 4, **F64), []
        for x_t in x:
            h = s_h(x_t @ W_h.T + h @ U_h.T + b_h)
            expected.append(h)
        assert_close(layer(x)[0], torch.stack(expected))


@pytest.mark.parametrize(
    "readout",
    [
        nn.Sequential(nn.Linear(4, 3), nn.Softmax(-1)),
        nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.LayerNorm(9), nn.Linear(9, 3)),
    ],
    ids=["one layer", "a network"],
)
def test_the_readout_may_be_any_network(readout: nn.Sequential) -> None:
    """y_t = s_y(W_y h_t + b_y) looks at h_t alone, so whole sequences and single steps agree."""
    layer, readout = Recurrent(cells.Elman(), 2, 4, return_state=False, **F64), readout.double()
    x = randn(5, 3, 2)
    y = readout(layer(x))
    assert_close(y[3], readout(layer(x[:4])[3]))
    stream = Stream(nn.Sequential(layer, readout), batch=3)
    assert_close(torch.stack([stream(x_t) for x_t in x]), y)


def test_one_set_of_weights_serves_every_step() -> None:
    """As many weights for a thousand steps as for one; they learn from all steps at once."""
    layer = Recurrent(cells.Elman(), 2, 4, return_state=False, **F64)
    count = sum(p.numel() for p in layer.parameters())
    assert layer(randn(1000, 1, 2)).shape[0] == 1000
    assert sum(p.numel() for p in layer.parameters()) == count == 4 * 2 + 4 * 4 + 2 * 4


def unrolled(x: torch.Tensor, weights: list[dict[str, torch.Tensor]]) -> torch.Tensor:
    """A deep feed-forward network: layer t has weights of its own."""
    h, out = torch.zeros(x.shape[1], 4, **F64), []
    for x_t, w in zip(x, weights, strict=True):
        h = torch.tanh(
            x_t @ w["weight_ih_l0"].T + w["bias_ih_l0"] + h @ w["weight_hh_l0"].T + w["bias_hh_l0"]
        )
        out.append(h)
    return torch.stack(out)


def test_an_unrolled_network_is_a_deep_one_with_shared_weights() -> None:
    """Give every step a copy: the outputs stay, and the copies' gradients add up to the layer's."""
    layer = Recurrent(cells.Elman(), 2, 4, return_state=False, **F64)
    x = randn(6, 3, 2)
    copies = [
        {name: p.detach().clone().requires_grad_() for name, p in layer.named_parameters()}
        for _ in range(6)
    ]
    y, deep = layer(x), unrolled(x, copies)
    assert_close(y, deep)
    d_y = randn(6, 3, 4)
    y.backward(d_y)
    deep.backward(d_y)
    for name, p in layer.named_parameters():
        assert_close(sum(copy[name].grad for copy in copies), p.grad)
        assert not torch.allclose(copies[0][name].grad, p.grad)


def test_back_propagation_through_time_by_hand() -> None:
    """delta_t = s'(a_t) (d_y_t + U^T delta_{t+1}); dU = sum_t delta_t h_{t-1}^T, so for W, b."""
    layer = Recurrent(cells.Elman(), 2, 4, return_state=False, **F64)
    x, d_y = randn(6, 3, 2), randn(6, 3, 4)
    h = layer(x)
    h.backward(d_y)
    W, U = layer.weight_ih_l0, layer.weight_hh_l0
    delta, dW, dU, db = randn(3, 4) * 0, 0 * W, 0 * U, 0 * layer.bias_hh_l0
    for t in reversed(range(6)):
        before = h[t - 1] if t else 0 * h[0]
        delta = (1 - h[t] ** 2) * (d_y[t] + delta @ U)
        dW, dU, db = dW + delta.T @ x[t], dU + delta.T @ before, db + delta.sum(0)
    assert_close((W.grad, U.grad, layer.bias_hh_l0.grad), (dW, dU, db))


def test_truncated_back_propagation_stops_at_the_window() -> None:
    """The state goes on over the border of a window, the gradient does not."""
    layer = Recurrent(cells.Elman(), 2, 4, **F64)
    x = randn(6, 3, 2).requires_grad_()
    first, second = layer.windows(x, 3)
    assert_close(torch.cat((first.outputs, second.outputs)), layer(x)[0])
    second.outputs.sum().backward()
    assert x.grad is not None and not x.grad[:3].any() and x.grad[3:].all()


def test_a_linear_network_forgets_and_explodes_as_its_spectral_radius() -> None:
    """With U = r Q, Q orthogonal, the gradient k steps back is exactly r^k times its first size."""
    for r in (0.9, 1.0, 1.1):
        layer = Recurrent(cells.Elman("identity"), 4, 4, return_state=False, bias=False, **F64)
        with torch.no_grad():
            nn.init.orthogonal_(layer.weight_hh_l0).mul_(r)
            layer.weight_ih_l0.copy_(torch.eye(4))
        x = randn(50, 1, 4).requires_grad_()
        layer(x)[-1].sum().backward()
        assert x.grad is not None
        norm = x.grad[:, 0].norm(dim=-1)
        assert_close(norm, norm[-1] * r ** torch.arange(49.0, -1, -1, **F64))


def test_norm_clipping_keeps_a_gradients_direction_and_value_clipping_turns_it() -> None:
    weight = nn.Parameter(torch.zeros(2, **F64))
    for clip, expected in (
        (lambda: nn.utils.clip_grad_norm_([weight], 1.0), [0.6, 0.8]),
        (lambda: nn.utils.clip_grad_value_([weight], 1.0), [1.0, 1.0]),
    ):
        weight.grad = torch.tensor([3.0, 4.0], **F64)
        clip()
        assert_close(weight.grad, torch.tensor(expected, **F64), rtol=1e-5, atol=0)


def test_a_skip_of_d_steps_divides_the_way_of_the_gradient_by_d() -> None:
    """A linear chain that halves at every link: 12 steps back, 12 links, or 3 by a skip of 4."""
    x = torch.zeros(13, 1, 1, **F64, requires_grad=True)
    plain = Recurrent(cells.Elman("identity"), 1, 1, return_state=False, **F64)
    skip = Recurrent(cells.Skip(4, "identity"), 1, 1, return_state=False, **F64)
    dilated = Recurrent(cells.Elman("identity"), 1, 1, dilation=4, return_state=False, **F64)
    for layer, links in ((plain, 12), (skip, 3), (dilated, 3)):
        for p in layer.parameters():
            p.data.fill_(0.5)
        with torch.no_grad():
            layer.gate("h").weight_ih.fill_(1)
        if layer is skip:
            layer.gate("h").weight_hh.data.zero_()
        (gradient,) = torch.autograd.grad(layer(x)[-1].sum(), x)
        assert gradient[0].item() == 0.5**links


def test_dilation_pays_with_streams_and_with_steps_out_of_its_chain() -> None:
    """Only every d-th step is seen, and the state of one step is not enough to go on from."""
    layer = Recurrent(cells.Elman(), 1, 3, dilation=4, return_state=False, **F64)
    x = randn(12, 1, 1).requires_grad_()
    layer(x)[-1].sum().backward()
    assert x.grad is not None
    assert x.grad.flatten().nonzero().flatten().tolist() == [3, 7, 11]
    with pytest.raises(OptionError, match="a dilated layer keeps no old states"):
        layer.stream()
