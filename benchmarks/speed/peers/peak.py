"""The machine itself, as many threads as torch takes, doing nothing but multiply-adds."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import torch

from benchmarks.speed.contender import Contender
from benchmarks.speed.material import Material

if TYPE_CHECKING:
    from benchmarks.speed.peak import FmaKernel


def contender(m: Material) -> Contender:
    """The kernel on registers; the same for every case."""
    kernel = _kernel(torch.get_num_threads())
    return Contender(kernel.run, None, kernel.flops)


@cache
def _kernel(threads: int) -> FmaKernel:
    from benchmarks.speed.peak import FmaKernel

    return FmaKernel(threads)
