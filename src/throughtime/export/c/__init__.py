"""Programs as C99."""

from __future__ import annotations

import os
from pathlib import Path

from torch import nn

from throughtime.export import texts
from throughtime.export.c.source import Source
from throughtime.export.prepare import Exported, Prepared, check_block, prepare, write_files
from throughtime.export.program import Program
from throughtime.export.weights import matrix_bytes


def to_c(
    model: nn.Module, out: str | os.PathLike[str] = ".", *, name: str = "net",
    weights: str = "float32", libm: bool = True, block: int = 1,
) -> Exported:  # fmt: skip
    """Write a model as C99 that takes one time step a call.

    Args:
        model: a layer of ours or of torch.nn's, or a plain stack of layers, linear parts,
            activations, norms, gates and readouts, an embedding first.
        out: the folder, which is made if need be.
        name: with which every name of the C begins, and the files too.
        weights: "float32", "bfloat16" or "int8" (one scale a line; sums are float32 always).
        libm: whether roots, sines and powers may call libm; all else needs none anyway.
        block: for how many steps at once NAME_run multiplies the inputs by the first matrices,
            which it then reads once for all of them, with the same bits; its stack grows so.

    Returns:
        What was written, and its sizes.

    Raises:
        OptionError: the model, the name or an option cannot be taken; says why.
        OSError: the folder cannot be written.
    """
    check_block(block)
    return write_c(prepare(model, name, weights), Path(out), weights, libm, block)


def write_c(prepared: Prepared, folder: Path, weights: str, libm: bool, block: int = 1) -> Exported:
    """Write a prepared program as C."""
    program, x, y = prepared
    source = Source(program, weights, libm, block)
    said = texts.about(program, weights)
    head = f"/* {said.replace('*/', '* /')}\n   Written by throughtime; see README.md. */"
    body = source.text(head) + "\n"
    about = texts.about_source(said).replace("@", f"{program.name}_")
    name = program.name
    sizes = texts.sizes(program)
    stored = weight_bytes(program, weights)
    work = sizes["work"] + source.ahead * (block - 1)
    done = Exported(folder, (), 0, stored, 4 * source.state, 4 * work)
    files: dict[str, str | bytes] = {
        f"{name}.h": texts.header(program, source.state, said),
        f"{name}.c": body + "\n" + about,
        f"{name}_test.c": texts.self_test(program, x, y, texts.TOLERANCE),
    }
    what = {f"{name}.h": "what to include", f"{name}.c": "the whole program, C99",
            f"{name}_test.c": "its own test: prints PASS"}  # fmt: skip
    files["README.md"] = texts.readme(program, said, facts(done, sizes), what)
    write_files(folder, files)
    return done._replace(files=tuple(files))


def weight_bytes(program: Program, weights: str) -> int:
    """Bytes of all constants: matrices as they are stored, biases and vectors as float32."""
    matrices = sum(matrix_bytes(m.shape[0], m.shape[1], weights) for m in program.matrices)
    others = (*program.constants.values(), *program.resets.values())
    return matrices + 4 * sum(v.size for v in others)


def facts(done: Exported, sizes: dict[str, int]) -> dict[str, str]:
    """The sizes of a README."""
    code = {"code": f"{done.code_bytes} bytes"} if done.code_bytes else {}
    return code | {
        "weights": f"{done.weight_bytes} bytes, constant",
        "a state": f"{done.state_bytes} bytes, the caller's",
        "stack of a step": f"{done.work_bytes} bytes and what the compiler spills",
        "multiplications of a step": str(sizes["products"]),
    }
