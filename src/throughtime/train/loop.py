"""Training a run to its end, from its beginning or from its last checkpoint."""

from __future__ import annotations

import logging
import math
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytorch_lightning as pl
import torch
from torch import nn

from throughtime.errors import RunError
from throughtime.tasks import Task, find
from throughtime.tasks.recipe import Recipe
from throughtime.train.begin import check_memory
from throughtime.train.journal import Journal
from throughtime.train.learner import Keeper, Learner, Shown, close_log, early_stopping, open_log
from throughtime.train.run import Run, locked
from throughtime.train.step import learning_rate, step_seed
from throughtime.train.storage import check_checkpoint, read_checkpoint, write_weights


def fit(run: Run) -> nn.Module:
    """Trains a run to its end and returns the model with its best weights.

    A run that has a checkpoint goes on from it, to the weights it would have had without the
    break, bit for bit; one that has ended is read back.

    Raises:
        RunError: the folder is in use, damaged or full, or the loss became NaN.
        OptionError: the model is too large for this machine.
    """
    task = find(run.recipe.task)(run.recipe)
    check_memory(task)
    with _told_of_the_disk(run), locked(run.folder), _threads(run.recipe.threads), _quiet():
        with _own_interrupts():
            model = _fit(run, task)
    return model.eval()


def _fit(run: Run, task: Task) -> nn.Module:
    state = read_checkpoint(run)
    torch.manual_seed(step_seed(run.recipe.seed, -1))
    model = task.model()
    keeper = Keeper(run, early_stopping(task.monitor, run.recipe.patience))
    if state is not None:
        check_checkpoint(run, state, model, keeper.stopping.state_dict())
    with closing(Journal(run.metrics, state and state["journal"])) as journal:
        learner = Learner(task, model, journal)
        if state is not None:
            keeper.restore(learner, state)
        _train(run, learner, keeper)
    weights = keeper.best_weights()
    model.load_state_dict(weights)
    write_weights(run, weights)
    return model


def _train(run: Run, learner: Learner, keeper: Keeper) -> None:
    log = open_log(run)
    try:
        begun = "resumed" if learner.done else "started"
        log.info("%s at step %d of %d in %s", begun, learner.done, run.recipe.steps, run.folder)
        if keeper.more_steps is not None:
            log.info("%s", _rate_from_here(keeper.more_steps, run.recipe, learner.done))
        if not keeper.finished:
            _trainer(run, learner, [keeper.stopping, Shown(run, log), keeper]).fit(learner)
        log.info("ended at step %d; best validation at step %d", learner.done, keeper.best["step"])
    except SystemExit:  # what Lightning makes of Ctrl-C
        log.info("stopped at step %d; go on with: %s", learner.done, run.resume)
        raise KeyboardInterrupt from None
    finally:
        close_log(log)


def _rate_from_here(before: Recipe, recipe: Recipe, step: int) -> str:
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
def _told_of_the_disk(run: Run) -> Iterator[None]:
    """What the disk refuses is one sentence; what was written before stays."""
    try:
        yield
    except OSError as error:
        raise RunError(
            f"{error.filename or run.folder} must take what training writes, and it does not "
            f"({error.strerror or error}); the last checkpoint is kept: see that it can, then go "
            f"on with: {run.resume}"
        ) from error


def _trainer(run: Run, learner: Learner, callbacks: list[pl.Callback]) -> pl.Trainer:
    """One of Lightning's epochs is the steps from one validation to the next."""
    every = run.recipe.validate_every
    return pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=math.ceil(run.recipe.steps / every) - learner.done // every,
        num_sanity_val_steps=0,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,  # the keeper's are written whole and resume to the same bits
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=run.folder,
    )


@contextmanager
def _own_interrupts() -> Iterator[None]:
    """Gives Ctrl-C back to the program: Lightning switches it off when it sees one."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)


@contextmanager
def _threads(wanted: int) -> Iterator[None]:
    """Computes with this many threads: their number is part of what the bits depend on."""
    before = torch.get_num_threads()
    torch.set_num_threads(wanted or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Lightning's remarks about its own options off the screen."""
    log = logging.getLogger("pytorch_lightning")
    before = log.level
    log.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pytorch_lightning")
        warnings.filterwarnings("ignore", module="lightning_utilities")
        try:
            yield
        finally:
            log.setLevel(before)
