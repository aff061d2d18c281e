"""to_object: a model as NAME.h, NAME.o, NAME_test.c and a README."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Final

from torch import nn

from throughtime.errors import BackendError
from throughtime.export import texts
from throughtime.export.c.write import facts, weight_bytes
from throughtime.export.llvm.targets import Target, code_writer, fitted, target_named
from throughtime.export.objects import code_bytes, for_any_caller, undefined
from throughtime.export.prepare import Exported, Prepared, prepare, write_files

_MAY_NEED: Final = frozenset({"memcpy", "memset"})


def to_object(
    model: nn.Module, out: str | os.PathLike[str] = ".", *, target: str, name: str = "net",
    weights: str = "float32",
) -> Exported:  # fmt: skip
    """Write a model as machine code that takes one time step a call.

    Args:
        model, out, name, weights: as of `to_c`.
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
    return write_object(prepare(model, name, weights), Path(out), weights, found)


def write_object(prepared: Prepared, folder: Path, weights: str, target: Target) -> Exported:
    """Write a prepared program as an object."""
    from throughtime.export.llvm.module import Module

    program, x, y = prepared
    lines = (a.size for a in program.arrays.values() if a.kind in ("state", "work"))
    target = fitted(target, max(lines, default=1))
    said = texts.about(program, weights)
    module = Module(program, target, weights, said)
    image = compiled(module.module, target)
    name, sizes = program.name, texts.sizes(program)
    files: dict[str, str | bytes] = {
        f"{name}.h": texts.header(program, module.state, said),
        f"{name}.o": image,
        f"{name}_test.c": texts.self_test(program, x, y, texts.TOLERANCE),
    }
    code = code_bytes(image) if image[:4] == b"\x7fELF" else 0
    done = Exported(
        folder, (), code, weight_bytes(program, weights), 4 * module.state, 4 * module.work
    )
    _check_needs(image, target)
    what = {f"{name}.h": "what to include", f"{name}.o": f"the program, for {target.name}",
            f"{name}_test.c": "its own test: prints PASS"}  # fmt: skip
    files["README.md"] = texts.readme(program, said, facts(done, sizes), what)
    write_files(folder, files)
    return done._replace(files=tuple(files))


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
    marked = re.sub(r"(?m)^(define .*?)\s*$", r"\1 #0", str(module))
    width = f'"prefer-vector-width"="{bits}" "min-legal-vector-width"="{bits}" '
    return f"{marked}\nattributes #0 = {{ nounwind {width if target.name[:3] == 'x86' else ''}}}\n"


def _check_needs(image: bytes, target: Target) -> None:
    """Nothing is left to others but copying and filling memory."""
    foreign = sorted(undefined(image) - _MAY_NEED)
    if foreign:
        raise BackendError(
            f"{target.name} cannot compute this model by itself, it would call {foreign[0]}; "
            f"write it as C, whose compiler brings such functions"
        )
