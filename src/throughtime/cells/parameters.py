"""The parameters a cell needs: names as torch's, shapes from its layout."""

from __future__ import annotations

from throughtime.cells.cell import Cell


def parameter_shapes(
    cell: Cell, input_size: int, hidden_size: int, bias: bool = True
) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every parameter of one layer and direction, in torch's order.

    Args:
        cell: the cell; what its `step` never touches has no parameter.
        input_size: width I of the input.
        hidden_size: rows H of each gate.
        bias: whether W and U carry a bias.

    Returns:
        "weight_ih" (G_a H, I), "weight_hh" (G_u H, width of the output), "bias_ih" (G_a H,),
        "bias_hh" (G_u H,), "weight_<product>" (to, from), or with blocks (n, to / n, from / n), and
        each vector (H,).
    """
    layout = cell.layout_at(hidden_size) if hidden_size else cell.layout
    rows_a = len(layout.input_gates) * hidden_size
    rows_u = len(layout.recurrent_gates) * hidden_size
    shapes: dict[str, tuple[int, ...]] = {}
    if rows_a:
        shapes["weight_ih"] = (rows_a, input_size)
    if rows_u:
        shapes["weight_hh"] = (rows_u, cell.widths(hidden_size)[0])
    if rows_a and bias:
        shapes["bias_ih"] = (rows_a,)
    if rows_u and bias:
        shapes["bias_hh"] = (rows_u,)
    for name in layout.products:
        to, source = cell.products[name]
        lines, columns = cell.width(to, hidden_size), cell.width(source, hidden_size)
        blocks = cell.blocks_of(name)
        one = (lines // blocks, columns // blocks)
        shapes[f"weight_{name}"] = one if blocks == 1 else (blocks, *one)
    for name in layout.vectors:
        shapes[name] = (hidden_size,)
    assert tuple(shapes) == layout.names(bias)
    return shapes
