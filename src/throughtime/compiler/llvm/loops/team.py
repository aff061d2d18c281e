"""The team of threads that runs a region: who am I, how many are we, waiting for each other; and
whether there is one.

A region ends when the last thread of its team does. Where another program has the core that one of
them would run on, all wait for the system's next tick, milliseconds, so then calls go alone for a
while. What teams have gained over the calling thread alone is kept up to a bound, so that some
calls that were kept waiting do no harm, and many do. Then a pause begins. It ends when the calls
that went alone have taken its time together: a program that calls now and then would otherwise try
a team each time. One losing call is enough for the next pause, which is twice as long until teams
have gained again what they may lose at first.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

from llvmlite import ir

from throughtime.compiler.llvm.abi import Kind
from throughtime.compiler.llvm.values import I64, Num, Truth, where
from throughtime.compiler.llvm.writer import POINTER, VOID, Emit, Frame, common
from throughtime.compiler.runtime.machine import Machine
from throughtime.compiler.runtime.threads import CALL, EVER, GAIN

MEETING_SIZE: Final = 64
"""Bytes from one barrier's counter to the next: a line of the cache each."""

SPINS: Final = 20_000
"""Looks at the counter one right after the other: some ten microseconds."""

PAUSES: Final = 40_000
"""Then looks with a short rest before each, which leaves a shared core to its other thread: half a
millisecond to two. A thread that has to wait for its processor often has it by then, and a pair of
threads that yield or sleep earlier can end on one processor, by turns, while the other is idle."""

MASK_WORDS: Final = 16
"""Words of a set of processors: 1024 of them, as the C library has it."""

OFFERS: Final = 100
"""Then offers of the processor to others, before it is left for a moment."""

MOST_KEPT: Final = 5 * GAIN["kept"]
"""Nanoseconds of gain that are kept at most."""

LONGEST_PAUSE: Final = 50 * GAIN["pause"]
"""Nanoseconds of calls that go alone, at most."""

LONGEST: Final = 10
"""Times its nanoseconds that a pause lasts on the clock at most."""

_FLUSH_X86: Final = 0x8040
_FLUSH_ARM: Final = 1 << 24
"""The bits that flush denormals, in MXCSR (results and operands) and in FPCR."""


def my_share(count: Num, thread: Num, team: Num) -> tuple[Num, Num]:
    """The part of `count` things that is this thread's: from, to."""
    return thread * count // team, (thread + 1) * count // team


def meet(e: Emit, barrier: Emit, count: Num) -> None:
    """The count-th meeting of the members that share a chunk of rows."""
    g = e.args
    with e.when(g["members"] > 1):
        e.call(barrier, **e.passed_on("block", "counter"), goal=count * g["members"])


