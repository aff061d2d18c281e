"""A graph of ONNX while it is written: nodes, constants, and names that never meet."""

from __future__ import annotations

from typing import Any

import numpy as np

from throughtime.errors import missing_extra


def onnx_package() -> Any:
    """The package onnx.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        import onnx
    except ModuleNotFoundError as error:
        raise missing_extra("onnx", "export") from error
    return onnx


class OnnxGraph:
    """Nodes and constants of one graph.

    Args:
        outer: the graph around it, whose names it may read and must not use again.
    """

    def __init__(self, outer: OnnxGraph | None = None) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self._taken: set[str] = outer._taken if outer else set()
        self._known: dict[bytes, str] = {}

    def name(self, word: str) -> str:
        """A new name."""
        free, count = word, 2
        while free in self._taken:
            free, count = f"{word}_{count}", count + 1
        self._taken.add(free)
        return free

    def constant(self, values: Any, word: str = "c") -> str:
        """A constant, the same one for equal values."""
        array = np.asarray(values)
        array = array.astype(np.float32) if array.dtype == np.float64 else array
        key = repr((array.dtype, array.shape)).encode() + array.tobytes()
        if key not in self._known:
            name = self._known[key] = self.name(word)
            self.constants.append(onnx_package().numpy_helper.from_array(array, name))
        return self._known[key]

    def add(
        self, op: str, *inputs: str, outputs: int = 1, word: str = "t", **attributes: Any
    ) -> Any:
        """A node; gives the name of its output, or the names of several."""
        names = [self.name(word) for _ in range(outputs)]
        node = onnx_package().helper.make_node(
            op, list(inputs), names, name=self.name(f"{op}_node"), **attributes
        )
        self.nodes.append(node)
        return names[0] if outputs == 1 else names
