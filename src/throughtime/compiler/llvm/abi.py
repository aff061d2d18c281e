"""What generated code and its callers agree on: sizes, and the words of what it is given.

A region gets one array of 64-bit numbers: COMMON, then DIRECTION for each direction. Addresses
point into tensors and into lists that follow in the same block. Sizes are bytes where a name says
row, step, plane or size. A word means one thing wherever it stands; where a function is given a
word of the block, it is that of its own first row and unit.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final


@dataclass(frozen=True)
class Kind:
    """The numbers a function computes with.

    Attributes:
        bytes: of one number, 4 or 8.
        lanes: numbers in a vector.
    """

    bytes: int
    lanes: int

    @property
    def real(self) -> Any:
        """One number, as LLVM has it."""
        from llvmlite import ir

        return ir.FloatType() if self.bytes == 4 else ir.DoubleType()

    @property
    def vector(self) -> Any:
        """As many as a register holds."""
        from llvmlite import ir

        return ir.VectorType(self.real, self.lanes)

    @property
    def size(self) -> int:
        """Bytes of a vector."""
        return self.bytes * self.lanes


WIDEST: Final = 4
"""Vectors of the widest tile of several rows."""

WIDEST_ALONE: Final = 8
"""Vectors of the widest tile of one row, which needs many chains to keep the multipliers busy."""

MOST_LANES: Final = 16
"""Numbers of the widest vector of any machine."""

PLACES: Final = 16
"""Entries of the table of tiles for each number of vectors."""

COLUMN_ROWS: Final = (8, 4, 2, 1)
"""Rows of the column tiles."""

_ROWS: Final = {32: {4: 6, 3: 8, 2: 12, 1: 12}, 16: {4: 3, 3: 4, 2: 6, 1: 8}}


def line_rows(registers: int) -> int:
    """The rows of the highest tile of lines: a square of vectors needs half of the registers."""
    return registers // 4


def most_rows(registers: int, vectors: int) -> int:
    """The rows of the highest tile of so many vectors, on a machine of so many registers."""
    return _ROWS[registers].get(vectors, 1)


def column_widest(registers: int) -> int:
    """Vectors of the widest column tile, which is COLUMN_ROWS[0] rows high."""
    return 3 if registers == 32 else 1


def part_sizes(total: int, most: int) -> set[int]:
    """The sizes of the parts that `total` things are cut into, as products.parts_of cuts them."""
    if total == 0:
        return set()
    count = -(-total // most)
    return {total // count, -(-total // count)}


def panel_vectors(blocks: int, panel: int, gates: int, most: int) -> set[int]:
    """The widths of the tiles of U: panels of unit blocks, cut into tiles of at most `most`."""
    widths: Iterable[int] = part_sizes(blocks, panel)
    return {v for some in widths for v in part_sizes(some * gates, most)}


def widest(registers: int, rows: int) -> int:
    """Vectors of a tile: one row alone needs many chains to keep the multipliers busy."""
    return (16 if registers == 32 else 8) if rows == 1 else WIDEST


def highest(registers: int, rows: int, narrow: bool) -> int:
    """Rows of a tile; a narrow one holds two numbers of each row besides the chains."""
    most = registers // 8 if narrow else most_rows(registers, WIDEST)
    return min(rows, most)


COMMON_WORDS: Final = {
    # the team
    "thread_number": "function of the OpenMP runtime: this thread's number; 0: one thread",
    "team_size": "its function that says how many threads there are",
    "yield": "address of sched_yield",
    "sleep": "address of usleep",
    "processor": "address of sched_getcpu; 0: there is none",
    "get_affinity": "address of sched_getaffinity",
    "set_affinity": "address of sched_setaffinity",
    "counter": "lines of the cache: counters of barriers, the team's, then each chunk's; and each "
    "thread's seat, the processor on which it waits",
    "most_members": "threads that may share a chunk",
    # code
    "tiles": "table of tiles by vectors and rows",
    "heights": "for so many vectors, rows of the highest tile",
    "columns": "table of the tiles of sums over rows",
    "column_widest": "vectors of the widest of these",
    "in_place": "whether weights are multiplied where they lie, unpacked",
    "line_tiles": "table of the tiles of such weights by rows; the first has rows for its lanes",
    "turned": "where in the scratch lie the rows of that one, those of each k side by side",
    "cell_forward": "the cell's function that ends a step",
    # sizes
    "D": "directions", "T": "steps", "H": "units", "I": "inputs",
    "H_row": "a padded row of units, as long as the widest",
    "I_row": "a padded row of inputs",
    "out": "units of the output",
    "state_widths": "units of each state",
    "unit_widths": "units of every width that the cell's code knows, then its numbers",
    # the cell
    "states": "how many states", "sums": "how many sums a step has",
    "with_a": "how many of these have x; they come first",
    "unit_parameters": "how many parameters of one number a unit",
    "panel": "unit blocks in a panel of the last phase",
    "widest": "vectors of its widest tile",
    "places": "from a panel's start to the start of the chain of each of its vectors",
    "flat": "the same for vectors that lie side by side",
    # its phases
    "runs": "RUN for each run of sums, the last phase's one last",
    "early": "runs before the last",
    "last_u": "sums of the last phase",
    "operand_rows": "where in the scratch what a phase multiplies lies, if the step computes it",
    "operand_plane": "from one such operand's gradients to the next one's",
    "operand_block_plane": "from one such operand of a block of steps to the next",
    # rows
    "chunks": "of rows, for each direction",
    "bounds": "the first row of each chunk, and the end",
    "alive": "rows that each step has",
    "offset": "rows before each step",
    "order": "the line of each row in the tensors",
    # tensors
    "x": "the input", "x_steps": "to each step of it", "x_row": "from row to row",
    "y": "the output", "y_steps": "to each step of it", "y_row": "from row to row",
    "zeros": "zeros, as long as any row",
    # packed weights
    "twin": "from a vector to where the copy of its lines is kept; 0: none is",
    "trusted": "whether the vector was packed from that copy",
    "packed": "whether the arena has the packed weights already",
    # blocks of steps
    "inputs_row": "a row of direct inputs and masks, a line for each",
    "block_steps": "steps in a block",
    "scratch": "what threads work in",
    "scratch_size": "from one thread's to the next one's",
    "pre": "where in the scratch the sums of a block stand before U h",
    "chains": "where in the scratch a tile's chains are left",
    "saved_row": "a row of what is kept for the backward pass",
    "state_plane": "from one state, or its gradients, to the next",
    # backward
    "d_y": "gradients by the output", "d_y_steps": "to each step of them",
    "d_y_row": "from row to row",
    "W_lies": "panels of the columns of W, multiplied by its transpose unpacked; 0: it is packed",
    "U_lies": "of the other matrix, likewise",
    "own_size": "from one thread's OWN to the next one's; 0: all threads share them",
    "wants_x": "whether gradients by x are wanted",
    "wants_weights": "whether gradients by parameters are",
    "wants_start": "whether gradients by the states at the start are",
    "reads_y": "whether the cell's derivative reads the output",
    "adds": "whether gradients by parameters are added to what is there",
    "unpadded": "whether gradients by wide matrices are written at once as they are given",
    "clip": "the largest norm of a row's gradients by the new states; 0: any",
}  # fmt: skip

DIRECTION_WORDS: Final = {
    "reverse": "whether time runs backward",
    "y_first": "from y to this direction's units", "d_y_first": "from d_y to them",
    # parameters as they are
    "W": "the matrix of x",
    "matrices": "the others that multiply, U first",
    "W_bias": "added to W x", "U_bias": "added to U h",
    "unit_parameters_at": "where each of them is",
    # packed, padded
    "W_pack": "W in panels",
    "U_pack": "what the last phase multiplies by, in panels",
    "U_early": "what earlier phases do",
    "W_back": "W for the product with its transpose",
    "U_back": "the other matrices for theirs",
    "bias": "where the chain of each sum starts",
    "unit_values": "the parameters of one number a unit, padded",
    # for each sum
    "gate_a": "its gate's number in W; -1: none", "gate_u": "in its matrix, likewise",
    "gate_last": "of the sums of the last phase, the same",
    "matrix_last": "of these, which matrix",
    # states
    "start": "where each starts; 0: at zero", "final": "where each ends",
    "state": "their buffers", "new": "the buffer of the new output",
    "saved": "what is kept for the backward pass",
    "inputs": "direct inputs and masks of each row over all steps",
    "resets": "RESETS of the resets; 0: there are none",
    "traces": "TRACE for each state besides the output, or gradients by these; 0: not wanted",
    # backward
    "d_final": "gradients by the final states", "d_start": "by those at the start",
    "d_state": "gradients by the states, of the step at hand",
    "direct": "gradients by the old output that go past the sums",
    "x_block": "x of a block of steps",
    "old_block": "old outputs of a block", "y_block": "outputs of a block",
    "d_y_block": "gradients by these",
    "d_sums": "gradients by the sums of a block",
    "d_operand_rows": "gradients by what phases multiply, other than the old output",
    "operand_block": "these operands, of a block of steps",
    "d_x": "gradients by x",
    "d_W": "by W, in whole vectors, or unpadded",
    "d_matrices": "by the other matrices, likewise",
    "d_W_cut": "where d_W goes without what fills its vectors; 0: it is there already",
    "d_matrices_cut": "where each of d_matrices goes, likewise",
    "d_bias": "sums of gradients by sums and unit parameters over rows and steps",
    "d_W_bias": "by the bias of W", "d_U_bias": "by the bias of U",
    "d_unit_parameters_at": "where gradients by each unit parameter go",
    "d_inputs": "by direct inputs, as these lie",
    "norms": "of each row over all steps, a norm for each state; 0: not wanted",
}  # fmt: skip

RUN_WORDS: Final = {
    "line": "number of the first sum",
    "count": "how many",
    "packed_first": "of other runs that are packed before it",
    "phase": "the cell's function to call first; 0: none",
    "has_operand": "whether it multiplies what the step computed, and not the old output",
    "begins": "whether it is the first of its phase",
    "slot": "which of such operands",
    "matrix": "which one multiplies it",
    "width": "lines of that which a sum has",
    "K": "its columns",
    "blocks": "how many blocks of such lines and columns it has on its diagonal; 1: a full matrix",
}
"""Of neighbouring sums that multiply the same."""

TRACE_WORDS: Final = {
    "tensor": "where a state's sequence begins; 0: there is none",
    "step": "from step to step, or 0",
    "before": "for each row of earlier steps, or 0",
    "row": "from row to row",
}

RESETS_WORDS: Final = {
    "first": "before the i-th step reset_rows[first[i]:first[i + 1]] are reset",
    "reset_rows": "their numbers, step by step",
    "initial": "for each state where they go; 0: to zero",
    "d_initial": "sums of gradients there, padded rows of each state; 0: not wanted",
}

FUNCTION_WORDS: Final = {
    "rows": "how many rows",
    "unit_blocks": "of units, each a SIMD vector, how many",
    "start_row": "from row to row of where chains start",
    "A": "the rows that are multiplied", "A_row": "from row to row",
    "A_part": "from one part of a row to the next", "A_step": "from k to k",
    "B": "what they are multiplied by: parts x K x V vectors, or rows", "B_step": "from k to k",
    "parts": "of each row",
    "lines": "of B, how many there are",
    "C": "the product", "C_row": "from row to row",
    "ahead": "what is asked for at the first k", "ahead_step": "from there to the next k's",
    "chains_row": "from row to row of chains",
    "pre_row": "from row to row of sums",
    "old": "the old output",
    "state_row": "from row to row of a state",
    "to": "what is written",
    "widths": "unit_widths",
    "d_sums_row": "from row to row of gradients by sums",
    "d_operands": "d_operand_rows",
}  # fmt: skip
"""What stands only in the functions below."""

COMMON: Final = tuple(COMMON_WORDS)
DIRECTION: Final = tuple(DIRECTION_WORDS)
RUN: Final = tuple(RUN_WORDS)
TRACE: Final = tuple(TRACE_WORDS)
RESETS: Final = tuple(RESETS_WORDS)
OWN: Final = (
    "unit_values", "d_state", "direct", "x_block", "old_block", "operand_block", "d_operand_rows",
    "y_block", "d_y_block", "d_sums", "d_bias",
)  # fmt: skip
"""What each thread has of its own where none waits for another."""

# What functions are given that regions call by their addresses.

TILE: Final = (
    "start", "start_row", "places", "A", "A_row", "A_part", "B", "B_step", "parts", "K", "C",
    "C_row", "ahead", "ahead_step",
)  # fmt: skip
"""Of a tile, C = start + A B; at every k it asks for what lies `ahead`, so many bytes further each
time."""

LINE_TILE: Final = ("start", "start_row", "A", "A_row", "B", "lines", "zeros", "K", "C", "C_row")
"""Of a tile whose B lies as the user's: a line of K numbers for each lane, some of them there."""

