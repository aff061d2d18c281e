"""What an object file holds: its machine code, and the symbols that it leaves to others."""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

_ELF: Final = b"\x7fELF"
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


def code_bytes(image: bytes) -> int:
    """Bytes of machine code in an ELF object."""
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
