"""docs/cells.md is what its generator writes, and what it says of parameters is so."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from throughtime import Recurrent, cells
from throughtime.cells import Cell

DOCS = Path(__file__).parents[2] / "docs"


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_cells", DOCS / "make_cells.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_up_to_date() -> None:
    assert (DOCS / "cells.md").read_text() == generator().page(), "run: python docs/make_cells.py"


def test_the_list_for_type_checkers_is_up_to_date() -> None:
    make = generator()
    text = make.LIST.read_text()
    assert text == make.listed(text), "run: python docs/make_cells.py"
    assert all(f" import {name} as {name}\n" in text for name in cells.available())


@pytest.mark.parametrize("kind", cells.available().values(), ids=cells.available())
def test_the_parameters_on_the_page_are_those_of_the_layer(kind: type[Cell]) -> None:
    make = generator()
    cell = make.example(kind)
    layer = Recurrent(cell, 7, 5)
    sizes = {"I": 7, "H": 5, "proj_size": 3}
    said = {}
    for name, shape, _ in make.parameters(cell):
        factors = re.findall(r"(\d+ )?(\w+)", shape)
        said[name] = tuple(int(n or 1) * sizes[word] for n, word in factors)
    assert said == {name: tuple(p.shape) for name, p in layer.named_parameters()}


def test_every_formula_is_on_the_page() -> None:
    page = (DOCS / "cells.md").read_text()
    assert "    c = f * s.c + i * g\n    h = U.hr @ (o * tanh(c))\n    return h, c\n" in page
    assert "    n = tanh(a.n + U.n @ (r * s.h))\n" in page
