"""Parts of speech of the Greek New Testament, split by book, and what each layer knows of them.

    pip install py-sblgnt
    python benchmarks/tasks/greek.py [--seeds 1] [--threads 1] [--steps 1500]

The data are MorphGNT's of the SBLGNT, as that package carries them (CC BY-SA; nothing of them is
kept here). A verse is a sentence, and the books that test and choose are drawn by their hash.
Writes greek.json beside this file: accuracy on 13 parts of speech, beside the most frequent tag
and suffixes, and the probe's table.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import torch

import throughtime

HERE = Path(__file__).resolve().parent
MUST = 0.94


def main() -> None:
    asked = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    asked.add_argument("--seeds", type=int, default=1)
    asked.add_argument("--threads", type=int, default=1)
    asked.add_argument("--steps", type=int, default=1500)
    options = asked.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "greek.tsv"
        data.write_text(table(), encoding="utf-8")
        runs = [train(data, seed, options) for seed in range(options.seeds)]
    accuracies = [run["metrics"]["accuracy"] for run in runs]
    kept = {
        "machine": f"{platform.machine()}, torch {torch.__version__}, Python "
        f"{platform.python_version()}, throughtime {throughtime.__version__}",
        "options": vars(options),
        "accuracy": {"mean": sum(accuracies) / len(accuracies), "all": accuracies, "must": MUST},
        "runs": [{k: run[k] for k in ("metrics", "baselines", "split", "parameters", "seconds",
                                      "cpu_seconds", "probe")} for run in runs],
    }  # fmt: skip
    (HERE / "greek.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    print(f"accuracy {kept['accuracy']}")


def table() -> str:
    """The tokens of all verses with their parts of speech, as the command line reads them."""
    place = find_spec("pysblgnt")
    if place is None or place.origin is None:
        sys.exit("the data are needed; install them with: pip install py-sblgnt")
    lines = ["verse\tbook\ttoken\tlabel"]
    for file in sorted((Path(place.origin).parent / "sblgnt").glob("*.txt")):
        for line in file.read_text(encoding="utf-8").splitlines():
            verse, part, _, _, _, word, *_ = line.split(" ")
            lines.append(f"{file.name[:2]}-{verse}\t{file.stem}\t{word}\t{part}")
    return "\n".join(lines) + "\n"


def train(data: Path, seed: int, options: argparse.Namespace) -> dict:
    """One run's results.json."""
    out = data.parent / f"run-{seed}"
    flags = f"--series verse --group book --preset full --seed {seed} --threads {options.threads}"
    more = f"--steps {options.steps} --out {out}"
    command = [
        sys.executable,
        "-c",
        "import sys; from throughtime.cli import main; sys.exit(main())",
    ]
    subprocess.run(
        [*command, "train", "tag", "--data", str(data), *flags.split(), *more.split()], check=True
    )
    return json.loads((out / "results.json").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
