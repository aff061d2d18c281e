"""The folder of an export: header, test and README of a program, written; its test, recorded and
run."""

from __future__ import annotations

import copy
import hashlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from throughtime.environment import __version__
from throughtime.errors import BackendError
from throughtime.export.program import ProductPart, Program, Values, matrix_bytes
from throughtime.layers.layer import Passage

_TOLERANCE: Final = 2e-6
"""Largest error of the test, as a share of the largest output; of a steady net."""

_ROUNDINGS: Final = 8
"""How much further than one rounding of all inputs and weights those of all results may lead."""

_SHORTEST: Final = 8
"""Steps that a test takes at least, before it begins anew."""

_STEPS, _MOST = 1000, 200_000
"""Steps of a record, and its numbers, so that its source stays small: wide models have fewer."""


def fill_template(name: str, sign: str, **words: object) -> str:
    """A file of `data` with its words in capitals replaced, in order, and then its signs @."""
    text = (files("throughtime.export") / "data" / name).read_text("utf-8")
    for word, value in words.items():
        text = text.replace(word, str(value))
    return text.replace("@", sign)


def describe(program: Program, weights: str) -> str:
    """One line: the parts, sizes, version, hash of the weights, what each input is."""
    digest = hashlib.sha256()
    for values in (*program.matrices, *program.constants.values(), *program.resets.values()):
        digest.update(np.ascontiguousarray(values, np.float32).tobytes())
    parts = "; ".join(part.title for part in program.parts)
    text = (
        f"{program.name}: {parts}; {len(program.inputs)} inputs ({_name_inputs(program)}), "
        f"{program.outputs} outputs; weights {weights}, sha256 {digest.hexdigest()[:16]}; "
        f"throughtime {__version__}"
    )
    return re.sub(r'[^ -~]|["\\?@]', "'", text)


def _name_inputs(program: Program) -> str:
    if len(program.inputs) <= 4:
        return ", ".join(program.inputs)
    return f"{program.inputs[0]} ... {program.inputs[-1]}"


def write_header(program: Program, state: int, about: str) -> str:
    words = {"ABOUT": about.replace("*/", "* /"), "<STATE>": state,
             "<INPUTS>": len(program.inputs), "<OUTPUTS>": program.outputs}  # fmt: skip
    return fill_template("header.h", f"{program.name}_", **words)


def format_number(value: float) -> str:
    """A float32 literal of C."""
    text = f"{value:.9g}"
    return f"{text if any(c in text for c in '.en') else text + '.0'}f"


def format_table(name: str, values: np.ndarray[Any, Any], kind: str) -> str:
    flat = values.reshape(-1).tolist()
    words, width = (
        [*map(format_number if kind == "float" else str, flat)],
        8 if kind == "float" else 16,
    )
    lines = ("    " + ", ".join(words[i : i + width]) for i in range(0, len(words), width))
    body = ",\n".join(lines)
    return f"static const {kind} {name}[{len(flat)}] = {{\n{body}\n}};\n"


class Record(NamedTuple):
    """What a test gives a program, and what must come of it.

    Attributes:
        x, y: inputs (T, inputs) and the model's answers (T, outputs).
        stretch: steps after which both begin anew.
        limit: the largest error of a test that passes.
    """

    x: Values
    y: Values
    stretch: int
    limit: float


