"""C99 from every cell: it builds without a warning, passes its own test, and calls nothing."""

from __future__ import annotations

import ctypes
import math
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.export.built import EVERY, STRICT, TABLE, need, random_layer, run, test_of
from throughtime import GRU, LSTM, Cell, Gate, Readout, Recurrent, cells, from_torch
from throughtime.errors import OptionError
from throughtime.export import to_c
from throughtime.export.llvm.object_files import list_undefined
from throughtime.export.pieces import prepare

HERE = Path(__file__).parent


def error_in(said: str) -> float:
    """The largest difference that a test printed."""
    match = re.search(r"error (\S+)", said)
    assert match is not None
    return float(match[1])


@pytest.mark.parametrize("cell", TABLE, ids=repr)
def test_every_cell_passes_its_own_test(cell: Cell, tmp_path: Path) -> None:
    to_c(random_layer(cell, 11), tmp_path)
    said = test_of(tmp_path, need("gcc", "gcc"), "-O1", *STRICT)
    assert said.startswith("PASS") and "steps 1000" in said


@pytest.mark.soak
@pytest.mark.parametrize("flags", ["-O3 -march=native", "-O2 -ffast-math", "-Os"])
@pytest.mark.parametrize("compiler", ["gcc", "clang"])
@pytest.mark.parametrize("cell", EVERY, ids=repr)
def test_every_cell_by_every_compiler(
    cell: Cell, compiler: str, flags: str, tmp_path: Path
) -> None:
    for hidden in (8, 33):
        to_c(random_layer(cell, hidden), tmp_path)
        said = test_of(tmp_path, need(compiler, compiler), *flags.split(), *STRICT)
        assert said.startswith("PASS")


@pytest.mark.parametrize("cell", [cells.LSTM(), cells.SLSTM(), cells.GRUD()], ids=repr)
def test_clang_warns_of_nothing_either(cell: Cell, tmp_path: Path) -> None:
    to_c(random_layer(cell, 16), tmp_path)
    assert test_of(tmp_path, need("clang", "clang"), "-O3", *STRICT).startswith("PASS")


def stack() -> nn.Module:
    return nn.Sequential(
        nn.Embedding(10, 4), nn.LayerNorm(4), nn.GELU(), Gate(4), LSTM(4, 8, 2),
        Readout(8, 3, activation="tanh"), nn.Dropout(0.5), nn.Softmax(-1), nn.RMSNorm(3),
    )  # fmt: skip


MODELS: dict[str, Any] = {
    "a stack": stack,
    "torch's": lambda: nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.GRU(5, 7, batch_first=True)),
    "residuals": lambda: Recurrent(
        cells.GRU(), 3, 6, num_layers=3, residual=True, zoneout=0.1, dropout=0.3
    ),
    "a start that was learned": lambda: random_layer(cells.LSTM(), 5, learn_initial=True),
    "no bias": lambda: LSTM(2, 5, bias=False),
    "every activation": lambda: nn.Sequential(
        nn.Linear(2, 9), nn.SiLU(), nn.ELU(), nn.Softplus(), nn.LogSigmoid(), nn.Linear(9, 9),
        nn.Hardtanh(), nn.LeakyReLU(), nn.Mish(), nn.SELU(), nn.Softsign(), nn.ReLU6(),
        nn.Linear(9, 2), nn.Sigmoid(),
    ),
}  # fmt: skip


@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("name", MODELS)
def test_plain_stacks_of_all_that_may_stand_in_them(
    name: str, weights: str, tmp_path: Path
) -> None:
    model = MODELS[name]()
    done = to_c(model, tmp_path, weights=weights)
    assert test_of(tmp_path, need("gcc", "gcc"), "-O1", *STRICT).startswith("PASS")
    assert set(done.files) == {"net.h", "net.c", "net_test.c", "README.md"}


def test_a_step_gives_what_the_model_gives(tmp_path: Path) -> None:
    """By our own reading of its outputs, not by the test that the export wrote."""
    model = nn.Sequential(LSTM(2, 7, 2), Readout(7, 3))
    to_c(model, tmp_path)
    library = shared(tmp_path)
    x = torch.randn(50, 1, 2)
    state = (ctypes.c_float * 28)()
    library.net_reset(state)
    y = np.empty((50, 3), np.float32)
    for t in range(50):
        one = np.ascontiguousarray(x[t, 0].numpy())
        library.net_step(state, one.ctypes.data_as(ctypes.c_void_p), y[t].ctypes.data_as(
            ctypes.c_void_p))  # fmt: skip
    wanted, _ = model(x)
    torch.testing.assert_close(torch.from_numpy(y), wanted[:, 0].detach(), rtol=1e-5, atol=1e-6)


