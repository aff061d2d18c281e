"""What weights in fewer bytes cost: a trained main job's held-out words, scored with each kind.

    throughtime train pronounce --preset quick --out runs/quick
    python benchmarks/pronounce/narrow.py runs/quick

Rounds every matrix of the run's model, embeddings too, as an export with such weights does, and
writes narrow.json beside this file.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from throughtime.export.program import WEIGHT_KINDS, matrix_bytes, round_weights
from throughtime.train.result import load_trained
from throughtime.train.run import read

HERE = Path(__file__).resolve().parent


def main() -> None:
    asked = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    asked.add_argument("run", type=Path, help="the folder of a finished run")
    run = asked.parse_args().run
    recipe = json.loads((run / "config.json").read_text())
    found = {"recipe": recipe, "kinds": {kind: scored(run, kind) for kind in WEIGHT_KINDS}}
    (HERE / "narrow.json").write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found["kinds"], indent=2))


def scored(run: Path, kind: str) -> dict[str, Any]:
    """WER and PER on the test split, and bytes of the weights."""
    task, model = load_trained(read(run))
    round_weights(model, kind)
    metrics = task.score(model, "test").metrics
    sizes = [
        matrix_bytes(*v.shape, kind) if v.dim() == 2 else 4 * v.numel() for v in model.parameters()
    ]
    return {"wer": metrics["wer"], "per": metrics["per"], "weight_bytes": sum(sizes)}


if __name__ == "__main__":
    main()
