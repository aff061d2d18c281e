"""The vector maths on an emulated AArch64 has the bits that it has here."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import numpy as np
import pytest
from llvmlite import ir

from tests.aarch64.guest import Guest
from tests.compiler.test_maths import FUNCTIONS, PLAIN, Constants, named, samples, sweep
from tests.compiler.vectors import LANES, MACHINES, machine, module, run
from throughtime.compiler.llvm.abi import Kind
from throughtime.compiler.llvm.loops.team import denormals_flushed
from throughtime.compiler.llvm.writer import Emit
from throughtime.compiler.runtime.machine import Machine, target_machine, text

NEON = MACHINES["neon"]


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    found = Guest(tmp_path_factory.mktemp("guest"))
    yield found
    found.close()


def run_there(guest: Guest, op: str, x: np.ndarray, constants: Constants) -> np.ndarray:
    """The operation on an array, by code for AArch64."""
    x = np.concatenate([x, np.ones(-len(x) % LANES, x.dtype)])
    y = np.full_like(x, np.nan)
    program = llvm.parse_assembly(module("map", op, (x.dtype.name,), constants, NEON))
    function = guest.link(target_machine(NEON).emit_object(program))["map"]
    guest.call(function, x.ctypes.data, y.ctypes.data, len(x))
    return y


def differing(guest: Guest, op: str, x: np.ndarray, constants: Constants) -> int:
    """How many results have other bits there than here; not-a-number counts as one number."""
    there = run_there(guest, op, x, constants)[: len(x)]
    here = run(op, [x], machine("avx2"), constants)
    kind = f"u{x.itemsize}"
    other = here.view(kind) != there.view(kind)
    return int((other & ~(np.isnan(here) & np.isnan(there))).sum())


def numbers(level: str) -> list[np.ndarray]:
    """What the tests of the functions themselves take: every exponent, both signs, both kinds."""
    single = sweep(1 << 6 if level == "short" else 1 << 12)
    near = np.linspace(-20, 20, 1 << (12 if level == "short" else 18), dtype=np.float32)
    double = np.concatenate([samples("tanh"), samples("log")])
    return [single, near, double]


def check(guest: Guest, op: str, constants: Constants, level: str) -> None:
    with np.errstate(invalid="ignore"):
        for x in numbers(level):
            assert differing(guest, op, x, constants) == 0, x.dtype


@named(FUNCTIONS)
def test_same_bits(guest: Guest, op: str, constants: Constants) -> None:
    check(guest, op, constants, "short")


@pytest.mark.soak
@named([*FUNCTIONS, *PLAIN])
def test_same_bits_over_the_whole_sweep(guest: Guest, op: str, constants: Constants) -> None:
    check(guest, op, constants, "long")


def flushed_product(machine: Machine, bytes: int) -> Any:
    """A module whose `f(x, y, z)` multiplies a vector where denormals are zero, as in a region."""
    program, kind = ir.Module("flushed"), Kind(bytes, machine.lanes(8 * bytes))
    e = Emit(program, "f", kind, ("x", "y", "z"))
    with denormals_flushed(e, machine):
        e.store(e.load(e.args["x"]) * e.load(e.args["y"]), e.args["z"])
    e.done()
    return llvm.parse_assembly(text(program, machine))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_rounds_up_to_the_least_number_is_zero_there(guest: Guest, dtype: str) -> None:
    """AArch64 looks whether a result is below the normal numbers before rounding, x86-64 after."""
    least, e = np.finfo(dtype).tiny, np.finfo(dtype).eps
    x = np.full(16, (1 + e) * least, dtype)
    bytes, avx2 = x.itemsize, machine("avx2")
    there = guest.link(target_machine(NEON).emit_object(flushed_product(NEON, bytes)))["f"]
    engine = llvm.create_mcjit_compiler(flushed_product(avx2, bytes), target_machine(avx2))
    engine.finalize_object()
    address = engine.get_function_address("f")
    here = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 3)(address)
    for y, wanted in (
        (1 - e, (least, 0)), (1 - 2 * e, (0, 0)), (1, ((1 + e) * least,) * 2),
    ):  # fmt: skip
        y, found, foreign = (np.full(16, v, dtype) for v in (y, np.nan, np.nan))
        here(*(v.ctypes.data for v in (x, y, found)))
        guest.call(there, *(v.ctypes.data for v in (x, y, foreign)))
        assert (found[0], foreign[0]) == wanted


def test_other_code_has_other_bits(guest: Guest) -> None:
    """What is compared is what the guest computed: of another function it is something else."""
    x: Any = np.linspace(0.5, 2, 1 << 8, dtype=np.float32)
    there, here = run_there(guest, "exp", x, ()), run("expm1", [x], machine("avx2"))
    assert (there != here).all() and not np.isnan(there).any()


def test_what_nobody_has_ends_the_guest(tmp_path: Path) -> None:
    guest = Guest(tmp_path)
    x = np.ones(64, np.float32)
    program = llvm.parse_assembly(module("map", "exp", ("float32",), (), NEON))
    function = guest.link(target_machine(NEON).emit_object(program))["map"]
    try:
        with pytest.raises(RuntimeError, match="emulated code touched 0x.*0, where nothing is"):
            guest.call(function, x.ctypes.data, 1 << 45, 64)
    finally:
        guest.close()
