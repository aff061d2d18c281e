"""Objects from every cell: the bits of the model, for this machine and for others."""

from __future__ import annotations

import ctypes
import platform
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.export.built import EVERY, TABLE, need, random_layer, run, test_of
from tests.export.test_c import MODELS, check_blocks
from throughtime import LSTM, Cell, Readout, Stream, cells
from throughtime.compiler.runtime import machine
from throughtime.errors import BackendError, OptionError
from throughtime.export import to_object
from throughtime.export.llvm import TARGETS
from throughtime.export.llvm.object_files import list_undefined

HERE = Path(__file__).parent
HOST = {"avx512": ["x86-64-v4", "x86-64-v3"], "avx2": ["x86-64-v3"], "neon": ["aarch64"]}
FEW = [cells.LSTM(), cells.SLSTM(), cells.GRULayerNorm(), cells.GRUD(), cells.LSTMProjected(3)]
SAME = "PASS error 0.000e+00"
"""What a test prints that found no difference at all."""


def here() -> list[str]:
    """The targets that this machine runs."""
    found = machine.host()
    if found is None:
        pytest.skip(f"no object runs on this {platform.machine()}")
    return HOST[found.name]


@pytest.mark.parametrize("cell", TABLE, ids=repr)
def test_every_cell_has_the_bits_of_the_model(cell: Cell, tmp_path: Path) -> None:
    to_object(random_layer(cell, 11), tmp_path, target=here()[0])
    assert test_of(tmp_path, need("gcc", "gcc"), "-O1").startswith(SAME)


@pytest.mark.soak
@pytest.mark.parametrize("cell", EVERY, ids=repr)
def test_every_cell_of_many_widths_has_the_bits_of_the_model(cell: Cell, tmp_path: Path) -> None:
    for target in here():
        for hidden in (3, 16, 33, 70):
            to_object(random_layer(cell, hidden), tmp_path, target=target)
            assert test_of(tmp_path, need("gcc", "gcc"), "-O1").startswith(SAME)


