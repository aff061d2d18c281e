"""A layer as a plain function of x."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from benchmarks.speed.material import Material


def layer_call(
    layer: nn.Module, m: Material
) -> tuple[Callable[[Tensor], tuple[Tensor, ...]], dict[str, Tensor]]:
    """The layer with the case's weights: x -> (y, h_n) or (y, h_n, c_n); and its weights by name.

    Takes a state as torch.nn gives it, and as `Recurrent` does: a tuple for the one layer.
    """
    layer.load_state_dict(m.weights)
    layer.train(m.mode == "training")

    def forward(x: Tensor) -> tuple[Tensor, ...]:
        y, state = layer(x)
        if isinstance(state, Tensor):
            return y, state
        return (y, *(state[0] if isinstance(state[0], tuple) else state))

    return forward, dict(layer.named_parameters())
