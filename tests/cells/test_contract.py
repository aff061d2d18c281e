"""What every cell promises as an object, and what a wrong declaration is told."""

from __future__ import annotations

import copy
import importlib.util
import inspect
import math
import pickle
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from tests.cells.table import CELLS
from throughtime import cells
from throughtime.cells import Cell
from throughtime.errors import CellError


class Leaky(Cell):
    """A user's own cell, in a file of the user's own."""

    gates = ("h",)
    state = ("h",)
    vectors = {"tau": 2.0}
    inputs = {"gap": 1}

    def __init__(self, floor: float = 0.1, *, power: int = 1) -> None:
        self.floor = floor
        self.power = power

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any]:
        keep = torch.exp(-a.gap / (p.tau * p.tau + self.floor)) ** self.power
        return (keep * s.h + (1 - keep) * torch.tanh(a.h + U.h @ s.h),)


ALL = [*CELLS, Leaky(), Leaky(0.5, power=2)]


@pytest.mark.parametrize("cell", ALL, ids=repr)
def test_copies_are_the_cell(cell: Cell) -> None:
    for other in (copy.copy(cell), copy.deepcopy(cell), pickle.loads(pickle.dumps(cell))):
        assert other == cell
        assert hash(other) == hash(cell)
        assert other.key == cell.key
        assert other.layout == cell.layout


def test_a_cell_made_of_a_local_function_is_copied_too() -> None:
    cell = cells.Elman(lambda x: x * 2)
    assert copy.deepcopy(cell) == cell
    assert repr(cell).startswith("Elman(activation=test_a_cell_made_of_a_local_function")


def test_equal_means_same_class_and_same_arguments() -> None:
    for i, cell in enumerate(ALL):
        assert [other == cell for other in ALL].count(True) == 1
        assert [other.key == cell.key for other in ALL].count(True) == 1
        assert cell != repr(cell)
        assert ALL.index(cell) == i
    assert cells.Elman() == cells.Elman("tanh") == cells.Elman(activation="tanh")
    assert cells.Elman(lambda x: x) != cells.Elman(lambda x: x)
    assert Leaky(power=1) == Leaky(0.1)
    assert Leaky().arguments == {"floor": 0.1, "power": 1}


@pytest.mark.parametrize("cell", ALL, ids=repr)
def test_a_cell_is_frozen(cell: Cell) -> None:
    name = type(cell).__name__
    with pytest.raises(CellError, match=f"{name} is frozen after construction, so gates cannot"):
        cell.gates = ("x",)
    with pytest.raises(CellError, match="so anything cannot be set; build a new cell instead"):
        cell.anything = 1


def test_repr_builds_the_cell_again() -> None:
    names = {"LSTMProjected": cells.LSTMProjected, "Skip": cells.Skip, "Leaky": Leaky}
    for cell in (cells.LSTMProjected(3), cells.Skip(4, "relu"), Leaky(0.5, power=2)):
        assert eval(repr(cell), names) == cell


LAYOUTS: dict[str, tuple[Any, ...]] = {
    "Elman": (("h",), ("h",), (), ()),
    "LSTM": (("i", "f", "g", "o"), ("i", "f", "g", "o"), (), ()),
    "LSTMProjected": (("i", "f", "g", "o"), ("i", "f", "g", "o"), ("hr",), ()),
    "LSTMPeephole": (("i", "f", "g", "o"), ("i", "f", "g", "o"), (), ("w_ci", "w_cf", "w_co")),
    "LSTMCoupled": (("i", "g", "o"), ("i", "g", "o"), (), ()),
    "LSTMLayerNorm": (
        ("i", "f", "g", "o"),
        ("i", "f", "g", "o"),
        (),
        tuple(f"{what}_{g}" for what in ("gain", "bias") for g in "ifgoc"),
    ),
    "GRU": (("r", "z", "n"), ("r", "z", "n"), (), ()),
    "GRUResetBefore": (("r", "z", "n"), ("r", "z", "n"), (), ()),
    "GRULayerNorm": (
        ("r", "z", "n"),
        ("r", "z", "n"),
        (),
        tuple(f"{what}_{g}" for what in ("gain", "bias") for g in "rzn"),
    ),
    "MGU": (("f", "n"), ("f", "n"), (), ()),
    "IndRNN": (("h",), (), (), ("u",)),
    "Skip": (("h",), ("h", "skip"), (), ()),
    "GRUD": (
        ("r", "z", "n"),
        ("r", "z", "n"),
        (),
        ("rate_h", "shift_h", "rate_x", "shift_x", "v_r", "v_z", "v_n"),
    ),
    "LEM": (("t", "r", "z", "y"), ("t", "r", "z", "y"), (), ()),
    "CoRNN": (("y",), ("y", "z"), (), ()),
    "SLSTM": (("i", "f", "z", "o"), ("i", "f", "z", "o"), (), ()),
}


