"""A run trained from its beginning, or from its last checkpoint: kept, and seen as it trains.

Rows of metrics.jsonl, none twice after a resume; checkpoints, the best weights, and patience. For
people a progress bar, and lines on the terminal that log.txt has too.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from throughtime.errors import RunError
from throughtime.tasks import Task, find
from throughtime.tasks.recipe import Recipe
from throughtime.train.learner import (
    Best,
    Learner,
    Patience,
    Watcher,
    begin_model,
    learning_rate,
    train,
)
from throughtime.train.run import Run, check_memory, lock
from throughtime.train.storage import (
    State,
    check_checkpoint,
    check_finite,
    has_ended,
    read_checkpoint,
    write_checkpoint,
    write_weights,
)
from throughtime.train.world import World


@dataclass
class SinceLastRow:
    """What was seen since the last row."""

    steps: int = 0
    clipped: int = 0
    loss: float = 0.0
    norm: float = 0.0

    def add(self, loss: float, norm: float, clipped: bool) -> None:
        self.steps += 1
        self.clipped += clipped
        self.loss += loss
        self.norm += norm

    def means(self) -> dict[str, float]:
        """Loss in nats, gradient norm before clipping, share of steps that were clipped."""
        loss, norm = self.loss / self.steps, self.norm / self.steps
        return {"loss": loss, "gradient_norm": norm, "clipped_share": self.clipped / self.steps}


@dataclass
class Clock:
    """Seconds of wall and of processor that went into a run, over all its processes."""

    wall_before: float = 0.0
    cpu_before: float = 0.0
    _wall: float = field(default_factory=time.perf_counter)
    _cpu: float = field(default_factory=time.process_time)

    def seconds(self) -> dict[str, float]:
        wall = self.wall_before + time.perf_counter() - self._wall
        cpu = self.cpu_before + time.process_time() - self._cpu
        return {"wall_seconds": round(wall, 3), "cpu_seconds": round(cpu, 3)}


class Journal:
    """The open metrics.jsonl of a run; its state goes into the checkpoint."""

    def __init__(self, path: Path, state: dict[str, Any] | None = None) -> None:
        state = state or {"bytes": 0, "window": {}, "wall": 0.0, "cpu": 0.0}
        self.window = SinceLastRow(**state["window"])
        self.clock = Clock(state["wall"], state["cpu"])
        self._file = path.open("ab")
        if self._file.tell() < state["bytes"]:
            self._file.close()
            raise RunError(
                f"{path} must have at least the {state['bytes']} bytes that were there when the "
                "checkpoint was written, and it has fewer; restore it, or train again elsewhere"
            )
        self._file.truncate(state["bytes"])

    def row(self, **values: Any) -> None:
        """Appends one row, with the seconds that went into the run so far."""
        self._file.write((json.dumps(values | self.clock.seconds()) + "\n").encode())
        self._file.flush()

    def steps_row(self, step: int, lr: float) -> None:
        """Appends the means since the last such row."""
        self.row(step=step, lr=lr, **self.window.means())
        self.window = SinceLastRow()

    def state(self) -> dict[str, Any]:
        """Where the file ends now, what waits for the next row, and the seconds."""
        os.fsync(self._file.fileno())
        clock = self.clock.seconds()
        return {
            "bytes": self._file.tell(),
            "window": asdict(self.window),
            "wall": clock["wall_seconds"],
            "cpu": clock["cpu_seconds"],
        }

    def close(self) -> None:
        self._file.close()


CURE = "train again with a lower --lr or with --clip norm"
_CURE = f"; {CURE}; the last checkpoint is kept"


def collect_state(learner: Learner, stopping: Patience) -> State:
    """The state of a learner: what a checkpoint has of it, and what all processes begin with."""
    return {
        "step": learner.done,
        "model": learner.model.state_dict(),
        "optimizer": learner.optimizer.state_dict(),
        "stopping": {"waited": stopping.waited, "lowest": stopping.lowest},
    }


def restore_state(state: State, learner: Learner, stopping: Patience) -> None:
    """Gives a learner the state of another one."""
    learner.model.load_state_dict(state["model"])
    learner.optimizer.load_state_dict(state["optimizer"])
    learner.done = state["step"]
    stopping.waited, stopping.lowest = state["stopping"]["waited"], state["stopping"]["lowest"]


class Keeper(Watcher):
    """Writes rows, and checkpoints every so many steps and after (never before) a validation.

    A checkpoint written where a validation is due, but before it, would skip it on resume. What
    may end the run, `stopping`, looks at a validation before the keeper does.
    """

    def __init__(self, run: Run, journal: Journal, stopping: Patience) -> None:
        self.run, self.journal, self.stopping = run, journal, stopping
        self.best, self.finished = Best(), False
        self.more_steps: Recipe | None = None  # the recipe that a run with more steps had before

    def after_step(self, learner: Learner) -> None:
        recipe, done = self.run.recipe, learner.done
        self.journal.window.add(learner.loss, learner.norm, learner.clipped)
        last = done == recipe.steps
        if done % recipe.log_every == 0 or last:
            self.journal.steps_row(done, learning_rate(recipe, done - 1))
        validation_follows = done % recipe.validate_every == 0 or last
        if done % recipe.checkpoint_every == 0 and not validation_follows:
            self._write(learner)

    def after_validation(self, learner: Learner, metrics: Mapping[str, float]) -> None:
        self.journal.row(step=learner.done, split="validation", **metrics)
        self.best.see(metrics[self.stopping.monitor], learner)
        self.finished = self.stopping.enough or learner.done >= self.run.recipe.steps
        self._write(learner)

    def _write(self, learner: Learner) -> None:
        """Writes what is finite alone, so that the checkpoint before stays where it is not."""
        where = f"the model after step {learner.done}"
        check_finite(learner.model.state_dict(), where, f"{CURE}; the last checkpoint is kept")
        rest = {
            "best": vars(self.best), "journal": self.journal.state(), "finished": self.finished
        }  # fmt: skip
        write_checkpoint(self.run, collect_state(learner, self.stopping) | rest)

    def restore(self, learner: Learner, state: State) -> None:
        """Puts everything back as it was when `state`, which was checked, was written.

        Where the run has more steps or patience since, what ended it may end it no longer.
        """
        recipe, written = self.run.recipe, replace(self.run.recipe, **state["recipe"])
        restore_state(state, learner, self.stopping)
        self.best, self.finished = Best(**state["best"]), state["finished"]
        if written.steps < recipe.steps:
            self.more_steps = written
        if has_ended(written, state) and not has_ended(recipe, state):
            self.finished = False

    def best_weights(self) -> dict[str, Tensor]:
        """The weights of the best validation.

        Raises:
            RunError: every figure of every validation was NaN or infinite.
        """
        if not self.best.weights:
            raise RunError(
                f"the {self.stopping.monitor} of a validation must be finite once, and it never "
                f"was in {self.run.folder}; {CURE}"
            )
        return self.best.weights


def fit(run: Run, watchers: Sequence[Watcher] = (), world: World | None = None) -> nn.Module:
    """Trains a run to its end and returns the model with its best weights.

    A run that has a checkpoint goes on from it, to the weights it would have had without the
    break, bit for bit; one that has ended is read back.

    Args:
        run: the folder, with the recipe in it.
        watchers: what looks on besides what keeps and shows the run.
        world: the processes that train it, of which this is the first; the others `follow`.

    Raises:
        RunError: the folder is in use, damaged or full, the loss became NaN, or a process is lost.
        OptionError: the model is too large for this machine.
    """
    task = find(run.recipe.task)(run.recipe)
    check_memory(task)
    with _explain_disk(run), lock(run.folder), _compute_with(run.recipe.threads):
        model = _fit(run, task, watchers, world or World())
    return model.eval()


def follow(world: World) -> None:
    """What a process does that is not the first: it learns along, and keeps nothing."""
    recipe = world.from_first(_refuse)
    task = find(recipe.task)(recipe)
    with _compute_with(recipe.threads):
        learner = Learner(task, begin_model(task), _CURE, world)
        stopping = Patience(task.monitor, recipe.patience)
        begun = world.from_first(_refuse)
        restore_state(begun, learner, stopping)
        if not begun["finished"]:
            learner.check_world()
            train(learner, [stopping])


def _refuse() -> Any:
    raise AssertionError("the first process alone is asked")


def _fit(run: Run, task: Task, watchers: Sequence[Watcher], world: World) -> nn.Module:
    world.from_first(lambda: run.recipe)
    state = read_checkpoint(run)
    model = begin_model(task)
    if state is not None:
        check_checkpoint(run, state, model)
    with closing(Journal(run.metrics, state and state["journal"])) as journal:
        learner = Learner(task, model, _CURE, world)
        keeper = Keeper(run, journal, Patience(task.monitor, run.recipe.patience))
        if state is not None:
            keeper.restore(learner, state)
        begun = collect_state(learner, keeper.stopping) | {"finished": keeper.finished}
        world.from_first(lambda: begun)
        if not keeper.finished:
            learner.check_world()
        _go_on(run, learner, keeper, watchers)
    weights = keeper.best_weights()
    model.load_state_dict(weights)
    write_weights(run, weights)
    return model


def _go_on(run: Run, learner: Learner, keeper: Keeper, watchers: Sequence[Watcher]) -> None:
    """Trains what is left of a run, and logs it."""
    with open_log(run) as log:
        begun = "resumed" if learner.done else "started"
        log.info("%s at step %d of %d in %s", begun, learner.done, run.recipe.steps, run.folder)
        if (size := learner.world.size) > 1:
            log.info("%d processes of %d threads each", size, torch.get_num_threads())
            if size > learner.parts:
                log.info(_IDLE, size - learner.parts, size, learner.parts, size)
        if keeper.more_steps is not None:
            log.info("%s", _describe_rate(keeper.more_steps, run.recipe, learner.done))
        for one in watchers:
            one.begin(keeper.journal, log)
        try:
            if not keeper.finished:
                shown = Shown(run, log, keeper.journal, learner.done)
                with shown.bar:
                    train(learner, [*watchers, keeper.stopping, shown, keeper])
        except KeyboardInterrupt:
            log.info("stopped at step %d; go on with: %s", learner.done, run.resume)
            raise
        log.info("ended at step %d; best validation at step %d", learner.done, keeper.best.step)


_IDLE = (
    "%d of %d processes have nothing to compute, since a batch has %d parts, which keep the bits "
    "of this run; --parts %d gives each of them one, and from there on other bits"
)


def _describe_rate(before: Recipe, recipe: Recipe, step: int) -> str:
    """What more steps than the run began with do to its learning rate."""
    old, new = learning_rate(before, max(0, step - 1)), learning_rate(recipe, step)
    text = f"it goes on to step {recipe.steps}, where it was to end at {before.steps}; "
    if recipe.schedule == "constant":
        return f"{text}the learning rate stays {new:.3g}"
    return (
        f"{text}from here the learning rate follows the {recipe.schedule} over {recipe.steps} "
        f"steps, {new:.3g} after {old:.3g}, so that the weights will be others than those of a "
        f"run that had {recipe.steps} steps from its beginning"
    )


@contextmanager
def _explain_disk(run: Run) -> Iterator[None]:
    """What the disk refuses is one sentence; what was written before stays."""
    try:
        yield
    except OSError as error:
        kept = "the last checkpoint is kept: " if run.checkpoint.exists() else ""
        raise RunError(
            f"{error.filename or run.folder} must take what training writes, and it does not "
            f"({error.strerror or error}); {kept}see that it can, then go on with: {run.resume}"
        ) from error


@contextmanager
def _compute_with(wanted: int) -> Iterator[None]:
    """Computes with this many threads: their number is part of what the bits depend on."""
    before = torch.get_num_threads()
    torch.set_num_threads(wanted or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Shown(Watcher):
    """A progress bar over the whole run, and a line for every validation."""

    def __init__(self, run: Run, log: logging.Logger, journal: Journal, done: int) -> None:
        self.run, self.lines, self.journal = run, log, journal
        console = Console(stderr=True)
        self.bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
            TimeRemainingColumn(), TextColumn("loss {task.fields[loss]:.3f}"),
            console=console, disable=not console.is_terminal,
        )  # fmt: skip
        steps, nan = run.recipe.steps, float("nan")
        self.row = self.bar.add_task("training", total=steps, completed=done, loss=nan)

    def after_step(self, learner: Learner) -> None:
        if not self.bar.disable:
            self.bar.update(self.row, completed=learner.done, loss=learner.loss)

    def after_validation(self, learner: Learner, metrics: Mapping[str, float]) -> None:
        figures = " ".join(f"{name} {learner.task.format_metric(v)}" for name, v in metrics.items())
        seconds, steps = self.journal.clock.seconds()["wall_seconds"], self.run.recipe.steps
        text = "step %d/%d  loss %.3f  validation: %s  %.0f s"
        self.lines.info(text, learner.done, steps, learner.loss, figures, seconds)


class _LogFile(logging.FileHandler):
    """A log file whose errors are raised; logging would print a traceback."""

    def handleError(self, record: logging.LogRecord) -> None:
        raise  # what arose while writing


@contextmanager
def open_log(run: Run) -> Iterator[logging.Logger]:
    """A logger to log.txt and to the terminal's error channel."""
    log = logging.getLogger(f"throughtime.run.{run.folder.name}")
    log.setLevel(logging.INFO)
    log.propagate = False
    _close(log)
    file = _LogFile(run.log, encoding="utf-8", errors="backslashreplace")
    file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log.addHandler(file)
    log.addHandler(logging.StreamHandler())
    try:
        yield log
    finally:
        _close(log)


def _close(log: logging.Logger) -> None:
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()