ROW_TILE: Final = ("start", "start_row", "A", "B", "lines", "zeros", "K", "C", "C_row", "rows")
"""Of a tile for the same B whose lanes are rows: A[k, row] with row from number to number."""

COLUMN_TILE: Final = ("start", "start_row", "A", "A_step", "B", "B_step", "K", "C", "C_row")
"""Of a tile whose A lies the other way: A[k, r] with r from number to number."""

CELL_FORWARD: Final = (
    "rows", "unit_blocks", "chains", "chains_row", "pre", "pre_row", "old", "state", "state_row",
    "state_plane", "new", "saved", "saved_row", "unit_values", "H_row", "H", "inputs", "widths",
)  # fmt: skip
"""Of the cell's step."""

PHASE_FORWARD: Final = (
    "rows", "pre", "pre_row", "old", "state", "H_row", "state_plane", "to", "unit_values", "H",
    "inputs", "widths",
)  # fmt: skip
"""Of what computes the operand of a phase."""

CELL_BACKWARD: Final = (
    "rows", "saved", "saved_row", "y", "old", "d_y", "d_state", "state_plane", "direct", "d_sums",
    "d_sums_row", "unit_values", "H_row", "H", "d_operands", "operand_plane", "operand_block",
    "operand_block_plane", "inputs", "d_inputs", "widths",
)  # fmt: skip
"""Of the derivative of a step, or of a phase."""

