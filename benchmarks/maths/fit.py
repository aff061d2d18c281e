"""Prints src/throughtime/compiler/llvm/maths/__init__.py: the polynomials of the vector maths.

    python benchmarks/maths/fit.py > src/throughtime/compiler/llvm/maths/__init__.py

Each polynomial is the least-squares fit of its function at the Chebyshev points of its range in 60
digits, in relative error or what `weight` says, which is within a small factor of the best one. The
coefficients are rounded from the lowest up, and what a rounding leaves over is fitted again by the
higher ones.
"""

from __future__ import annotations

from collections.abc import Callable

import mpmath as mp
import numpy as np

mp.mp.dps = 60
LN2 = mp.log(2)
HEAD = '''"""Vector maths: torch's pointwise operations with stated error bounds.

Their polynomials are here, lowest power first, by the bits of a number. benchmarks/maths/fit.py
prints this file, and says what each approximates.
"""

from __future__ import annotations

from typing import Final


def numbers(text: str) -> tuple[float, ...]:
    return tuple(map(float, text.split()))


'''

Function = Callable[[mp.mpf], mp.mpf]


def nodes(low: mp.mpf, high: mp.mpf, n: int) -> list[mp.mpf]:
    """The n Chebyshev points of a range."""
    angles = [mp.pi * (2 * i + 1) / (2 * n) for i in range(n)]
    return [(low + high) / 2 + (high - low) / 2 * mp.cos(a) for a in angles]


def fit(f: Function, low: mp.mpf, high: mp.mpf, degree: int, bits: int) -> list[float]:
    """Coefficients in the precision of `bits`, each rounded before the next are fitted."""
    xs = nodes(mp.mpf(low), mp.mpf(high), 2 * degree + 2)
    weights = [weight(f, x) for x in xs]
    rest = mp.matrix([f(x) * w for x, w in zip(xs, weights, strict=True)])
    found: list[float] = []
    for first in range(degree + 1):
        columns = range(first, degree + 1)
        powers = mp.matrix([[x**k * w for k in columns] for x, w in zip(xs, weights, strict=True)])
        lowest = mp.lu_solve(powers, rest)[0]
        found.append(float(np.float32(float(lowest)) if bits == 32 else float(lowest)))
        rest -= found[-1] * powers[:, 0]
    return found


def exp(r: mp.mpf) -> mp.mpf:
    """(exp(r) - 1) / r on half a step of ln 2 to both sides, over 1 and r."""
    return (mp.expm1(r) / r - 1) / r if r else mp.mpf(1) / 2


def atanh(z: mp.mpf) -> mp.mpf:
    """(2 atanh(s) / s - 2) / z with z = s^2."""
    s = mp.sqrt(z)
    return (2 * mp.atanh(s) / s - 2) / z


def atanh_rest(z: mp.mpf) -> mp.mpf:
    """The same without its first term: (atanh(z) - 2 / 3) / z."""
    return (atanh(z) - mp.mpf(2) / 3) / z


def log1p(z: mp.mpf) -> mp.mpf:
    """(2 atanh(s) - 2 s) / (2 s)^3 with z = (2 s)^2."""
    return atanh(z / 4) / 8


def sin(z: mp.mpf) -> mp.mpf:
    """(sin(x) / x - 1) / z with z = x^2."""
    x = mp.sqrt(z)
    return (mp.sin(x) / x - 1) / z


def cos(z: mp.mpf) -> mp.mpf:
    """(cos(x) - 1 + z / 2) / z^2 with z = x^2."""
    return (mp.cos(mp.sqrt(z)) - 1 + z / 2) / z**2


def atan(z: mp.mpf) -> mp.mpf:
    """(atan(x) / x - 1) / z with z = x^2."""
    x = mp.sqrt(z)
    return (mp.atan(x) / x - 1) / z


def erf(x: mp.mpf) -> mp.mpf:
    """-log(1 - erf(x)) / x."""
    return -mp.log(mp.erfc(x)) / x


def normal(t: mp.mpf) -> mp.mpf:
    """exp(a^2 / 2) (a + 4) times the normal distribution below -a, with t = (a - 2) / (a + 4)."""
    a = (2 + 4 * t) / (1 - t)
    return mp.exp(a * a / 2) * (a + 4) * mp.erfc(a / mp.sqrt(2)) / 2


def weight(f: Function, x: mp.mpf) -> mp.mpf:
    """How much an error of f counts: in the exponential, in erf, and elsewhere relative to f."""
    if f is exp:
        return x**2
    return x * mp.erfc(x) / mp.erf(x) if f is erf else 1 / f(x)


HALF, THIRD, QUARTER = LN2 / 2 * 1.001, mp.mpf(1) / 9, (mp.pi / 4) ** 2 * 1.001
ROOT = ((mp.sqrt(2) - 1) / (mp.sqrt(2) + 1)) ** 2 * 1.001


def far(a: float) -> mp.mpf:
    """Where a of `normal` lies in t."""
    return (mp.mpf(a) - 2) / (mp.mpf(a) + 4)


# For each, at 32 and at 64 bits: the function, its range and the degree.
POLYNOMIALS: dict[str, dict[int, tuple[Function, mp.mpf, mp.mpf, int]]] = {
    "EXP": {32: (exp, -HALF, HALF, 4), 64: (exp, -HALF, HALF, 9)},
    "LOG": {32: (atanh, 0, ROOT, 2), 64: (atanh, 0, ROOT, 6)},
    "LOG_REST": {64: (atanh_rest, 0, ROOT, 6)},
    "LOG1P": {32: (log1p, 0, 4 * THIRD, 4), 64: (log1p, 0, 4 * THIRD, 10)},
    "SIN": {32: (sin, 0, QUARTER, 2), 64: (sin, 0, QUARTER, 5)},
    "COS": {32: (cos, 0, QUARTER, 2), 64: (cos, 0, QUARTER, 5)},
    "ATAN": {32: (atan, 0, 1, 8), 64: (atan, 0, 1, 19)},
    "ERF": {32: (erf, 0, 4, 8), 64: (erf, 0, 6, 23)},
    "NORMAL": {32: (normal, far(0), far(14), 9), 64: (normal, far(0), far(38), 22)},
}


def show(name: str) -> str:
    """The table of one polynomial as source, three numbers a line."""
    lines = [f"{name}: Final = {{"]
    for bits, (f, low, high, degree) in POLYNOMIALS[name].items():
        numbers = [repr(c) for c in fit(f, low, high, degree, bits)]
        rows = [" ".join(numbers[i : i + 3]) for i in range(0, len(numbers), 3)]
        lines += [f'    {bits}: numbers("""', *(f"        {row}" for row in rows), '    """),']
    return "\n".join([*lines, "}"])


def main() -> None:
    """All of them."""
    print(HEAD + "\n".join(map(show, POLYNOMIALS)))


if __name__ == "__main__":
    main()
