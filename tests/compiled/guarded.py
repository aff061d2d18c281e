"""Memory whose neighbours may not be touched: a program that crashes where code reads past an end.

    python -m tests.compiled.guarded before|behind

Every tensor that is given, and every one that is made inside, ends right before a protected page
(behind: begins right after one). Says what it is about to run, so that the last line tells where
it crashed, and at the end that nothing did.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor

from tests.compiled.calls import (
    CELLS,
    FLOATS,
    FORMS,
    Sizes,
    assert_same,
    changed,
    gradients,
    leaves,
    of_parameters,
    random_call,
    random_gradients,
    results,
)
from tests.compiled.fresh import memory_from
from tests.compiler import still
from throughtime.backends.call import Call
from throughtime.backends.cpu import products
from throughtime.backends.cpu import schedule as cutting
from throughtime.compiler.runtime import threads

PAGE: Final = mmap.PAGESIZE
NO_ACCESS: Final = 0  # PROT_NONE
SIZES: Final = [
    Sizes(3, 2, 5, 17, 2), Sizes(2, 7, 33, 3), Sizes(1, 1, 1, 1, 2), Sizes(4, 13, 1, 37),
    Sizes(2, 3, 5, 100), Sizes(1, 1, 7, 130, 2), Sizes(3, 5, 16, 16), Sizes(2, 1, 17, 65),
    Sizes(5, 17, 3, 7, 2), Sizes(0, 3, 2, 5), Sizes(1, 29, 19, 37), Sizes(1, 3, 150, 70),
]  # fmt: skip

_libc = ctypes.CDLL(None, use_errno=True)


class Guard:
    """Makes tensors beside protected pages.

    Args:
        before: they end before one; else they begin behind one.
    """

    def __init__(self, before: bool) -> None:
        self.before = before
        self.made = 0

    def empty(self, *shape: Any, dtype: torch.dtype = torch.float32) -> Tensor:
        """Fresh memory full of ones in every bit, which are NaN."""
        whole = tuple(shape[0]) if len(shape) == 1 and not isinstance(shape[0], int) else shape
        count = math.prod(whole)
        if not count:
            return torch.zeros(whole, dtype=dtype)
        self.made += 1
        bytes = count * dtype.itemsize
        room = -(-bytes // PAGE) * PAGE
        memory = mmap.mmap(-1, room + 2 * PAGE)
        memory[PAGE : PAGE + room] = b"\xff" * room
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        for page in (address, address + PAGE + room):
            if _libc.mprotect(ctypes.c_void_p(page), PAGE, NO_ACCESS):
                raise OSError(ctypes.get_errno(), "mprotect")
        offset = PAGE + room - bytes if self.before else PAGE
        return torch.frombuffer(memory, dtype=dtype, count=count, offset=offset).view(whole)

    def copy(self, v: Tensor) -> Tensor:
        """A tensor's numbers beside a protected page, as a leaf."""
        return self.empty(v.shape, dtype=v.dtype).copy_(v.detach()).requires_grad_(v.requires_grad)

    @contextmanager
    def everywhere(self) -> Iterator[None]:
        """What is made anew lies here too."""
        kept = torch.Tensor.new_empty, torch.Tensor.new_zeros, torch.empty

        def new_empty(like: Tensor, *shape: Any, dtype: Any = None) -> Tensor:
            return self.empty(*shape, dtype=dtype or like.dtype)

        def new_zeros(like: Tensor, *shape: Any, dtype: Any = None) -> Tensor:
            return self.empty(*shape, dtype=dtype or like.dtype).zero_()

        torch.Tensor.new_empty, torch.Tensor.new_zeros, torch.empty = (  # type: ignore[assignment]
            new_empty, new_zeros, self.empty,
        )  # fmt: skip
        try:
            with memory_from(lambda bytes: self.empty(bytes, dtype=torch.uint8).numpy()):
                yield
        finally:
            torch.Tensor.new_empty, torch.Tensor.new_zeros, torch.empty = kept


def everything(call: Call, d: dict[str, Tensor | None]) -> list[Tensor]:
    """Results and gradients of training, and results without a gradient, of packs that wait too."""
    found, kept = results(call), of_parameters(call)
    grads = gradients(found, leaves(call), d)
    with torch.no_grad():
        others = [v for one in (call, kept, kept) for v in results(one).values()]
        return [*found.values(), *grads.values(), *others]


def run(before: bool) -> int:
    """All cells and sizes; how many tensors were guarded."""
    guard, count = Guard(before), 0
    cutting.PARALLEL_US = cutting.STEP_US = 0
    cutting.SHARED_BYTES = products.LEAST_NUMBERS = 0
    threads.usable, threads.runtime = lambda: 64, still.runtime
    for dtype, team in zip(FLOATS, (1, 3), strict=True):
        torch.set_num_threads(team)
        for cell in CELLS:
            for sizes in SIZES:
                form = list(FORMS)[count % len(FORMS)]
                count += 1
                print(dtype, cell, sizes, form, flush=True)
                call = random_call(cell, dtype, sizes, form)
                d = random_gradients(results(call))
                clean = everything(call, d)
                beside = {n: None if v is None else guard.copy(v) for n, v in d.items()}
                with guard.everywhere():
                    assert_same(everything(changed(call, guard.copy), beside), clean)
    return guard.made


def plant(before: bool) -> None:
    """Reads one number past the end: this program must not live on."""
    v = Guard(before).empty(5)
    past = v.data_ptr() + (4 * 5 if before else -4)
    print("about to crash", ctypes.c_float.from_address(past).value, flush=True)


if __name__ == "__main__":
    torch.manual_seed(1)
    side, *planted = sys.argv[1:]
    if planted:
        plant(side == "before")
    print("unharmed:", run(side == "before"))
