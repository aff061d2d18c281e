"""metrics.jsonl: a row every few steps and every validation, none twice after a resume."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from throughtime.errors import RunError


@dataclass
class SinceLastRow:
    """What was seen since the last row."""

    steps: int = 0
    clipped: int = 0
    loss: float = 0.0
    norm: float = 0.0

    def add(self, loss: float, norm: float, clipped: bool) -> None:
        self.steps += 1
        self.clipped += clipped
        self.loss += loss
        self.norm += norm

    def means(self) -> dict[str, float]:
        """Loss in nats, gradient norm before clipping, share of steps that were clipped."""
        loss, norm = self.loss / self.steps, self.norm / self.steps
        return {"loss": loss, "gradient_norm": norm, "clipped_share": self.clipped / self.steps}


@dataclass
class Clock:
    """Seconds of wall and of processor that went into a run, over all its processes."""

    wall_before: float = 0.0
    cpu_before: float = 0.0
    _wall: float = field(default_factory=time.perf_counter)
    _cpu: float = field(default_factory=time.process_time)

    def seconds(self) -> dict[str, float]:
        wall = self.wall_before + time.perf_counter() - self._wall
        cpu = self.cpu_before + time.process_time() - self._cpu
        return {"wall_seconds": round(wall, 3), "cpu_seconds": round(cpu, 3)}


class Journal:
    """The open metrics.jsonl of a run; its state goes into the checkpoint."""

    def __init__(self, path: Path, state: dict[str, Any] | None = None) -> None:
        state = state or {"bytes": 0, "window": {}, "wall": 0.0, "cpu": 0.0}
        self.window = SinceLastRow(**state["window"])
        self.clock = Clock(state["wall"], state["cpu"])
        self._file = path.open("ab")
        if self._file.tell() < state["bytes"]:
            self._file.close()
            raise RunError(
                f"{path} must have at least the {state['bytes']} bytes that were there when the "
                "checkpoint was written, and it has fewer; restore it, or train again elsewhere"
            )
        self._file.truncate(state["bytes"])

    def row(self, **values: Any) -> None:
        """Appends one row, with the seconds that went into the run so far."""
        self._file.write((json.dumps(values | self.clock.seconds()) + "\n").encode())
        self._file.flush()

    def steps_row(self, step: int, lr: float) -> None:
        """Appends the means since the last such row."""
        self.row(step=step, lr=lr, **self.window.means())
        self.window = SinceLastRow()

    def state(self) -> dict[str, Any]:
        """Where the file ends now, what waits for the next row, and the seconds."""
        os.fsync(self._file.fileno())
        clock = self.clock.seconds()
        return {
            "bytes": self._file.tell(),
            "window": asdict(self.window),
            "wall": clock["wall_seconds"],
            "cpu": clock["cpu_seconds"],
        }

    def close(self) -> None:
        self._file.close()
