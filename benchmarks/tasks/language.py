"""Bits a character of a text of some 900 kB, beside counts of up to five characters.

    apt-get install sword-text-web diatheke
    python benchmarks/tasks/language.py [--steps 5000] [--threads 1]

The text is the New Testament of the World English Bible, which is in the public domain, as Debian
packs it: a verse a line, the last tenth held out. Writes language.json beside this file.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

import throughtime

HERE = Path(__file__).resolve().parent
OPTIONS = {"hidden": 256, "batch_size": 16, "lr": 3e-3, "validate_every": 500}


def main() -> None:
    asked = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    asked.add_argument("--steps", type=int, default=5000)
    asked.add_argument("--threads", type=int, default=1)
    asked.add_argument("--text", type=Path, help="another text, in place of that")
    options = asked.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        text = options.text or Path(scratch) / "text.txt"
        if options.text is None:
            text.write_text(verses(), encoding="utf-8")
        given = OPTIONS | {"steps": options.steps, "threads": options.threads}
        run = throughtime.train("language", text, out=Path(scratch) / "run", **given)
        sample = run.generate(length=400, temperature=0.7)
    kept = {
        "machine": f"{platform.machine()}, torch {torch.__version__}, Python "
        f"{platform.python_version()}, throughtime {throughtime.__version__}",
        "options": given,
        **{n: run.results[n] for n in ("metrics", "baselines", "split", "seconds", "cpu_seconds")},
        "sample": sample,
    }
    (HERE / "language.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    print(run.scores, run.baselines, sample, sep="\n")


def verses() -> str:
    """The verses, one a line, without notes and numbers."""
    if shutil.which("diatheke") is None:
        sys.exit("the text is needed: apt-get install sword-text-web diatheke")
    command = ["diatheke", "-b", "engWEB2015eb", "-f", "plain", "-k"]
    said = subprocess.run(
        [*command, "Matthew 1:1-Revelation of John 22:21"], capture_output=True, check=True
    ).stdout.decode("utf-8", "replace")
    found = [""]
    for line in said.splitlines():
        begun = re.match(r"\s*[\w ]+ \d+:\d+: (.*)", line)
        if begun:
            found.append(begun[1])
        elif not line.startswith("("):
            found[-1] += f" {line}"
    tidy = (re.sub(r"([,;:.!?])(?=[^\W\d])", r"\1 ", re.sub(r"<\w+>", " ", one)) for one in found)
    return "\n".join(" ".join(one.split()) for one in tidy if one.strip()) + "\n"


if __name__ == "__main__":
    main()
