"""The machine that code is made for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Machine:
    """A machine by its name, what LLVM calls it, and its vector registers (bits, how many)."""

    name: str
    triple: str
    cpu: str
    features: str
    bits: int
    registers: int


def target_machine(machine: Machine) -> Any:
    """LLVM's object that writes code for a machine."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.Target.from_triple(machine.triple).create_target_machine(
        cpu=machine.cpu, features=machine.features, opt=2, reloc="pic", codemodel="default"
    )
