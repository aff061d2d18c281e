"""Programs as C99."""

from __future__ import annotations

import os
from pathlib import Path

from torch import nn

from throughtime.export.c.source import Source
from throughtime.export.folder import (
    Exported,
    describe,
    header,
    self_test,
    work_size,
    write_folder,
)
from throughtime.export.prepare import check_block, prepare


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
    program, x, y = prepare(model, name, weights)
    source, about = Source(program, weights, libm, block), describe(program, weights)
    contents: dict[str, str | bytes] = {
        ".h": header(program, source.state, about),
        ".c": source.text(about),
        "_test.c": self_test(program, x, y),
    }
    work = work_size(program) + source.ahead * (block - 1)
    return write_folder(
        program, Path(out), weights, contents, code=0, state=source.state, work=work
    )
