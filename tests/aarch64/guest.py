"""A process of another processor, emulated, that calls generated code in the memory of this one.

    guest = Guest(folder)
    function = guest.link(image)["name"]    # of an object file for that processor
    guest.call(function, address, ...)      # as a call here would be, bits aside

`guest.c` runs under qemu. It fetches each page that it touches from this process, at the same
address, and hands it back afterwards, so what lies where is nobody's business here: an argument
block and all that it points to are as they would be in a call.
"""

from __future__ import annotations

import os
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from tests.export.built import need, run

PAGE: Final = 4096
CODE: Final = 0x10_0000_0000
"""Where the code of the other processor lies, in a part of memory that no process here uses."""

ARGUMENTS: Final = 4
TRIES: Final = 20
"""Processes that may be begun until one has its own memory where this one has none."""

HERE = Path(__file__).parent


RANDOM = Path("/proc/sys/kernel/randomize_va_space")
"""Whether the system gives each process memory at other addresses; 0: it does not."""


def need_emulation() -> tuple[str, str]:
    """The paths of emulator and compiler; where a guest cannot be, the test is skipped."""
    emulator = need("qemu-aarch64", "qemu-user")
    gcc = need("aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu libc6-dev-arm64-cross")
    if not RANDOM.exists() or RANDOM.read_text().strip() == "0":
        pytest.skip("all processes have memory at the same addresses here: no guest fits beside")
    return emulator, gcc


class Guest:
    """The process, and the code that it was given.

    Args:
        folder: where what it needs is built.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._emulator, gcc = need_emulation()
        self._tools = gcc.removesuffix("gcc")
        run([gcc, "-O1", "-static", "-Wall", "-Wextra", "-Werror", HERE / "guest.c", "-o", "guest"],
            folder)  # fmt: skip
        run([gcc, "-O1", "-ffreestanding", "-fno-tree-loop-distribute-patterns", "-c",
             HERE / "copies.c", "-o", "copies.o"], folder)  # fmt: skip
        self._code, self._end = bytearray(), CODE
        self._memory = os.open("/proc/self/mem", os.O_RDWR)
        self._process: Any = None
        self.calls = self.pages = 0

    def link(self, image: bytes) -> dict[str, int]:
        """The addresses of an object's functions, which are there from now on."""
        (self._folder / "it.o").write_bytes(image)
        run([f"{self._tools}ld", "-N", "-e", "0", f"-Ttext={self._end:#x}", "it.o", "copies.o",
             "-o", "it"], self._folder)  # fmt: skip
        run([f"{self._tools}objcopy", "-O", "binary", "it", "it.bin"], self._folder)
        code = (self._folder / "it.bin").read_bytes()
        listing = run([f"{self._tools}nm", "--defined-only", "it"], self._folder)
        words = (line.split() for line in listing.splitlines())
        found = {name: int(address, 16) for address, _, name in words}
        self._code += code + bytes(-len(code) % PAGE)
        self._end = CODE + len(self._code)
        return found

    def call(self, function: int, *arguments: int) -> None:
        """Calls a function with whole numbers, addresses in this process among them."""
        process = self._ready()
        padded = (*arguments, *[0] * (ARGUMENTS - len(arguments)))
        self._give(struct.pack(f"{2 + ARGUMENTS}Q", self._end, function, *padded))
        before: dict[int, bytes] = {}
        while address := self._word():
            page = self._page(address)
            if page is None:
                self.close()
                raise RuntimeError(f"emulated code touched {address:#x}, where nothing is")
            before[address] = page
            self._give(b"\1" + page)
        while address := self._word():
            self._take_back(address, before[address], process.stdout.read(PAGE))
        self.calls, self.pages = self.calls + 1, self.pages + len(before)

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _give(self, data: bytes) -> None:
        self._process.stdin.write(data)
        self._process.stdin.flush()

    def _word(self) -> int:
        read = self._process.stdout.read(8)
        if len(read) < 8:
            raise RuntimeError(f"the emulated process ended with {self._process.wait()}")
        return int.from_bytes(read, "little")

    def _page(self, address: int) -> bytes | None:
        if CODE <= address < self._end:
            return bytes(self._code[address - CODE : address - CODE + PAGE])
        try:
            return os.pread(self._memory, PAGE, address)
        except OSError:
            return None

    def _take_back(self, address: int, before: bytes, after: bytes) -> None:
        """Write what was written there, and nothing else: others use the page too."""
        was, found = (np.frombuffer(v, np.uint8) for v in (before, after))
        changed = np.flatnonzero(was != found)
        if CODE <= address < self._end or not len(changed):
            return
        for part in np.split(changed, np.flatnonzero(np.diff(changed) != 1) + 1):
            first, last = int(part[0]), int(part[-1]) + 1
            os.pwrite(self._memory, after[first:last], address + first)

    def _ready(self) -> Any:
        """The process, another one where the system gave it memory at addresses used here."""
        for _ in range(TRIES):
            if self._process is None:
                self._process = subprocess.Popen(
                    [self._emulator, self._folder / "guest"],
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                )  # fmt: skip
            if not _overlap(self._process.pid):
                return self._process
            self.close()
        raise RuntimeError("each emulated process has memory at addresses that this one uses")


def _overlap(process: int) -> bool:
    """Whether memory of another process lies where this one has some."""
    both = sorted([*_ranges("self"), *_ranges(process)])
    return any(first[1] > second[0] for first, second in zip(both, both[1:], strict=False))


def _ranges(process: int | str) -> Iterator[tuple[int, int]]:
    """Where a process has memory, the system's own and that of emulated code aside."""
    for line in Path(f"/proc/{process}/maps").read_text().splitlines():
        first, last = (int(v, 16) for v in line.split()[0].split("-"))
        if first < 1 << 63 and not CODE <= first < CODE << 1:
            yield first, last
