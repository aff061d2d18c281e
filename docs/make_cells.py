"""Writes docs/cells.md and the list in cells/__init__.py from the cells: python docs/make_cells.py

The list is for type checkers and editors; what cells there are, their files alone decide.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from pathlib import Path

from throughtime import cells
from throughtime.cell.contract import Width
from throughtime.cells import Cell, available

PAGE = Path(__file__).with_name("cells.md")
LIST = Path(cells.__file__)
BEGIN, END = "if TYPE_CHECKING:  # written by docs/make_cells.py\n", "\n\n@cache"

HEAD = """\
# The cells

This page is written by `docs/make_cells.py` from the cells' own source; edit the cells.

A cell is one step of a recurrent network, written as its equations. In them

- `a.g` is W_g x_t + b_g, what gate g gets from the input;
- `U.g @ v` is U_g v + its bias for a gate g, and a plain product for a matrix of `products`;
  one that `blocks` names is block-diagonal, n matrices of heads (n, to / n, from / n);
- `s.name` is the state at t-1, and what `step` returns is the state at t, the output first;
- `p.name` is a vector with one number a unit.

What `step` never touches has no parameter. I is the input size, H the hidden size; the names of
parameters are those of the first layer, forward direction, as in torch.nn.

    from throughtime import Recurrent, cells
    layer = Recurrent(cells.LSTMPeephole(), input_size=20, hidden_size=64)
    y, state = layer(x)                     # x (T, B, I), y (T, B, H)
"""


def main() -> None:
    """Writes the page and the list."""
    PAGE.write_text(page())
    LIST.write_text(listed(LIST.read_text()))


def listed(text: str) -> str:
    """The text of cells/__init__.py with an import of every cell where BEGIN stands."""
    before, rest = text.split(BEGIN)
    after = rest[rest.index(END) :]
    modules = sorted((kind.__module__, name) for name, kind in available().items())
    lines = [f"    from {module} import {name} as {name}\n" for module, name in modules]
    return before + BEGIN + "".join(lines) + after


def page() -> str:
    """The whole page."""
    parts = [HEAD, "\n".join(overview())]
    parts += ["\n".join(section(kind)) for kind in available().values()]
    return "\n".join(parts)


def overview() -> Iterator[str]:
    """A table of all cells, one a line."""
    yield "| cell | what it is | state | matrices U | torch's own |"
    yield "|---|---|---|---|---|"
    for name, kind in available().items():
        cell = example(kind)
        first = (inspect.getdoc(kind) or "").splitlines()[0].partition(": ")[0].rstrip(".")
        state = ", ".join(cell.state_names)
        matrices = ", ".join((*cell.layout.recurrent_gates, *cell.layout.products)) or "none"
        link = f"[{name}](#{name.lower()})"
        yield f"| {link} | {first} | {state} | {matrices} | {cell.torch_equivalent or '-'} |"
    yield ""
    yield "A cell that takes a number is shown with 3."
    yield ""


def section(kind: type[Cell]) -> Iterator[str]:
    """What the page says of one cell."""
    cell = example(kind)
    file = Path(inspect.getfile(kind)).name
    yield f"## {kind.__name__}"
    yield ""
    yield f"`cells.{kind.__name__}{arguments(kind)}`, in `cells/{file}`"
    yield ""
    yield description(kind)
    yield ""
    yield textwrap.indent(equations(kind), "    ")
    yield ""
    yield "| parameter | shape | rows or initial value |"
    yield "|---|---|---|"
    yield from (f"| `{name}` | {shape} | {note} |" for name, shape, note in parameters(cell))
    yield ""


def example(kind: type[Cell]) -> Cell:
    """A cell of this class, 3 for every argument that has no default."""
    needed = inspect.signature(kind.__init__).parameters.values()
    given = {p.name: 3 for p in list(needed)[1:] if p.default is p.empty}
    return kind(**(given if kind.__init__ is not object.__init__ else {}))


def arguments(kind: type[Cell]) -> str:
    """What the constructor takes."""
    if kind.__init__ is object.__init__:
        return "()"
    names = list(inspect.signature(kind.__init__).parameters.values())[1:]
    words = [p.name + ("" if p.default is p.empty else f"={p.default!r}") for p in names]
    return f"({', '.join(words)})"


def description(kind: type[Cell]) -> str:
    """The docstring, its arguments as a list."""
    lines = (inspect.getdoc(kind) or "").replace("Args:", "Arguments:\n").splitlines()
    return "\n".join(f"- {x.strip()}" if is_argument(x) else x.strip() for x in lines)


def is_argument(line: str) -> bool:
    """Whether a line of a docstring begins the text of an argument."""
    return line.startswith("    ") and not line.startswith("     ") and ": " in line


def equations(kind: type[Cell]) -> str:
    """The body of `step`, as it is written."""
    source = textwrap.dedent(inspect.getsource(kind.step))
    function = ast.parse(source).body[0]
    assert isinstance(function, ast.FunctionDef)
    lines = source.splitlines()[function.body[0].lineno - 1 :]
    return textwrap.dedent("\n".join(lines))


def parameters(cell: Cell) -> Iterator[tuple[str, str, str]]:
    """Name, shape and content of every parameter."""
    layout = cell.layout
    for letter, gates in (("ih", layout.input_gates), ("hh", layout.recurrent_gates)):
        rows = f"{len(gates)} H" if len(gates) > 1 else "H"
        width = "I" if letter == "ih" else size(cell, cell.state_names[0])
        if gates:
            yield f"weight_{letter}_l0", f"({rows}, {width})", ", ".join(gates)
            yield f"bias_{letter}_l0", f"({rows},)", ", ".join(gates)
    for name in layout.products:
        to, source = cell.products[name]
        yield f"weight_{name}_l0", f"({size(cell, to)}, {size(cell, source)})", "no bias"
    for name in layout.vectors:
        yield f"{name}_l0", "(H,)", f"starts at {cell.vectors[name]:g}"


def size(cell: Cell, width: Width) -> str:
    """A width as the page writes it."""
    if isinstance(width, str) and width in cell.state_names:
        declared = cell.state[width] if isinstance(cell.state, dict) else "hidden_size"
        return size(cell, declared)
    return "H" if width == "hidden_size" else str(width)


if __name__ == "__main__":
    main()