@pytest.mark.parametrize("cell", CELLS, ids=repr)
def test_only_what_step_touches_is_in_the_layout(cell: Cell) -> None:
    found = cell.layout
    expected = LAYOUTS[type(cell).__name__]
    assert (found.input_gates, found.recurrent_gates, found.products, found.vectors) == expected
    assert found.inputs == (("gap", "mask") if type(cell) is cells.GRUD else ())


def test_direct_inputs_are_in_the_layout() -> None:
    assert Leaky().layout.inputs == ("gap",)
    assert Leaky().layout.input_gates == ("h",)


def test_any_identifier_is_a_good_name() -> None:
    class Odd(Cell):
        gates = ("touched", "values", "what")
        state = ("state",)

        def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any]:
            return (a.touched + a.values + U.what @ s.state,)

    assert Odd().layout.input_gates == ("touched", "values")
    assert Odd().layout.recurrent_gates == ("what",)


def test_torch_equivalents() -> None:
    named = {repr(c): c.torch_equivalent for c in CELLS if c.torch_equivalent is not None}
    assert named == {
        "Elman(activation='tanh')": "RNN_TANH",
        "Elman(activation='relu')": "RNN_RELU",
        "LSTM()": "LSTM",
        "LSTMProjected(proj_size=2)": "LSTM",
        "LSTMProjected(proj_size=9)": "LSTM",
        "GRU()": "GRU",
    }


def test_widths() -> None:
    assert cells.LSTMProjected(3).widths(5) == (3, 5)
    assert cells.Skip(3).widths(5) == (5, 5, 5)
    assert cells.LSTMProjected(3).width("h", 5) == cells.LSTMProjected(3).width("proj_size", 5) == 3
    assert cells.LSTMProjected(3).width("c", 5) == cells.LSTMProjected(3).width("hidden_size", 5)


def test_numbers_and_names_that_cannot_be() -> None:
    for wrong in (0, -1, 2.0, True, "3"):
        with pytest.raises(CellError, match=f"proj_size must be a positive integer, got {wrong!r}"):
            cells.LSTMProjected(wrong)
    for wrong in (1, 0, 2.5, True):
        with pytest.raises(CellError, match=f"distance must be an integer .* 2, got {wrong!r}"):
            cells.Skip(wrong)
    for wrong in (0, -0.1, math.inf, math.nan, True, "1"):
        with pytest.raises(CellError, match=f"dt must be a finite number above 0, got {wrong!r}"):
            cells.LEM(wrong)
        for name in ("dt", "gamma", "epsilon"):
            with pytest.raises(CellError, match=f"{name} must be a .* above 0, got {wrong!r}"):
                cells.CoRNN(**{name: wrong})
    with pytest.raises(CellError, match="forget must be sigmoid or exp, got 'tanh'"):
        cells.SLSTM("tanh")
    for kind in (cells.Elman, cells.IndRNN):
        with pytest.raises(
            CellError,
            match="activation must be one of tanh, relu, sigmoid, identity or a function, got 'so'",
        ):
            kind("so")
    with pytest.raises(
        AttributeError, match="throughtime.cells has no cell 'Elmann': CoRNN, Elman, "
    ):
        cells.Elmann  # noqa: B018


def new_h(self: Any, a: Any, U: Any, s: Any, p: Any) -> tuple[Any]:
    return (torch.tanh(a.h + s.h),)


