"""`throughtime diagnose RUN` and `FILE.py:model`: how far back a model learns and remembers."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

import throughtime
from throughtime.cli.shown import keep_page, keep_report, report_run
from throughtime.diagnosis.observe import batches as stages
from throughtime.diagnosis.report import Report
from throughtime.errors import OptionError, ThroughtimeError
from throughtime.tasks.recipe import did_you_mean, execute, report_line

if TYPE_CHECKING:
    from throughtime.cli import Commands

_FILE = re.compile(r"(?P<file>.+\.py)(?::(?P<name>\w+))?")


def register(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add("diagnose", diagnose)
    parser.add_argument(
        "model", metavar="MODEL",
        help="The folder of a finished run, or FILE.py:MODEL: a Python file, which is executed, "
        "and which defines a model of that name, `batches`, and where they are wanted `loss`, "
        "`lag`, `clip`, `truncation` and `before`, as throughtime.diagnose takes them.",
    )  # fmt: skip
    parser.add_number("--lag", None, "Steps back that the task needs. Default: the sequence.")
    parser.add_number(
        "--clip",
        None,
        "The norm at which training clips the gradient. Default: the run's.",
        "FLOAT",
        whole=False,
    )
    parser.add_number(
        "--truncation", None, "Steps over which training back-propagates. Default: all."
    )
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER",
        help="Folder of report.json and report.html. Default: beside the model.",
    )  # fmt: skip


def diagnose(
    model: str, lag: int | None, clip: float | None, truncation: int | None, out: Path | None
) -> None:
    """Measure how far back a model learns and remembers, and what would change it."""
    form = _FILE.fullmatch(model)
    how = {"lag": lag, "clip": clip, "truncation": truncation}
    how = {name: value for name, value in how.items() if value is not None}
    if form is None:
        _diagnose_run(Path(model), how, out)
    else:
        file = Path(form["file"]).absolute()  # what it executes may go to another folder
        report = _diagnose_file(file, form["name"] or "model", how)
        print(f"{report}\n")
        keep_report(report, out or file.parent)


def _diagnose_run(folder: Path, how: dict[str, Any], out: Path | None) -> None:
    """The report of a run; in its own folder, where its figures are, as a part of its page."""
    from throughtime.train.result import load_trained
    from throughtime.train.run import read

    run = read(folder)
    task, model = load_trained(run)
    report = report_run(task, model, **how)
    print(f"{report}\n")
    if out is None and run.results.exists():
        keep_page(run, task, model, report)
    else:
        keep_report(report, out or folder)


def _diagnose_file(file: Path, name: str, how: dict[str, Any]) -> Report:
    """The report of what a file defines; options of the command line go before the file's."""
    defined = vars(execute(file))
    model = _find_defined(file, defined, name)
    batches = _as_list(_find_defined(file, defined, "batches"))
    loss = defined.get("loss")
    if loss is not None and not callable(loss):
        raise OptionError(f"`loss` in {file} must be a function of output and target, got {loss!r}")
    options = {n: defined[n] for n in ("lag", "clip", "truncation", "before") if n in defined}
    with _name_part(file, name), report_line(file):
        return throughtime.diagnose(model, batches, loss, **(options | how))


@contextmanager
def _name_part(file: Path, model: str) -> Iterator[None]:
    """An error below the model, its loss or its batches ends as one sentence that names them.

    It has the line too, where that is in another file of theirs.
    """
    try:
        yield
    except ThroughtimeError:
        raise
    except (Exception, SystemExit) as error:  # a user's code may raise anything
        frames = traceback.extract_tb(error.__traceback__)
        words = f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ")
        neighbours = [f for f in frames if file.parent.resolve() in Path(f.filename).parents]
        if neighbours:
            last = neighbours[-1]
            raise OptionError(f"{last.filename}, line {last.lineno}, raises {words}") from error
        running = {f.name for f in frames if f.filename == stages.__file__}
        parts = {
            stages.call_model: f"`{model}`", stages.compute_loss: "`loss`",
            stages.list_batches: "`batches`",
        }  # fmt: skip
        part = next((part for step, part in parts.items() if step.__name__ in running), None)
        if part is None:
            raise
        fits = "gives no batch" if part == "`batches`" else "cannot take what `batches` holds"
        raise OptionError(f"{part} in {file} {fits}: {words}") from error


def _find_defined(file: Path, defined: dict[str, Any], name: str) -> Any:
    """What a file calls so; OptionError where it defines no such name, or a model that is none."""
    if name not in defined:
        names = [n for n in defined if not n.startswith("_")]
        raise OptionError(f"{file} must define `{name}`, got none{did_you_mean(name, names)}")
    value = defined[name]
    if name != "batches" and not isinstance(value, nn.Module):
        raise OptionError(
            f"`{name}` in {file} must be a torch.nn.Module, got {type(value).__name__}"
        )
    return value


def _as_list(batches: Any) -> Any:
    """A tuple of (input, target) tuples is meant as several; `diagnose` takes one for a batch."""
    pairs = isinstance(batches, tuple) and all(isinstance(b, tuple | list) for b in batches)
    return list(batches) if pairs else batches
