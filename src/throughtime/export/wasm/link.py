"""From an object of WebAssembly to a module that runs by itself: memory, stack, addresses, exports.

Only what our own objects hold is linked: functions and constants, no function of others.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

_HEAD: Final = b"\0asm\1\0\0\0"
_CUSTOM, _TYPE, _IMPORT, _FUNCTION, _MEMORY, _GLOBAL, _EXPORT, _CODE, _DATA, _COUNT = (
    0, 1, 2, 3, 5, 6, 7, 10, 11, 12,
)  # fmt: skip
_PAGE: Final = 65536
_STACK: Final = 65536
"""Bytes of the stack beside what a step works with; it lies below the constants, so that running
over it traps."""

_I32: Final = 0x7F


class _Bytes:
    """Bytes that are read from the front."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def number(self) -> int:
        """A whole number, seven bits a byte."""
        value = shift = 0
        while True:
            byte = self.data[self.at]
            self.at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    def signed(self) -> int:
        """Likewise with a sign."""
        value = shift = 0
        while True:
            byte = self.data[self.at]
            self.at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value - (1 << shift) if byte & 0x40 else value

    def take(self, count: int) -> bytes:
        """So many bytes."""
        found = self.data[self.at : self.at + count]
        self.at += count
        return found

    def text(self) -> str:
        """A name, its length in front."""
        return self.take(self.number()).decode()

    @property
    def left(self) -> bool:
        """Whether there is more."""
        return self.at < len(self.data)


def _number(value: int) -> bytes:
    found = bytearray()
    while True:
        byte, value = value & 0x7F, value >> 7
        found.append(byte | (0x80 if value else 0))
        if not value:
            return bytes(found)


def _signed(value: int) -> bytes:
    found = bytearray()
    while True:
        byte, value = value & 0x7F, value >> 7
        done = value == (-1 if byte & 0x40 else 0)
        found.append(byte | (0 if done else 0x80))
        if done:
            return bytes(found)


def _text(name: str) -> bytes:
    return _number(len(name.encode())) + name.encode()


def _vector(items: Iterable[bytes]) -> bytes:
    whole = list(items)
    return _number(len(whole)) + b"".join(whole)


def _section(kind: int, content: bytes) -> bytes:
    return bytes((kind,)) + _number(len(content)) + content


class _Symbol(NamedTuple):
    """Of a function its number; of data its segment and the offset in it."""

    kind: int
    name: str
    number: int
    offset: int


class _Object(NamedTuple):
    """An object file: sections by kind, relocations by section, symbols, and who it imports."""

    sections: dict[int, bytes]
    relocations: dict[str, bytes]
    symbols: list[_Symbol]


def imported_functions(image: bytes) -> set[str]:
    """The functions that an object of WebAssembly leaves to others."""
    content = _read(image).sections.get(_IMPORT)
    found = set[str]()
    if content is None:
        return found
    read = _Bytes(content)
    for _ in range(read.number()):
        _, name, kind = read.text(), read.text(), read.take(1)[0]
        if kind == 0:
            found.add(name)
            read.number()
        elif kind == 3:
            read.take(2)
        else:  # a table says its type first
            read.take(kind == 1)
            limits = read.number()
            read.number()
            if limits & 1:
                read.number()
    return found


def wasm_code_size(image: bytes) -> int:
    """Bytes of code in an object."""
    return len(_read(image).sections[_CODE])


def _read(image: bytes) -> _Object:
    read = _Bytes(image)
    assert read.take(8) == _HEAD
    sections, relocations, symbols = dict[int, bytes](), dict[str, bytes](), list[_Symbol]()
    while read.left:
        kind = read.take(1)[0]
        content = read.take(read.number())
        if kind != _CUSTOM:
            sections[kind] = content
            continue
        custom = _Bytes(content)
        name = custom.text()
        if name.startswith("reloc."):
            relocations[name] = content[custom.at :]
        elif name == "linking":
            symbols = _symbols(content[custom.at :])
    return _Object(sections, relocations, symbols)


_SYMBOL_TABLE: Final = 8
_UNDEFINED, _NAMED = 0x10, 0x40