DECLARATIONS: dict[str, tuple[dict[str, Any], str]] = {
    "no gates": ({"gates": ()}, "gates must be a tuple of at least one name, got ()"),
    "gates as text": ({"gates": "h"}, "gates must be a tuple of at least one name, got 'h'"),
    "no state": ({"state": ()}, "state must be a tuple of at least one name, got ()"),
    "state as list": ({"state": ["h"]}, "state must be a tuple of at least one name, got ['h']"),
    "gate no name": ({"gates": ("h", "2")}, "a name in a. must be an identifier, got '2'"),
    "gate private": ({"gates": ("h", "_x")}, "a name in a. must be an identifier, got '_x'"),
    "gate no text": ({"gates": ("h", 2)}, "a name in a. must be an identifier, got 2"),
    "gate twice": ({"gates": ("h", "h")}, "names in a. must differ, got 'h' twice"),
    "input is a gate": ({"inputs": {"h": 1}}, "names in a. must differ, got 'h' twice"),
    "product is a gate": ({"products": {"h": ("h", "h")}}, "names in U. must differ, got 'h'"),
    "state twice": ({"state": ("h", "h")}, "names in s. must differ, got 'h' twice"),
    "width unknown": ({"state": {"h": "size"}}, "the name of a positive number of the cell, got"),
    "width zero": ({"state": {"h": 0}}, "a width must be a positive number, 'hidden_size'"),
    "product width": ({"products": {"q": ("h", "size")}}, "a width must be a positive number"),
    "widths in a circle": ({"state": {"h": "c", "c": "h"}}, "a width must be a positive number"),
    "product no pair": ({"products": {"q": "h"}}, "products['q'] must be a pair (to, from), got"),
    "vector no number": ({"vectors": {"u": "x"}}, "vectors['u'] must be a number, got 'x'"),
    "product named ih": (
        {"products": {"ih": ("h", "h")}},
        "two parameters would be named weight_ih; rename the product or vector",
    ),
    "vector named as product": (
        {"products": {"q": ("h", "h")}, "vectors": {"weight_q": 0}},
        "two parameters would be named weight_q",
    ),
    "vector named as a first state": (
        {"vectors": {"initial_h": 0.5}},
        "two parameters would be named initial_h; rename the product or vector",
    ),
    "input width": ({"inputs": {"gap": -1}}, "a width must be a positive number"),
}


@pytest.mark.parametrize("name", DECLARATIONS)
def test_a_wrong_declaration_is_refused(name: str) -> None:
    wrong, text = DECLARATIONS[name]
    declared = {"gates": ("h",), "state": ("h",), "step": new_h} | wrong
    with pytest.raises(CellError) as caught:
        type("Wrong", (Cell,), declared)()
    assert str(caught.value).startswith("Wrong")
    assert text in str(caught.value)


class Holding(Cell):
    """Holds what it is given, as a user would who thinks of a module."""

    gates = ("h",)
    state = ("h",)
    held: Any = None

    def __init__(self, function: Any = None, *, others: Any = ()) -> None:
        self.function = function
        self.others = others

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any]:
        return (torch.tanh(a.h + U.h @ s.h),)


@pytest.mark.parametrize(
    "value", [[1.0], {"a": 1}, {1.0}, torch.ones(2), numpy.ones(2), (([1.0],), 2)], ids=repr
)
def test_an_argument_that_could_change_is_refused(value: Any) -> None:
    kind = list if isinstance(value, tuple) else type(value)
    text = f"^Holding: a cell is frozen, so others must be .* got {kind.__name__}; give a tuple$"
    with pytest.raises(CellError, match=text):
        Holding(others=value)


def test_arguments_that_cannot_change() -> None:
    for value in (1, 2.5, "a", None, (1, (2, "b")), torch.tanh, torch.float32, numpy.float32(1)):
        assert Holding(others=value).others == value


