"""From the text of an LLVM module to functions that can be called, through the cache on disk.

Every use of LLVM stands under one lock, which a fork waits for: a child never inherits it held.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from throughtime.compiler.runtime import cache
from throughtime.compiler.runtime.machine import Machine, target_machine
from throughtime.environment import __version__

# LLVM makes calls of these from copies and fills; an object may need nothing else of the process,
# so that its bits depend on no other library.
_MAY_NEED = {"memcpy", "memmove", "memset"}

_lock = threading.RLock()
_loaded: dict[tuple[str, Machine], Loaded] = {}
_numbers = itertools.count()

if hasattr(os, "register_at_fork"):  # there are no forks on Windows
    os.register_at_fork(
        before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release
    )


class Loaded:
    """An object in memory, for the rest of the process: a thread may still be running its code.

    Args:
        image: the bytes of the object file.
        machine: the machine it was compiled for.

    Raises:
        RuntimeError: the image is no object file.
    """

    def __init__(self, image: bytes, machine: Machine) -> None:
        import llvmlite.binding as llvm

        with _lock:
            self._linker, self._name = _linker(machine), f"object {next(_numbers)}"
            llvm.JITLibraryBuilder().add_object_img(image).link(self._linker, self._name).detach()
        self._addresses: dict[str, int] = {}

    def address(self, name: str) -> int:
        """Where a function begins.

        Raises:
            RuntimeError: there is no such function in the module.
        """
        if name not in self._addresses:
            with _lock:
                tracker = self._linker.lookup(self._name, name)
                self._addresses[name] = tracker[name]
                tracker.detach()
        return self._addresses[name]


@functools.cache
def _linker(machine: Machine) -> Any:
    """What links all objects of a machine, each as a library of its own: a linker for each would
    take ten times the memory of its code."""
    import llvmlite.binding as llvm

    # JITLink lays code and constants side by side; the older linker may place them too far apart
    # to reach each other.
    return llvm.create_lljit_compiler(target_machine(machine), use_jit_link=True)


def load(key: str, source: Callable[[], str], machine: Machine) -> Loaded:
    """The module of a key, compiled at most once a process and, with the cache, once a machine.

    Args:
        key: names all that the text depends on; the machine and this package's own source aside.
        source: gives the text of the LLVM module; called only when the cache has no object.
        machine: the machine to compile for.
    """
    loaded = _loaded.get((key, machine))
    if loaded is not None:
        return loaded
    with _lock:
        if (key, machine) not in _loaded:
            _loaded[key, machine] = _load(key, source, machine)
        return _loaded[key, machine]


def _load(key: str, source: Callable[[], str], machine: Machine) -> Loaded:
    name = _file(key, machine)
    image = cache.read(name)
    if image is not None:
        return Loaded(image, machine)
    module, target = _module(source, machine)
    image = target.emit_object(module)
    foreign = _needs(image) - _MAY_NEED
    assert not foreign, f"compiled code must need nothing, got {', '.join(sorted(foreign))}"
    cache.write(name, image)
    return Loaded(image, machine)


def _needs(image: bytes) -> set[str]:
    """The symbols that an ELF object leaves to others, read from its symbol table."""
    import llvmlite.binding as llvm

    file = llvm.ObjectFileRef.from_data(image)
    sections = {section.name(): section.data() for section in file.sections()}
    names = sections[b".strtab"]
    return {
        names[start : names.index(b"\0", start)].decode()
        for start, _, _, section, _, _ in struct.iter_unpack("<IBBHQQ", sections[b".symtab"])
        if start and section == 0
    }


def assembly(source: Callable[[], str], machine: Machine) -> str:
    """The assembly of a module for reading; what runs was made from the same steps."""
    with _lock:
        module, target = _module(source, machine)
        return str(target.emit_assembly(module))


def _module(source: Callable[[], str], machine: Machine) -> tuple[Any, Any]:
    """The checked module of a text, and the machine's code writer.

    No pass of LLVM runs over the text: the generator writes vectors and single assignments as they
    shall stay, and LLVM's pipelines tripled the time to compile without making the code faster.
    """
    import llvmlite.binding as llvm

    target = target_machine(machine)
    module = llvm.parse_assembly(source())
    module.triple = machine.triple
    module.data_layout = str(target.target_data)
    module.verify()
    return module, target


def _file(key: str, machine: Machine) -> str:
    """The name in the cache: a hash of everything the object depends on."""
    import llvmlite
    import llvmlite.binding as llvm

    parts = (
        *(key, machine, _sources(), __version__),
        *(llvmlite.__version__, llvm.llvm_version_info),
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()


@functools.cache
def _sources() -> str:
    """A hash of the compiler's own source: other generators make other objects."""
    folder = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        content = file.read_bytes()
        digest.update(f"{file.relative_to(folder)} {len(content)}\n".encode() + content)
    return digest.hexdigest()
