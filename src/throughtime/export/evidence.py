"""Evidence: an export's own test compiled and run here, its error, its bytes, its time a step."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from throughtime.errors import BackendError
from throughtime.export.prepare import Exported

_COMPILERS: Final = ("cc", "gcc", "clang")
_FLAGS: Final = ("-O3", "-march=native")
_LEAST_SECONDS: Final = 0.2


class Measured(NamedTuple):
    """What the test said.

    Attributes:
        passed: whether the largest error was allowed.
        error: the largest difference from the model's answers.
        allowed: the largest that passes.
        code_bytes: of machine code and its own constants, without weights.
        step_nanoseconds: of one step, called from C.
        compiler: that built it.
    """

    passed: bool
    error: float
    allowed: float
    code_bytes: int
    step_nanoseconds: float
    compiler: str


def measure(exported: Exported) -> Measured:
    """Compile and run the test of an export for this machine.

    Raises:
        BackendError: there is no compiler of C here, or the test cannot be built or run here.
    """
    found = [path for name in _COMPILERS if (path := shutil.which(name))]
    if not found:
        raise BackendError(
            f"measuring needs a compiler of C, one of {', '.join(_COMPILERS)}, and there is none; "
            f"install one, as with: apt-get install gcc"
        )
    with tempfile.TemporaryDirectory() as work:
        sources = [f for f in exported.files if f.endswith((".c", ".o"))]
        program = str(Path(work, "measured"))
        paths = [str(exported.folder.resolve() / f) for f in sources]
        _run([found[0], *_FLAGS, *paths, "-lm", "-o", program])
        steps, said = 1000, ""
        while True:
            said = _run([program, str(steps)], may_fail=True)
            each = float(_number(r"nanoseconds (\S+)", said))
            if each * steps >= 1e9 * _LEAST_SECONDS or steps >= 10**9:
                break
            steps *= 10
        code = exported.code_bytes or _code_bytes(found[0], exported, Path(work))
    error, allowed = (float(_number(rf"{n} (\S+)", said)) for n in ("error", "allowed"))
    return Measured(said.startswith("PASS"), error, allowed, code, each, found[0])


def _number(pattern: str, said: str) -> str:
    match = re.search(pattern, said)
    if match is None:
        raise BackendError(f"the test of an export must say its error and time, got {said[:200]!r}")
    return match[1]


def _code_bytes(compiler: str, exported: Exported, work: Path) -> int:
    """Bytes of machine code that the compiler makes of NAME.c."""
    from throughtime.export.objects import code_size

    source = next(f for f in exported.files if f.endswith(".c") and not f.endswith("_test.c"))
    image = work / "measured.o"
    path = str(exported.folder.resolve() / source)
    _run([compiler, *_FLAGS, "-c", path, "-o", str(image)])
    return code_size(image.read_bytes())


def _run(command: Sequence[str], may_fail: bool = False) -> str:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode and not may_fail:
        words = " ".join((done.stderr or done.stdout).split())[:300]
        raise BackendError(f"{Path(command[0]).name} cannot build the test here: {words}")
    return done.stdout