class Role(NamedTuple):
    """What a thread does of a region's chunks of rows.

    Attributes:
        task, tasks: the number of its first chunk, and how many are carried side by side.
        member, members: which of the threads that share a chunk it is, and how many they are.
        counter: of their meetings.
    """

    task: Num
    tasks: Num
    member: Num
    members: Num
    counter: Num

    @classmethod
    def of(cls, c: Frame, thread: Num, team: Num) -> Role:
        """Of this thread of a team: where there are fewer chunks than threads, some share one."""
        members = (team // (c["D"] * c["chunks"])).least(c["most_members"]).most(1)
        task = thread // members
        counter = c["counter"] + (task + 1) * MEETING_SIZE
        return cls(task, team // members, thread % members, members, counter)


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


def write_move_apart(module: ir.Module, kind: Kind) -> Emit:
    """`move_apart(block)`: leave the processor where another thread of the team waits.

    A sleeping thread is woken where it ran last, even if that is the processor of the thread that
    wakes it and another one is idle. Then both take turns there, until the system looks at its
    queues again, for ten milliseconds. So who waits notes on which processor, and offers it; and
    who finds a thread of a lower number there goes to any other that it may use.
    """
    e = Emit(module, "move_apart", kind, ("block",), internal=True)
    c, b, whole = common(e), e.b, ir.IntType(32)
    with e.when(c["processor"].compare("!=", 0)):
        asked = b.call(e.foreign(c["processor"], whole, []), [])
        mine, (thread, _) = Num(b, b.sext(asked, I64)), thread_and_team(e)
        seats = c["counter"] + (c["D"] * c["chunks"] + 1) * MEETING_SIZE
        b.store((mine + 1).value, e.pointer(seats + thread * MEETING_SIZE))
        with e.loop(thread, e.number(0)) as other:
            there = e.word(seats + other.index * MEETING_SIZE).compare("==", mine + 1)
            other.next = [where(there, 1, other.values[0])]
        with e.when((other.values[0] > 0) & (mine >= 0) & (mine < MASK_WORDS * 64)):
            _leave(e, c, mine)
    return e.done()


def _leave(e: Emit, c: Frame, processor: Num) -> None:
    """Go to any other processor that this thread may use; afterwards it may use all as before."""
    b, whole, words = e.b, ir.IntType(32), ir.ArrayType(I64, MASK_WORDS)
    kept, others = (e.place(b.alloca(words)) for _ in range(2))
    kinds = [whole, I64, POINTER]

    def call(name: str, mask: Num) -> Num:
        function = e.foreign(c[name], whole, kinds)
        result = b.call(function, [whole(0), I64(8 * MASK_WORDS), e.pointer(mask)])
        return Num(b, b.sext(result, I64))

    with e.when(call("get_affinity", kept).compare("==", 0)):
        with e.loop(e.number(MASK_WORDS), e.number(0)) as k:
            bit = b.shl(I64(1), (processor % 64).value)
            here = k.index.compare("==", processor // 64)
            word = e.word(kept, k.index)
            rest = Num(b, b.and_(word.value, b.not_(bit)))
            left = where(here, rest, word)
            b.store(left.value, e.pointer(others + k.index * 8))
            k.next = [where(left.compare("!=", 0), 1, k.values[0])]
        with e.when(k.values[0] > 0):
            call("set_affinity", others)
            call("set_affinity", kept)


def write_barrier(module: ir.Module, kind: Kind, apart: Emit, machine: Machine) -> Emit:
    """`barrier(block, counter, goal)`: arrive, then wait until `goal` arrivals were counted.

    It spins a bounded while, since a barrier is short, leaves a processor that it shares with
    another thread of the team, and at last yields and sleeps, since a thread that is waited for may
    have no processor.
    """
    e = Emit(module, "barrier", kind, ("block", "counter", "goal"), internal=True)
    b = e.b
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
        _rest(e, following, apart, machine)
    spins.add_incoming(following, b.block)
    b.branch(look)
    b.position_at_end(out)
    return e.done()


def _rest(e: Emit, looks: ir.Value, apart: Emit, machine: Machine) -> None:
    """Wait for a moment after so many looks, in the way that suits how long it has taken."""
    c, b, whole = common(e), e.b, ir.IntType(32)
    with b.if_else(b.icmp_signed(">", looks, I64(SPINS + PAUSES))) as (later, soon):
        with soon:
            with b.if_then(b.icmp_signed("==", looks, I64(SPINS + 1))):
                e.call(apart, **e.passed_on("block"))
                b.call(e.foreign(c["yield"], whole, []), [])
            if machine.triple.startswith("x86"):
                b.call(e.plain("llvm.x86.sse2.pause", VOID, []), [])
            else:
                b.call(e.plain("llvm.aarch64.hint", VOID, [whole]), [whole(1)])  # yield
        with later:
            tired = b.icmp_signed(">", looks, I64(SPINS + PAUSES + OFFERS))
            with b.if_else(tired) as (sleep, offer):
                with sleep:
                    b.call(e.foreign(c["sleep"], whole, [whole]), [whole(1)])
                with offer:
                    b.call(e.foreign(c["yield"], whole, []), [])


def write_on_team(module: ir.Module, kind: Kind) -> Emit:
    """`on_team(call, argument)`: the function of a CALL on all threads of a team, or alone.

    How long it takes alone is predicted at first. A team that takes longer makes the next call go
    alone, since the prediction may be wrong; then it is known from the fastest such call. And it is
    at most as many times the time of the fastest team as that has threads.
    """
    e = Emit(module, "on_team", kind, ("call", "argument"))
    c = Frame(e, e.args["call"], CALL)
    gain, argument = Frame(e, c["gain"], tuple(GAIN)), e.args["argument"]
    begun, team = _now(e, c), _free(e, c)
    paused = (gain["left"] > 0) & (begun < gain["until"])
    with e.split((team < 2) | c["asks"].compare("!=", 0) | paused) as (by_one, by_all):
        with by_one:
            e.call_at(c["function"], ("argument",), argument=argument)
            took = _now(e, c) - begun
            c["best_alone"], c["asks"] = took.least(c["best_alone"]), e.number(0)
            gain["left"] = gain["left"] - took
        with by_all:
            whole = ir.IntType(32)
            start = e.foreign(c["GOMP_parallel"], VOID, [I64, I64, whole, whole])
            number = e.b.trunc(team.value, whole)
            e.b.call(start, [c["function"].value, argument.value, number, whole(0)])
            _weigh(e, c, gain, begun, team)
    return e.done()


def _weigh(e: Emit, c: Frame, gain: Frame, begun: Num, team: Num) -> None:
    """In `on_team`: what a team has gained or lost."""
    ended = _now(e, c)
    took, known = ended - begun, c["best_alone"].compare("!=", EVER)
    alone = where(known, c["best_alone"], c["alone"])
    c["best"] = took.least(c["best"])
    with e.split(known | (took <= alone)) as (credible, doubtful):
        with credible:
            _add(e, gain, alone.least(team * c["best"]) - took, ended)
        with doubtful:
            c["asks"] = e.number(1)


def _add(e: Emit, gain: Frame, gained: Num, now: Num) -> None:
    """In `on_team`: to what is kept; a pause begins where nothing is left."""
    kept = (gain["kept"] + gained).least(MOST_KEPT)
    gain["kept"] = kept.most(0)
    with e.when(kept >= GAIN["kept"]):
        gain["pause"] = e.number(GAIN["pause"])
    with e.when(kept < 0):
        left = gain["pause"].most(gained * -10)
        gain["left"], gain["until"] = left, now + left * LONGEST
        gain["pause"] = (gain["pause"] * 2).least(LONGEST_PAUSE)


def _now(e: Emit, c: Frame) -> Num:
    """Nanoseconds on the clock."""
    whole = ir.IntType(32)
    with e.b.goto_entry_block():
        time = e.place(e.b.alloca(ir.ArrayType(I64, 2)))
    clock = e.foreign(c["clock_gettime"], whole, [whole, I64])
    e.b.call(clock, [e.b.trunc(c["clock"].value, whole), time.value])
    return e.word(time) * 1_000_000_000 + e.word(time, 1)


def _free(e: Emit, c: Frame) -> Num:
    """Threads that a team may have now: those asked for, if torch still has as many; 1 in a process
    forked from the one that prepared the calls, and inside another parallel region."""

    def asked(name: str) -> Num:
        whole = ir.IntType(32)
        return Num(e.b, e.b.sext(e.b.call(e.foreign(c[name], whole, []), []), I64))

    alone: Truth = asked("getpid").compare("!=", c["process"])
    alone = alone | asked("omp_in_parallel").compare("!=", 0)
    return where(alone, 1, asked("omp_get_max_threads").least(c["threads"]))
