"""The machine that code is made for: which one this process runs on, and how to say it to LLVM.

llvmlite is imported where it is used: `import throughtime` costs nothing for it.
"""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from typing import Any, Final

from throughtime import environment
from throughtime.errors import OptionError


@dataclass(frozen=True)
class Machine:
    """A kind of machine that code is made for; code for one has the same bits on all of its kind.

    Attributes:
        name: what THROUGHTIME_MACHINE calls it.
        triple: LLVM's name of processor family and system.
        cpu: LLVM's name of the processor.
        features: what the processor has beyond that, as LLVM writes it.
        bits: the width of a vector register.
        registers: how many of them there are.
    """

    name: str
    triple: str
    cpu: str
    features: str
    bits: int
    registers: int

    def lanes(self, bits: int) -> int:
        """How many numbers of so many bits a vector register holds."""
        return self.bits // bits


_X86: Final = "x86_64-unknown-linux-gnu"

MACHINES: Final = {
    machine.name: machine
    for machine in (
        Machine("avx512", _X86, "x86-64-v4", "", 512, 32),
        Machine("avx2", _X86, "x86-64-v3", "", 256, 16),
        Machine("neon", "aarch64-unknown-linux-gnu", "generic", "+neon", 128, 32),
    )
}
"""Every machine that code can be made for, the widest vectors first."""

_NEEDS: Final = {
    "avx512": ("avx512f", "avx512vl", "avx512dq", "avx512bw", "avx2", "fma", "bmi2"),
    "avx2": ("avx2", "fma", "bmi2"),
    "neon": ("neon",),
}
_ARCHITECTURES: Final = {"x86_64": ("avx512", "avx2"), "aarch64": ("neon",), "arm64": ("neon",)}

_SYSTEMS: Final = ("Linux",)
"""Where code has run. Calls, objects and the flushing of denormals may be otherwise elsewhere."""


def host() -> Machine | None:
    """The machine this process compiles for: the best it runs on, or what the user narrowed it to.

    Raises:
        OptionError: if THROUGHTIME_MACHINE names no machine.
    """
    return _choice(environment.machine())[0]


def reason() -> str | None:
    """Why there is no machine to compile for; None where there is one."""
    return _choice(environment.machine())[1]


@cache
def _choice(wanted: str | None) -> tuple[Machine | None, str | None]:
    if wanted is not None and wanted not in MACHINES:
        names = ", ".join(MACHINES)
        raise OptionError(f"THROUGHTIME_MACHINE must be one of {names} or unset, got {wanted!r}")
    system = platform.system()
    if system not in _SYSTEMS:
        return None, f"compiled code was tried on {', '.join(_SYSTEMS)} alone, and this is {system}"
    if find_spec("llvmlite") is None:
        return None, "llvmlite is not installed; install it with: pip install llvmlite"
    import llvmlite.binding as llvm

    features = {name for name, there in llvm.get_host_cpu_features().items() if there}
    machine, missing = choose(platform.machine(), features, wanted)
    if machine is not None:
        machine = replace(machine, triple=llvm.get_process_triple())
    return machine, missing


def choose(
    architecture: str, features: set[str], wanted: str | None = None
) -> tuple[Machine | None, str | None]:
    """The machine for a processor, or the reason why there is none.

    Args:
        architecture: the processor's family, as `platform.machine()` says it.
        features: what the processor has, as LLVM names it.
        wanted: the only machine to take; None takes the best.
    """
    names = _ARCHITECTURES.get(architecture, ())
    if not names:
        return None, f"no code is made for {architecture} processors, only for x86_64 and aarch64"
    if wanted is not None and wanted not in names:
        return None, f"THROUGHTIME_MACHINE is {wanted}, which no {architecture} processor runs"
    for name in names if wanted is None else (wanted,):
        missing = [need for need in _NEEDS[name] if need not in features]
        if not missing:
            return MACHINES[name], None
    words = ", ".join(need.upper() for need in missing)
    if wanted is not None:
        return None, f"THROUGHTIME_MACHINE is {wanted}, and this processor has no {words}"
    return None, f"this processor has no {words}, which compiled code needs"


def target_machine(machine: Machine) -> Any:
    """LLVM's object that writes code for a machine, this one or another."""
    import llvmlite.binding as llvm

    if machine.triple == llvm.get_process_triple():
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
    else:
        llvm.initialize_all_targets()
        llvm.initialize_all_asmprinters()
    return llvm.Target.from_triple(machine.triple).create_target_machine(
        cpu=machine.cpu, features=machine.features, opt=2, reloc="pic", codemodel="default"
    )


def text(module: Any, machine: Machine) -> str:
    """A finished ir.Module as text, for a machine: whole vector registers in every function."""
    module.triple = machine.triple
    marked = re.sub(r"(?m)^(define .*?)\s*$", r"\1 #0", str(module))
    width = f'"prefer-vector-width"="{machine.bits}" "min-legal-vector-width"="{machine.bits}"'
    return f"{marked}\nattributes #0 = {{ nounwind {width} }}\n"
