"""Runs as tasks of a SLURM array: each does one run of the grid and keeps it in the shared folder.

The same command without `--on` then goes on where they were, or reports when all are there.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from throughtime.errors import OptionError, RunError

_LARGEST = 1000  # number of a task that every SLURM takes


def write_script(
    words: Sequence[str], runs: Sequence[int], jobs: int, threads: int, folder: Path
) -> str:
    """The script that `sbatch` takes.

    Args:
        words: of the study's command line, without where it runs.
        runs: the numbers of the grid's runs that have no file yet.
        jobs: how many tasks at the same time.
        threads: cores a task.
        folder: of the study, which all machines share.

    Raises:
        OptionError: the grid has more runs than an array may have.
    """
    if max(runs) > _LARGEST:
        raise OptionError(
            f"an array's tasks have numbers of at most {_LARGEST}, and the grid has "
            f"{max(runs) + 1} runs; give fewer --cells, --init, --length or --seeds at a time"
        )
    command = shlex.join([sys.executable, "-c", _PROGRAM, *words])
    return "\n".join(
        [
            "#!/bin/bash",
            "#SBATCH --job-name=throughtime-study",
            f"#SBATCH --array={_format_spans(runs)}%{jobs}",
            "#SBATCH --ntasks=1",
            f"#SBATCH --cpus-per-task={threads}",
            f"#SBATCH --output={shlex.quote(str(folder.resolve() / 'slurm-%a.log'))}",
            f"cd {shlex.quote(str(Path.cwd()))}",
            f"exec {command} --run $SLURM_ARRAY_TASK_ID",
            "",
        ]
    )


_PROGRAM = "import sys; from throughtime import cli; sys.exit(cli.main())"


def _format_spans(numbers: Sequence[int]) -> str:
    """Numbers as an array has them: `0-3,7`."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ",".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts)


def submit(script: str) -> str:
    """Hands the script to SLURM; its answer has the number of the job.

    Raises:
        RunError: there is no SLURM here, or it refuses.
    """
    if shutil.which("sbatch") is None:
        raise RunError(
            "SLURM's sbatch must be there to take a study, and this machine has none; print the "
            "script with --dry-run and hand it in where it is"
        )
    done = subprocess.run(["sbatch"], input=script, capture_output=True, text=True)
    if done.returncode:
        raise RunError(f"SLURM must take the study, and it refuses: {done.stderr.strip()}")
    return done.stdout.strip()
