"""The short way: what plain calls of one layer have in common is prepared, shape by shape.

Nothing here knows lengths of padded rows, resets, masks, traces, norms, segments or queues. A call
that has one of them, or a tensor that needs more than one comparison, goes the long way
(forward_pass.py), to the same code and the same bits.
"""

from throughtime.backends.cpu.short.gradients import Derivative as Derivative
from throughtime.backends.cpu.short.layer import BatchForm as BatchForm
from throughtime.backends.cpu.short.layer import ShortLayer as ShortLayer
from throughtime.backends.cpu.short.layer import Way as Way
from throughtime.backends.cpu.short.layer import find_way as find_way
from throughtime.backends.cpu.short.layer import prepare as prepare
