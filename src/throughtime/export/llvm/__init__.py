"""Programs as machine code of many processors."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Final

from torch import nn

from throughtime.errors import BackendError
from throughtime.export import texts
from throughtime.export.c import facts, weight_bytes
from throughtime.export.llvm.targets import Target, code_writer, fitted, target_named
from throughtime.export.objects import ELF, code_size, for_any_caller, undefined
from throughtime.export.prepare import Exported, Prepared, check_block, prepare, write_files
from throughtime.export.wasm import loader, page, self_test
from throughtime.export.wasm.link import imported_functions, linked

_MAY_NEED: Final = frozenset({"memcpy", "memset"})


def to_object(
    model: nn.Module, out: str | os.PathLike[str] = ".", *, target: str, name: str = "net",
    weights: str = "float32", block: int = 1,
) -> Exported:  # fmt: skip
    """Write a model as machine code that takes one time step a call.

    Args:
        model, out, name, weights, block: as of `to_c`.
        target: "x86-64-v3", "x86-64-v4", "aarch64", "cortex-m4f", "cortex-m55", "riscv64" or
            "wasm32".

    Returns:
        What was written, and its sizes.

    Raises:
        OptionError: the model, the name or an option cannot be taken; says why.
        BackendError: the target cannot compute the model without functions of others.
        OSError: the folder cannot be written.
    """
    found = target_named(target)
    check_block(block)
    return write_object(prepare(model, name, weights), Path(out), weights, found, block)


def write_object(
    prepared: Prepared, folder: Path, weights: str, target: Target, block: int = 1
) -> Exported:
    """Write a prepared program as an object."""
    from throughtime.export.llvm.module import Module

    program, x, y = prepared
    lines = (a.size for a in program.arrays.values() if a.kind in ("state", "work"))
    target = fitted(target, max(lines, default=1))
    said = texts.about(program, weights)
    module = Module(program, target, weights, said, block)
    image = compiled(module.module, target)
    name, sizes = program.name, texts.sizes(program)
    files: dict[str, str | bytes] = {
        f"{name}.h": texts.header(program, module.state, said),
        f"{name}.o": image,
        f"{name}_test.c": texts.self_test(program, x, y, texts.TOLERANCE),
    }
    stored, code = weight_bytes(program, weights), code_size(image)
    done = Exported(folder, (), code, stored, 4 * module.state, 4 * module.work)
    _check_needs(image, target)
    if target.name == "wasm32":
        files |= browser_files(prepared, image, module)
    what = {n: _WHAT[n.removeprefix(name)] for n in files}
    files["README.md"] = texts.readme(program, said, facts(done, sizes), what)
    write_files(folder, files)
    return done._replace(files=tuple(files))


_WHAT: Final = {
    ".h": "what to include", ".o": "the program", "_test.c": "its own test: prints PASS",
    ".wasm": "the program by itself, for browsers and node", ".mjs": "its loader",
    "_test.mjs": "its test: node prints PASS", ".html": "a page to try it, in one file",
}  # fmt: skip


def browser_files(prepared: Prepared, image: bytes, module: Any) -> dict[str, str | bytes]:
    """What a browser needs of an object of WebAssembly, by name of file."""
    program, x, y = prepared
    name = program.name
    numbers: dict[str, int | str] = {
        "state": module.state, "inputs": len(program.inputs), "outputs": program.outputs,
        "about": f"{name}_about",
    }  # fmt: skip
    functions = [f"{name}_{word}" for word in ("reset", "step", "run")]
    whole = linked(image, functions, numbers, 4 * module.work)
    return {
        f"{name}.wasm": whole,
        f"{name}.mjs": loader(name),
        f"{name}_test.mjs": self_test(program, x, y, texts.TOLERANCE),
        f"{name}.html": page(program, whole),
    }


def compiled(module: Any, target: Target) -> bytes:
    """The object file of a module."""
    import llvmlite.binding as llvm

    writer = code_writer(target)
    parsed = llvm.parse_assembly(_text(module, target))
    parsed.triple = target.triple
    parsed.data_layout = str(writer.target_data)
    parsed.verify()
    tuning = llvm.create_pipeline_tuning_options(speed_level=2)
    tuning.loop_vectorization = tuning.slp_vectorization = False
    builder = llvm.create_pass_builder(writer, tuning)
    builder.getModulePassManager().run(parsed, builder)
    image: bytes = writer.emit_object(parsed)
    return for_any_caller(image) if target.triple.startswith("thumb") else image


def _text(module: Any, target: Target) -> str:
    """The module, with whole vector registers in every function."""
    bits = 32 * target.lanes
    text = str(module) if target.fused else _by_doubles(str(module), target.lanes)
    marked = re.sub(r"(?m)^(define .*?)\s*$", r"\1 #0", text)
    width = f'"prefer-vector-width"="{bits}" "min-legal-vector-width"="{bits}" '
    return f"{marked}\nattributes #0 = {{ nounwind {width if target.name[:3] == 'x86' else ''}}}\n"


def _by_doubles(text: str, lanes: int) -> str:
    """A module without fused multiply-adds of float32: x y + z in doubles, then rounded.

    The product of two float32 is exact there, so that only the sum is rounded twice.
    """
    one, two = f"<{lanes} x float>", f"<{lanes} x double>"
    name = f'@"llvm.fma.v{lanes}f32"'
    lines = [line for line in text.splitlines() if not line.startswith(f"declare {one} {name}")]
    wide = [f"  %{v}d = fpext {one} %{v} to {two}" for v in "xyz"]
    body = [f"define internal {one} @fused({one} %x, {one} %y, {one} %z) alwaysinline", "{", *wide,
            f"  %p = fmul {two} %xd, %yd", f"  %s = fadd {two} %p, %zd",
            f"  %r = fptrunc {two} %s to {one}", f"  ret {one} %r", "}"]  # fmt: skip
    return "\n".join([*lines, *body]).replace(name, "@fused")


def _check_needs(image: bytes, target: Target) -> None:
    """Nothing is left to others but copying and filling memory."""
    elf = image[:4] == ELF
    foreign = sorted((undefined(image) if elf else imported_functions(image)) - _MAY_NEED)
    if foreign:
        raise BackendError(
            f"{target.name} cannot compute this model by itself, it would call {foreign[0]}; "
            f"write it as C, whose compiler brings such functions"
        )
