"""Phases that multiply what their own step computed, and the units of a row, by width.

Such a vector is written whole before its product begins. Forward, the sums of all phases but the
last grow where they begin, after x; the last phase is the step's own panels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from throughtime.compiler.llvm.abi import CELL_BACKWARD, PHASE_FORWARD, RUN
from throughtime.compiler.llvm.loops.rows import alive
from throughtime.compiler.llvm.loops.team import meet
from throughtime.compiler.llvm.values import Num, where
from throughtime.compiler.llvm.writer import Emit, Frame
from throughtime.compiler.plan import Plan


def blocks_of(e: Emit, units: Num) -> Num:
    """How many vectors so many units fill."""
    return (units + e.kind.lanes - 1) // e.kind.lanes


def units_of(e: Emit, plan: Plan) -> dict[str, Num]:
    """How many units each width has; arguments of the function are H and a list, `widths`."""
    names = plan.widths.names
    g = e.args
    return {names[0]: g["H"]} | {w: e.word(g["widths"], i) for i, w in enumerate(names[1:], 1)}


def sections(e: Emit, plan: Plan, blocks: Num) -> Iterator[tuple[str, Num, Num]]:
    """For each width its name, how many units it has, and of how many blocks.

    Args:
        e: the function.
        plan: of the cell.
        blocks: of a step whose widths are all the same, which may be a part of them.
    """
    for name, units in units_of(e, plan).items():
        yield name, units, blocks if plan.widths.even else blocks_of(e, units)


def run_at(e: Emit, c: Frame, i: Num) -> Frame:
    """The i-th run, in the order in which they are computed."""
    return Frame(e, c["runs"] + i * (8 * len(RUN)), RUN)


def early_phases(e: Emit, c: Frame, f: Frame, product: Emit) -> Num:
    """In `step`: all phases but the last one's product; gives the rows that this multiplies."""
    g, pre_row = e.args, c["sums"] * c["H_row"]
    with e.loop(c["early"]) as i:
        run = run_at(e, c, i.index)
        operand = _operand(e, c, f, run)
        sums = g["pre"] + run["line"] * c["H_row"]
        vectors = run["count"] * blocks_of(e, run["width"])
        packed, size = f["U_early"] + run["packed_first"], vectors * (run["K"] * e.kind.size)
        # Blocks are written in whole vectors over the next one's first units, so none may start
        # from its own place.
        alone = run["blocks"] > 1
        bias = f["bias"] + run["line"] * c["H_row"]
        start = where(alone, bias, sums)
        start_row = where(alone, 0, pre_row)
        with e.loop(run["blocks"]) as b:
            to, of = (b.index * (run[name] * e.kind.bytes) for name in ("width", "K"))
            e.call(
                product, block=g["block"], start=start + to, start_row=start_row, A=operand + of,
                A_row=c["H_row"], A_part=0, B=packed + b.index * size, parts=1, K=run["K"],
                C=sums + to, C_row=pre_row, rows=g["R"], vectors=vectors, turned=g["t"] % 2,
                member=0, members=1,
            )  # fmt: skip
    return _operand(e, c, f, run_at(e, c, c["early"]))


def _operand(e: Emit, c: Frame, f: Frame, run: Frame) -> Num:
    """The rows that a run multiplies, computed where they are not there yet."""
    g = e.args
    operand = g["scratch"] + c["operand_rows"]
    n = e.word(c["offset"] + g["t"] * 8) + g["low"]
    with e.when(run["phase"].compare("!=", 0)):
        e.call_at(
            run["phase"], PHASE_FORWARD, rows=g["R"], pre=g["pre"], pre_row=c["sums"] * c["H_row"],
            old=g["old"], state=f["state"] + g["low"] * c["H_row"], H_row=c["H_row"],
            state_plane=c["state_plane"], to=operand, unit_values=f["unit_values"], H=c["H"],
            inputs=f["inputs"] + n * c["inputs_row"], widths=c["unit_widths"],
        )  # fmt: skip
    return where(run["has_operand"].compare("!=", 0), operand, g["old"])


