"""Object files of ELF and WebAssembly: what they hold, and one of WebAssembly as a whole module."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping
from typing import Final, NamedTuple

_ELF: Final = b"\x7fELF"
_EXECUTABLE: Final = 4
_SYMBOLS, _WITHOUT_DATA, _ARM_ATTRIBUTES = 2, 8, 0x70000003
"""Kinds of sections of ELF."""


class Section(NamedTuple):
    """A section of an ELF file."""

    kind: int
    flags: int
    data: bytes
    link: int


def list_sections(image: bytes) -> list[Section]:
    """The sections of an ELF object of little-endian numbers, 32 or 64 bits wide."""
    return [
        Section(kind, flags, b"" if kind == _WITHOUT_DATA else image[at : at + size], link)
        for _, (_, kind, flags, _, at, size, link) in _section_headers(image)
    ]


def _section_headers(image: bytes) -> list[tuple[int, tuple[int, ...]]]:
    """Where each header of a section lies in an ELF object, and its fields."""
    wide = image[4] == 2
    (start,) = struct.unpack_from("<Q" if wide else "<I", image, 0x28 if wide else 0x20)
    size, count = struct.unpack_from("<HH", image, 0x3A if wide else 0x2E)
    form = "<IIQQQQI" if wide else "<7I"
    places = range(start, start + size * count, size)
    return [(at, struct.unpack_from(form, image, at)) for at in places]


def measure_code(image: bytes) -> int:
    """Bytes of machine code in an object."""
    if image[:4] != _ELF:
        return len(_read(image).sections[_CODE])
    return sum(len(s.data) for s in list_sections(image) if s.flags & _EXECUTABLE)


def list_undefined(image: bytes) -> set[str]:
    """The functions and constants that an object leaves to others."""
    if image[:4] != _ELF:
        return _imported_functions(image)
    form = "<IBBHQQ" if image[4] == 2 else "<IIIBBH"
    every_section, names = list_sections(image), set[str]()
    for table in every_section:
        if table.kind != _SYMBOLS:
            continue
        texts = every_section[table.link].data
        for fields in struct.iter_unpack(form, table.data):
            name, section = fields[0], fields[3] if image[4] == 2 else fields[5]
            if name and section == 0:
                names.add(texts[name : texts.index(b"\0", name)].decode())
    return names


_ANY_FLOAT_ARGUMENTS: Final = bytes((28, 3))
"""Tag_ABI_VFP_args: no function takes floats, so hard and soft callers may both link it."""


def allow_any_caller(image: bytes) -> bytes:
    """The same ARM object, marked as one that callers with either kind of float arguments may link.

    Its functions take addresses alone, but LLVM leaves the mark out, and linkers then assume soft.
    """
    for header, (_, kind, _, _, at, size, _) in _section_headers(image):
        if kind != _ARM_ATTRIBUTES:
            continue
        data = bytearray(image[at : at + size]) + _ANY_FLOAT_ARGUMENTS
        inner = 5 + data[5:].index(b"\0") + 2  # after the vendor's name and the tag "file"
        for place in (1, inner):
            (length,) = struct.unpack_from("<I", data, place)
            struct.pack_into("<I", data, place, length + len(_ANY_FLOAT_ARGUMENTS))
        marked = bytearray(image)
        struct.pack_into("<II", marked, header + 16, len(image), len(data))
        return bytes(marked + data)
    return image


_HEAD: Final = b"\0asm\1\0\0\0"
_CUSTOM, _TYPE, _IMPORT, _FUNCTION, _MEMORY, _GLOBAL, _EXPORT, _CODE, _DATA, _COUNT = (
    0, 1, 2, 3, 5, 6, 7, 10, 11, 12,
)  # fmt: skip
_PAGE: Final = 65536
_STACK: Final = 65536
"""Bytes of the stack besides what a step works with; it lies below the constants, so that a stack
overflow traps."""

_I32: Final = 0x7F


class _Bytes:
    """Bytes that are read from the front."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def number(self) -> int:
        """A whole number, seven bits a byte (LEB128)."""
        return self._read_sevens()[0]

    def signed(self) -> int:
        """Likewise with a sign."""
        value, bits = self._read_sevens()
        return value - (1 << bits) if value >> (bits - 1) else value

    def _read_sevens(self) -> tuple[int, int]:
        """The number, and how many bits were written for it."""
        value = bits = 0
        while True:
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << bits
            bits += 7
            if byte < 0x80:
                return value, bits

    def take(self, count: int) -> bytes:
        taken = self.data[self.at : self.at + count]
        self.at += count
        return taken

    def text(self) -> str:
        """A name, its length in front."""
        return self.take(self.number()).decode()

    @property
    def left(self) -> bool:
        return self.at < len(self.data)


def _number(value: int, signed: bool = False) -> bytes:
    """A whole number as LEB128."""
    written = bytearray()
    while True:
        byte, value = value & 0x7F, value >> 7
        last = value == (-1 if signed and byte & 0x40 else 0)
        written.append(byte | (0 if last else 0x80))
        if last:
            return bytes(written)


def _constant(value: int) -> bytes:
    """The expression that an address or a global number starts from."""
    return b"\x41" + _number(value, signed=True) + b"\x0b"


def _text(name: str) -> bytes:
    return _number(len(name.encode())) + name.encode()


def _vector(items: list[bytes]) -> bytes:
    return _number(len(items)) + b"".join(items)


class _Symbol(NamedTuple):
    """Of a function its number; of data its segment and the offset in it."""

    kind: int
    name: str
    number: int
    offset: int


