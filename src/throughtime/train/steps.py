"""The loader: batches by the number of their step, up to the next validation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from throughtime.tasks import Task
from throughtime.tasks.task import Batch


class Steps:
    """The batches from the present step to the next validation, anew each time it is iterated.

    Which batch a step gets is decided by (seed, epoch, step) and by nothing that happened before,
    so a run that was killed goes on with the batch it would have had.
    """

    def __init__(self, task: Task, present: Callable[[], int]) -> None:
        self._task = task
        self._present = present
        self._epoch = -1
        self._batches: Sequence[Batch] = ()

    def __iter__(self) -> Iterator[Batch]:
        recipe = self._task.recipe
        first = self._present()
        last = first - first % recipe.validate_every + recipe.validate_every
        for step in range(first, min(last, recipe.steps)):
            yield self.batch(step)

    def batch(self, step: int) -> Batch:
        """The batch of step 0, 1, ...; every pass over the data has the same number of steps."""
        if self._epoch < 0:
            self._turn_to(0)
        epoch, place = divmod(step, len(self._batches))
        if epoch != self._epoch:
            self._turn_to(epoch)
        return self._batches[place]

    def _turn_to(self, epoch: int) -> None:
        self._epoch, self._batches = epoch, self._task.epoch(epoch)