def test_bits_of_a_stream(tmp_path: Path) -> None:
    """As `Stream` gives them, also of bfloat16, beside the model's own."""
    from throughtime.export.pieces import prepare

    model = nn.Sequential(LSTM(2, 24, 2), Readout(24, 5))
    for weights, kind in (("float32", None), ("bfloat16", torch.bfloat16)):
        stream = Stream(model, weights=kind)
        x, y, *_ = prepare(model, "net", weights).record
        found = torch.stack([stream(torch.from_numpy(v)) for v in x[:50]])
        assert stream.explain().startswith("compiled")
        to_object(model, tmp_path, target=here()[0], weights=weights)
        assert test_of(tmp_path, need("gcc", "gcc"), "-O1").startswith("PASS")
        torch.testing.assert_close(found, torch.from_numpy(y[:50]), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("name", MODELS)
def test_plain_stacks_of_all_that_may_stand_in_them(
    name: str, weights: str, tmp_path: Path
) -> None:
    to_object(MODELS[name](), tmp_path, target=here()[0], weights=weights)
    assert test_of(tmp_path, need("gcc", "gcc"), "-O1").startswith("PASS")


@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("name", ["a stack", "torch's", "residuals", "no bias", "gaps", "wide"])
def test_blocks_of_steps_have_the_bits_of_steps(name: str, weights: str, tmp_path: Path) -> None:
    """And those of an export without blocks; 22 and a rest of 2 are no whole blocks."""
    gaps = {"gaps": lambda: random_layer(cells.GRUD(), 11), "wide": lambda: LSTM(37, 70)}
    model = {**MODELS, **gaps}[name]()
    said = []
    for block in (1, 22):
        folder = tmp_path / f"{block}"
        done = to_object(model, folder, target=here()[0], weights=weights, block=block)
        said.append((done.work_bytes, test_of(folder, need("gcc", "gcc"), "-O1")))
        assert list_undefined((folder / "net.o").read_bytes()) <= {"memcpy", "memset"}
        run(["gcc", "-shared", "net.o", "-o", "net.so"], folder)
        check_blocks(ctypes.CDLL(str(folder / "net.so")), folder)
    (plain, one), (blocked, other) = said
    assert one == other and one.startswith("PASS")
    assert (blocked > plain) == (name != "a stack")


OTHERS = {
    "aarch64": ("aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu", "qemu-aarch64"),
    "riscv64": ("riscv64-linux-gnu-gcc", "gcc-riscv64-linux-gnu", "qemu-riscv64"),
}


def foreign(target: str, folder: Path) -> str:
    compiler, package, emulator = OTHERS[target]
    runner = [need(emulator, "qemu-user")]
    return test_of(folder, need(compiler, package), "-O1", "-static", runner=runner)


CORTEX = {
    "cortex-m4f": ("mps2-an386", "mps2.ld", "-mcpu=cortex-m4", "-mfpu=fpv4-sp-d16"),
    "cortex-m55": ("mps3-an547", "mps3.ld", "-mcpu=cortex-m55"),
}


def cortex(target: str, folder: Path) -> str:
    """What a test prints on a Cortex-M, without an operating system."""
    board, memory, *flags = CORTEX[target]
    compiler = need("arm-none-eabi-gcc", "gcc-arm-none-eabi libnewlib-arm-none-eabi")
    emulator = need("qemu-system-arm", "qemu-system-arm")
    parts = [p for p in sorted(folder.iterdir()) if p.suffix in (".c", ".o")]
    run([compiler, *flags, "-mthumb", "-mfloat-abi=hard", "--specs=rdimon.specs", "-O1",
         "-T", HERE / "cortex" / memory, HERE / "cortex" / "start.c", *parts, "-lm",
         "-o", folder / "tested.elf"])  # fmt: skip
    return run([emulator, "-M", board, "-nographic", "-semihosting-config",
                "enable=on,target=native", "-kernel", folder / "tested.elf"])  # fmt: skip


@pytest.mark.parametrize("target", OTHERS)
@pytest.mark.parametrize("cell", FEW[:3], ids=repr)
def test_other_processors_have_the_same_bits(target: str, cell: Cell, tmp_path: Path) -> None:
    for block in (1, 4):
        to_object(random_layer(cell, 11), tmp_path, target=target, block=block)
        assert foreign(target, tmp_path).startswith(SAME)


@pytest.mark.parametrize("target", CORTEX)
@pytest.mark.parametrize("cell", FEW[:2], ids=repr)
def test_controllers_have_the_same_bits(target: str, cell: Cell, tmp_path: Path) -> None:
    for block in (1, 4):
        to_object(random_layer(cell, 11), tmp_path, target=target, block=block)
        assert cortex(target, tmp_path).startswith(SAME)


@pytest.mark.soak
@pytest.mark.parametrize("target", [*OTHERS, *CORTEX])
@pytest.mark.parametrize("cell", EVERY, ids=repr)
def test_every_cell_on_every_processor(target: str, cell: Cell, tmp_path: Path) -> None:
    from throughtime.export import to_c

    for weights in ("float32", "int8"):
        model = random_layer(cell, 11)
        run_it = cortex if target in CORTEX else foreign
        to_object(model, tmp_path / f"o-{weights}", target=target, weights=weights)
        said = run_it(target, tmp_path / f"o-{weights}")
        assert said.startswith(SAME if weights == "float32" else "PASS")
        to_c(model, tmp_path / f"c-{weights}", weights=weights)
        assert run_it(target, tmp_path / f"c-{weights}").startswith("PASS")


@pytest.mark.parametrize("target", [t for t in TARGETS if t != "wasm32"])
def test_objects_leave_nothing_to_others(target: str, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Embedding(9, 40), LSTM(40, 40), nn.LayerNorm(40), Readout(40, 3))
    done = to_object(model, tmp_path, target=target)
    assert list_undefined((tmp_path / "net.o").read_bytes()) <= {"memcpy", "memset"}
    assert done.code_bytes > 500 and set(done.files) == {
        "net.h", "net.o", "net_test.c", "README.md"
    }  # fmt: skip


def test_steps_allocate_nothing(tmp_path: Path) -> None:
    to_object(nn.Sequential(LSTM(2, 9), nn.LayerNorm(9)), tmp_path, target=here()[0])
    run([need("gcc", "gcc"), "-I", ".", HERE / "no_allocation.c", "net.o", "-o", "it"], tmp_path)
    assert run(["./it"], tmp_path) == "0 allocations\n"


def test_two_layers_of_64_are_written_within_two_seconds(tmp_path: Path) -> None:
    model, best = LSTM(64, 64, 2), float("inf")
    for _ in range(3):  # of several the quickest: what else runs can only make one slower
        begun = time.process_time()
        to_object(model, tmp_path, target="x86-64-v3")
        best = min(best, time.process_time() - begun)
    assert best <= 2


def test_what_an_object_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="block must be a whole number from 1 to 4096, got 0"):
        to_object(LSTM(1, 2), tmp_path, target="aarch64", block=0)
    with pytest.raises(OptionError, match="target must be one of x86-64-v3, .*, got 'z80'"):
        to_object(LSTM(1, 2), tmp_path, target="z80")
    model: Any = nn.Sequential(nn.Linear(1, 2), Readout(2, 2, activation=torch.sin))
    said = (
        r"cortex-m4f cannot compute this model by itself, it would call __\w+; write it as "
        r"C, whose compiler brings such functions"
    )
    with pytest.raises(BackendError, match=said):
        to_object(model, tmp_path, target="cortex-m4f")
    assert list(tmp_path.iterdir()) == []
