"""The team of threads inside a region: who am I, how many are we, and waiting for each other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from llvmlite import ir

from throughtime.compiler.llvm.abi import Kind
from throughtime.compiler.llvm.values import I64, Num
from throughtime.compiler.llvm.writer import POINTER, VOID, Emit, common
from throughtime.compiler.runtime.machine import Machine

MEETING_SIZE: Final = 64
"""Bytes from one barrier's counter to the next: a line of the cache each."""

SPINS: Final = 20_000
"""Looks at the counter before the processor is offered to others: some ten microseconds."""

OFFERS: Final = 100
"""Offers before it is left: as long as a thread takes to wake on a processor of its own."""


_FLUSH_X86: Final = 0x8040
_FLUSH_ARM: Final = 1 << 24
"""The bits that flush denormals, in MXCSR (results and operands) and in FPCR."""


def my_share(e: Emit, count: Num, thread: Num, team: Num) -> tuple[Num, Num]:
    """The part of `count` things that is this thread's: from, to."""
    return thread * count // team, (thread + 1) * count // team


def thread_and_team(e: Emit) -> tuple[Num, Num]:
    """This thread's number and how many there are; 0 of 1 without a runtime."""
    c, whole = common(e), ir.IntType(32)

    def asked(name: str) -> Num:
        number = e.b.call(e.foreign(c[name], whole, []), [])
        return Num(e.b, e.b.sext(number, I64))

    def either(name: str, alone: int) -> Num:
        there = c["thread_number"].compare("!=", 0)
        return e.choose(there, lambda: asked(name), lambda: e.number(alone))

    return either("thread_number", 0), either("team_size", 1)


@contextmanager
def denormals_flushed(e: Emit, machine: Machine) -> Iterator[None]:
    """Inside, results too small for a normal number are zero; afterwards, as the caller had it.

    Arithmetic on denormals takes a hundred times as long, and gradients that vanish are full of it.
    """
    b, whole = e.b, ir.IntType(32)
    if machine.triple.startswith("x86"):
        place = b.alloca(whole)
        store, load = (e.plain(f"llvm.x86.sse.{n}mxcsr", VOID, [POINTER]) for n in ("st", "ld"))
        b.call(store, [place])
        before = b.load(place, typ=whole)
        b.store(b.or_(before, whole(_FLUSH_X86)), place)
        b.call(load, [place])
        yield
        b.store(before, place)
        b.call(load, [place])
    else:
        get = e.plain("llvm.aarch64.get.fpcr", I64, [])
        put = e.plain("llvm.aarch64.set.fpcr", VOID, [I64])
        before = b.call(get, [])
        b.call(put, [b.or_(before, I64(_FLUSH_ARM))])
        yield
        b.call(put, [before])


def write_barrier(module: ir.Module, kind: Kind) -> Emit:
    """`barrier(block, counter, goal)`: arrive, then wait until `goal` arrivals were counted.

    It spins a bounded while, since a barrier is short, and then yields, since a thread that is
    waited for may have no processor. Where that one was woken on this thread's own processor, the
    system may let it wait until the next tick, milliseconds, however often it yields: a short sleep
    gives it the processor at once, and this thread wakes on an idle one.
    """
    e = Emit(module, "barrier", kind, ("block", "counter", "goal"), internal=True)
    c, b = common(e), e.b
    counter = e.pointer(e.args["counter"])
    b.atomic_rmw("add", counter, I64(1), "acq_rel")
    look, rest, out = (e.function.append_basic_block(n) for n in ("look", "rest", "out"))
    before = b.block
    b.branch(look)
    b.position_at_end(look)
    spins = b.phi(I64)
    spins.add_incoming(I64(0), before)
    seen = b.load_atomic(counter, "acquire", 8, typ=I64)
    b.cbranch(b.icmp_signed(">=", seen, e.args["goal"].value), out, rest)
    b.position_at_end(rest)
    following = b.add(spins, I64(1))
    with b.if_then(b.icmp_signed(">", following, I64(SPINS))):
        whole = ir.IntType(32)
        tired = b.icmp_signed(">", following, I64(SPINS + OFFERS))
        with b.if_else(tired) as (sleep, offer):
            with sleep:
                b.call(e.foreign(c["sleep"], whole, [whole]), [whole(1)])
            with offer:
                b.call(e.foreign(c["yield"], whole, []), [])
    spins.add_incoming(following, b.block)
    b.branch(look)
    b.position_at_end(out)
    return e.done()
