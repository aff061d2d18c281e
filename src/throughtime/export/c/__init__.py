"""Programs as C99: one function that does a step, part by part, in plain loops of fixed sizes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from torch import nn

from throughtime.export.c.walks import AT, LIBM, Loops, quote_comment, write_functions
from throughtime.export.folder import (
    Exported,
    count_work,
    describe,
    format_table,
    write_folder,
    write_header,
    write_self_test,
)
from throughtime.export.pieces import check_block, prepare
from throughtime.export.program import (
    Block,
    Lookup,
    Place,
    ProductPart,
    Program,
    Stage,
    Values,
    group_runs,
    list_leading,
    narrow_int8,
    take_halves,
)

_AT_ONCE = 4
"""Columns of a matrix that one pass over the sums takes."""


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
    program, record = prepare(model, name, weights)
    source, about = Source(program, weights, libm, block), describe(program, weights)
    contents: dict[str, str | bytes] = {
        ".h": write_header(program, source.state, about),
        ".c": source.text(about),
        "_test.c": write_self_test(program, record),
    }
    work = count_work(program) + source.ahead * (block - 1)
    return write_folder(
        program, Path(out), weights, contents, code=0, state=source.state, work=work
    )


class Source:
    """NAME.c while it is written.

    Args:
        program: what it does.
        weights: "float32", "bfloat16" or "int8".
        libm: whether it may call libm.
        block: for how many steps at once `run` multiplies the input by the first matrices.

    Attributes:
        functions: names of the functions of units that it calls.
    """

    def __init__(self, program: Program, weights: str, libm: bool, block: int = 1) -> None:
        self.program, self.weights, self.libm, self.block = program, weights, libm, block
        self._ahead = list_leading(program) if block > 1 else []
        self._outs = _find_outputs(program, self._ahead)
        self.functions: set[str] = set()
        self.tables: list[str] = []
        self._offsets: dict[str, int] = {}
        self._count = 0
        for name, array in program.states.items():
            self._offsets[name] = self._count
            self._count += array.lines * array.size
        self._matrices = 0

    @property
    def ahead(self) -> int:
        """Numbers of a step that `run` works out for a whole block."""
        return sum(size for _, size in self._outs.values())

    @property
    def state(self) -> int:
        """Numbers of a state."""
        return max(1, self._count)

    def text(self, about: str) -> str:
        """The whole file; `about` describes it in its first comment and to those who call it."""
        for name in self.program.constants:
            self.tables.append(format_table(f"@{name}", self.program.constants[name], "float"))
        ahead, body = self._products_ahead(), "".join(self._body())
        maths = write_functions(self.functions, self.program.name, self.libm)
        calls = self.libm and any(f"{LIBM[n]}(" in maths for n in LIBM)
        head = about.replace("*/", "* /")
        source = "\n".join(
            [f"/* {head}\n   Written by throughtime; see README.md. */",
             f'#include "{self.program.name}.h"', "", *["#include <math.h>"] * calls,
             "#include <stdint.h>", "#include <string.h>", _RESTRICT, maths, *self.tables, "",
             *ahead, self._step(body), self._public(), "", _about_string(about)]
        )  # fmt: skip
        return source.replace("@", f"{self.program.name}_").replace(AT, "@")

    def _step(self, body: str) -> str:
        p, more = self.program, ", float *@RESTRICT ahead" * bool(self._ahead)
        lines = ["/* one time step: x and the state s give y, and s as it is behind it */",
                 "static void @one(float *@RESTRICT s, const float *@RESTRICT x, "
                 f"float *@RESTRICT y{more})", "{"]  # fmt: skip
        for name, offset in self._offsets.items():
            lines.append(f"    float *const {name} = s + {offset};")
        for name, array in p.arrays.items():
            if name in self._outs:
                lines.append(f"    float *const {name} = ahead + {self._outs[name][0]};")
            elif array.kind == "work":
                lines.append(f"    float {name}[{array.lines * array.size}];")
        lines += [f"    (void){name};" for name in "sx" if name == "s" or "x[" not in body]
        end = f"    memcpy(y, {self._at(p.result)}, {p.outputs} * sizeof *y);"
        return "\n".join([*lines, body, end, "}"])

    def _body(self) -> Iterator[str]:
        for part in self.program.parts:
            yield f"\n    /* {quote_comment(part.title)} */\n"
            for operation in part.operations:
                if any(operation is one for one in self._ahead):
                    continue
                if isinstance(operation, ProductPart):
                    yield from self._product(operation)
                elif isinstance(operation, Stage):
                    yield from self._stage(operation)
                else:
                    yield self._lookup(operation)

    def _begin(self, place: Place) -> tuple[str, int]:
        """The array of a place, and the number in it at which the place begins."""
        array = self.program.arrays[place.array]
        name = f"@{place.array}" if array.kind == "constant" else place.array
        return name, place.line * array.size + place.offset

    def _at(self, place: Place) -> str:
        name, first = self._begin(place)
        return name if first == 0 else f"{name} + {first}"

    def element(self, place: Place, index: str) -> str:
        """One number of a place."""
        name, first = self._begin(place)
        if place.size == 1:
            return f"{name}[{first}]"
        return f"{name}[{index}]" if first == 0 else f"{name}[{first} + {index}]"

    def _number(self, place: Place, index: str) -> str:
        """One number of a vector, also of one that has no more."""
        return self.element(place._replace(size=max(2, place.size)), index)

    def _lookup(self, operation: Lookup) -> str:
        lines, width = operation.table.shape
        name = self._matrix_table(operation.table)
        self.functions.add("line")
        index = self.element(operation.row, "0")
        weight = self._weight(f"@{name}[row * {width} + k]")
        scaled = f"{self._scale(name, 'row')} * {weight}" if self.weights == "int8" else weight
        return (
            f"    {{\n        const size_t row = @line({index}, {lines - 1});\n"
            f"        for (size_t k = 0; k < {width}; k++) {{\n"
            f"            {self.element(operation.out, 'k')} = {scaled};\n        }}\n    }}\n"
        )

    def _products_ahead(self) -> list[str]:
        """The function that multiplies a block of inputs, each column read once for all steps."""
        if not self._ahead:
            return []
        lines = ["/* products of a block of inputs with the first matrices, step by step */",
                 "static void @ahead(const float *@RESTRICT block, float *@RESTRICT all, "
                 "size_t steps)", "{"]  # fmt: skip
        for operation in self._ahead:
            lines += self._product(operation, ahead=True)
        return ["\n".join([*lines, "}", ""])]

    def _product(self, operation: ProductPart, ahead: bool = False) -> Iterator[str]:
        for blocks in group_runs(operation.blocks, partial(_follows, self.program)):
            yield self._sums(operation.source, blocks, ahead)

    def _sums(self, source: Place, blocks: Sequence[Block], ahead: bool) -> str:
        """Sums of blocks that lie side by side: out = start + W v, column by column."""
        W = np.concatenate([b.matrix for b in blocks])
        R, K = W.shape
        out, start = blocks[0].out, blocks[0].start
        names = ", ".join(b.name for b in blocks)
        lines = [f"    /* sums of {names} times {source.array} */", "    {"]
        name = self._matrix_table(np.ascontiguousarray(W.T), W)
        narrow, first = self.weights == "int8", list[str]()
        if narrow:
            many = self.block if ahead else 1
            lines.append(f"        float whole{'s' * ahead}[{R * many}] = {{0}};")
        here = self._step_names(out, R) if ahead else [f"float *const sum = {self._at(out)};"]
        if start is None:
            first = [f"memset(sum, 0, {R} * sizeof *sum);"]
        elif self._at(start) != self._at(out):
            first = [f"memcpy(sum, {self._at(start)}, {R} * sizeof *sum);"]
        if not ahead:
            lines += [f"        {line}" for line in (*here, *first)]
        elif first:
            lines += _each_step([*here[:2], *first], 8)
        to, needed = ("whole", here[-1:]) if narrow else ("sum", here)
        lines += self._columns(source, name, to, (R, K), needed * ahead)
        if narrow:
            last = [f"for (size_t r = 0; r < {R}; r++) {{",
                    f"    sum[r] += {self._scale(name, 'r')} * whole[r];", "}"]  # fmt: skip
            lines += _each_step([*here, *last], 8) if ahead else [f"        {one}" for one in last]
        return "\n".join([*lines, "    }\n"])

    def _step_names(self, out: Place, R: int) -> list[str]:
        """What the numbers of step t are called where products of a block are worked out."""
        at = f"all + t * {self.ahead} + {self._outs[out.array][0]}"
        names = [f"float *const {out.array} = {at};", f"float *const sum = {self._at(out)};"]
        return [*names, *[f"float *const whole = wholes + t * {R};"] * (self.weights == "int8")]

    def _columns(
        self, source: Place, name: str, to: str, shape: tuple[int, int], here: list[str]
    ) -> Iterator[str]:
        """Loops over columns, several at once, and what is left of them.

        With `here`, the names of one step's numbers, each pass is of all steps of a block.
        """
        R, K = shape
        whole = K // _AT_ONCE * _AT_ONCE
        for first, last, many in ((0, whole, _AT_ONCE), (whole, K, 1)):
            if first == last:
                continue
            yield f"        for (size_t k = {first}; k < {last}; k += {many}) {{"
            inner = [f"const float *const x = block + t * {len(self.program.inputs)};"] * bool(here)
            inner += here
            for i in range(many):
                index = "k" if i == 0 else f"k + {i}"
                inner.append(f"const float v{i} = {self._number(source, index)};")
            inner.append(f"for (size_t r = 0; r < {R}; r++) {{")
            total = f"{to}[r]"
            for i in range(many):
                column = "k" if i == 0 else f"(k + {i})"
                weight = self._weight(f"@{name}[{column} * {R} + r]")
                total = f"{total} + {weight} * v{i}"
            inner += [f"    {to}[r] = {total};", "}"]
            yield from _each_step(inner, 12) if here else [f"{' ' * 12}{one}" for one in inner]
            yield "        }"

    def _weight(self, element: str) -> str:
        """A number of a table as a float."""
        if self.weights == "int8":
            return f"(float){element}"
        if self.weights == "bfloat16":
            self.functions.add("wide")
            return f"@wide({element})"
        return element

    def _scale(self, table: str, line: str) -> str:
        """The scale of a line of a table of int8."""
        self.functions.add("scale")
        return f"@scale(@{table}_scale[{line}])"

    def _matrix_table(self, values: Values, lines: Values | None = None) -> str:
        """The table of a matrix, which may be turned; `lines` are those that int8 scales."""
        name = f"W{self._matrices}"
        self._matrices += 1
        if self.weights == "float32":
            self.tables.append(format_table(f"@{name}", values, "float"))
        elif self.weights == "bfloat16":
            self.tables.append(format_table(f"@{name}", take_halves(values), "uint16_t"))
        else:
            whole, code = narrow_int8(values if lines is None else lines)
            self.tables.append(
                format_table(f"@{name}", whole if lines is None else whole.T, "int8_t")
            )
            self.tables.append(format_table(f"@{name}_scale", code, "uint8_t"))
        return name

    def _stage(self, stage: Stage) -> Iterator[str]:
        yield "    {\n"
        written = Loops(self, stage)
        for walk in stage.walks:
            yield from (f"        {line}\n" for line in written.lines(walk))
        yield "    }\n"

    def _public(self) -> str:
        p, I, O = self.program, len(self.program.inputs), self.program.outputs
        first = "\n".join(
            f"    memcpy(s->data + {self._offsets[n]}, @first_{n}, sizeof @first_{n});"
            for n in p.resets
        )
        tables = "\n".join(format_table(f"@first_{n}", v, "float") for n, v in p.resets.items())
        one, run = ["@one(s->data, x, out);"], [f"@step(s, x + t * {I}, y + t * {O});"]
        step = [f"float out[{O}];"]
        if self._ahead:
            step.append(f"float ahead[{self.ahead}];")
            one = ["@ahead(x, ahead, 1);", "@one(s->data, x, out, ahead);"]
            run = [f"float ahead[{self.block * self.ahead}];",
                   f"const size_t many = steps - t < {self.block} ? steps - t : {self.block};",
                   f"@ahead(x + t * {I}, ahead, many);", "for (size_t i = 0; i < many; i++) {",
                   f"    @one(s->data, x + (t + i) * {I}, y + (t + i) * {O}, "
                   f"ahead + i * {self.ahead});", "}"]  # fmt: skip
        stride = f"t += {self.block}" if self._ahead else "t++"
        return "\n".join(
            [tables, "void @reset(@state *s)", "{", "    memset(s->data, 0, sizeof s->data);",
             *[first] * bool(first), "}", "",
             "void @step(@state *s, const float *x, float *y)", "{",
             *(f"    {line}" for line in (*step, *one, "memcpy(y, out, sizeof out);")), "}", "",
             "void @run(@state *s, const float *x, float *y, size_t steps)", "{",
             f"    for (size_t t = 0; t < steps; {stride}) {{",
             *(f"        {line}" for line in run), "    }", "}", ""]
        )  # fmt: skip


def _about_string(text: str) -> str:
    """The line as a constant, in pieces that every compiler takes."""
    pieces = [text[i : i + 80] for i in range(0, len(text), 80)]
    return "const char @about[] =\n" + "\n".join(f'    "{piece}"' for piece in pieces) + ";\n"


def _find_outputs(program: Program, products: list[ProductPart]) -> dict[str, tuple[int, int]]:
    """Where the arrays that products write lie in the numbers of a step, and their sizes."""
    places, at = dict[str, tuple[int, int]](), 0
    for block in (b for operation in products for b in operation.blocks):
        array = program.arrays[block.out.array]
        if block.out.array not in places:
            places[block.out.array] = at, array.lines * array.size
            at += array.lines * array.size
    return places


def _each_step(lines: list[str], indent: int) -> list[str]:
    whole = ["for (size_t t = 0; t < steps; t++) {", *(f"    {line}" for line in lines), "}"]
    return [f"{' ' * indent}{line}" for line in whole]


_RESTRICT = """
#ifdef __cplusplus
#define @RESTRICT
#else
#define @RESTRICT restrict
#endif
"""


def _follows(program: Program, one: Block, other: Block) -> bool:
    """Whether the sums of a block, and what they start from, lie right after another's."""
    pairs = ((one.out, other.out), (one.start, other.start))
    for a, b in pairs:
        if a is None or b is None:
            return False
        whole = program.arrays[a.array].size == a.size
        if not whole or a.array != b.array or b.line != a.line + 1:
            return False
    return True