def shared(folder: Path) -> ctypes.CDLL:
    run([need("gcc", "gcc"), "-O2", "-shared", "-fPIC", "net.c", "-o", "net.so", "-lm"], folder)
    return ctypes.CDLL(str(folder / "net.so"))


@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("name", ["a stack", "torch's", "residuals", "heads", "no bias"])
def test_blocks_of_steps_have_the_bits_of_steps(name: str, weights: str, tmp_path: Path) -> None:
    """Of more inputs than a pass over columns takes, and with a rest; a stack begins by a table."""
    from tests.compiled.uneven import LowRank

    make = {**MODELS, "heads": lambda: random_layer(LowRank(3), 5)}[name]
    done = to_c(make(), tmp_path, weights=weights, block=16)
    plain = to_c(make(), tmp_path / "plain", weights=weights)
    assert (done.work_bytes > plain.work_bytes) == (name != "a stack")
    assert test_of(tmp_path, need("gcc", "gcc"), "-O3", *STRICT).startswith("PASS")
    check_blocks(shared(tmp_path), tmp_path)


def check_blocks(library: ctypes.CDLL, folder: Path) -> None:
    """A hundred steps by NAME_run leave the bits that so many calls of NAME_step leave."""
    width, outputs, state = (_defined(folder, word) for word in ("INPUTS", "OUTPUTS", "STATE"))
    x, y, z = np.random.rand(100, width).astype("f"), *np.zeros((2, 100, outputs), "f")
    held = np.zeros((2, state), np.float32)
    places = [v.ctypes.data for v in (*held, x, y, z)]
    for s in places[:2]:
        library.net_reset(ctypes.c_void_p(s))
    block = [ctypes.c_void_p(places[i]) for i in (0, 2, 3)]
    library.net_run(*block, ctypes.c_size_t(100))
    for t in range(100):
        one = places[1], places[2] + 4 * width * t, places[4] + 4 * outputs * t
        library.net_step(*map(ctypes.c_void_p, one))
    assert np.array_equal(y, z) and np.array_equal(held[0], held[1]) and np.abs(y).max() > 0


