"""The vector maths against exact values, torch at the ends, and itself on other machines."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
import mpmath as mp
import numpy as np
import pytest
import torch
from torch import Tensor

from tests.compiler.interpret import OPS as TORCH
from tests.compiler.vectors import BOOLEAN, MACHINES, assembly, machine, module, run
from tests.house.source import PACKAGE, ROOT
from throughtime.compiler.derivative import FLAT, RULES
from throughtime.compiler.llvm.maths import operations
from throughtime.compiler.llvm.maths.operations import OPS

Constants = tuple[Any, ...]
INF, NAN = float("inf"), float("nan")

ULPS = 4.0
OTHERS = {"gelu": 5.0, "sin": 2.0, "cos": 2.0}
"""Units in the last place, where the exact value is a normal number."""

DIGITS = {"float32": 24, "float64": 53}
SMALLEST = {"float32": 2.0**-126, "float64": 2.0**-1022}

FUNCTIONS: list[tuple[str, Constants]] = [
    ("exp", ()),
    ("expm1", ()),
    ("sigmoid", ()),
    ("tanh", ()),
    ("silu", ()),
    ("softplus", (1.0, 20.0)),
    ("softplus", (0.3, 15.0)),
    ("softplus", (7.0, 40.0)),
    ("logsigmoid", ()),
    ("elu", (0.7, 1.0, 1.0)),
    ("log", ()),
    ("log1p", ()),
    ("erf", ()),
    ("gelu", ()),
    ("sin", ()),
    ("cos", ()),
    ("atan", ()),
    ("rsqrt", ()),
    *[("pow", (e,)) for e in (3.0, -3.0, 6.0, 9.0, -4.0, 1.5, -0.5, 0.3, 100.5, 0.0078125)],
]
"""What is not exact to the last bit, with constants."""

PLAIN: list[tuple[str, Constants]] = [
    *[(op, ()) for op in "neg abs reciprocal square sqrt sign detach relu".split()],
    ("leaky_relu", (0.01,)),
    ("hardtanh", (-1.0, 0.5)),
    *[("clamp", ends) for ends in ((-1.0, 3.0), (3.0, -1.0), (-INF, 1.0), (0.0, INF), (NAN, 1.0))],
    *[("pow", (e,)) for e in (0.0, 0.5, 1.0, -1.0)],
]
PAIRS = "add sub mul div maximum minimum gt ge lt le eq ne".split()
POINTS = [0.0, -0.0, 1.0, -1.0, 3.0, -3.0, 0.5, 0.1, -7.3, 1e30, -1e-30, INF, -INF, NAN]


def named(cases: list[tuple[str, Constants]]) -> Any:
    """Parameters with their names."""
    ids = ["-".join([op, *map(str, constants)]) for op, constants in cases]
    return pytest.mark.parametrize(("op", "constants"), cases, ids=ids)


def best() -> Any:
    """The widest machine at hand."""
    features = {name for name, there in llvm.get_host_cpu_features().items() if there}
    return machine("avx512" if "avx512vl" in features else "avx2")


def _softplus(x: Tensor) -> Tensor:
    return x.clamp(min=0) + torch.log1p(torch.exp(-x.abs()))


EXACT: dict[str, Callable[..., Tensor]] = {
    **TORCH,
    "silu": lambda x: torch.where(x < 0, x * x.exp(), x) / (1 + torch.exp(-x.abs())),
    "softplus": lambda x, beta, threshold: torch.where(
        x * _single(beta) > threshold, x, _softplus(x * _single(beta)) / _single(beta)
    ),
    "logsigmoid": lambda x: -_softplus(-x),
    "elu": lambda x, alpha, *_: torch.where(x > 0, x, torch.expm1(x) * _single(alpha)),
    "gelu": lambda x: x * torch.special.log_ndtr(x).exp(),
    "pow": lambda x, e: torch.where(x < 0, NAN, x) ** _single(e),
}
"""In double precision, right to far more than single: twins of what torch rounds on the way."""


def _single(number: float) -> float:
    return float(np.float32(number))


def _mp_softplus(x: Any) -> Any:
    return mp.log1p(mp.exp(-abs(x))) + max(x, 0)


MP: dict[str, Callable[..., Any]] = {
    "exp": mp.exp,
    "expm1": mp.expm1,
    "sigmoid": lambda x: 1 / (1 + mp.exp(-x)),
    "tanh": mp.tanh,
    "silu": lambda x: x / (1 + mp.exp(-x)),
    "softplus": lambda x, b, t: x if x * b > t else _mp_softplus(x * mp.mpf(b)) / b,
    "logsigmoid": lambda x: -_mp_softplus(-x),
    "elu": lambda x, alpha, *_: x if x > 0 else mp.expm1(x) * alpha,
    "log": mp.log,
    "log1p": mp.log1p,
    "erf": mp.erf,
    "gelu": lambda x: x * mp.erfc(-x / mp.sqrt(2)) / 2,
    "sin": mp.sin,
    "cos": mp.cos,
    "atan": mp.atan,
    "rsqrt": lambda x: 1 / mp.sqrt(x),
    "pow": lambda x, e: mp.mpf(x) ** mp.mpf(e),
}


def sweep(mantissas: int = 1 << 12) -> np.ndarray:
    """Single-precision numbers of every exponent and both signs."""
    exponents = np.arange(256, dtype=np.uint32)[:, None] << 23
    fractions = np.linspace(0, (1 << 23) - 1, mantissas).astype(np.uint32)
    bits = (exponents | fractions).ravel()
    return np.concatenate([bits, bits | np.uint32(1 << 31)]).view(np.float32)


def worst(y: np.ndarray, exact: np.ndarray) -> float:
    """The largest distance in units of the last place, where the exact value is a normal number.

    NaN counts as infinitely far from a number, and a number from NaN.
    """
    with np.errstate(all="ignore"):
        ulp = np.ldexp(1.0, np.frexp(exact)[1] - 24)
        distance = np.abs(y - exact) / ulp
        far = np.abs(exact) >= 2.0**128 * (1 - 2.0**-25)
    distance[y.astype(np.float32) == np.where(far, np.copysign(INF, exact), exact)] = 0
    distance[np.isnan(distance)] = INF
    distance[np.isnan(exact) & np.isnan(y)] = 0
    distance[(np.abs(exact) < SMALLEST["float32"]) & (np.abs(y) <= SMALLEST["float32"])] = 0
    return float(distance.max())


def in_double(op: str, x: np.ndarray, constants: Constants) -> np.ndarray:
    return EXACT[op](torch.from_numpy(x).double(), *constants).numpy()


@named(FUNCTIONS)
def test_single_precision_over_every_exponent(op: str, constants: Constants) -> None:
    x = np.concatenate([sweep(), np.linspace(-20, 20, 1 << 18, dtype=np.float32)])
    x = x[np.isfinite(x)]
    x = x[(np.abs(x) >= SMALLEST["float32"]) | (op == "log")]
    if op in ("log", "rsqrt", "pow"):
        x = x[x >= 0]
    y = run(op, [x], best(), constants)
    assert worst(y.astype(np.float64), in_double(op, x, constants)) <= OTHERS.get(op, ULPS)


@named(FUNCTIONS)
def test_flushing_takes_no_normal_number(op: str, constants: Constants) -> None:
    x = sweep(256)
    x = x[np.isfinite(x) & (np.abs(x) >= SMALLEST["float32"])]
    if op in ("log", "rsqrt", "pow"):
        x = x[x > 0]
    if not torch.set_flush_denormal(True):
        pytest.skip("NOT TESTED on this processor: it cannot flush")
    try:
        y = run(op, [x], best(), constants)
    finally:
        torch.set_flush_denormal(False)
    expected = in_double(op, x, constants)
    assert worst(y.astype(np.float64), expected) <= OTHERS.get(op, ULPS)


@pytest.mark.soak
@pytest.mark.parametrize("op", ["sigmoid", "tanh", "exp", "log", "sin", "cos"])
def test_every_number_of_single_precision(op: str) -> None:
    for high in range(256):
        bits = np.arange(1 << 24, dtype=np.uint32) | np.uint32(high << 24)
        x = bits.view(np.float32)
        x = x[~np.isnan(x)]
        y = run(op, [x], best())
        assert worst(y.astype(np.float64), in_double(op, x, ())) <= ULPS, hex(high)


def samples(op: str) -> np.ndarray:
    """Double-precision numbers: all exponents, those that matter more often, and special ones."""
    g = np.random.default_rng(7)
    wide = np.ldexp(g.uniform(1, 2, 300), g.integers(-1022, 1023, 300))
    near = np.ldexp(g.uniform(1, 2, 900), g.integers(-12, 10, 900))
    special = [0.5, 1.0, 2.0, 1 - 2**-53, 1 + 2**-52, 0.5 * np.log(2), np.log(2), 37.0, 709.0]
    x = np.concatenate([wide, near, g.uniform(0.5, 2, 300), g.uniform(0, 38, 300), special])
    return x if op in ("log", "rsqrt", "pow") else x * np.where(g.random(len(x)) < 0.5, 1, -1)


@named(FUNCTIONS)
def test_double_precision_over_samples(op: str, constants: Constants) -> None:
    x = samples(op)
    if op == "log1p":
        x = x[x > -1]
    if op in ("exp", "expm1", "sigmoid", "silu", "gelu", "softplus", "logsigmoid"):
        x = x[(np.abs(x) < 1e3) | (np.abs(x) > 1e300)]
        x = np.clip(x, -5e3, 5e3)
    y = run(op, [x], best(), constants)
    with mp.workprec(140):
        distances = [
            _distance(op, a, v, constants) for a, v in zip(x.tolist(), y.tolist(), strict=True)
        ]
    assert max(distances) <= OTHERS.get(op, ULPS)


def _distance(op: str, x: float, y: float, constants: Constants) -> float:
    exact = MP[op](mp.mpf(x), *constants)
    if abs(exact) >= mp.mpf(2) ** 1024 * (1 - mp.mpf(2) ** -54):
        return 0 if y == np.copysign(INF, float(mp.sign(exact))) else INF
    if abs(exact) < SMALLEST["float64"]:
        return 0 if abs(y) <= SMALLEST["float64"] else INF
    ulp = mp.mpf(2) ** (mp.frexp(exact)[1] - 53)
    return float(abs(mp.mpf(y) - exact) / ulp) if np.isfinite(y) else INF


ENDS = [0.0, -0.0, INF, -INF, NAN, 1.0, -1.0]


@pytest.mark.parametrize("dtype", DIGITS)
@named([f for f in FUNCTIONS if f[0] != "gelu"])
def test_zeros_infinities_and_nan_are_torchs(op: str, constants: Constants, dtype: str) -> None:
    x = np.array(ENDS, dtype)
    expected = np.array([float(TORCH[op](torch.tensor(a).double(), *constants)) for a in ENDS])
    if op == "log1p":
        expected[ENDS.index(INF)] = INF
    y = run(op, [x], best(), constants)
    np.testing.assert_allclose(y, expected, rtol=1e-6)
    zero = expected == 0
    assert (np.signbit(y)[zero] == np.signbit(expected)[zero]).all()


@pytest.mark.parametrize("dtype", DIGITS)
def test_gelu_at_the_ends(dtype: str) -> None:
    y = run("gelu", [np.array([0.0, -0.0, INF, NAN, -INF], dtype)], best())
    np.testing.assert_array_equal(y, [0.0, 0.0, INF, NAN, NAN])
    assert np.signbit(y[:2]).tolist() == [False, True]


@pytest.mark.parametrize("dtype", DIGITS)
@named([f for f in FUNCTIONS if f[0] != "pow" or f[1][0]])
def test_every_nan_stays_nan(op: str, constants: Constants, dtype: str) -> None:
    kind = {"float32": np.uint32, "float64": np.uint64}[dtype]
    quiet = np.array(NAN, dtype).view(kind)
    payloads = quiet | np.random.default_rng(1).integers(0, 1 << 22, 512).astype(kind)
    sign = kind(1 << (8 * kind().itemsize - 1))
    x = np.concatenate([payloads, payloads | sign]).view(dtype)
    assert np.isnan(run(op, [x], best(), constants)).all()


@pytest.mark.parametrize("dtype", DIGITS)
def test_tanh_and_sigmoid_stay_in_their_range(dtype: str) -> None:
    x = sweep(64)
    x = np.concatenate([x[~np.isnan(x)], np.linspace(-40, 40, 1 << 16, dtype=np.float32)])
    x = x.astype(dtype)
    assert np.abs(run("tanh", [x], best())).max() == 1
    y = run("sigmoid", [x], best())
    assert (y.min(), y.max()) == (0, 1)


def grid(dtype: str) -> list[np.ndarray]:
    pairs = np.array(list(itertools.product(POINTS, POINTS)), dtype)
    return [np.ascontiguousarray(pairs[:, 0]), np.ascontiguousarray(pairs[:, 1])]


@pytest.mark.parametrize("dtype", DIGITS)
@named(PLAIN)
def test_plain_operations_are_torchs(op: str, constants: Constants, dtype: str) -> None:
    x = grid(dtype)[0]
    expected = TORCH[op](torch.from_numpy(x), *constants).numpy()
    if op == "sqrt" or constants == (0.5,):
        # On some processors torch's root of a float64 is one unit off; NumPy's is rounded rightly.
        rooted = np.isfinite(x) & (x > 0)
        expected = np.where(rooted, np.sqrt(x, where=rooted, out=np.zeros_like(x)), expected)
    np.testing.assert_array_equal(run(op, [x], best(), constants), expected)


@pytest.mark.parametrize("dtype", DIGITS)
@pytest.mark.parametrize("op", PAIRS)
def test_operations_on_pairs_are_torchs(op: str, dtype: str) -> None:
    arrays = grid(dtype)
    expected = TORCH[op](*map(torch.from_numpy, arrays)).numpy()
    np.testing.assert_array_equal(run(op, arrays, best()), expected)


@pytest.mark.parametrize("op", ["and", "or", "gt", "ge", "lt", "le", "eq", "ne"])
def test_truths(op: str) -> None:
    x, w = (np.array(v) for v in ([True, True, False, False], [True, False, True, False]))
    expected = TORCH[op](torch.from_numpy(x), torch.from_numpy(w)).numpy()
    np.testing.assert_array_equal(run(op, [x, w], best()), expected)
    np.testing.assert_array_equal(run("not", [x], best()), ~x)


@pytest.mark.parametrize("dtype", DIGITS)
def test_truths_choose_and_count(dtype: str) -> None:
    x, w = grid(dtype)
    mask = np.random.default_rng(3).random(len(x)) < 0.5
    np.testing.assert_array_equal(run("where", [mask, x, w], best()), np.where(mask, x, w))
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(run("mul", [x, mask], best()), x * mask)
    np.testing.assert_array_equal(run("gt", [mask, x], best()), mask > x)


@pytest.mark.parametrize("value", [0.3, -0.7, 4.0])
@pytest.mark.parametrize("e", [INF, -INF, NAN, 7.0, -7.0, 8.0, -1.5, 0.3])
def test_powers_of_what_is_below_zero(value: float, e: float) -> None:
    x = np.array([value, -value, 0.0, -0.0, INF, -INF, NAN, 1.0])
    expected = [float(torch.pow(torch.tensor(a).double(), e)) for a in x]
    y = run("pow", [x], best(), (e,))
    np.testing.assert_allclose(y, expected, rtol=1e-15)
    assert (np.signbit(y) == np.signbit(expected))[~np.isnan(y)].all()


def nearest_to_quarter_turns(digits: int, lowest: int, highest: int) -> list[float]:
    """Of every exponent the number m 2^e that is next to a multiple of pi / 2, m of so many bits.

    The best m is the last denominator below 2^digits among the fractions next to 2^e 2 / pi.
    """
    found = []
    with mp.workprec(2400):
        for e in range(lowest, highest):
            rest, before, m = mp.ldexp(2 / mp.pi, e), 0, 1
            while True:
                rest = 1 / (rest - mp.floor(rest))
                following = int(mp.floor(rest)) * m + before
                if following >= 1 << digits:
                    break
                before, m = m, following
            found.append(float(mp.ldexp(m, e)))
    return found


@pytest.mark.parametrize("op", ["sin", "cos"])
@pytest.mark.parametrize("dtype", DIGITS)
def test_angles_next_to_multiples_of_a_quarter_turn(op: str, dtype: str) -> None:
    top = {"float32": 104, "float64": 971}[dtype]
    angles = nearest_to_quarter_turns(DIGITS[dtype], -DIGITS[dtype], top + 1)
    if dtype == "float64":
        assert 6381956970095103 * 2.0**797 in angles  # the nearest of all
    x = np.array([*angles, *(-a for a in angles)], dtype)
    y = run(op, [x], best())
    with mp.workprec(140):
        exact = [getattr(mp, op)(mp.mpf(a)) for a in x.tolist()]
        ulps = [mp.ldexp(1, mp.frexp(v)[1] - DIGITS[dtype]) for v in exact]
        far = [abs(mp.mpf(v) - w) / u for v, w, u in zip(y.tolist(), exact, ulps, strict=True)]
    assert max(far) <= OTHERS[op]


def test_pi_is_known_to_the_last_digit_that_counts() -> None:
    with mp.workprec(1400):
        assert int(mp.floor(mp.ldexp(2 / mp.pi, 1216))) == operations.TWO_OVER_PI
        rest = mp.pi / 2
        for part in operations.PARTS:
            assert part == float(rest)
            rest -= part


@named([*FUNCTIONS, *PLAIN])
def test_same_bits_on_both_machines(op: str, constants: Constants) -> None:
    wide, narrow = machine("avx512"), machine("avx2")
    with np.errstate(invalid="ignore"):
        x = sweep(256)
    for values in (x, samples("tanh")):
        one, other = (run(op, [values], m, constants) for m in (wide, narrow))
        assert (np.isnan(one) == np.isnan(other)).all()
        there = ~np.isnan(one)
        kind = f"u{one.itemsize}"
        assert (one[there].view(kind) == other[there].view(kind)).all()


def test_every_operation_has_code() -> None:
    rows = {"row_sum", "row_mean", "softmax", "normalise", "row_max", "row_norm"}
    rows |= {"cat", "cumsum"}  # of whole lines
    given = {"full", "number", "width", "epsilon"}
    assert (set(RULES) | FLAT) - rows - given <= OPS
    tested = {op for op, _ in [*FUNCTIONS, *PLAIN]} | {*PAIRS, *BOOLEAN, "where"}
    assert OPS == tested


@pytest.mark.parametrize("name", MACHINES)
@pytest.mark.parametrize("dtype", DIGITS)
@named(FUNCTIONS)
def test_nothing_is_called(op: str, constants: Constants, dtype: str, name: str) -> None:
    code = assembly(op, dtype, MACHINES[name], constants)
    assert "call" not in code and "\tbl\t" not in code


def test_neon_code_is_vector_code() -> None:
    code = assembly("tanh", "float32", MACHINES["neon"])
    assert "fmla" in code and ".4s" in code
    assert "fast" not in module("map", "tanh", ("float32",), (), MACHINES["neon"])


@pytest.mark.soak
def test_the_coefficients_are_those_that_the_fit_prints() -> None:
    fit = ROOT / "benchmarks" / "maths" / "fit.py"
    printed = subprocess.run([sys.executable, fit], check=True, capture_output=True, text=True)
    file = PACKAGE / "compiler" / "llvm" / "maths" / "__init__.py"
    assert printed.stdout == file.read_text()
