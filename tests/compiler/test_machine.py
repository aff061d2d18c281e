"""Which machine code is made for, and why there may be none."""

from __future__ import annotations

import re
from collections.abc import Iterator

import llvmlite.binding as llvm
import pytest
from llvmlite import ir

from tests.compiler.vectors import assembly
from tests.house.source import fresh
from throughtime.compiler.runtime import machine as machines
from throughtime.compiler.runtime.machine import (
    MACHINES,
    choose,
    host,
    reason,
    target_machine,
    text,
)
from throughtime.errors import OptionError

AVX2 = {"avx2", "fma", "bmi2"}
AVX512 = AVX2 | {"avx512f", "avx512vl", "avx512dq", "avx512bw"}


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """Every test asks anew."""
    machines._choice.cache_clear()
    yield
    machines._choice.cache_clear()


@pytest.mark.parametrize(
    ("architecture", "features", "wanted", "name"),
    [
        ("x86_64", AVX512, None, "avx512"),
        ("x86_64", AVX512, "avx2", "avx2"),
        ("x86_64", AVX2 | {"avx512f"}, None, "avx2"),
        ("x86_64", AVX2, None, "avx2"),
        ("aarch64", {"neon"}, None, "neon"),
        ("arm64", {"neon"}, "neon", "neon"),
    ],
)
def test_the_best_machine_is_taken(
    architecture: str, features: set[str], wanted: str | None, name: str
) -> None:
    assert choose(architecture, features, wanted) == (MACHINES[name], None)


@pytest.mark.parametrize(
    ("architecture", "features", "wanted", "why"),
    [
        ("x86_64", AVX2 - {"fma"}, None, "this processor has no FMA, which compiled code needs"),
        ("x86_64", {"sse2"}, None, "this processor has no AVX2, FMA, BMI2, which compiled code"),
        ("x86_64", AVX2, "avx512", "THROUGHTIME_MACHINE is avx512, and this processor has no AVX"),
        ("x86_64", AVX2, "neon", "THROUGHTIME_MACHINE is neon, which no x86_64 processor runs"),
        ("riscv64", set(), None, "no code is made for riscv64 processors, only for x86_64 and"),
    ],
)
def test_the_reason_when_there_is_none(
    architecture: str, features: set[str], wanted: str | None, why: str
) -> None:
    found, said = choose(architecture, features, wanted)
    assert found is None and said is not None and said.startswith(why)


def test_the_variable_narrows_the_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("THROUGHTIME_MACHINE", raising=False)
    best = host()
    assert (best is None) == (reason() is not None)
    if best is None or best.name == "neon":
        pytest.skip("NOT TESTED on this processor: it has one machine at most")
    monkeypatch.setenv("THROUGHTIME_MACHINE", "avx2")
    narrowed = host()
    assert narrowed is not None and narrowed.name == "avx2"
    assert narrowed.triple == llvm.get_process_triple()


def test_a_machine_that_cannot_run_here_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "THROUGHTIME_MACHINE", "neon" if "x86" in llvm.get_process_triple() else "avx2"
    )
    assert host() is None
    assert "THROUGHTIME_MACHINE" in (reason() or "")


def test_an_unknown_machine_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THROUGHTIME_MACHINE", "sse2")
    with pytest.raises(
        OptionError,
        match="THROUGHTIME_MACHINE must be one of avx512, avx2, neon or unset, got 'sse2'",
    ):
        host()


def test_without_llvmlite_there_is_no_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machines, "find_spec", lambda name: None)
    monkeypatch.delenv("THROUGHTIME_MACHINE", raising=False)
    assert host() is None
    assert reason() == "llvmlite is not installed; install it with: pip install llvmlite"


def test_asking_for_the_reason_of_a_missing_package_loads_nothing() -> None:
    code = "import sys, throughtime.compiler.runtime.machine; print('llvmlite' in sys.modules)"
    assert fresh(code).strip() == "False"


@pytest.mark.parametrize(("name", "lanes"), [("avx512", 16), ("avx2", 8), ("neon", 4)])
def test_lanes(name: str, lanes: int) -> None:
    assert MACHINES[name].lanes(32) == lanes
    assert MACHINES[name].lanes(64) == lanes // 2


@pytest.mark.parametrize(
    ("name", "register", "wider"),
    [("avx512", "zmm", "none"), ("avx2", "ymm", "zmm"), ("neon", r"\.4s", "ymm")],
)
def test_code_uses_whole_registers_and_no_wider(name: str, register: str, wider: str) -> None:
    code = assembly("sigmoid", "float32", MACHINES[name])
    assert re.search(register, code) and wider not in code
    assert not re.search(r"%[xy]mm(1[6-9]|[23]\d)|%k\d", code) or name == "avx512"


def test_every_function_carries_the_attributes() -> None:
    program = ir.Module("two")
    for name in ("one", "other"):
        function = ir.Function(program, ir.FunctionType(ir.VoidType(), []), name)
        ir.IRBuilder(function.append_basic_block()).ret_void()
    written = text(program, MACHINES["avx512"])
    assert written.count("() #0") == 2
    assert '"prefer-vector-width"="512" "min-legal-vector-width"="512"' in written
    llvm.parse_assembly(written).verify()
    assert "avx512" not in target_machine(MACHINES["avx2"]).triple
