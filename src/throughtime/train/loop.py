"""The one training loop, and a run trained with it from its beginning or its last checkpoint.

People see it as it trains: a progress bar, and lines on the terminal that log.txt has too.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from throughtime.errors import RunError
from throughtime.tasks import Task, find
from throughtime.tasks.recipe import Recipe
from throughtime.train.begin import check_memory
from throughtime.train.keeper import CURE, Journal, Keeper, Patience, collect_state, restore_state
from throughtime.train.learner import Learner, Watcher
from throughtime.train.run import Run, lock
from throughtime.train.step import learning_rate, step_seed
from throughtime.train.storage import check_checkpoint, read_checkpoint, write_weights
from throughtime.train.world import World

_CURE = f"; {CURE}; the last checkpoint is kept"


def train(learner: Learner, watchers: Sequence[Watcher]) -> None:
    """Trains to the last step, or to the first validation at which a watcher has had enough."""
    recipe = learner.task.recipe
    while learner.done < recipe.steps:
        for one in watchers:
            one.before_step(learner)
        learner.step()
        for one in watchers:
            one.after_step(learner)
        if learner.done % recipe.validate_every == 0 or learner.done == recipe.steps:
            metrics = learner.score("validation")
            for one in watchers:
                one.after_validation(learner, metrics)
            if any(one.enough for one in watchers):
                break


def begin_model(task: Task) -> nn.Module:
    """The model of a task with the initial weights of its recipe."""
    torch.manual_seed(step_seed(task.recipe.seed, -1))
    return task.model()


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
        raise RunError(
            f"{error.filename or run.folder} must take what training writes, and it does not "
            f"({error.strerror or error}); the last checkpoint is kept: see that it can, then go "
            f"on with: {run.resume}"
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
    """A progress bar over the whole run, and a line for every validation.

    Args:
        run: which.
        log: where the lines go.
        journal: knows the seconds.
        done: steps taken.
    """

    def __init__(self, run: Run, log: logging.Logger, journal: Journal, done: int) -> None:
        self.run, self.lines, self.journal = run, log, journal
        console = Console(stderr=True)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("loss {task.fields[loss]:.3f}"),
            console=console,
            disable=not console.is_terminal,
        )
        steps, nan = run.recipe.steps, float("nan")
        self.row = self.bar.add_task("training", total=steps, completed=done, loss=nan)

    def after_step(self, learner: Learner) -> None:
        if not self.bar.disable:
            self.bar.update(self.row, completed=learner.done, loss=learner.loss)

    def after_validation(self, learner: Learner, metrics: Mapping[str, float]) -> None:
        figures = " ".join(f"{name} {learner.task.format_metric(v)}" for name, v in metrics.items())
        self.lines.info(
            "step %d/%d  loss %.3f  validation: %s  %.0f s",
            learner.done,
            self.run.recipe.steps,
            learner.loss,
            figures,
            self.journal.clock.seconds()["wall_seconds"],
        )


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
