"""NAME.c: one function that does a step, part by part, in plain loops of fixed sizes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from throughtime.export.c.expressions import Expressions
from throughtime.export.c.maths import LIBM, functions, number
from throughtime.export.program import (
    Block,
    Lookup,
    Place,
    ProductPart,
    Program,
    Stage,
    Values,
    Walk,
)
from throughtime.export.weights import halves, narrowed

STRANDS = 16
"""Chains of a sum over units, as the compiler's vectors have them."""

_AT = "\0"
"""Stands for the sign @ in comments; all else of it is the program's prefix."""

_AT_ONCE = 4
"""Columns of a matrix that one pass over the sums takes."""


class Source:
    """NAME.c while it is written.

    Args:
        program: what it does.
        weights: "float32", "bfloat16" or "int8".
        libm: whether it may call libm.

    Attributes:
        functions: names of the functions of units that it calls.
    """

    def __init__(self, program: Program, weights: str, libm: bool) -> None:
        self.program, self.weights, self.libm = program, weights, libm
        self.functions: set[str] = set()
        self.tables: list[str] = []
        self._offsets: dict[str, int] = {}
        self._count = 0
        for name, array in program.states.items():
            self._offsets[name] = self._count
            self._count += array.lines * array.size
        self._matrices = 0

    @property
    def state(self) -> int:
        """Numbers of a state."""
        return max(1, self._count)

    def text(self, head: str) -> str:
        """The whole file; `head` is its first comment."""
        for name in self.program.constants:
            self.tables.append(_table(f"@{name}", self.program.constants[name], "float"))
        body = "".join(self._body())
        maths = functions(self.functions, self.program.name, self.libm)
        calls = self.libm and any(f"{LIBM[n]}(" in maths for n in LIBM)
        found = "\n".join(
            [head, f'#include "{self.program.name}.h"', "", *["#include <math.h>"] * calls,
             "#include <stdint.h>", "#include <string.h>", _RESTRICT, maths, *self.tables, "",
             self._step(body), self._public()]
        )  # fmt: skip
        return found.replace("@", f"{self.program.name}_").replace(_AT, "@")

    def _step(self, body: str) -> str:
        """The function of one step."""
        p = self.program
        lines = ["/* one time step: x and the state s give y, and s as it is behind it */",
                 "static void @one(float *@RESTRICT s, const float *@RESTRICT x, "
                 "float *@RESTRICT y)", "{"]  # fmt: skip
        for name, offset in self._offsets.items():
            lines.append(f"    float *const {name} = s + {offset};")
        for name, array in p.arrays.items():
            if array.kind == "work":
                lines.append(f"    float {name}[{array.lines * array.size}];")
        lines += [f"    (void){name};" for name in "sx" if name == "s" or "x[" not in body]
        end = f"    memcpy(y, {self._at(p.result)}, {p.outputs} * sizeof *y);"
        return "\n".join([*lines, body, end, "}"])

    def _body(self) -> Iterator[str]:
        for part in self.program.parts:
            yield f"\n    /* {_comment(part.title)} */\n"
            for operation in part.operations:
                if isinstance(operation, ProductPart):
                    yield from self._product(operation)
                elif isinstance(operation, Stage):
                    yield from self._stage(operation)
                else:
                    yield self._lookup(operation)

    def _at(self, place: Place) -> str:
        """The address of a place."""
        array = self.program.arrays[place.array]
        first = place.line * array.size + place.offset
        name = f"@{place.array}" if array.kind == "constant" else place.array
        return name if first == 0 else f"{name} + {first}"

    def _element(self, place: Place, index: str) -> str:
        """One number of a place."""
        array = self.program.arrays[place.array]
        first = place.line * array.size + place.offset
        name = f"@{place.array}" if array.kind == "constant" else place.array
        if place.size == 1:
            return f"{name}[{first}]"
        return f"{name}[{index}]" if first == 0 else f"{name}[{first} + {index}]"

    def _number(self, place: Place, index: str) -> str:
        """One number of a vector, also of one that has no more."""
        return self._element(place._replace(size=max(2, place.size)), index)

    def _lookup(self, operation: Lookup) -> str:
        lines, width = operation.table.shape
        table = self._matrix_table(operation.table)
        self.functions.add("line")
        index = self._element(operation.row, "0")
        weight = self._weight(f"@{table}[row * {width} + k]")
        scaled = f"@{table}_scale[row] * {weight}" if self.weights == "int8" else weight
        return (
            f"    {{\n        const size_t row = @line({index}, {lines - 1});\n"
            f"        for (size_t k = 0; k < {width}; k++) {{\n"
            f"            {self._element(operation.out, 'k')} = {scaled};\n        }}\n    }}\n"
        )

    def _product(self, operation: ProductPart) -> Iterator[str]:
        for blocks in _joined(self.program, operation.blocks):
            yield self._sums(operation.source, blocks)

    def _sums(self, source: Place, blocks: Sequence[Block]) -> str:
        """Sums of blocks that lie side by side: out = start + W v, column by column."""
        W = np.concatenate([b.matrix for b in blocks])
        R, K = W.shape
        out, start = self._at(blocks[0].out), blocks[0].start
        names = ", ".join(b.name for b in blocks)
        lines = [f"    /* sums of {names} times {source.array} */", "    {"]
        name = self._matrix_table(np.ascontiguousarray(W.T), W)
        lines.append(f"        float *const sum = {out};")
        if start is None:
            lines.append(f"        memset(sum, 0, {R} * sizeof *sum);")
        elif self._at(start) != out:
            lines.append(f"        memcpy(sum, {self._at(start)}, {R} * sizeof *sum);")
        to = "sum"
        if self.weights == "int8":
            lines.append(f"        float whole[{R}] = {{0}};")
            to = "whole"
        lines += self._columns(source, name, to, R, K)
        if self.weights == "int8":
            scaled = f"@{name}_scale[r] * whole[r]"
            lines += [
                f"        for (size_t r = 0; r < {R}; r++) {{",
                f"    {' ' * 8}sum[r] += {scaled};",
            ]
            lines.append("        }")
        return "\n".join([*lines, "    }\n"])

    def _columns(self, source: Place, name: str, to: str, R: int, K: int) -> Iterator[str]:
        """Loops over columns, several at once, and what is left of them."""
        whole = K // _AT_ONCE * _AT_ONCE
        for first, last, many in ((0, whole, _AT_ONCE), (whole, K, 1)):
            if first == last:
                continue
            yield f"        for (size_t k = {first}; k < {last}; k += {many}) {{"
            for i in range(many):
                index = "k" if i == 0 else f"k + {i}"
                yield f"            const float v{i} = {self._number(source, index)};"
            yield f"            for (size_t r = 0; r < {R}; r++) {{"
            total = f"{to}[r]"
            for i in range(many):
                column = "k" if i == 0 else f"(k + {i})"
                weight = self._weight(f"@{name}[{column} * {R} + r]")
                total = f"{total} + {weight} * v{i}"
            yield f"                {to}[r] = {total};"
            yield "            }\n        }"

    def _weight(self, element: str) -> str:
        """A number of a table as a float."""
        if self.weights == "int8":
            return f"(float){element}"
        if self.weights == "bfloat16":
            self.functions.add("wide")
            return f"@wide({element})"
        return element

    def _matrix_table(self, values: Values, lines: Values | None = None) -> str:
        """The table of a matrix, which may be turned; `lines` are those that int8 scales."""
        name = f"W{self._matrices}"
        self._matrices += 1
        if self.weights == "float32":
            self.tables.append(_table(f"@{name}", values, "float"))
        elif self.weights == "bfloat16":
            self.tables.append(_table(f"@{name}", halves(values), "uint16_t"))
        else:
            whole, scale = narrowed(values if lines is None else lines)
            self.tables.append(_table(f"@{name}", whole if lines is None else whole.T, "int8_t"))
            self.tables.append(_table(f"@{name}_scale", scale, "float"))
        return name

    def _stage(self, stage: Stage) -> Iterator[str]:
        yield "    {\n"
        written = _Walks(self, stage)
        for walk in stage.walks:
            yield from (f"        {line}\n" for line in written.lines(walk))
        yield "    }\n"

    def _public(self) -> str:
        """The functions of the header."""
        p = self.program
        first = "\n".join(
            f"    memcpy(s->data + {self._offsets[n]}, @first_{n}, sizeof @first_{n});"
            for n in p.resets
        )
        tables = "\n".join(_table(f"@first_{n}", v, "float") for n, v in p.resets.items())
        return (
            f"{tables}\nvoid @reset(@state *s)\n{{\n    memset(s->data, 0, sizeof s->data);\n"
            f"{first}{chr(10) * bool(first)}}}\n\n"
            f"void @step(@state *s, const float *x, float *y)\n{{\n    float out[{p.outputs}];\n"
            f"    @one(s->data, x, out);\n    memcpy(y, out, sizeof out);\n}}\n\n"
            f"void @run(@state *s, const float *x, float *y, size_t steps)\n{{\n"
            f"    for (size_t t = 0; t < steps; t++) {{\n"
            f"        @step(s, x + t * {len(p.inputs)}, y + t * {p.outputs});\n    }}\n}}\n"
        )