LINEAR = torch.nn.Linear(2, 2)
WEIGHTS: dict[str, tuple[Any, str]] = {
    "module": (lambda: Holding(LINEAR), "Holding.function .* got Linear;"),
    "by name": (lambda: Holding(others=[LINEAR]), "Holding.others .* got Linear;"),
    "in a dictionary": (lambda: Holding(others=({"a": 1, "b": LINEAR},)), "got Linear"),
    "parameter": (lambda: Holding(LINEAR.bias), "Holding.function .* got Parameter;"),
    "its method": (lambda: Holding(LINEAR.forward), "got Linear;"),
    "buffers": (lambda: Holding(torch.nn.BatchNorm1d(2, affine=False)), "got BatchNorm1d;"),
    "activation": (lambda: cells.Elman(torch.nn.PReLU()), "Elman.activation .* got PReLU;"),
    "of the class": (
        lambda: type("Sub", (Holding,), {"held": LINEAR})(),
        "Sub.held .* got Linear;",
    ),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_cell_holds_no_weights(name: str) -> None:
    build, text = WEIGHTS[name]
    with pytest.raises(CellError, match=text) as caught:
        build()
    assert "declare them instead: gates (W and U), products (matrices) and vectors" in str(
        caught.value
    )


def test_a_module_without_weights_is_a_function() -> None:
    assert cells.Elman(torch.nn.Tanh()).layout == cells.Elman().layout


def test_a_cell_without_a_step_cannot_be_built() -> None:
    with pytest.raises(TypeError, match="abstract"):
        type("Stepless", (Cell,), {"gates": ("h",), "state": ("h",)})()


def test_arguments_have_names() -> None:
    def many(self: Any, *sizes: int) -> None: ...

    declared = {"gates": ("h",), "state": ("h",), "step": new_h, "__init__": many}
    with pytest.raises(CellError, match=r"Many.__init__ must take arguments by name.*\*sizes"):
        type("Many", (Cell,), declared)(1, 2)


RETURNS: dict[str, tuple[Callable[..., Any], str]] = {
    "tensor": (lambda self, a, U, s, p: a.h, r"must return a tuple of 1 \(h\), got Tensor"),
    "two": (lambda self, a, U, s, p: (a.h, a.h), r"must return a tuple of 1 \(h\), got 2 values"),
    "shape": (lambda self, a, U, s, p: (a.h.sum(-1),), r"must return h with shape \(2, 3\), got"),
    "unknown a": (lambda self, a, U, s, p: (a.q,), r"step reads a.q, .* not declare: h"),
    "unknown U": (lambda self, a, U, s, p: (U.q @ s.h,), r"step reads U.q, .* not declare: h"),
    "unknown s": (lambda self, a, U, s, p: (s.q,), r"step reads s.q, .* not declare: h"),
    "unknown p": (lambda self, a, U, s, p: (p.q,), r"step reads p.q, .* not declare: none"),
}


@pytest.mark.parametrize("name", RETURNS)
def test_a_step_that_breaks_its_declarations_is_refused(name: str) -> None:
    step, text = RETURNS[name]
    cell = type("Wrong", (Cell,), {"gates": ("h",), "state": ("h",), "step": step})()
    with pytest.raises(CellError, match=text):
        cell.layout  # noqa: B018


@pytest.fixture
def copied(tmp_path: Path) -> Iterator[Path]:
    """The folder of cells in a place of its own, with one file more."""
    folder = tmp_path / "own_cells"
    shutil.copytree(Path(cells.__file__).parent, folder, ignore=shutil.ignore_patterns("__*__"))
    shutil.copy(Path(cells.__file__), folder / "__init__.py")
    source = inspect.getsource(Leaky).replace("class Leaky", "class Found")
    (folder / "found.py").write_text(
        "from typing import Any\nimport torch\nfrom throughtime.cell.contract import Cell\n\n"
        f"{source}"
    )
    before = set(sys.modules)
    yield folder
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_a_new_file_is_found_by_itself(copied: Path) -> None:
    spec = importlib.util.spec_from_file_location("own_cells", copied / "__init__.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["own_cells"] = module
    spec.loader.exec_module(module)
    assert list(module.available()) == sorted([*cells.available(), "Found"])
    assert module.Found(0.2).layout == Leaky(0.2).layout
    assert "Found" in dir(module)


def test_available_is_every_cell_by_name() -> None:
    found = cells.available()
    assert list(found) == sorted(found)
    assert all(kind.__name__ == name and issubclass(kind, Cell) for name, kind in found.items())
    assert set(dir(cells)) >= set(found)


@pytest.mark.parametrize("kind", cells.available().values(), ids=cells.available())
def test_every_cell_names_its_source_and_has_a_file_of_its_own(kind: type[Cell]) -> None:
    assert "Source: " in (inspect.getdoc(kind) or "")
    module = sys.modules[kind.__module__]
    assert [
        v for v in vars(module).values() if isinstance(v, type) and v.__module__ == module.__name__
    ] == [kind]
