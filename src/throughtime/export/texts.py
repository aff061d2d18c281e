"""What stands beside a program in both forms: its header, its test, its README."""

from __future__ import annotations

import hashlib
import re
from typing import Any, Final

import numpy as np

from throughtime.errors import OptionError
from throughtime.export.program import ProductPart, Program, Values
from throughtime.version import __version__

TOLERANCE: Final = 2e-6
"""Largest error of the test, as a share of the largest output."""

_WORDS: Final = frozenset(
    """
    alignas alignof and and_eq asm auto bitand bitor bool break case catch char class compl concept
    const constexpr const_cast continue decltype default delete do double dynamic_cast else enum
    explicit export extern false float for friend goto if inline int long mutable namespace new
    noexcept not not_eq nullptr operator or or_eq private protected public register restrict
    reinterpret_cast requires return short signed sizeof static static_assert static_cast struct
    switch template this thread_local throw true try typedef typeid typename typeof union unsigned
    using virtual void volatile wchar_t while xor xor_eq main
    """.split()
)


def check_name(name: str) -> None:
    """Raises OptionError: the name is no identifier of C and C++."""
    right = isinstance(name, str) and re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,39}", name)
    if not right or name in _WORDS or "__" in name:
        raise OptionError(
            f"name must be an identifier of C and C++ (letters, digits and _, a letter first, at "
            f"most 40, no word of the languages), got {name!r}; say, net"
        )


def about(program: Program, weights: str) -> str:
    """One line: the parts, sizes, version, hash of the weights, what each input is."""
    digest = hashlib.sha256()
    for values in (*program.matrices, *program.constants.values(), *program.resets.values()):
        digest.update(np.ascontiguousarray(values, np.float32).tobytes())
    parts = "; ".join(part.title for part in program.parts)
    text = (
        f"{program.name}: {parts}; {len(program.inputs)} inputs ({_inputs(program)}), "
        f"{program.outputs} outputs; weights {weights}, sha256 {digest.hexdigest()[:16]}; "
        f"throughtime {__version__}"
    )
    return re.sub(r'[^ -~]|["\\?]', "'", text)


def _inputs(program: Program) -> str:
    if len(program.inputs) <= 4:
        return ", ".join(program.inputs)
    return f"{program.inputs[0]} ... {program.inputs[-1]}"


def about_source(text: str) -> str:
    """The line as C, in pieces that every compiler takes."""
    pieces = [text[i : i + 80] for i in range(0, len(text), 80)]
    return "const char @about[] =\n" + "\n".join(f'    "{piece}"' for piece in pieces) + ";\n"


def header(program: Program, state: int, said: str) -> str:
    """NAME.h."""
    text = _HEADER.replace("ABOUT", said.replace("*/", "* /")).replace("<STATE>", str(state))
    text = text.replace("<INPUTS>", str(len(program.inputs)))
    return text.replace("<OUTPUTS>", str(program.outputs)).replace("@", f"{program.name}_")


_HEADER: Final = """/* ABOUT */
#ifndef @H
#define @H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

#define @INPUTS <INPUTS>
#define @OUTPUTS <OUTPUTS>
#define @STATE <STATE>

/* What is carried from step to step, in the caller's memory; as many of them as you like. */
typedef struct { float data[@STATE]; } @state;

/* Puts a state to where sequences start; once before the first step. */
void @reset(@state *s);

/* One time step: x has @INPUTS numbers, y gets @OUTPUTS; they may be the same memory. */
void @step(@state *s, const float *x, float *y);

/* A block of steps, one behind the other in x and in y, in memory of their own. */
void @run(@state *s, const float *x, float *y, size_t steps);

/* Parts, sizes, version, hash of the weights, units of the inputs. */
extern const char @about[];

#ifdef __cplusplus
}
#endif

#endif
"""


