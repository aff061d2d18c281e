"""Recurrent dropout and zoneout as part of a step's graph, so that all else follows from it.

    recurrent dropout   U.g @ (m * v)  in the place of  U.g @ v, whatever v is
    zoneout             s_t = m s_{t-1} + (1 - m) s~_t  for each state

A step is given its masks like direct inputs, but no gradient by them is computed.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from throughtime.compiler.graph import Builder, Graph, Node, Product, Shape
from throughtime.compiler.symbols import Symbol


class Masks(NamedTuple):
    """Which masks a step is given.

    Attributes:
        dropout: one that multiplies what the gates' matrices multiply.
        zoneout: one for each state.
    """

    dropout: bool = False
    zoneout: bool = False


NO_MASKS: Final = Masks()

DROPOUT: Final = "recurrent dropout"
"""The name of that mask; those of zoneout have the names of their states."""


def with_masks(step: Graph, gates: tuple[str, ...], masks: Masks) -> Graph:
    """The graph of a step with masks, whose nodes `mask` are what it is given besides the rest.

    Args:
        step: without masks.
        gates: whose matrices multiply what is masked.
        masks: which there are.
    """
    if masks == NO_MASKS:
        return step
    builder, place, products = Builder(H=step.H), list[int](), list[Product]()
    for node in step.nodes:
        builder.line = node.line
        inputs = tuple(place[i] for i in node.inputs)
        if masks.dropout and _is_product(node, gates):
            v = Symbol(builder, inputs[0])
            inputs = ((_mask(builder, DROPOUT, v.symbolic_shape) * v).index,)
        place.append(builder.node(node.op, inputs, node.constants, node.shape))
        if node.op == "U":
            products.append(Product(str(node.constants[0]), inputs[0], place[-1]))
    outputs = [(state, place[i]) for state, i in step.outputs]
    if masks.zoneout:
        outputs = [(state, _zoned(builder, state, i)) for state, i in outputs]
    return builder.finish(step.name, outputs, products)


def _is_product(node: Node, gates: tuple[str, ...]) -> bool:
    return node.op == "U" and node.constants[0] in gates


def _zoned(builder: Builder, state: str, index: int) -> int:
    """m s_{t-1} + (1 - m) s~_t."""
    new = Symbol(builder, index)
    old = Symbol(builder, builder.node("s", (), (state,), new.symbolic_shape))
    m = _mask(builder, state, new.symbolic_shape)
    zoned: Symbol = m * old + (1 - m) * new
    return zoned.index


def _mask(builder: Builder, name: str, shape: Shape) -> Any:
    return Symbol(builder, builder.node("mask", (), (name,), shape))