_RESTRICT = """
#ifdef __cplusplus
#define @RESTRICT
#else
#define @RESTRICT restrict
#endif
"""


class _Walks:
    """The loops of one stage."""

    def __init__(self, source: Source, stage: Stage) -> None:
        self.source, self.stage = source, stage
        self.expressions = Expressions(stage.graph, dict(stage.units))
        self.held: set[int] = set()  # single numbers that are there
        self.there: dict[int, Place] = {}

    def lines(self, walk: Walk) -> list[str]:
        """The lines of one walk."""
        graph, found = self.stage.graph, list[str]()
        for i in walk.numbers:
            if i not in self.held:
                found += self._statements((i,), set(self.held), "0", f"n{i}")
                self.held.add(i)
        for r in walk.reductions:
            least = 0.0 if graph.nodes[r].op == "row_sum" else -math.inf
            nothing = self.expressions.literal(least)
            found.append(f"float strand{r}[{STRANDS}];")
            found.append(f"for (size_t j = 0; j < {STRANDS}; j++) {{ strand{r}[j] = {nothing}; }}")
        ends = [i for i, _ in (*walk.lines, *walk.stores)]
        ends += [graph.nodes[r].inputs[0] for r in walk.reductions]
        if ends:
            body = self._statements(tuple(dict.fromkeys(ends)), set(self.held), "k", None)
            for i, place in (*walk.lines, *walk.stores):
                body.append(f"{self.source._element(place, 'k')} = {self._name(i)};")
            body += [self._grown(r) for r in walk.reductions]
            found.append(f"for (size_t k = 0; k < {walk.size}; k++) {{")
            found += [f"    {line}" for line in body]
            found.append("}")
        for r in walk.reductions:
            found += self._folded(r)
            self.held.add(r)
        self.there |= dict(walk.lines)
        self.source.functions |= self.expressions.functions
        return found

    def _name(self, i: int) -> str:
        """The variable of a node; of a number, the number."""
        node = self.stage.graph.nodes[i]
        if node.op in ("number", "full"):
            text = self.expressions.literal(float(node.constants[0]))  # type: ignore[arg-type]
            return f"({text})" if text.startswith("-") else text
        return f"n{i}" if i in self.held else f"t{i}"

    def _statements(
        self, ends: tuple[int, ...], there: set[int], index: str, name: str | None
    ) -> list[str]:
        """What the nodes are computed with, under the lines of the cell that they come from."""
        found, line = list[str](), ""
        for i in self._needed(ends, there):
            node = self.stage.graph.nodes[i]
            if node.op in ("number", "full"):
                continue
            said = "" if node.line is None or i in self.stage.loads else _comment(node.line.text)
            if said and said != line:
                found.append(f"/* {said} */")
                line = said
            kind = "int" if self.expressions.is_truth(i) else "float"
            to = name if name and i == ends[0] else f"t{i}"
            found.append(f"const {kind} {to} = {self._value(i, index)};")
        if name is None:
            return found
        *before, last = found
        if not before:
            return [last]
        kind = "int" if self.expressions.is_truth(ends[0]) else "float"
        last = last.replace(f"const {kind} ", "", 1)
        return [f"{kind} {name};", "{", *(f"    {one}" for one in before), f"    {last}", "}"]

    def _value(self, i: int, index: str) -> str:
        load = self.there.get(i, self.stage.loads.get(i))
        if isinstance(load, Place):
            return self.source._element(load, index)
        if load is not None:
            return number(load)
        return self.expressions.of(i, self._name)

    def _needed(self, ends: tuple[int, ...], there: set[int]) -> list[int]:
        """The nodes to compute, in order."""
        seen, pending = set[int](), [i for i in ends if i not in there]
        while pending:
            i = pending.pop()
            if i in seen:
                continue
            seen.add(i)
            if i not in self.stage.loads and i not in self.there:
                pending += [k for k in self.stage.graph.nodes[i].inputs if k not in there]
        return sorted(seen)

    def _grown(self, r: int) -> str:
        """One more unit in its strand of a reduction."""
        node = self.stage.graph.nodes[r]
        value, strand = self._name(node.inputs[0]), f"strand{r}[k % {STRANDS}]"
        if node.op == "row_sum":
            return f"{strand} += {value};"
        return f"{strand} = {strand} > {value} ? {strand} : {value};"

    def _folded(self, r: int) -> list[str]:
        """All strands as one number."""
        node = self.stage.graph.nodes[r]
        one, other = f"strand{r}[j]", f"strand{r}[j + half]"
        join = f"{one} += {other};"
        if node.op != "row_sum":
            join = f"{one} = {one} > {other} ? {one} : {other};"
        return [
            f"for (size_t half = {STRANDS // 2}; half > 0; half /= 2) {{",
            f"    for (size_t j = 0; j < half; j++) {{ {join} }}", "}",
            f"const float n{r} = strand{r}[0];",
        ]  # fmt: skip


