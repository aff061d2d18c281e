"""Says which part of the machine code a layer's time goes to, as `perf` samples it.

    python -m benchmarks.speed.parts LSTM 16x50x128 [--work training] [--seconds 5]

B, T and H as elsewhere, as many inputs as units, one thread. A second process runs the call again
and again; once it is under way, perf (of Linux's tools) looks four thousand times a second where
its processor is. What is no code of ours counts as the last part: Python, torch, the kernel.
"""

from __future__ import annotations

import argparse
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

PARTS = {
    "tile": "products", "column": "products of weight gradients", "cell": "the pointwise part",
    "phase": "the pointwise part", "pack": "packing", "take": "copies", "give": "copies",
    "copy": "copies", "cut": "copies",
}  # fmt: skip
LOOPS, REST = "loops", "Python and the rest"
SAMPLES = 4000
FUNCTION = 2
"""The kind of an ELF symbol that is one."""


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("cell", choices=("RNN", "GRU", "LSTM"))
    asked.add_argument("shape", help="B, T, H as 16x50x128")
    asked.add_argument("--work", choices=("inference", "training"), default="inference")
    asked.add_argument("--seconds", type=float, default=5)
    asked.add_argument("--runs", action="store_true", help=argparse.SUPPRESS)
    options = asked.parse_args()
    if options.runs:
        run(options)
    if shutil.which("perf") is None:
        raise SystemExit("perf is not there; install it (Debian: linux-perf)")
    for part, share in shares(options).most_common():
        print(f"{part:30}{100 * share:5.1f} %")


def shares(options: argparse.Namespace) -> Counter[str]:
    """Of each part, what share of the time it takes."""
    words = [sys.executable, "-m", "benchmarks.speed.parts", *sys.argv[1:], "--runs"]
    with (
        subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process,
        tempfile.TemporaryDirectory() as folder,
    ):
        assert process.stdout is not None
        names = process.stdout.readline().split()  # it is under way now
        data = str(Path(folder, "data"))
        record = ["perf", "record", "-q", "-e", "cpu-clock", "-F", str(SAMPLES), "-o", data]
        seconds = str(options.seconds)
        subprocess.run([*record, "-p", str(process.pid), "sleep", seconds], check=True)
        script = ["perf", "script", "-i", data, "-F", "ip,sym"]
        told = subprocess.run(script, check=True, capture_output=True, text=True).stdout
        process.kill()
        symbols_file(process.pid).unlink(missing_ok=True)
    lines = [line.split() for line in told.splitlines() if line.strip()]
    counts = Counter(part_of(line[1], names) for line in lines)
    return Counter({part: count / counts.total() for part, count in counts.items()})


def part_of(symbol: str, names: list[str]) -> str:
    """The part that a function belongs to; `names` are those of compiled code."""
    if symbol not in names:
        return REST
    return PARTS.get(symbol.split("_")[0], LOOPS)


def run(options: argparse.Namespace) -> None:
    """Run the call for ever, after telling perf where the functions of compiled code lie."""
    import torch
    from torch import nn

    import throughtime
    from throughtime.compiler.runtime import jit

    kept: list[Kept] = []

    class Kept(jit.Loaded):
        """Loaded code that remembers its image."""

        def __init__(self, image: bytes, machine: Any) -> None:
            super().__init__(image, machine)
            self.image = image
            kept.append(self)

    jit.Loaded = Kept  # type: ignore[misc]
    torch.set_num_threads(1)
    B, T, H = map(int, options.shape.split("x"))
    layer, x = throughtime.from_torch(getattr(nn, options.cell)(H, H)), torch.randn(T, B, H)

    def call() -> None:
        with torch.set_grad_enabled(options.work == "training"):
            y = layer(x)[0]
        if y.requires_grad:
            y.sum().backward()

    call()
    functions = [place for one in kept for place in places(one)]
    lines = (f"{address:x} {size:x} {name}\n" for address, size, name in functions)
    symbols_file(os.getpid()).write_text("".join(lines))
    print(*{name for _, _, name in functions}, flush=True)
    while True:
        call()


def symbols_file(process: int) -> Path:
    """Where perf looks for the functions of a process that no file holds."""
    return Path("/tmp", f"perf-{process}.map")


def places(code: Any) -> list[tuple[int, int, str]]:
    """Address, size and name of every function of an object, whose image has their distances."""
    import llvmlite.binding as llvm

    file = llvm.ObjectFileRef.from_data(code.image)
    sections = {section.name(): section.data() for section in file.sections()}
    strings = sections[b".strtab"]
    functions = [
        (at, size, strings[name : strings.index(b"\0", name)].decode())
        for name, kind, _, _, at, size in struct.iter_unpack("<IBBHQQ", sections[b".symtab"])
        if kind & 15 == FUNCTION
    ]
    first, _, name = next(f for f in functions if f[2] in code._addresses)
    begin = code._addresses[name] - first
    return [(begin + at, size, name) for at, size, name in functions]


if __name__ == "__main__":
    main()
