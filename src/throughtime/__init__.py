"""Recurrent networks for PyTorch, compiled from their textbook equations."""

from throughtime import environment as environment

# isort: split
from throughtime import cells as cells
from throughtime import compat as compat
from throughtime import export as export
from throughtime import train as train
from throughtime.cells import Cell as Cell
from throughtime.diagnosis.cure import cure
from throughtime.diagnosis.measure import diagnose
from throughtime.diagnosis.quantities.probe import probe
from throughtime.environment import __version__ as __version__
from throughtime.laws import check as check
from throughtime.layers import Recurrent as Recurrent
from throughtime.layers.drop_in import GRU as GRU
from throughtime.layers.drop_in import LSTM as LSTM
from throughtime.layers.drop_in import RNN as RNN
from throughtime.layers.drop_in.cells import GRUCell as GRUCell
from throughtime.layers.drop_in.cells import LSTMCell as LSTMCell
from throughtime.layers.drop_in.cells import RNNCell as RNNCell
from throughtime.layers.drop_in.convert import from_torch as from_torch
from throughtime.layers.drop_in.convert import to_torch as to_torch
from throughtime.layers.initialise import initialise as initialise
from throughtime.layers.options import Gate as Gate
from throughtime.layers.options import Readout as Readout
from throughtime.layers.stream import Stream as Stream
from throughtime.layers.through_time import unroll as unroll
from throughtime.train import load as load
from throughtime.uclip import UClip as UClip

__all__ = [
    "Cell", "GRU", "GRUCell", "Gate", "LSTM", "LSTMCell", "RNN", "RNNCell", "Readout", "Recurrent",
    "Stream", "UClip", "__version__", "cells", "check", "compat", "cure", "diagnose", "export",
    "from_torch", "initialise", "load", "probe", "to_torch", "train", "unroll",
]  # fmt: skip
