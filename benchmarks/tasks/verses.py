"""English verses into Spanish: one direction against two, concat against sum, at equal steps.

    apt-get install sword-text-web sword-text-sparv diatheke
    python benchmarks/tasks/verses.py [--steps 1000] [--seeds 2] [--threads 1] [--verses 0]

The texts are the World English Bible and the Reina-Valera of 1909, both in the public domain, as
Debian packs them. Verses of at most 20 words in both languages, by pieces of words. Each row is
trained with every seed to the same number of steps and decoded greedily, and the last one once, to
more steps, by the beam too. Writes verses.json beside this file after every run, and goes on from
it: chrF and BLEU (sacrebleu) on held-out verses, beside copying and the lexicon.
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

KEPT = Path(__file__).resolve().with_suffix(".json")
MODULES = ("engWEB2015eb", "spaRV1909eb")
LONGEST = 20  # words of a verse
ROWS = [
    {"directions": 1, "merge": "concat"},
    {"directions": 2, "merge": "concat"},
    {"directions": 2, "merge": "sum"},
    {"directions": 1, "merge": "concat", "steps": 4000, "beam": 4},
]
"""The last one is trained with one seed, and measured with the beam too."""
FIGURES = ("metrics", "greedy", "baselines", "split", "parameters", "steps", "seconds",
           "cpu_seconds", "probe")  # fmt: skip


def main() -> None:
    asked = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    asked.add_argument("--steps", type=int, default=1000)
    asked.add_argument("--seeds", type=int, default=2)
    asked.add_argument("--threads", type=int, default=1)
    asked.add_argument("--verses", type=int, default=0, help="only so many; 0: all")
    options = asked.parse_args()
    kept = begun(vars(options))
    kept["machine"] = (
        f"{platform.machine()}, torch {torch.__version__}, Python "
        f"{platform.python_version()}, throughtime {throughtime.__version__}"
    )
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "verses.jsonl"
        data.write_text(pairs(options.verses), encoding="utf-8")
        for seed in range(options.seeds):
            for row in kept["rows"]:
                if len(row["runs"]) > seed or (seed and "steps" in row):
                    continue
                given = {"beam": 1, "steps": options.steps, **row, "seed": seed}
                del given["runs"]
                row["runs"].append(train(data, given, options))
                KEPT.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    for row in kept["rows"]:
        print(row["directions"], row["merge"], row.get("steps", options.steps), means(row["runs"]))
    print(said(kept["rows"][-1]))


def begun(options: dict) -> dict:
    """What a run with the same options has kept, or rows without a run."""
    if KEPT.exists():
        kept = json.loads(KEPT.read_text(encoding="utf-8"))
        if kept["options"] | {"seeds": 0} == options | {"seeds": 0}:
            return kept | {"options": options}
    return {"options": options, "rows": [{**row, "runs": []} for row in ROWS]}


def means(runs: list[dict]) -> dict[str, dict[str, float]]:
    """Of each figure over the seeds, and how far the least and the most are apart."""
    found = {}
    for name in runs[0]["metrics"]:
        values = [run["metrics"][name] for run in runs]
        found[name] = {"mean": sum(values) / len(values), "range": max(values) - min(values)}
    return found


def said(row: dict) -> str:
    """Where the longest run loses to a baseline."""
    (run,) = row["runs"]
    lost = [
        f"{name}: {run['metrics'][name]:.1f}, {other} has {figures[name]:.1f}"
        for other, figures in run["baselines"].items()
        for name in figures
        if figures[name] > run["metrics"][name]
    ]
    return "lost: " + ("; ".join(lost) or "nothing")


def pairs(count: int) -> str:
    """The verses that both have and that are short in both, as JSON lines."""
    texts = [verses(module) for module in MODULES]
    lines = []
    for place in texts[0].keys() & texts[1].keys():
        both = [one[place] for one in texts]
        if all(0 < len(text.split()) <= LONGEST for text in both):
            lines.append((place, json.dumps(dict(zip(("english", "spanish"), both, strict=True)))))
    chosen = [line for _, line in sorted(lines)]
    return "\n".join(chosen[:: max(1, len(chosen) // count) if count else 1]) + "\n"


def verses(module: str) -> dict[str, str]:
    """Place -> text, of a module of Debian's, without the titles of psalms.

    The plain form sets a psalm's title in front of each of its verses, without a mark.
    """
    if shutil.which("diatheke") is None:
        sys.exit("the texts are needed: apt-get install sword-text-web sword-text-sparv diatheke")
    command = ["diatheke", "-b", module, "-f", "internal", "-k"]
    said = subprocess.run(
        [*command, "Genesis 1:1-Revelation of John 22:21"], capture_output=True, check=True
    ).stdout.decode("utf-8", "replace")
    marked = re.sub(r"<title.*?</title>", "\n", said.removesuffix(f"({module})\n"), flags=re.S)
    bare = re.sub(r"<[^>]*>", "", re.sub(r"<[^w/][^>]*>|(?<=</w>)(?=<w)", " ", marked))
    pieces = re.split(r"^\s*([\w ]+ \d+:\d+): ", bare, flags=re.M)[1:]
    return {place: tidy(text) for place, text in zip(pieces[::2], pieces[1::2], strict=True)}


def tidy(text: str) -> str:
    """With a space behind each mark between words, and none before it."""
    text = re.sub(r"([,;:.!?])(?=[^\W\d])", r"\1 ", text)
    return " ".join(re.sub(r"\s+([,;:.!?])", r"\1", text).split())


def train(data: Path, row: dict, options: argparse.Namespace) -> dict:
    """What is kept of one run's results.json, and its validations."""
    out = data.parent / "-".join(["run", *(str(value) for value in row.values())])
    flags = {
        "data": data, "units": "pieces", "source": "english", "target": "spanish", "out": out,
        "hidden": 64, "batch-size": 32, "lr": 4e-3, "dropout": 0.2, "threads": options.threads,
        "validate-every": 500, **row,
    }  # fmt: skip
    command = [sys.executable, "-c", "from throughtime.cli import main; raise SystemExit(main())"]
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    subprocess.run([*command, "train", "translate", *words], check=True)
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    validations = [one for one in map(json.loads, lines) if "split" in one]
    kept = {name: results[name] for name in FIGURES if name in results}
    return {"seed": row["seed"], **kept, "validations": validations}


if __name__ == "__main__":
    main()
