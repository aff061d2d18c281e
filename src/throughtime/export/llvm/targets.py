"""The processors that objects are written for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

from throughtime.errors import OptionError


@dataclass(frozen=True)
class Target:
    """A processor, its vectors, and what it has not.

    Attributes:
        name: what --target calls it.
        triple, cpu, features, abi: LLVM's words for it.
        lanes: float32 numbers of a vector.
        vectors: sums that registers hold at once, beside what goes into them.
        fused: whether it has fused multiply-adds.
        pointer: bits of an address.
        reloc: how code reaches its constants.
    """

    name: str
    triple: str
    cpu: str
    features: str
    lanes: int
    vectors: int
    fused: bool = True
    pointer: int = 64
    reloc: str = "pic"
    abi: str = ""


TARGETS: Final = {
    target.name: target
    for target in (
        Target("x86-64-v3", "x86_64-unknown-linux-gnu", "x86-64-v3", "", 8, 8),
        Target("x86-64-v4", "x86_64-unknown-linux-gnu", "x86-64-v4", "", 16, 16),
        Target("aarch64", "aarch64-unknown-linux-gnu", "generic", "+neon", 4, 16),
        Target("cortex-m4f", "thumbv7em-none-eabihf", "cortex-m4", "+vfp4d16sp", 1, 8,
               pointer=32, reloc="static"),
        Target("cortex-m55", "thumbv8.1m.main-none-eabihf", "cortex-m55", "", 4, 4,
               pointer=32, reloc="static"),
        Target("riscv64", "riscv64-unknown-linux-gnu", "generic-rv64", "+m,+a,+f,+d,+c", 1, 8,
               abi="lp64d"),
        Target("wasm32", "wasm32-unknown-unknown", "generic",
               "+simd128,+bulk-memory,+nontrapping-fptoint,+sign-ext,+mutable-globals", 4, 8,
               fused=False, pointer=32, reloc="static"),
    )
}  # fmt: skip
"""By name."""


def target_named(name: str) -> Target:
    """Raises OptionError: there is no such target."""
    if name not in TARGETS:
        raise OptionError(f"target must be one of {', '.join(TARGETS)}, got {name!r}")
    return TARGETS[name]


def fitted(target: Target, widest: int) -> Target:
    """The target with vectors that the longest line of a model fills at least by half."""
    while target.lanes > _NARROWEST and 2 * widest <= target.lanes:
        target = replace(target, lanes=target.lanes // 2)
    return target


_NARROWEST: Final = 4


def code_writer(target: Target) -> Any:
    """LLVM's object that writes code for a target."""
    import llvmlite.binding as llvm

    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    return llvm.Target.from_triple(target.triple).create_target_machine(
        cpu=target.cpu, features=target.features, opt=3, reloc=target.reloc,
        codemodel="default", abiname=target.abi,
    )  # fmt: skip
