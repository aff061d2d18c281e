"""The one operator: a cell carried through a whole batch of sequences.

Three layers (docs/operator.md says why the obvious ways fail):
    operator.py  the raw ops, opaque to autograd and to the compiler; autocast ends there
    autograd.py  the autograd functions over them
    dispatch.py  the front door, in plain Python: what every layer calls
    segments.py  the same, segment after segment of time, for training in little memory
    short.py     one autograd node for the small plain calls that a layer has prepared
"""

from throughtime.scan.dispatch import scan as scan
from throughtime.scan.segments import scan_in_segments as scan_in_segments
