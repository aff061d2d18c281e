"""The argument block: what a region of machine code is given, as whole numbers by name.

One array of 64-bit numbers: COMMON, then DIRECTION for each direction. Addresses point into tensors
and into arrays that follow in the same block. Sizes are bytes where a name says row, step or size.
"""

from __future__ import annotations

from typing import Final

COMMON: Final = (
    # the team: functions of the OpenMP runtime (0: one thread), sched_yield, usleep, the counters
    # of the whole team's barrier and of each chunk's; how many threads may share a chunk
    "thread", "team", "yield", "sleep", "counter", "members",
    # code: tables of tiles, heights of tiles by vectors, the function of the cell that ends a step
    "tiles", "heights", "columns", "column_widest", "cell_forward",
    # sizes: directions, steps, units, inputs; bytes of a row of units and of inputs, padded
    "D", "T", "H", "I", "H_row", "I_row",
    # the output's units, each state's, and those of every width that the cell's code knows; a row
    # of units is as long as the widest
    "out", "state_widths", "unit_widths",
    # the cell: its sums, those with x (first); states; vectors; unit blocks in a panel, and bytes
    # from a panel's start to the start of each vector's chain
    "sums", "with_a", "states", "vectors", "panel", "places", "flat",
    # its phases: runs of sums, how many before the last, sums of the last phase; where the vector
    # of a phase lies in the scratch; bytes from one such vector's gradients and rows to the next's
    "runs", "early", "last_u", "vector_rows", "own_plane", "own_block_plane",
    # rows: chunks and their bounds; rows alive at each step, rows before each step; the line of
    # each row in the tensors
    "chunks", "bounds", "rows", "offset", "order",
    # tensors: x and y with bytes to each step and from row to row; zeros as long as any row
    "x", "x_steps", "x_row", "y", "y_steps", "y_row", "zeros",
    # packed weights: bytes from a vector to where the copy of its lines is kept, 0 for none;
    # whether the vector was packed from that copy
    "twin", "trusted",
    # bytes of a row of direct inputs and masks
    "inputs_row",
    # steps in a block; scratch of each thread
    "block", "scratch", "scratch_size", "pre", "chains",
    "saved_row", "state_plane",
    # backward: gradients of outputs, rows of the block's gradients; what is wanted; whether those
    # by weights are added to what is there
    "d_y", "d_y_steps", "d_y_row", "wants_x", "wants_weights", "reads_y", "adds",
    # whether the arena has the packed weights already
    "packed",
    # the largest norm of a row's gradients by the new states, where it is clipped, else 0
    "clip",
)  # fmt: skip

DIRECTION: Final = (
    "reverse", "y_first", "d_y_first",
    # parameters as they are, all but W that multiply in a list, U as the first; then packed
    "W", "matrices", "W_bias", "U_bias", "own",
    "W_pack", "U_pack", "U_early", "W_back", "U_back", "bias", "vector",
    # for each sum, its gate's number in W and in U, -1 where it has none
    "gate_a", "gate_u",
    # of each sum of the last phase, its gate's number in its matrix, and which this is
    "gate_last", "matrix_last",
    # the state: where each starts (0: zero) and ends, its buffers, the new output
    "start", "final", "state", "new", "saved",
    # direct inputs and masks of each row over all steps, a line of units for each
    "inputs",
    # resets: what RESTARTS names, 0 without any
    "restarts",
    # sequences of the states beside the output, or gradients by them: RECORD for each; 0 without
    "records",
    # backward
    "d_final", "d_start", "d_state", "direct", "x_block", "old_block", "y_block", "d_y_block",
    "d_sums",
    # gradients by the vectors that are multiplied, other than the old output, and those vectors in
    # a block of steps
    "d_own_rows", "own_block",
    "d_x", "d_W", "d_matrices", "d_bias", "d_W_bias", "d_U_bias", "d_own",
    # as the direct inputs lie
    "d_inputs",
    # of each row over all steps, a norm for each state; 0 where nobody asks
    "norms",
)  # fmt: skip

RUN: Final = (
    "line",
    "count",
    "packed",
    "stage",
    "own",
    "begins",
    "slot",
    "matrix",
    "width",
    "K",
    "blocks",
)
"""Of neighbouring sums with one vector: the first one's number, how many, bytes of other runs that
are packed before it; the cell's function to call first, or 0; whether the vector lies in rows of
its own; whether the run is the first of its phase; which of such vectors it is; their matrix, the
lines of it that a sum has, its columns, and how many blocks of such lines and columns it has on its
diagonal: 1 is a full one."""

RECORD: Final = ("tensor", "step", "before", "row")
"""Of one state's sequence: where it begins (0: there is none), bytes from step to step, for each
row of earlier steps, and from row to row; one of the former two is 0."""

RESTARTS: Final = ("first", "rows", "initial", "d_initial")
"""Of one direction's resets: before its i-th step the rows first[i] to first[i + 1] of `rows` start
anew, none behind the last step; for each state where they go (0: zero); the sums of the gradients
there, padded rows of each state, or 0 where nobody asks."""

# What functions are given that regions call by their addresses.

TILE: Final = (
    "start", "start_row", "places", "A", "A_row", "A_part", "B", "parts", "K", "C", "C_row",
)  # fmt: skip
"""Of a tile: where chains start (address, bytes from row to row, and V whole numbers: bytes to each
vector), A (bytes from row to row, and from one part of a row to the next), B (packed: parts x K x V
vectors), parts and K of each, and C (bytes from row to row)."""

COLUMN_TILE: Final = ("start", "start_row", "A", "A_step", "B", "B_step", "K", "C", "C_row")
"""Of a tile whose A lies the other way: A[k, r] with r from number to number; bytes from k to k."""

CELL_FORWARD: Final = (
    "rows", "blocks", "chains", "chains_row", "pre", "pre_row", "old", "state", "state_row",
    "state_plane", "new", "saved", "saved_row", "vectors", "H_row", "H", "inputs", "widths",
)  # fmt: skip
"""Of the cell's step. Every address is that of the first row and unit; `widths` holds the units of
every width."""

PHASE_FORWARD: Final = (
    "rows", "pre", "pre_row", "old", "state", "H_row", "state_plane", "to", "vectors", "H",
    "inputs", "widths",
)  # fmt: skip
"""Of what computes the vector that a phase multiplies."""

CELL_BACKWARD: Final = (
    "rows", "saved", "saved_row", "y", "old", "d_y", "d_state", "state_plane", "direct", "d_sums",
    "d_sums_row", "vectors", "H_row", "H", "d_own", "own_plane", "own_block", "own_block_plane",
    "inputs", "d_inputs", "widths",
)  # fmt: skip
"""Of the derivative of a step, or of a phase. `d_own` and so on: gradients by the vectors of phases
other than the old output, these vectors, and bytes from one of them to the next. Rows of direct
inputs and masks have a line for each."""
