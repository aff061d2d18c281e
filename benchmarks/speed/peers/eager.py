"""The own cell as the best loop one can write by hand in eager PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor, sigmoid, tanh
from torch.nn.functional import linear

from benchmarks.speed.contender import Contender, torch_contender
from benchmarks.speed.material import Material


def contender(m: Material) -> Contender:
    """The loop with the case's weights."""
    training = m.mode == "training"
    w = {n: v.detach().requires_grad_(training) for n, v in m.weights.items()}
    return torch_contender(lambda x: loop(x, w), w, m)


def loop(x: Tensor, w: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Input product of all steps at once, biases in it; the gates' recurrent product as one."""
    w_ci, w_co, U = w["w_ci_l0"], w["w_co_l0"], w["weight_hh_l0"].t()
    a = linear(x, w["weight_ih_l0"], w["bias_ih_l0"] + w["bias_hh_l0"])
    h = c = x.new_zeros(x.shape[1], U.shape[0])
    hs = []
    for a_t in a.unbind(0):
        a_i, a_g, a_o = torch.addmm(a_t, h, U).chunk(3, 1)
        i = sigmoid(torch.addcmul(a_i, w_ci, c))
        c = torch.lerp(c, tanh(a_g), i)  # (1 - i) c + i g
        h = sigmoid(torch.addcmul(a_o, w_co, c)) * tanh(c)
        hs.append(h)
    return torch.stack(hs), h.unsqueeze(0), c.unsqueeze(0)
