"""Constants of an object: lines padded to whole vectors, matrices packed as the sums read them."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir

from throughtime.export.program import Values
from throughtime.export.weights import halves, narrowed

_LINE = 64


def padded(count: int, lanes: int) -> int:
    """So many numbers in whole vectors."""
    return -(-count // lanes) * lanes


class Constants:
    """Writes constants into a module.

    Args:
        module: where they go.
        lanes: of a vector.
        weights: how matrices are kept.
    """

    def __init__(self, module: ir.Module, lanes: int, weights: str) -> None:
        self.module, self.lanes, self.weights = module, lanes, weights
        self._count = 0

    def table(self, values: np.ndarray[Any, Any], name: str = "") -> Any:
        """A constant of these numbers, of their own kind; it begins at a cache line."""
        kind = ir.ArrayType(ir.IntType(8), values.nbytes)
        data = bytearray(np.ascontiguousarray(values).tobytes())
        found = ir.GlobalVariable(self.module, kind, name or f"table_{self._count}")
        self._count += 1
        found.initializer = ir.Constant(kind, data)
        found.global_constant = True
        found.linkage = "internal"
        found.align = _LINE
        return found

    def lines(self, values: Values) -> Any:
        """(lines, size) as float32, zeros behind each line."""
        wide = np.zeros((len(values), padded(values.shape[1], self.lanes)), np.float32)
        wide[:, : values.shape[1]] = values
        return self.table(wide)

    def packed(self, matrices: list[Values]) -> tuple[Any, Any]:
        """Matrices of as many columns, column by column, their lines side by side in vectors.

        Returns:
            The weights, (columns, vectors, lanes), and int8's scales, (vectors, lanes), or None.
        """
        if self.weights == "int8":
            narrow = [narrowed(m) for m in matrices]
            whole = np.concatenate([self._rows(n.whole) for n in narrow]).T
            scales = np.concatenate([self._rows(n.scale[:, None]) for n in narrow])
            return self.table(whole), self.table(scales.astype(np.float32))
        rows = np.concatenate([self._rows(m) for m in matrices]).T
        return self.table(halves(rows) if self.weights == "bfloat16" else rows), None

    def plain(self, table: Values) -> tuple[Any, Any]:
        """A table of lines that are looked up: each padded to whole vectors."""
        scale = None
        values: np.ndarray[Any, Any] = table
        if self.weights == "int8":
            narrow = narrowed(table)
            values, scale = narrow.whole, self.table(narrow.scale)
        wide = np.zeros((len(table), padded(table.shape[1], self.lanes)), values.dtype)
        wide[:, : table.shape[1]] = values
        return self.table(halves(wide) if self.weights == "bfloat16" else wide), scale

    def _rows(self, matrix: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The lines, and lines of zeros that fill the last vector."""
        found = np.zeros((padded(len(matrix), self.lanes), matrix.shape[1]), matrix.dtype)
        found[: len(matrix)] = matrix
        return found

    @property
    def bytes(self) -> int:
        """Of one weight."""
        return {"float32": 4, "bfloat16": 2, "int8": 1}[self.weights]
