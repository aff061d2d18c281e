"""Recurrent networks for PyTorch, compiled from their textbook equations."""

from throughtime import cells as cells
from throughtime.cells import Cell as Cell
from throughtime.layers.recurrent import Recurrent as Recurrent
from throughtime.version import __version__ as __version__

__all__ = ["Cell", "Recurrent", "__version__", "cells"]
