"""What docs/operator.md says of torch: fails when a newer torch makes it untrue."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

_library = torch.library.Library("throughtime_docs", "DEF")
for _name in ("bare", "ruled"):
    _library.define(f"{_name}(Tensor x) -> Tensor")
    _library.impl(_name, lambda x: x * x, "CompositeExplicitAutograd")


def _keep(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


torch.library.register_autograd(
    "throughtime_docs::ruled",
    lambda ctx, d: 2 * ctx.saved_tensors[0] * d,
    setup_context=_keep,
    lib=_library,
)
BARE, RULED = torch.ops.throughtime_docs.bare, torch.ops.throughtime_docs.ruled


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's compile stack warns about itself
        yield


def test_an_op_without_a_rule_has_a_derivative_of_zero() -> None:
    x = torch.tensor([1.0, 2.0])
    assert torch.func.grad(lambda x: BARE(x).sum())(x).tolist() == [0, 0]
    assert torch.func.jvp(BARE, (x,), (x,))[1].tolist() == [0, 0]


def test_register_autograd_breaks_torch_func() -> None:
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    assert torch.autograd.grad(RULED(x).sum(), x)[0].tolist() == [2, 4]
    for transform in (torch.func.grad, torch.func.jacrev, torch.func.hessian):
        with pytest.raises(RuntimeError, match="must override the setup_context"):
            transform(lambda x: RULED(x).sum())(x.detach())
    assert torch.func.jvp(RULED, (x.detach(),), (x.detach(),))[1].tolist() == [0, 0]


class _WithJvp(torch.autograd.Function):
    """x^2 with a rule for forward mode."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * x

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return tangent


def test_the_compiler_refuses_a_function_with_a_jvp() -> None:
    x = torch.ones(2, requires_grad=True)
    with pytest.raises(Exception, match="do not|does not support tracing"):
        torch.compile(_WithJvp.apply, fullgraph=True, backend="eager")(x)
    torch._dynamo.reset()