def _joined(program: Program, blocks: Sequence[Block]) -> list[list[Block]]:
    """Blocks whose sums, and what these start from, lie side by side in their arrays."""
    runs: list[list[Block]] = []
    for block in blocks:
        if runs and _follows(program, runs[-1][-1], block):
            runs[-1].append(block)
        else:
            runs.append([block])
    return runs


def _follows(program: Program, one: Block, other: Block) -> bool:
    pairs = ((one.out, other.out), (one.start, other.start))
    for a, b in pairs:
        if a is None or b is None:
            return False
        whole = program.arrays[a.array].size == a.size
        if not whole or a.array != b.array or b.line != a.line + 1:
            return False
    return True


def _comment(text: str) -> str:
    """Words that end no comment."""
    return (
        text.replace("*/", "* /")
        .replace("/*", "/ *")
        .replace("\n", " ")
        .replace("\\", "/")
        .replace("@", _AT)
    )


def _table(name: str, values: np.ndarray[Any, Any], kind: str) -> str:
    """A constant array."""
    flat = values.reshape(-1)
    words: Iterable[str] = map(str, flat.tolist())
    if kind == "float":
        words = map(number, flat.tolist())
    rows, width, words = [], 8 if kind == "float" else 16, list(words)
    for i in range(0, len(words), width):
        rows.append("    " + ", ".join(words[i : i + width]))
    body = ",\n".join(rows)
    return f"static const {kind} {name}[{flat.size}] = {{\n{body}\n}};\n"
