"""The one operator: a cell carried through a whole batch of sequences.

Three layers (docs/operator.md says why the obvious ways fail):
    raw.py       two raw ops, opaque to autograd and to the compiler
    autocast.py  where autocast ends
    function.py  the autograd functions over them
    door.py      the front door, in plain Python: what every layer calls
    segments.py  the same, segment after segment of time, for training in little memory; by
    segmented.py its autograd function, with cut.py and turned.py
"""

from throughtime.scan.dispatch import scan as scan
from throughtime.scan.segments import scan_in_segments as scan_in_segments