ADD: Final = ("rows", "blocks", "x", "x_row", "z", "z_row", "y", "y_row")
"""Of y = x + z in a stream: vectors of a row, and where each begins."""

OPERATIONS: Final = (TILE, CELL_FORWARD, PHASE_FORWARD, ADD)
"""What functions take that a stream's program calls; an operation's kind is its number here."""

HEAD: Final = 2
"""Words of the program before its operations: how often they run, and how many there are."""

OPERATION: Final = 2 + max(map(len, OPERATIONS))
"""Words of an operation: its kind, its function's address, and what that takes."""

# What kernels of torch's dispatcher are given (kernels.py), and what they work off (program.py).

MAGIC: Final = 0x7468726F75676874  # a program's first number

PROGRAM: Final = (
    "magic", "self", "region", "words", "words_at", "arena", "in_arena", "in_arena_at", "in_block",
    "in_block_at", "places", "places_at", "inputs", "inputs_at", "outputs", "outputs_at", "weights",
    "states", "dtype", "bytes", "copied", "backward_at", "d_x", "d_hx", "d_cx", "d_weights",
    "cut_lines", "cut_line", "cut_row", "releases", "on_team", "call",
)  # fmt: skip
"""Numbers at the head of a program; `self` is its address. Lists stand behind them, each from its
number `..._at` on: the block's words as they are before a call; places of those that count from the
arena and from the block; for each address a word, a tensor and bytes from its start; how each
tensor lies (SPEC). `arena` is the bytes that the region works in, `copied` the bytes of y.
`backward_at` has the programs of backward passes, by what is wanted and given; `d_...` are numbers
of outputs, -1 of none. Lines of the first output are cut to the gradient by x, where `cut_lines` is
not 0. `releases`: whether other threads of Python may run. `on_team` takes a `call` of a team."""