def _symbols(content: bytes) -> list[_Symbol]:
    read, found = _Bytes(content), list[_Symbol]()
    read.number()  # the version
    while read.left:
        kind = read.take(1)[0]
        part = _Bytes(read.take(read.number()))
        if kind != _SYMBOL_TABLE:
            continue
        for _ in range(part.number()):
            found.append(_symbol(part))
    return found


def _symbol(part: _Bytes) -> _Symbol:
    kind, flags = part.take(1)[0], part.number()
    if kind == 1:  # data
        name, index, offset = part.text(), 0, 0
        if not flags & _UNDEFINED:
            index, offset, _ = part.number(), part.number(), part.number()
        return _Symbol(kind, name, index, offset)
    index = part.number()
    named = kind != 3 and (not flags & _UNDEFINED or flags & _NAMED)
    return _Symbol(kind, part.text() if named else "", index, 0)


def linked(
    image: bytes, functions: Iterable[str], numbers: Mapping[str, int | str], work: int
) -> bytes:
    """The module of an object.

    Args:
        image: an object that imports no function.
        functions: what is exported, beside the memory.
        numbers: exported constants: numbers, or names of data, which become addresses; `free` is
            added, the first byte that a caller may use.
        work: bytes that a step works with.
    """
    found = _read(image)
    below = _STACK + -(-work // 64) * 64
    segments, ends = _placed(found.sections.get(_DATA, b"\0"), below)
    pages = -(-ends // _PAGE)

    def address(symbol: _Symbol) -> int:
        return segments[symbol.number][0] + symbol.offset

    code = _relocated(found, "reloc.CODE", found.sections[_CODE], address)
    by_name = {s.name: s for s in found.symbols if s.name}
    values = {n: v if isinstance(v, int) else address(by_name[v]) for n, v in numbers.items()}
    values["free"] = -(-ends // 16) * 16
    exports = [_text("memory") + b"\2\0"]
    exports += [_text(n) + b"\0" + _number(by_name[n].number) for n in functions]
    exports += [_text(n) + b"\3" + _number(k) for k, n in enumerate(values, 1)]
    stack = bytes((_I32, 1, 0x41)) + _signed(below) + b"\x0b"
    constants = [bytes((_I32, 0, 0x41)) + _signed(v) + b"\x0b" for v in values.values()]
    data = [b"\0\x41" + _signed(at) + b"\x0b" + _number(len(d)) + d for at, d in segments]
    parts = {
        _TYPE: found.sections[_TYPE], _FUNCTION: found.sections[_FUNCTION],
        _MEMORY: b"\1\0" + _number(pages), _GLOBAL: _vector([stack, *constants]),
        _EXPORT: _vector(exports), _COUNT: _number(len(data)), _CODE: code, _DATA: _vector(data),
    }  # fmt: skip
    return _HEAD + b"".join(_section(kind, content) for kind, content in parts.items())


def _placed(content: bytes, below: int) -> tuple[list[tuple[int, bytes]], int]:
    """The data behind the stack, each segment at a cache line; and where it ends."""
    read, found, at = _Bytes(content), list[tuple[int, bytes]](), below
    for _ in range(read.number()):
        read.number()  # kind 0: the memory's own
        read.take(1)
        read.signed()
        read.take(1)
        data = read.take(read.number())
        at = -(-at // 64) * 64
        found.append((at, data))
        at += len(data)
    return found, at


def _relocated(found: _Object, name: str, content: bytes, address: object) -> bytes:
    """The code with addresses of data in their places; numbers of functions stay as they are."""
    code = bytearray(content)
    read = _Bytes(found.relocations.get(name, b"\0\0"))
    read.number()
    for _ in range(read.number()):
        kind, offset, index = read.take(1)[0], read.number(), read.number()
        if kind not in (3, 4, 5):
            assert kind in (0, 6, 7), f"relocation {kind}"
            continue
        assert callable(address)
        value = address(found.symbols[index]) + read.signed()
        if kind == 5:
            struct.pack_into("<I", code, offset, value)
            continue
        for i in range(5):  # an address below 2^31 is the same with a sign and without
            code[offset + i] = (value >> (7 * i)) & 0x7F | (0x80 if i < 4 else 0)
    return bytes(code)
