"""What an object file holds: its machine code, and the symbols that it leaves to others."""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from throughtime.export.wasm.link import wasm_code_size

ELF: Final = b"\x7fELF"
_EXECUTABLE: Final = 4
_SYMBOLS: Final = 2


class Section(NamedTuple):
    """A section of an ELF file."""

    kind: int
    flags: int
    data: bytes
    link: int


def sections(image: bytes) -> list[Section]:
    """The sections of an ELF object of little-endian numbers, 32 or 64 bits wide."""
    wide = image[4] == 2
    if wide:
        (start,), (size, count) = (
            struct.unpack_from("<Q", image, 0x28), struct.unpack_from("<HH", image, 0x3A),
        )  # fmt: skip
    else:
        (start,), (size, count) = (
            struct.unpack_from("<I", image, 0x20), struct.unpack_from("<HH", image, 0x2E),
        )  # fmt: skip
    form = "<IIQQQQI" if wide else "<IIIIIII"
    found = []
    for k in range(count):
        head = struct.unpack_from(form, image, start + k * size)
        _, kind, flags, _, offset, length, link = head
        data = b"" if kind == 8 else image[offset : offset + length]
        found.append(Section(kind, flags, data, link))
    return found


def code_size(image: bytes) -> int:
    """Bytes of machine code in an ELF object, or in one of WebAssembly."""
    if image[:4] != ELF:
        return wasm_code_size(image)
    return sum(len(s.data) for s in sections(image) if s.flags & _EXECUTABLE)


def undefined(image: bytes) -> set[str]:
    """The symbols that an ELF object leaves to others."""
    wide, found = image[4] == 2, set[str]()
    form = "<IBBHQQ" if wide else "<IIIBBH"
    all_of_them = sections(image)
    for table in all_of_them:
        if table.kind != _SYMBOLS:
            continue
        names = all_of_them[table.link].data
        for fields in struct.iter_unpack(form, table.data):
            name, section = fields[0], fields[3] if wide else fields[5]
            if name and section == 0:
                found.add(names[name : names.index(b"\0", name)].decode())
    return found


_ARM_ATTRIBUTES: Final = 0x70000003
_ANY_FLOAT_ARGUMENTS: Final = bytes((28, 3))
"""Tag_ABI_VFP_args: no function takes floats, so hard and soft callers may both link it."""


def for_any_caller(image: bytes) -> bytes:
    """An ARM object that says that it fits callers of either kind of float arguments.

    Its functions take addresses alone, and LLVM says nothing of it, which linkers take for soft.
    """
    (start,), (size, count) = (
        struct.unpack_from("<I", image, 0x20), struct.unpack_from("<HH", image, 0x2E),
    )  # fmt: skip
    for k in range(count):
        head = start + k * size
        _, kind, _, _, offset, length = struct.unpack_from("<6I", image, head)
        if kind != _ARM_ATTRIBUTES:
            continue
        data = bytearray(image[offset : offset + length]) + _ANY_FLOAT_ARGUMENTS
        more = len(_ANY_FLOAT_ARGUMENTS)
        inner = 5 + data[5:].index(b"\0") + 2  # behind the vendor's name and the tag "file"
        for at in (1, inner):
            struct.pack_into("<I", data, at, struct.unpack_from("<I", data, at)[0] + more)
        whole = bytearray(image)
        struct.pack_into("<II", whole, head + 16, len(image), len(data))
        return bytes(whole + data)
    return image