class _Object(NamedTuple):
    """An object of WebAssembly: sections by kind, the code's relocations, and symbols."""

    sections: dict[int, bytes]
    relocations: bytes
    symbols: list[_Symbol]


def _imported_functions(image: bytes) -> set[str]:
    read, names = _Bytes(_read(image).sections.get(_IMPORT, b"\0")), set[str]()
    for _ in range(read.number()):
        _, name, kind = read.text(), read.text(), read.take(1)[0]
        if kind == 0:
            names.add(name)
            read.number()
        elif kind == 3:
            read.take(2)
        else:  # a table says its type first
            read.take(kind == 1)
            limits = read.number()
            read.number()
            if limits & 1:
                read.number()
    return names


def _read(image: bytes) -> _Object:
    read = _Bytes(image)
    assert read.take(8) == _HEAD
    by_kind, relocations, symbols = dict[int, bytes](), b"\0\0", list[_Symbol]()
    while read.left:
        kind = read.take(1)[0]
        content = read.take(read.number())
        if kind != _CUSTOM:
            by_kind[kind] = content
            continue
        custom = _Bytes(content)
        name = custom.text()
        if name == "reloc.CODE":
            relocations = content[custom.at :]
        elif name == "linking":
            symbols = _read_symbols(content[custom.at :])
    return _Object(by_kind, relocations, symbols)


_SYMBOL_TABLE: Final = 8
_UNDEFINED, _NAMED = 0x10, 0x40


def _read_symbols(content: bytes) -> list[_Symbol]:
    read, symbols = _Bytes(content), list[_Symbol]()
    read.number()  # the version
    while read.left:
        kind = read.take(1)[0]
        part = _Bytes(read.take(read.number()))
        if kind == _SYMBOL_TABLE:
            symbols += [_read_symbol(part) for _ in range(part.number())]
    return symbols


def _read_symbol(part: _Bytes) -> _Symbol:
    kind, flags = part.take(1)[0], part.number()
    if kind == 1:  # data
        name, index, offset = part.text(), 0, 0
        if not flags & _UNDEFINED:
            index, offset, _ = part.number(), part.number(), part.number()
        return _Symbol(kind, name, index, offset)
    index = part.number()
    named = kind != 3 and (not flags & _UNDEFINED or flags & _NAMED)
    return _Symbol(kind, part.text() if named else "", index, 0)


def link(
    image: bytes, functions: Iterable[str], numbers: Mapping[str, int | str], work: int
) -> bytes:
    """The module of an object of WebAssembly: memory, stack, addresses and exports are its own.

    Args:
        image: an object that imports no function.
        functions: what is exported, besides the memory.
        numbers: exported constants: numbers, or names of data, which become addresses; `free` is
            added, the first byte that a caller may use.
        work: bytes that a step works with.
    """
    parsed = _read(image)
    below = _STACK + -(-work // 64) * 64
    segments, end = _place_data(parsed.sections.get(_DATA, b"\0"), below)

    def address(symbol: _Symbol) -> int:
        return segments[symbol.number][0] + symbol.offset

    by_name = {s.name: s for s in parsed.symbols if s.name}
    values = {n: v if isinstance(v, int) else address(by_name[v]) for n, v in numbers.items()}
    values["free"] = -(-end // 16) * 16
    exports = [_text("memory") + b"\2\0"]
    exports += [_text(n) + b"\0" + _number(by_name[n].number) for n in functions]
    exports += [_text(n) + b"\3" + _number(k) for k, n in enumerate(values, 1)]
    constants = [bytes((_I32, 1)) + _constant(below)]  # the stack's pointer, which changes
    constants += [bytes((_I32, 0)) + _constant(v) for v in values.values()]
    data = [b"\0" + _constant(at) + _number(len(d)) + d for at, d in segments]
    parts = {
        _TYPE: parsed.sections[_TYPE], _FUNCTION: parsed.sections[_FUNCTION],
        _MEMORY: b"\1\0" + _number(-(-end // _PAGE)), _GLOBAL: _vector(constants),
        _EXPORT: _vector(exports), _COUNT: _number(len(data)),
        _CODE: _relocate(parsed, address), _DATA: _vector(data),
    }  # fmt: skip
    return _HEAD + b"".join(bytes((k,)) + _number(len(v)) + v for k, v in parts.items())


def _place_data(content: bytes, below: int) -> tuple[list[tuple[int, bytes]], int]:
    """The data above the stack, each segment at a cache line; and where it ends."""
    read, segments, at = _Bytes(content), list[tuple[int, bytes]](), below
    for _ in range(read.number()):
        read.number()  # kind 0: the memory's own
        read.take(1)
        read.signed()
        read.take(1)
        data = read.take(read.number())
        at = -(-at // 64) * 64
        segments.append((at, data))
        at += len(data)
    return segments, at


def _relocate(parsed: _Object, address: Callable[[_Symbol], int]) -> bytes:
    """The code with addresses of data in their places; numbers of functions stay as they are."""
    code = bytearray(parsed.sections[_CODE])
    read = _Bytes(parsed.relocations)
    read.number()
    for _ in range(read.number()):
        kind, offset, index = read.take(1)[0], read.number(), read.number()
        if kind not in (3, 4, 5):
            assert kind in (0, 6, 7), f"relocation {kind}"
            continue
        value = address(parsed.symbols[index]) + read.signed()
        if kind == 5:
            struct.pack_into("<I", code, offset, value)
            continue
        for i in range(5):  # an address below 2^31 is the same with a sign and without
            code[offset + i] = (value >> (7 * i)) & 0x7F | (0x80 if i < 4 else 0)
    return bytes(code)