def self_test(program: Program, x: Values, y: Values, tolerance: float) -> str:
    """NAME_test.c: recorded inputs and outputs; prints PASS or FAIL, and with a number the time."""
    from throughtime.export.c.source import _table

    limit = f"{tolerance * max(float(np.abs(y).max(initial=0.0)), 1e-30):.9e}"
    tables = f"{_table('inputs', x, 'float')}\n{_table('outputs', y, 'float')}"
    text = _TEST.replace("TABLES", tables).replace("STEPS", str(len(x))).replace("LIMIT", limit)
    return text.replace("@", f"{program.name}_").replace("%NAME%", program.name)


_TEST: Final = """/* %NAME% on its own recorded inputs: step by step, in blocks, and two at once. */
#include "%NAME%.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

TABLES
static @state one, two;
static float found[STEPS * @OUTPUTS], again[STEPS * @OUTPUTS];

static double error_of(const float *y)
{
    double most = 0.0;
    for (size_t i = 0; i < STEPS * @OUTPUTS; i++) {
        const double d = (double)y[i] - (double)outputs[i];
        const double a = d < 0.0 ? -d : d;
        if (!(a <= most)) { most = a; }
    }
    return most;
}

static void time_steps(long steps)
{
    float y[@OUTPUTS];
    const clock_t begun = clock();
    for (long t = 0; t < steps; t++) {
        @step(&one, inputs + (size_t)(t % STEPS) * @INPUTS, y);
    }
    const double seconds = (double)(clock() - begun) / (double)CLOCKS_PER_SEC;
    printf("nanoseconds %.1f\\n", 1e9 * seconds / (double)steps);
}

int main(int argc, char **argv)
{
    @reset(&one);
    @reset(&two);
    for (size_t t = 0; t < STEPS; t++) {
        @step(&one, inputs + t * @INPUTS, found + t * @OUTPUTS);
        if (t % 7 == 0) { /* the other one goes on in blocks meanwhile */
            const size_t steps = STEPS - t < 7 ? STEPS - t : 7;
            @run(&two, inputs + t * @INPUTS, again + t * @OUTPUTS, steps);
        }
    }
    const double error = error_of(found);
    const int same = memcmp(found, again, sizeof found) == 0;
    const int right = same && error <= LIMIT;
    @reset(&one);
    @reset(&two);
    printf("%s error %.3e allowed %.3e steps %d%s\\n", right ? "PASS" : "FAIL", error, LIMIT,
           STEPS, same ? "" : " blocks differ from steps");
    if (argc > 1) { time_steps(atol(argv[1])); }
    return right ? 0 : 1;
}
"""


def sizes(program: Program) -> dict[str, int]:
    """Sizes in numbers: of the step's own memory, of biases and vectors, products of a step."""
    work = sum(a.lines * a.size for a in program.arrays.values() if a.kind == "work")
    constants = sum(v.size for v in program.constants.values())
    products = sum(
        b.matrix.size
        for part in program.parts
        for operation in part.operations
        if isinstance(operation, ProductPart)
        for b in operation.blocks
    )
    return {"work": work, "constants": constants, "products": products}


def readme(program: Program, said: str, facts: dict[str, Any], files: dict[str, str]) -> str:
    """README of a folder: what it is, its sizes, how it is called and built."""
    rows = {
        "<FILES>": [f"| `{name}` | {what} |" for name, what in files.items()],
        "<FACTS>": [f"| {what} | {value} |" for what, value in facts.items()],
        "<INPUTS>": [f"{k}. {what}" for k, what in enumerate(program.inputs)],
    }
    text = _README
    for place, lines in rows.items():
        text = text.replace(place, "\n".join(lines))
    return text.replace("<ABOUT>", said).replace("@", program.name)


_README: Final = """# @

<ABOUT>

| file | |
|---|---|
<FILES>

| size | |
|---|---|
<FACTS>

Inputs, in order from 0:

<INPUTS>

```c
#include "@.h"

static @_state state;                      /* one for each stream of data */
float x[@_INPUTS], y[@_OUTPUTS];
@_reset(&state);                           /* before the first step */
@_step(&state, x, y);                      /* at every step */
```

No allocation, no locks, no system calls, no global state: it may run in an interrupt or an audio
callback, as many instances side by side as there are states. Check it where it will run:
build `@_test.c` with it; it prints PASS.
"""