@torch.no_grad()
def make_record(modules: Sequence[Callable[..., Any]], inputs: int, outputs: int) -> Record:
    """The answers of the modules, run one after the other.

    A chaotic net multiplies every rounding, so that two right programs give different answers after
    a while. How far answers move where all inputs and weights move by their last bit says so: such
    a net begins anew more often, and if that is not enough its limit is some times that move.
    """
    steps = max(20, min(_STEPS, _MOST // (inputs + outputs)))
    x, moved = _draw_inputs(modules[0], steps, inputs), copy.deepcopy(modules)
    for v in (p for m in moved if isinstance(m, nn.Module) for p in m.parameters()):
        v.copy_(_after(v))
    stretch = steps
    while True:
        y, other = _answer(modules, x, stretch), _answer(moved, _after(x), stretch)
        limit = _TOLERANCE * max(float(np.abs(y).max(initial=0.0)), 1e-30)
        with np.errstate(invalid="ignore"):  # endless answers, which `prepare` refuses
            change = float(np.abs(other - y).max(initial=0.0))
        if not change > limit / 2:
            return Record(x.float().numpy(), y, stretch, limit)
        if stretch <= 2 * _SHORTEST:
            return Record(x.float().numpy(), y, stretch, max(limit, _ROUNDINGS * change))
        stretch //= 2


def _after(v: Tensor) -> Tensor:
    """The next larger number of each; whole numbers as they are."""
    return torch.nextafter(v, torch.full_like(v, torch.inf)) if v.is_floating_point() else v


def _draw_inputs(first: Any, steps: int, inputs: int) -> Tensor:
    """Normal numbers (T, inputs), direct inputs behind them between 0 and 1; or whole numbers
    (T, 1) in the range of an embedding."""
    draw = torch.Generator().manual_seed(0)
    if isinstance(first, nn.Embedding):
        return torch.randint(first.num_embeddings, (steps, 1), generator=draw)
    x = torch.randn(steps, inputs, generator=draw, dtype=torch.float32)
    if isinstance(first, Passage) and first.cell.layout.inputs:
        count = inputs - first.input_size
        x[:, first.input_size :] = torch.rand(steps, count, generator=draw, dtype=torch.float32)
    return x


def _answer(modules: Sequence[Callable[..., Any]], x: Tensor, stretch: int) -> Values:
    """(T, outputs) to (T, inputs), through all modules, from their start every so many steps."""
    return np.concatenate([_through(modules, part).numpy() for part in x.split(stretch)])


def _through(modules: Sequence[Callable[..., Any]], x: Tensor) -> Tensor:
    """(T, inputs), direct inputs behind the others, through all modules: (T, outputs)."""
    v, direct = x.unsqueeze(1), dict[str, Tensor]()
    if isinstance(modules[0], nn.Embedding):
        v = x
    elif isinstance(modules[0], Passage) and modules[0].cell.layout.inputs:
        first = modules[0]
        v, rest = v[:, :, : first.input_size], v[:, :, first.input_size :]
        cell, H, names = first.cell, first.hidden_sizes[0], first.cell.layout.inputs
        widths = [cell.width(cell.inputs[name], H) for name in names]
        direct = dict(zip(names, rest.split(widths, 2), strict=True))
    for module in modules:
        if isinstance(module, Passage):
            v, direct = _run_layer(module, v, direct), {}
        else:
            v = module(v)
    return v.squeeze(1)


def _run_layer(layer: Any, v: Tensor, direct: dict[str, Tensor]) -> Tensor:
    if layer.batch_first:
        v, direct = v.transpose(0, 1), {n: w.transpose(0, 1) for n, w in direct.items()}
    result = layer(v, inputs=direct) if direct else layer(v)
    y: Tensor = result[0] if isinstance(result, tuple) else result
    return y.transpose(0, 1) if layer.batch_first else y


def write_self_test(program: Program, record: Record) -> str:
    """NAME_test.c: recorded inputs and outputs; prints PASS or FAIL, and with a number the time."""
    tables = [format_table("inputs", record.x, "float"), format_table("outputs", record.y, "float")]
    words = {"TABLES": "\n".join(tables), "STEPS": len(record.x), "STRETCH": record.stretch,
             "LIMIT": format_limit(record), "%NAME%": program.name}  # fmt: skip
    return fill_template("test.c", f"{program.name}_", **words)


def format_limit(record: Record) -> str:
    """As a number of C and JavaScript."""
    return f"{record.limit:.9e}"


class Exported(NamedTuple):
    """What an export wrote.

    Attributes:
        folder: where.
        files: their names.
        code_bytes: of machine code; 0 for source.
        weight_bytes: of matrices, biases and vectors.
        state_bytes: of one state, which the caller keeps.
        work_bytes: that a step needs on the stack.
    """

    folder: Path
    files: tuple[str, ...]
    code_bytes: int
    weight_bytes: int
    state_bytes: int
    work_bytes: int


_WHAT: Final = {
    ".h": "what to include", ".c": "the whole program, C99", ".o": "the program",
    "_test.c": "its own test: prints PASS", ".wasm": "the program by itself, for browsers and node",
    ".mjs": "its loader", "_test.mjs": "its test: node prints PASS",
    ".html": "a page to try it, in one file",
}  # fmt: skip
"""What each file of an export is, by the end of its name."""


def write_folder(
    program: Program, folder: Path, weights: str, contents: Mapping[str, str | bytes], *,
    code: int, state: int, work: int,
) -> Exported:  # fmt: skip
    """Write the files of an export and its README into a folder, which is made if need be.

    Args:
        contents: of each file, by the end of its name.
        code: bytes of machine code; 0 for source.
        state, work: numbers of a state, and of what a step works with.
    """
    files = {f"{program.name}{end}": content for end, content in contents.items()}
    names = (*files, "README.md")
    stored = _count_weight_bytes(program, weights)
    export = Exported(folder, names, code, stored, 4 * state, 4 * work)
    what = {program.name + end: _WHAT[end] for end in contents}
    files["README.md"] = _write_readme(program, describe(program, weights), export, what)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        if isinstance(content, str):
            (folder / name).write_text(content, encoding="utf-8")
        else:
            (folder / name).write_bytes(content)
    return export


def _count_weight_bytes(program: Program, weights: str) -> int:
    """Bytes of all constants: matrices as they are stored, biases and vectors as float32."""
    matrices = sum(matrix_bytes(m.shape[0], m.shape[1], weights) for m in program.matrices)
    others = (*program.constants.values(), *program.resets.values())
    return matrices + 4 * sum(v.size for v in others)


def count_work(program: Program) -> int:
    """Numbers that a step works with."""
    return sum(a.lines * a.size for a in program.arrays.values() if a.kind == "work")


def _write_readme(program: Program, about: str, export: Exported, files: dict[str, str]) -> str:
    """What the program is, its files and sizes, how it is called and built."""
    multiplications = sum(
        b.matrix.size
        for part in program.parts
        for operation in part.operations
        if isinstance(operation, ProductPart)
        for b in operation.blocks
    )
    sizes = {"code": f"{export.code_bytes} bytes"} if export.code_bytes else {}
    sizes |= {
        "weights": f"{export.weight_bytes} bytes, constant",
        "a state": f"{export.state_bytes} bytes, the caller's",
        "stack of a step": f"{export.work_bytes} bytes and what the compiler spills",
        "multiplications of a step": str(multiplications),
    }
    rows = {
        "<FILES>": [f"| `{name}` | {what} |" for name, what in files.items()],
        "<FACTS>": [f"| {what} | {value} |" for what, value in sizes.items()],
        "<INPUTS>": [f"{k}. {what}" for k, what in enumerate(program.inputs)],
    }
    words = {place: "\n".join(lines) for place, lines in rows.items()} | {"<ABOUT>": about}
    return fill_template("README.md", program.name, **words)


_COMPILERS: Final = ("cc", "gcc", "clang")
_FLAGS: Final = ("-O3", "-march=native")
_LEAST_SECONDS: Final = 0.2


class Measured(NamedTuple):
    """What the test of an export printed.

    Attributes:
        passed: whether the largest error was allowed.
        error: the largest difference from the model's answers.
        allowed: the largest that passes.
        code_bytes: of machine code and its own constants, without weights.
        step_nanoseconds: of one step, called from C.
        compiler: that built it.
    """

    passed: bool
    error: float
    allowed: float
    code_bytes: int
    step_nanoseconds: float
    compiler: str


def measure(exported: Exported) -> Measured:
    """Compile and run the test of an export for this machine.

    Raises:
        BackendError: there is no compiler of C here, or the test cannot be built or run here.
    """
    compiler = next(filter(None, map(shutil.which, _COMPILERS)), None)
    if compiler is None:
        raise BackendError(
            f"measuring needs a compiler of C, one of {', '.join(_COMPILERS)}, and there is none; "
            f"install one, as with: apt-get install gcc"
        )
    with tempfile.TemporaryDirectory() as work:
        sources = [f for f in exported.files if f.endswith((".c", ".o"))]
        program = str(Path(work, "measured"))
        paths = [str(exported.folder.resolve() / f) for f in sources]
        _run([compiler, *_FLAGS, *paths, "-lm", "-o", program])
        steps = 1000
        while True:
            result = _run([program, str(steps)], may_fail=True)
            each = _read_number("nanoseconds", result)
            if each * steps >= 1e9 * _LEAST_SECONDS or steps >= 10**9:
                break
            steps *= 10
        code = exported.code_bytes or _measure_code(compiler, exported, Path(work))
    error, allowed = (_read_number(word, result) for word in ("error", "allowed"))
    return Measured(result.startswith("PASS"), error, allowed, code, each, compiler)


def _read_number(word: str, result: str) -> float:
    """The number after a word of what the test printed."""
    match = re.search(rf"{word} (\S+)", result)
    if match is None:
        raise BackendError(
            f"the test of an export must say its error and time, got {result[:200]!r}"
        )
    return float(match[1])


def _measure_code(compiler: str, exported: Exported, work: Path) -> int:
    """Bytes of machine code that the compiler makes of NAME.c."""
    from throughtime.export.llvm.object_files import measure_code

    source = next(f for f in exported.files if f.endswith(".c") and not f.endswith("_test.c"))
    image = work / "measured.o"
    path = str(exported.folder.resolve() / source)
    _run([compiler, *_FLAGS, "-c", path, "-o", str(image)])
    return measure_code(image.read_bytes())


def _run(command: Sequence[str], may_fail: bool = False) -> str:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode and not may_fail:
        words = " ".join((done.stderr or done.stdout).split())[:300]
        raise BackendError(f"{Path(command[0]).name} cannot build the test here: {words}")
    return done.stdout