def _defined(folder: Path, word: str) -> int:
    found = re.search(rf"#define net_{word} (\d+)", (folder / "net.h").read_text())
    assert found is not None
    return int(found[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_whatever_torch_makes_by_default_the_bytes_are_the_same(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    model = nn.Sequential(Recurrent(cells.GRUD(), 3, 5), nn.Linear(5, 2))
    here, there = tmp_path / "here", tmp_path / "there"
    written = to_c(model, here).files
    torch.set_default_dtype(dtype)
    torch.set_default_device("meta")
    try:
        to_c(model, there)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    assert all((here / f).read_bytes() == (there / f).read_bytes() for f in written)


@pytest.mark.parametrize("block", [0, True, 1.5, 5000])
def test_a_block_that_is_none(block: Any, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="block must be a whole number from 1 to 4096, got"):
        to_c(LSTM(1, 2), tmp_path, block=block)


def test_it_needs_nothing_but_memory_functions_and_the_libm_it_names(tmp_path: Path) -> None:
    needs: dict[str, set[str]] = {}
    for name, cell, libm in (
        ("lstm", cells.LSTM(), True), ("norm", cells.LSTMLayerNorm(), True),
        ("free", cells.LSTMLayerNorm(), False),
    ):  # fmt: skip
        to_c(random_layer(cell, 9), tmp_path, libm=libm)
        run([need("gcc", "gcc"), "-O1", "-fmath-errno", "-c", "net.c", "-o", "only.obj"], tmp_path)
        needs[name] = list_undefined((tmp_path / "only.obj").read_bytes()) - {
            "_GLOBAL_OFFSET_TABLE_"
        }
    assert needs["lstm"] <= {"memcpy", "memset"}
    assert needs["norm"] <= {"memcpy", "memset", "sqrtf"} and "sqrtf" in needs["norm"]
    assert needs["free"] <= {"memcpy", "memset"}


def test_without_libm_it_passes_too(tmp_path: Path) -> None:
    to_c(random_layer(cells.LSTMLayerNorm(), 9), tmp_path, libm=False)
    assert test_of(tmp_path, need("gcc", "gcc"), "-O2", *STRICT).startswith("PASS")


@pytest.mark.parametrize(("weights", "block"), [("float32", 1), ("bfloat16", 3), ("int8", 6)])
@pytest.mark.parametrize("cell", [cells.GRUD(), cells.LSTMProjected(3)], ids=repr)
def test_sanitizers_find_nothing(cell: Cell, weights: str, block: int, tmp_path: Path) -> None:
    to_c(random_layer(cell, 5), tmp_path, weights=weights, block=block)
    checks = "-fsanitize=address,undefined,float-cast-overflow"
    flags = ("-O1", "-g", checks, "-fno-sanitize-recover=all")
    assert test_of(tmp_path, need("gcc", "gcc"), *flags).startswith("PASS")


def test_steps_allocate_nothing(tmp_path: Path) -> None:
    """An allocator that ends the program when a step calls it; the same program traps otherwise."""
    to_c(nn.Sequential(LSTM(2, 9), nn.LayerNorm(9)), tmp_path)
    flags = ["-O1", "-I", str(tmp_path), str(HERE / "no_allocation.c"), "net.c", "-lm"]
    run([need("gcc", "gcc"), *flags, "-o", "trapped"], tmp_path)
    assert run(["./trapped"], tmp_path) == "0 allocations\n"
    assert run(["./trapped", "one"], tmp_path) == "1 allocations\n"


def test_header_and_source_are_c_plus_plus_too(tmp_path: Path) -> None:
    to_c(random_layer(cells.GRU(), 5), tmp_path)
    run([need("g++", "g++"), "-x", "c++", "-O1", "-Wall", "-Wextra", "-Werror", "net.c",
         "net_test.c", "-o", "tested"], tmp_path)  # fmt: skip
    assert run(["./tested"], tmp_path).startswith("PASS")


def test_whole_numbers_outside_a_table_are_held_inside(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Embedding(4, 3))
    to_c(model, tmp_path)
    library, y = shared(tmp_path), np.empty(3, np.float32)
    table = model[0].weight.detach().numpy()
    for x, row in ((2.0, 2), (-5.0, 0), (1e30, 3), (float("nan"), 0), (float("inf"), 3)):
        given = np.array([x], np.float32)
        library.net_step(None, given.ctypes.data_as(ctypes.c_void_p), y.ctypes.data_as(
            ctypes.c_void_p))  # fmt: skip
        assert np.array_equal(y, table[row])


def test_a_run_is_as_small_as_it_says(tmp_path: Path) -> None:
    model = from_torch(nn.LSTM(64, 64))
    found = {w: to_c(model, tmp_path, weights=w) for w in ("float32", "bfloat16", "int8")}
    matrices = 4 * 64 * 128
    assert found["float32"].weight_bytes == 4 * (matrices + 256)
    assert found["bfloat16"].weight_bytes == 2 * matrices + 4 * 256
    assert found["int8"].weight_bytes == matrices + 512 + 4 * 256
    assert found["int8"].weight_bytes / found["float32"].weight_bytes <= 0.27
    assert found["float32"].state_bytes == 4 * 128


def test_two_layers_of_64_are_written_within_a_second(tmp_path: Path) -> None:
    model, best = LSTM(64, 64, 2), float("inf")
    for _ in range(3):  # of several the quickest: what else runs can only make one slower
        begun = time.process_time()
        to_c(model, tmp_path)
        best = min(best, time.process_time() - begun)
    assert best <= 1


HEADER = [
    "typedef struct { float data[knob_STATE]; } knob_state;",
    "void knob_reset(knob_state *s);",
    "void knob_step(knob_state *s, const float *x, float *y);",
    "void knob_run(knob_state *s, const float *x, float *y, size_t steps);",
    "extern const char knob_about[];",
]


def test_the_header_is_the_same_for_every_form(tmp_path: Path) -> None:
    from throughtime.export import to_object

    model = nn.Sequential(GRU(2, 4), Readout(4, 3))
    to_c(model, tmp_path, name="knob")
    forms = [(tmp_path / "knob.h").read_text()]
    for target in ("cortex-m4f", "wasm32"):
        to_object(model, tmp_path, name="knob", target=target)
        forms.append((tmp_path / "knob.h").read_text())
    for text in forms:
        lines = [v for v in text.splitlines() if v.endswith(";") and not v.startswith("#")]
        assert lines == HEADER
        sizes = dict(re.findall(r"#define knob_([A-Z]+) (\d+)", text))
        assert sizes == {"INPUTS": "2", "OUTPUTS": "3", "STATE": "4"}


def test_comments_are_lines_of_equations_and_none_of_the_exporter(tmp_path: Path) -> None:
    to_c(nn.Sequential(Recurrent(cells.GRU(), 2, 3), nn.Tanh()), tmp_path)
    text = (tmp_path / "net.c").read_text()
    assert "/* h = (1 - z) * n + z * s.h */" in text and "builder" not in text


def test_same_model_same_bytes(tmp_path: Path) -> None:
    model = GRU(2, 4)
    for folder in ("one", "two"):
        to_c(model, tmp_path / folder)
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


def test_about_says_what_it_is(tmp_path: Path) -> None:
    to_c(nn.Sequential(GRU(2, 4), Readout(4, 1)), tmp_path, name="knob")
    library = ctypes.CDLL(str(_shared_as(tmp_path, "knob")))
    said = ctypes.string_at(ctypes.addressof(ctypes.c_char.in_dll(library, "knob_about"))).decode()
    assert re.fullmatch(
        r"knob: 0: GRU\(\), 2 -> 4; 1\.network: Linear\(.*\); 2 inputs \(x\[0\], x\[1\]\), 1 "
        r"outputs; weights float32, sha256 [0-9a-f]{16}; throughtime [\w.]+",
        said,
    )


def _shared_as(folder: Path, name: str) -> Path:
    run([need("gcc", "gcc"), "-shared", "-fPIC", f"{name}.c", "-o", "it.so", "-lm"], folder)
    return folder / "it.so"


def test_a_task_says_of_its_model_that_it_is_a_plain_stack(tmp_path: Path) -> None:
    """So that a run can be exported; it answers at every step, the task at the last alone."""
    from throughtime.tasks import find
    from throughtime.tasks.recipe import Recipe

    model = find("latch")(Recipe(task="latch", hidden=6, length=10)).model()
    to_c(model, tmp_path)
    assert test_of(tmp_path, need("gcc", "gcc"), "-O1", *STRICT).startswith("PASS")
    x, y, *_ = prepare(model, "net", "float32").record
    last = model(torch.from_numpy(x[:40]).unsqueeze(1))[0]
    torch.testing.assert_close(torch.from_numpy(y[39]), last.detach(), rtol=1e-5, atol=1e-6)


def test_a_model_that_writes_text_leaves_as_it_steps(tmp_path: Path) -> None:
    from throughtime.tasks.language import NextUnit
    from throughtime.tasks.language.text import LanguageRecipe

    torch.manual_seed(3)
    model = NextUnit(LanguageRecipe(hidden=7, layers=2, directions=1), 11, 4).eval()
    to_c(model, tmp_path)
    assert test_of(tmp_path, need("gcc", "gcc"), "-O1", *STRICT).startswith("PASS")
    x, y, *_ = prepare(model, "net", "float32").record
    units = torch.from_numpy(x[:30, 0]).long()
    logits = model(units.unsqueeze(1))[:, 0].detach()
    torch.testing.assert_close(torch.from_numpy(y[:30]), logits, rtol=1e-5, atol=1e-6)


def vanishing(x: torch.Tensor) -> torch.Tensor:
    return x / math.inf


def test_a_number_without_end_brings_the_function_that_writes_it(tmp_path: Path) -> None:
    to_c(Readout(2, 3, activation=vanishing), tmp_path)
    assert "net_number(0x7f800000u)" in (tmp_path / "net.c").read_text()
    assert test_of(tmp_path, need("gcc", "gcc"), *STRICT).startswith("PASS error 0.000e+00")


def cubic_root(x: torch.Tensor) -> torch.Tensor:
    return (1 + x.abs()) ** (1 / 3)


def test_powers_without_libm_are_refused(tmp_path: Path) -> None:
    model = Readout(2, 3, activation=cubic_root)
    with pytest.raises(OptionError, match="libm must be True for this model, got False"):
        to_c(model, tmp_path, libm=False)
    to_c(model, tmp_path)
    assert test_of(tmp_path, need("gcc", "gcc"), *STRICT).startswith("PASS")


def chaotic_layer(cell: Cell) -> nn.Module:
    """Of weights so large that a step multiplies what rounding has left."""
    torch.manual_seed(1)
    layer = Recurrent(cell, 1, 17)
    with torch.no_grad():
        for p in layer.parameters():
            p.uniform_(-1.5, 1.5)
    return layer


@pytest.mark.parametrize("cell", [cells.Elman(), cells.Skip(2), cells.SLSTM()], ids=repr)
def test_a_chaotic_net_begins_anew_as_often_as_it_needs(cell: Cell, tmp_path: Path) -> None:
    model = chaotic_layer(cell)
    to_c(model, tmp_path)
    assert test_of(tmp_path, need("gcc", "gcc"), "-O1", *STRICT).startswith("PASS")
    if isinstance(cell, cells.Elman):
        assert 1 < prepare(model, "net", "float32").record.stretch < 30
    source = (tmp_path / "net.c").read_text()
    number = re.compile(r"(= \{\n    )(-?[0-9.e-]+)f")
    wrong = number.sub(lambda m: f"{m[1]}{float(m[2]) + 0.001}f", source)
    assert wrong != source
    (tmp_path / "net.c").write_text(wrong)
    run([need("gcc", "gcc"), "net.c", "net_test.c", "-lm", "-o", "wrong"], tmp_path)
    assert subprocess.run([tmp_path / "wrong"], check=False, capture_output=True).returncode == 1
