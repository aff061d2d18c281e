"""The main job in small: a fortieth of the dictionary, one tiny run that was trained to its end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.main_job.small import TINY, small_dictionary
from throughtime.tasks.recipe import Recipe
from throughtime.train.run import Run, create


@pytest.fixture(scope="module")
def dictionary_in_small() -> Iterator[None]:
    """The task reads every fortieth line of the dictionary."""
    with small_dictionary():
        yield


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that was trained to its end, of a model that has learned next to nothing."""
    from throughtime.train.loop import fit

    run = create(tmp_path_factory.mktemp("runs") / "tiny", Recipe(**TINY))
    with small_dictionary():
        fit(run)
    return run


@pytest.fixture
def copied_run(trained_run: Run, tmp_path: Path) -> Run:
    """A copy of that run which a test may damage."""
    from shutil import copytree

    return Run(Path(copytree(trained_run.folder, tmp_path / "copy")), trained_run.recipe)
