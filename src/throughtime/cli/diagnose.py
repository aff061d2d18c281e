"""`throughtime diagnose RUN` and `FILE.py:model`: how far back a model learns and remembers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from throughtime.cli.options import number, whole_number

if TYPE_CHECKING:
    from throughtime.cli.app import Commands
    from throughtime.diagnosis.report import Report

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
    parser.add_argument(
        "--lag", type=whole_number, metavar="INT",
        help="Steps back that the task needs. Default: the sequence.",
    )  # fmt: skip
    parser.add_argument(
        "--clip", type=number, metavar="FLOAT",
        help="The norm at which training clips the gradient. Default: the run's.",
    )  # fmt: skip
    parser.add_argument(
        "--truncation", type=whole_number, metavar="INT",
        help="Steps over which training back-propagates. Default: all.",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER",
        help="Folder of report.json and report.html. Default: beside the model.",
    )  # fmt: skip


def diagnose(
    model: str, lag: int | None, clip: float | None, truncation: int | None, out: Path | None
) -> None:
    """Measure how far back a model learns and remembers, and what would change it."""
    from throughtime.cli.memory_report import keep

    found = _FILE.fullmatch(model)
    how = {"lag": lag, "clip": clip, "truncation": truncation}
    how = {name: value for name, value in how.items() if value is not None}
    if found is None:
        report, beside = _of_run(Path(model), how), Path(model)
    else:
        file = Path(found["file"]).absolute()  # what it executes may go to another folder
        report, beside = _of_file(file, found["name"] or "model", how), file.parent
    print(str(report))
    print("")
    keep(report, out or beside)


def _of_run(folder: Path, how: dict[str, Any]) -> Report:
    from throughtime.cli.memory_report import of_run
    from throughtime.train.result import trained
    from throughtime.train.run import read

    task, model = trained(read(folder))
    return of_run(task, model, **how)


def _of_file(file: Path, name: str, how: dict[str, Any]) -> Report:
    """The report of what a file defines; options of the command line go before the file's."""
    from throughtime import diagnose
    from throughtime.cli.user_file import executed, told_by_line

    defined = vars(executed(file))
    model = _defined(file, defined, name)
    batches = _several(_defined(file, defined, "batches"))
    own = {n: defined[n] for n in ("lag", "clip", "truncation", "before") if n in defined}
    with told_by_line(file):
        return diagnose(model, batches, defined.get("loss"), **(own | how))


def _defined(file: Path, defined: dict[str, Any], name: str) -> Any:
    """What a file calls so.

    Raises:
        OptionError: it defines no such name, or a model that is none.
    """
    from torch import nn

    from throughtime.errors import OptionError
    from throughtime.tasks.choices import did_you_mean

    if name not in defined:
        own = [n for n in defined if not n.startswith("_")]
        raise OptionError(f"{file} must define `{name}`, got none{did_you_mean(name, own)}")
    value = defined[name]
    if name != "batches" and not isinstance(value, nn.Module):
        raise OptionError(
            f"`{name}` in {file} must be a torch.nn.Module, got {type(value).__name__}"
        )
    return value


def _several(batches: Any) -> Any:
    """A tuple of (input, target) tuples is meant as several; `diagnose` takes one for a batch."""
    pairs = isinstance(batches, tuple) and all(isinstance(b, tuple | list) for b in batches)
    return list(batches) if pairs else batches
