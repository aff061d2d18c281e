"""The functions of units in C hold the bounds that the compiler's own vector maths states."""

from __future__ import annotations

import ctypes
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from tests.export.built import need, run
from throughtime.export.c.walks import write_functions

EXACT: dict[str, Any] = {
    "exp": torch.exp, "expm1": torch.expm1, "sigmoid": torch.sigmoid, "tanh": torch.tanh,
    "silu": functional.silu, "logsigmoid": functional.logsigmoid, "erf": torch.erf,
    "gelu": lambda x: 0.5 * x * torch.erfc(-x * math.sqrt(0.5)), "atan": torch.atan,
    "log": torch.log, "log1p": torch.log1p, "sqrt": torch.sqrt, "sin": torch.sin, "cos": torch.cos,
}  # fmt: skip
UNITS = {"gelu": 8}
"""Units in the last place; 5 of what is not here."""


@pytest.fixture(scope="module", params=["-O1", "-O3 -march=native"])
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("maths")
    text = ["#include <stdint.h>", "#include <string.h>", write_functions(EXACT, "m", False)]
    text += [
        f"void all_{n}(float *y, const float *x, int n) {{ for (int i = 0; i < n; i++) y[i] = "
        f"m_{n}(x[i]); }}" for n in EXACT
    ]  # fmt: skip
    (folder / "maths.c").write_text("\n".join(text))
    flags = request.param.split()
    run([need("gcc", "gcc"), *flags, "-shared", "-fPIC", "maths.c", "-o", "maths.so"], folder)
    return request.param, ctypes.CDLL(str(folder / "maths.so"))


def grid(name: str) -> np.ndarray[Any, Any]:
    """Numbers of every size and sign that the function takes."""
    sizes = np.concatenate([np.logspace(-30, 1.9, 40_000), np.linspace(0, 100, 60_001)])
    both = np.concatenate([sizes, -sizes])
    if name in ("log", "sqrt"):
        both = np.concatenate([sizes[1:], np.logspace(-37.5, 38, 20_000)])
        both = both[both > 2e-38]
    return both[both > -1 + 1e-6].astype(np.float32) if name == "log1p" else both.astype(np.float32)


@pytest.mark.parametrize("name", EXACT)
def test_within_units_in_the_last_place(name: str, library: Any) -> None:
    flags, code = library
    x = grid(name)
    y = np.empty_like(x)
    getattr(code, f"all_{name}")(y.ctypes.data_as(ctypes.c_void_p),
                                 x.ctypes.data_as(ctypes.c_void_p), len(x))  # fmt: skip
    exact = EXACT[name](torch.from_numpy(x.astype(np.float64))).numpy()
    normal = (np.abs(exact) > 1.2e-38) & (np.abs(exact) < 3.4e38)
    error = np.abs(y[normal].astype(np.float64) - exact[normal])
    unit = np.spacing(np.abs(exact[normal]).astype(np.float32)).astype(np.float64)
    floor = 2e-7 if name in ("sin", "cos") else 0.0  # near their zeros only the angle counts
    units = (error - floor).clip(0) / np.maximum(unit, 1e-45)
    worst = int(units.argmax())
    assert units.max() <= UNITS.get(name, 5), (x[normal][worst], y[normal][worst], flags)


def test_not_a_number_stays(library: Any) -> None:
    _, code = library
    for name in EXACT:
        x, y = np.array([np.nan], np.float32), np.zeros(1, np.float32)
        getattr(code, f"all_{name}")(y.ctypes.data_as(ctypes.c_void_p),
                                     x.ctypes.data_as(ctypes.c_void_p), 1)  # fmt: skip
        assert np.isnan(y[0]) or name in ("sin", "cos"), name
