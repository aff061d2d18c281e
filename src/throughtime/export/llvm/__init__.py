"""Programs as machine code of many processors."""

from __future__ import annotations

import base64
import json
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from torch import nn

from throughtime.errors import BackendError, OptionError
from throughtime.export.folder import (
    Exported,
    Record,
    describe,
    fill_template,
    format_limit,
    write_folder,
    write_header,
    write_self_test,
)
from throughtime.export.llvm.object_files import (
    allow_any_caller,
    link,
    list_undefined,
    measure_code,
)
from throughtime.export.pieces import check_block, prepare
from throughtime.export.program import Program, Values


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
    if target not in TARGETS:
        raise OptionError(f"target must be one of {', '.join(TARGETS)}, got {target!r}")
    check_block(block)
    from throughtime.export.llvm.module import Module  # and LLVM, which takes its time

    program, record = prepare(model, name, weights)
    lines = (a.size for a in program.arrays.values() if a.kind in ("state", "work"))
    processor = _narrow_vectors(TARGETS[target], max(lines, default=1))
    about = describe(program, weights)
    module = Module(program, processor, weights, about, block)
    image = _compile(module.module, processor)
    _check_needs(image, target)
    contents: dict[str, str | bytes] = {
        ".h": write_header(program, module.state, about), ".o": image,
        "_test.c": write_self_test(program, record),
    }  # fmt: skip
    if target == "wasm32":
        contents |= write_browser_files(program, record, image, (module.state, module.work))
    return write_folder(
        program, Path(out), weights, contents,
        code=measure_code(image), state=module.state, work=module.work,
    )  # fmt: skip


@dataclass(frozen=True)
class Target:
    """A processor, its vectors, and what it has not.

    Attributes:
        name: what --target calls it.
        triple, cpu, features, abi: LLVM's words for it.
        lanes: float32 numbers of a vector.
        vectors: sums that registers hold at once, besides what goes into them.
        fused: whether it has fused multiply-adds.
        pointer: bits of an address.
        reloc: how code reaches its constants.
    """

    name: str
    triple: str
    cpu: str
    features: str
    lanes: int
    vectors: int
    fused: bool = True
    pointer: int = 64
    reloc: str = "pic"
    abi: str = ""


TARGETS: Final = {
    target.name: target
    for target in (
        Target("x86-64-v3", "x86_64-unknown-linux-gnu", "x86-64-v3", "", 8, 8),
        Target("x86-64-v4", "x86_64-unknown-linux-gnu", "x86-64-v4", "", 16, 16),
        Target("aarch64", "aarch64-unknown-linux-gnu", "generic", "+neon", 4, 16),
        Target("cortex-m4f", "thumbv7em-none-eabihf", "cortex-m4", "+vfp4d16sp", 1, 8,
               pointer=32, reloc="static"),
        Target("cortex-m55", "thumbv8.1m.main-none-eabihf", "cortex-m55", "", 4, 4,
               pointer=32, reloc="static"),
        Target("riscv64", "riscv64-unknown-linux-gnu", "generic-rv64", "+m,+a,+f,+d,+c", 1, 8,
               abi="lp64d"),
        Target("wasm32", "wasm32-unknown-unknown", "generic",
               "+simd128,+bulk-memory,+nontrapping-fptoint,+sign-ext,+mutable-globals", 4, 8,
               fused=False, pointer=32, reloc="static"),
    )
}  # fmt: skip
"""By name."""


_NARROWEST: Final = 4


def _narrow_vectors(target: Target, widest: int) -> Target:
    """The target with vectors that the longest line of a model fills at least by half."""
    while target.lanes > _NARROWEST and 2 * widest <= target.lanes:
        target = replace(target, lanes=target.lanes // 2)
    return target


def _compile(module: Any, target: Target) -> bytes:
    import llvmlite.binding as llvm

    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    writer = llvm.Target.from_triple(target.triple).create_target_machine(
        cpu=target.cpu, features=target.features, opt=3, reloc=target.reloc,
        codemodel="default", abiname=target.abi,
    )  # fmt: skip
    parsed = llvm.parse_assembly(_write_text(module, target))
    parsed.triple = target.triple
    parsed.data_layout = str(writer.target_data)
    parsed.verify()
    tuning = llvm.create_pipeline_tuning_options(speed_level=2)
    tuning.loop_vectorization = tuning.slp_vectorization = False
    builder = llvm.create_pass_builder(writer, tuning)
    builder.getModulePassManager().run(parsed, builder)
    image: bytes = writer.emit_object(parsed)
    return allow_any_caller(image) if target.triple.startswith("thumb") else image


def _write_text(module: Any, target: Target) -> str:
    """The module, with whole vector registers in every function."""
    bits = 32 * target.lanes
    text = str(module) if target.fused else _replace_fma(str(module), target.lanes)
    marked = re.sub(r"(?m)^(define .*?)\s*$", r"\1 #0", text)
    width = f'"prefer-vector-width"="{bits}" "min-legal-vector-width"="{bits}" '
    return f"{marked}\nattributes #0 = {{ nounwind {width if target.name[:3] == 'x86' else ''}}}\n"


def _replace_fma(text: str, lanes: int) -> str:
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


_MAY_NEED: Final = frozenset({"memcpy", "memset"})


def _check_needs(image: bytes, target: str) -> None:
    """Nothing is left to others but copying and filling memory."""
    foreign = sorted(list_undefined(image) - _MAY_NEED)
    if foreign:
        raise BackendError(
            f"{target} cannot compute this model by itself, it would call {foreign[0]}; "
            f"write it as C, whose compiler brings such functions"
        )


def write_browser_files(
    program: Program, record: Record, image: bytes, sizes: tuple[int, int]
) -> dict[str, str | bytes]:
    """What a browser needs of a program, by the end of each file's name.

    Args:
        x, y: recorded inputs and outputs.
        image: the object.
        sizes: numbers of a state, and of what a step works with.
    """
    name, (state, work) = program.name, sizes
    numbers: dict[str, int | str] = {
        "state": state, "inputs": len(program.inputs), "outputs": program.outputs,
        "about": f"{name}_about",
    }  # fmt: skip
    functions = [f"{name}_{word}" for word in ("reset", "step", "run")]
    module = link(image, functions, numbers, 4 * work)
    return {
        ".wasm": module,
        ".mjs": fill_template("loader.mjs", name),
        "_test.mjs": _write_test(program, record),
        ".html": _write_page(program, module),
    }


def _write_test(program: Program, record: Record) -> str:
    """Recorded inputs and outputs in node; prints PASS or FAIL."""
    words = {"INPUTS": _list_numbers(record.x), "OUTPUTS": _list_numbers(record.y),
             "STRETCH": record.stretch, "LIMIT": format_limit(record)}  # fmt: skip
    return fill_template("test.mjs", program.name, **words)


def _list_numbers(values: Values) -> str:
    return "[" + ",".join(f"{v:.9g}" for v in values.reshape(-1).tolist()) + "]"


def _write_page(program: Program, module: bytes) -> str:
    """The net in a browser, in one file that needs no server."""
    names = json.dumps(list(program.inputs)).replace("</", "<\\/")
    loader = {"export async function": "async function"}
    words = {"LOADER": fill_template("loader.mjs", "@", **loader), "NAMES": names,
             "WASM": base64.b64encode(module).decode()}  # fmt: skip
    return fill_template("page.html", program.name, **words)
