"""A direction of a call in pieces of time, and its results put together again."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from torch import Tensor

from throughtime.backends.call import Call


class Joined:
    """Tensors (steps, ...) of segments, put into those of all steps as they come.

    Args:
        steps: T.

    Attributes:
        whole: of all steps, each (T, ...).
    """

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self.whole: list[Tensor] = []

    def put(self, first: int, parts: Collection[Tensor]) -> None:
        """The parts of the segment that begins at step `first`."""
        if not self.whole:
            self.whole = [v.new_empty((self._steps, *v.shape[1:])) for v in parts]
        for whole, v in zip(self.whole, parts, strict=True):
            whole[first : first + len(v)] = v


def segments(call: Call, every: int) -> Iterator[tuple[int, Call]]:
    """The first step and the call of each piece of time, without the state it starts from."""
    x = call.x.split(every)
    inputs = {n: v.split(every) for n, v in (call.inputs or {}).items()}
    reset = None if call.reset is None else call.reset.split(every)
    zoneout = None if call.zoneout is None else [v.split(every, 1) for v in call.zoneout]
    for i, part in enumerate(x):
        lengths = call.lengths
        if lengths is not None:
            lengths = (lengths - i * every).clamp(0, len(part))
        yield i * every, call._replace(
            x=part, inputs={n: v[i] for n, v in inputs.items()}, lengths=lengths,
            reset=None if reset is None else reset[i],
            norms=None if call.norms is None else call.norms[i * every : i * every + len(part)],
            zoneout=None if zoneout is None else tuple(v[i] for v in zoneout),
        )  # fmt: skip
