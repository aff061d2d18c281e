"""Small LLVM modules written by hand, and the machine at hand as the compiler is told of it."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import llvmlite.binding as llvm

from throughtime.compiler.runtime.jit import Loaded
from throughtime.compiler.runtime.machine import Machine

ROOT = Path(__file__).resolve().parents[2]

# double add(double, double)
ADD = """
define double @add(double %x, double %y) {
  %sum = fadd double %x, %y
  ret double %sum
}
"""

# A fill and a copy of a length not known in advance: LLVM makes calls of the C library of them.
COPY = """
declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)
declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)
declare void @llvm.memmove.p0.p0.i64(ptr, ptr, i64, i1)
define void @copy(ptr %to, ptr %from, i64 %bytes) {
  call void @llvm.memset.p0.i64(ptr %to, i8 7, i64 %bytes, i1 false)
  %half = lshr i64 %bytes, 1
  call void @llvm.memcpy.p0.p0.i64(ptr %to, ptr %from, i64 %half, i1 false)
  %next = getelementptr i8, ptr %to, i64 1
  call void @llvm.memmove.p0.p0.i64(ptr %next, ptr %to, i64 %half, i1 false)
  ret void
}
"""

# void record({thread_num, num_threads, calls, seen[]}): counts itself, writes the team's size to
# the place of its own number.
RECORD = """
define void @record(ptr %block) {
  %thread_num = load ptr, ptr %block
  %second = getelementptr i64, ptr %block, i64 1
  %num_threads = load ptr, ptr %second
  %me = call i32 %thread_num()
  %team = call i32 %num_threads()
  %calls = getelementptr i64, ptr %block, i64 2
  %before = atomicrmw add ptr %calls, i64 1 seq_cst
  %place = add i32 %me, 3
  %wide = sext i32 %place to i64
  %seen = getelementptr i64, ptr %block, i64 %wide
  %team64 = sext i32 %team to i64
  store atomic i64 %team64, ptr %seen seq_cst, align 8
  ret void
}
"""

# void wait({begun, flag, seen}): says that it has begun, then looks for the flag a long while.
WAIT = """
define void @wait(ptr %block) {
entry:
  store atomic i64 1, ptr %block seq_cst, align 8
  %flag = getelementptr i64, ptr %block, i64 1
  %seen = getelementptr i64, ptr %block, i64 2
  br label %look
look:
  %tries = phi i64 [ 0, %entry ], [ %more, %look ]
  %value = load atomic i64, ptr %flag seq_cst, align 8
  %more = add i64 %tries, 1
  %set = icmp ne i64 %value, 0
  %tired = icmp uge i64 %more, 200000000
  %stop = or i1 %set, %tired
  br i1 %stop, label %done, label %look
done:
  store i64 %value, ptr %seen
  ret void
}
"""


def host() -> Machine:
    """The machine at hand."""
    features = llvm.get_host_cpu_features().flatten()
    return Machine("host", llvm.get_default_triple(), llvm.get_host_cpu_name(), features, 128, 16)


def add(loaded: Loaded) -> Callable[[float, float], float]:
    """The function of ADD."""
    kind = ctypes.CFUNCTYPE(ctypes.c_double, ctypes.c_double, ctypes.c_double)
    return kind(loaded.address("add"))


def said(code: str, **environment: str) -> str:
    """What a new process prints for `code`, begun with this module's names; it may not hang."""
    import os

    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"from tests.compiler.by_hand import *\n{code}"],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