class Step(NamedTuple):
    """A step of a chunk, backward.

    Attributes:
        j, t: its number from the end, and its time.
        before: rows over all steps before those of its block.
        d_row: bytes from row to row of the gradients by sums.
    """

    j: Num
    t: Num
    before: Num
    d_row: Num


def phases_back(e: Emit, c: Frame, f: Frame, functions: tuple[Emit, Emit], step: Step) -> None:
    """In `back`: the phases of a step, the last first, each the cell's derivative and its product.

    A member takes its own rows of the derivative, and of the product some units of all rows.

    Args:
        e, c, f: the function, and its numbers.
        functions: C = start + A B, and what members meet at.
        step: which.
    """
    product, barrier = functions
    phases = c["early"] + 1
    with e.loop(phases) as i:
        run, met = run_at(e, c, i.index), (step.j * phases + i.index) * 2
        with e.when(run["phase"].compare("!=", 0)):
            _derivative(e, c, f, run, step)
        meet(e, barrier, met + 1)
        _product_back(e, c, f, product, run, step)
        meet(e, barrier, met + 2)


def rows_at(e: Emit, c: Frame, t: Num, low: Num, high: Num) -> tuple[Num, Num]:
    """How many of the rows low..high a step has, and the first one's number over all steps."""
    return alive(e, c, t, low, high), e.word(c["offset"] + t * 8) + low


def _derivative(e: Emit, c: Frame, f: Frame, run: Frame, step: Step) -> None:
    """Gradients by the sums of a phase, and by what its equations read besides them."""
    low, line, d_row = e.args["low"], c["H_row"], step.d_row
    R, n = rows_at(e, c, step.t, low, e.args["high"])
    m = n - step.before
    e.call_at(
        run["phase"], CELL_BACKWARD, rows=R, saved=f["saved"] + n * c["saved_row"],
        saved_row=c["saved_row"], y=f["y_block"] + m * line, old=f["old_block"] + m * line,
        d_y=f["d_y_block"] + m * line, d_state=f["d_state"] + low * line,
        state_plane=c["state_plane"], direct=f["direct"] + low * line,
        d_sums=f["d_sums"] + m * d_row, d_sums_row=d_row, unit_values=f["unit_values"],
        H_row=line, H=c["H"], d_operands=f["d_operand_rows"] + low * line,
        operand_plane=c["operand_plane"], operand_block=f["operand_block"] + m * line,
        operand_block_plane=c["operand_block_plane"], inputs=f["inputs"] + n * c["inputs_row"],
        d_inputs=f["d_inputs"] + n * c["inputs_row"], widths=c["unit_widths"],
    )  # fmt: skip


def _product_back(e: Emit, c: Frame, f: Frame, product: Emit, run: Frame, step: Step) -> None:
    """Gradients by what a run's sums multiply."""
    g, low, line, d_row = e.args, e.args["chunk_low"], c["H_row"], step.d_row
    R, n = rows_at(e, c, step.t, low, g["chunk_high"])
    m = n - step.before
    operand = f["d_operand_rows"] + low * line + run["slot"] * c["operand_plane"]
    computed, begins = (run[name].compare("!=", 0) for name in ("has_operand", "begins"))
    to = where(computed, operand, f["d_state"] + low * line)
    fresh = where(computed, c["zeros"], f["direct"] + low * line)
    start = where(begins, fresh, to)
    start_row = where(begins & computed, 0, line)
    source, packed = f["d_sums"] + m * d_row + run["line"] * line, f["U_back"] + run["packed_first"]
    size = run["count"] * run["width"] * blocks_of(e, run["K"]) * e.kind.size
    with e.loop(run["blocks"]) as b:
        lines, columns = (b.index * (run[name] * e.kind.bytes) for name in ("width", "K"))
        e.call(
            product, start=start + columns, start_row=start_row,
            A=source + lines, A_row=d_row, A_part=line, B=packed + b.index * size,
            parts=run["count"], K=run["width"], C=to + columns, C_row=line, rows=R,
            vectors=blocks_of(e, run["K"]), turned=step.t % 2,
            **e.passed_on("block", "member", "members"),
        )  # fmt: skip
