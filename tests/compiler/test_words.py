"""The words of generated code have one meaning each, and functions are called by their names."""

from __future__ import annotations

import pytest
from llvmlite import ir

from throughtime.compiler.llvm import abi
from throughtime.compiler.llvm.abi import Kind
from throughtime.compiler.llvm.writer import Emit

TABLES = [
    abi.COMMON_WORDS,
    abi.DIRECTION_WORDS,
    abi.RUN_WORDS,
    abi.TRACE_WORDS,
    abi.RESETS_WORDS,
    abi.FUNCTION_WORDS,
]
FUNCTIONS = [
    abi.TILE,
    abi.LINE_TILE,
    abi.COLUMN_TILE,
    abi.CELL_FORWARD,
    abi.PHASE_FORWARD,
    abi.CELL_BACKWARD,
]


def test_a_word_is_explained_once() -> None:
    words = [word for table in TABLES for word in table]
    assert len(words) == len(set(words))
    assert all(meaning for table in TABLES for meaning in table.values())


def test_every_word_of_a_function_is_explained() -> None:
    used = {word for function in FUNCTIONS for word in function}
    assert used <= {word for table in TABLES for word in table}
    assert abi.FUNCTION_WORDS.keys() <= used


@pytest.mark.parametrize("given", [{"x": 1}, {"x": 1, "y": 2, "z": 3}, {"x": 1, "z": 2}])
def test_a_call_names_each_argument(given: dict[str, int]) -> None:
    module = ir.Module("words")
    kind = Kind(4, 8)
    function = Emit(module, "function", kind, ("x", "y"))
    function.done()
    e = Emit(module, "caller", kind, ("block",))
    with pytest.raises(AssertionError, match=r"takes \['x', 'y'\], is given"):
        e.call(function, **given)
    e.call(function, y=2, x=e.args["block"])
    (call,) = (one for one in e.b.block.instructions if one.opname == "call")
    assert [str(v) for v in call.args] == [str(e.args["block"].value), "i64 2"]