SPEC: Final = ("dim", "size0", "size1", "size2", "stride0", "stride1", "stride2", "extent")
"""How a tensor lies; its extent is bytes from its first number to behind its last one."""

MOST_TENSORS: Final = 64  # that a program reads and writes

STACK: Final = (
    "input", "weight", "weight_stride0", "hx", "cx", "mode", "hidden_size", "num_layers",
    "batch_first", "dropout", "train", "bidirectional", "batch_sizes", "dropout_state",
)  # fmt: skip
"""Arguments of torch's operator `miopen_rnn`."""

GRADIENT_STACK: Final = (
    *STACK[:3], "weight_buf", "hx", "cx", "output", "grad_output", "grad_hy", "grad_cy", *STACK[5:],
    "reserve", "output_mask",
)  # fmt: skip
"""Arguments of its gradient."""

ASKED: Final = (
    "aoti_torch_get_dim", "aoti_torch_get_sizes", "aoti_torch_get_strides", "aoti_torch_get_dtype",
    "aoti_torch_get_device_type", "aoti_torch_get_storage_offset", "aoti_torch_get_storage_size",
    "aoti_torch_get_data_ptr", "aoti_torch_is_defined", "aoti_torch_is_contiguous",
    "aoti_torch_empty_strided", "aoti_torch_new_uninitialized_tensor", "aoti_torch_copy_",
    "aoti_torch_delete_tensor_object", "torch_delete_stable_ivalue", "torch_new_list_reserve_size",
    "torch_list_size", "torch_list_get_item", "torch_list_push_back", "torch_delete_list",
    "aoti_torch_grad_mode_is_enabled", "_ZN3c104impl20TorchDispatchModeTLS13any_modes_setEb",
    "aoti_torch_new_tensor_handle", "aoti_torch_check", "malloc", "free", "PyLong_AsLongLong",
    "PyTuple_New", "PyTuple_SetItem", "Py_IncRef", "PyEval_SaveThread", "PyEval_RestoreThread",
    "_Z16THPVariable_WrapRKN2at10TensorBaseE",
)  # fmt: skip
"""Functions in the kernels' table; behind them what carries in Python, two texts, OBJECTS."""

OBJECTS: Final = ("handle", "kind", "tensor", "parameter", "none")
"""Bytes from a tensor's object to its handle and to its class; two classes, and Python's None."""

IN_PYTHON: Final = ("status", "d_x", "d_hx", "d_cx", "d_weights", "text")
"""What Python leaves of a backward pass: results if the status is 1, else the text of an error."""
