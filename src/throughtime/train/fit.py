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

from throughtime.tasks import find
from throughtime.train.checkpoint import read_checkpoint
from throughtime.train.journal import Journal
from throughtime.train.keeper import Keeper, early_stopping
from throughtime.train.module import Learner
from throughtime.train.optimizer import step_seed
from throughtime.train.progress import Shown, close_log, open_log
from throughtime.train.run import Run, locked
from throughtime.train.weights import write_weights


def fit(run: Run) -> nn.Module:
    """Trains a run to its end and returns the model with its best weights.

    A run that has a checkpoint goes on from it, to the weights it would have had without the
    break, bit for bit; one that has ended is read back.

    Raises:
        RunError: the folder is in use or damaged, or the loss became NaN.
    """
    with locked(run.folder), _threads(run.recipe.threads), _quiet(), _own_interrupts():
        state = read_checkpoint(run)
        task = find(run.recipe.task)(run.recipe)
        torch.manual_seed(step_seed(run.recipe.seed, -1))
        keeper = Keeper(run, early_stopping(task.monitor, run.recipe.patience))
        with closing(Journal(run.metrics, state and state["journal"])) as journal:
            learner = Learner(task, task.model(), journal)
            if state is not None:
                keeper.restore(learner, state)
            _train(run, learner, keeper)
        weights = keeper.best_weights()
        learner.model.load_state_dict(weights)
        write_weights(run, weights)
        return learner.model.eval()


def _train(run: Run, learner: Learner, keeper: Keeper) -> None:
    log = open_log(run)
    try:
        log.info(
            "%s at step %d of %d in %s",
            "resumed" if learner.done else "started",
            learner.done,
            run.recipe.steps,
            run.folder,
        )
        if not keeper.finished:
            _trainer(run, learner, [keeper.stopping, Shown(run, log), keeper]).fit(learner)
        log.info("ended at step %d; best validation at step %d", learner.done, keeper.best["step"])
    except SystemExit:  # what Lightning makes of Ctrl-C
        log.info(
            "stopped at step %d; go on with: throughtime train %s --resume --out %s",
            learner.done,
            run.recipe.task,
            run.folder,
        )
        raise KeyboardInterrupt from None
    finally:
        close_log(log)


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
