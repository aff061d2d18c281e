"""Functions of the vector maths, compiled for one machine and mapped over arrays."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import llvmlite.binding as llvm
import numpy as np
import pytest
from llvmlite import ir

from throughtime.compiler.llvm.maths.operations import Number, apply
from throughtime.compiler.llvm.values import Mask, Vector
from throughtime.compiler.runtime.machine import MACHINES, Machine, choose, target_machine, text

LANES = 64  # a multiple of every machine's
"""Arrays are mapped in blocks of so many numbers."""

_ELEMENTS = {"float32": ir.FloatType(), "float64": ir.DoubleType(), "bool": ir.IntType(8)}
_ENGINES: list[Any] = []


def machine(name: str) -> Machine:
    """A machine by its name; the test is skipped where the processor cannot run it."""
    features = {name for name, there in llvm.get_host_cpu_features().items() if there}
    found, why = choose("x86_64", features, name)
    if found is None:
        pytest.skip(f"NOT TESTED on this processor: {why}")
    return found


def module(
    name: str, op: str, dtypes: tuple[str, ...], constants: tuple[Any, ...], machine: Machine
) -> str:
    """A function that applies one operation to n numbers of each array, as text."""
    program = ir.Module(name)
    size = ir.IntType(64)
    result = "bool" if op in BOOLEAN else next(d for d in dtypes if d != "bool")
    pointers = [_ELEMENTS[d].as_pointer() for d in (*dtypes, result)]
    function = ir.Function(program, ir.FunctionType(ir.VoidType(), [*pointers, size]), name)
    start, loop, end = (function.append_basic_block(w) for w in ("start", "loop", "end"))
    lanes = machine.lanes(32 if "float32" in dtypes else 64)
    ir.IRBuilder(start).branch(loop)
    b = ir.IRBuilder(loop)
    i = b.phi(size)
    i.add_incoming(size(0), start)
    values = [_load(b, p, i, lanes, d) for p, d in zip(function.args, dtypes, strict=False)]
    _store(b, apply(op, values, constants).value, function.args[-2], i)
    after = b.add(i, size(lanes))
    i.add_incoming(after, b.block)
    b.cbranch(b.icmp_unsigned("<", after, function.args[-1]), loop, end)
    ir.IRBuilder(end).ret_void()
    return text(program, machine)


BOOLEAN = frozenset("gt ge lt le eq ne and or not".split())


def _load(b: Any, array: Any, i: Any, lanes: int, dtype: str) -> Number:
    kind = ir.VectorType(_ELEMENTS[dtype], lanes)
    value = b.load(b.bitcast(b.gep(array, [i]), kind.as_pointer()), align=1)
    if dtype == "bool":
        return Mask(b, b.trunc(value, ir.VectorType(ir.IntType(1), lanes)))
    return Vector(b, value)


def _store(b: Any, value: Any, array: Any, i: Any) -> None:
    if isinstance(value.type.element, ir.IntType):
        value = b.zext(value, ir.VectorType(ir.IntType(8), value.type.count))
    b.store(value, b.bitcast(b.gep(array, [i]), value.type.as_pointer()), align=1)


@cache
def compiled(
    op: str, dtypes: tuple[str, ...], constants: tuple[Any, ...], machine: Machine
) -> Callable[..., None]:
    """Machine code for one operation."""
    program = llvm.parse_assembly(module("map", op, dtypes, constants, machine))
    program.verify()
    engine = llvm.create_mcjit_compiler(program, target_machine(machine))
    engine.finalize_object()
    _ENGINES.append(engine)  # the code lives as long as its engine
    kinds = [ctypes.c_void_p] * (len(dtypes) + 1)
    return ctypes.CFUNCTYPE(None, *kinds, ctypes.c_int64)(engine.get_function_address("map"))


def run(op: str, arrays: list[Any], machine: Machine, constants: tuple[Any, ...] = ()) -> Any:
    """The operation on NumPy arrays of one length."""
    n = len(arrays[0])
    padded = [np.concatenate([a, np.ones(-n % LANES, a.dtype)]) for a in arrays]
    dtypes = tuple(a.dtype.name for a in arrays)
    kind = "bool" if op in BOOLEAN else next(d for d in dtypes if d != "bool")
    result = np.empty(len(padded[0]), kind)
    function = compiled(op, dtypes, constants, machine)
    function(*(a.ctypes.data for a in (*padded, result)), len(result))
    return result[:n]


def assembly(op: str, dtype: str, machine: Machine, constants: tuple[Any, ...] = ()) -> str:
    """The code of one operation on one array, as text."""
    program = llvm.parse_assembly(module("map", op, (dtype,), constants, machine))
    return str(target_machine(machine).emit_assembly(program))


__all__ = ["BOOLEAN", "MACHINES", "assembly", "compiled", "machine", "module", "run"]
