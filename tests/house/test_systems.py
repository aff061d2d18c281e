"""Other systems: nothing is compiled, all else goes on, and `explain()` says why.

A process stands for each: the system's name, and what its Python lacks is taken away.
"""

from __future__ import annotations

import pytest

from tests.house.source import fresh

LACKS = {
    "Darwin": ["sched_getaffinity"],
    "Windows": [
        "O_DIRECTORY", "O_NOFOLLOW", "O_CLOEXEC", "O_NONBLOCK", "register_at_fork", "geteuid",
        "fork", "fchmod", "sched_getaffinity", "RTLD_NOLOAD", "RTLD_LAZY",
    ],
}  # fmt: skip
"""What `os` has not there, of what is used here."""

ELSEWHERE = """
import importlib, os, pkgutil, platform, sys
import torch
platform.system = lambda: {system!r}
for name in {lacks}:
    delattr(os, name)
if {system!r} == "Windows":
    sys.modules["fcntl"] = None
import throughtime
from throughtime import cells
torch.manual_seed(0)
"""

VALUES = """
x = torch.randn(5, 3, 4)
for kind in ("RNN", "LSTM", "GRU"):
    theirs = getattr(torch.nn, kind)(4, 6, 2, bidirectional=True)
    ours = throughtime.from_torch(theirs)
    torch.testing.assert_close(ours(x)[0], theirs(x)[0])
    print(ours.explain().splitlines()[:2])
layer = throughtime.Recurrent(cells.MGU(), 4, 6, recurrent_dropout=0.2, zoneout=0.1)
layer(x, lengths=[5, 0, 2])[0].square().sum().backward()
assert all(v.grad.isfinite().all() for v in layer.parameters())
print(layer.explain())
throughtime.check(cells.MGU())
try:
    throughtime.LSTM(4, 6, backend="cpu")(x)
except throughtime.errors.BackendError as error:
    print(error)
"""

ALL_MODULES = """
for module in pkgutil.walk_packages(throughtime.__path__, "throughtime."):
    try:
        importlib.import_module(module.name)
    except throughtime.errors.MissingExtra:
        pass
from throughtime.compiler.runtime import cache, threads
assert threads.usable() >= 1 and threads.available() >= 1
print(cache.show())
"""


@pytest.mark.parametrize("system", LACKS)
def test_the_reference_and_torch_take_over(system: str) -> None:
    code = ELSEWHERE.format(system=system, lacks=LACKS[system])
    *layers, own, why, not_torch, refused = fresh(code + VALUES).splitlines()
    reason = f"compiled code was tried on Linux alone, and this is {system}"
    assert layers == [str(["layer 0: torch", f"  not cpu: {reason}"])] * 3
    assert (own, why) == ("layer 0: reference", f"  not cpu: {reason}")
    assert not_torch.startswith("  not torch: ")
    assert refused == f"backend 'cpu' cannot run this call: {reason}; use backend='auto'"


@pytest.mark.parametrize("system", LACKS)
def test_every_module_is_imported(system: str) -> None:
    code = ELSEWHERE.format(system=system, lacks=LACKS[system])
    said = fresh(code + ALL_MODULES)
    assert ("nothing is compiled on this system" in said) == (system == "Windows")


TRAINING = """
import os, pathlib, tempfile, throughtime
whole = os.open
def open_files_alone(path, *how, **more):
    if os.path.isdir(path):
        raise PermissionError(13, "Permission denied", path)
    return whole(path, *how, **more)
os.open = open_files_alone
del os.sysconf
small = {"steps": 2, "validate_every": 2, "warmup": 0, "hidden": 4, "length": 5, "batch_size": 4}
run = throughtime.train("latch", out=pathlib.Path(tempfile.mkdtemp()) / "run", **small)
print(*run.scores)
"""


def test_training_opens_no_folders_and_knows_no_size_of_memory_as_on_windows() -> None:
    assert fresh(TRAINING) == "error\n"
