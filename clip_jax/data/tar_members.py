"""Headers of a tar file: which members it has, and where their bytes lie.

Written for damaged and hostile files: it never goes back, keeps nothing but what it returns, and
ends after at most one step for each 512 bytes. Format: POSIX.1-2001, pax ("ustar" and "extended
headers"), and GNU tar's long names, sizes above 8 GiB and sparse files.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

BLOCK = 512
_REGULAR = b"0\x007"
_NO_CONTENTS = b"123456"
"""Links, devices, folders, pipes: whatever their size says."""
_MAX_EXTRA = 2**20
"""Bytes of a long name or of pax records; more is damage."""


class Member(NamedTuple):
    """A regular file in a tar."""

    name: bytes
    offset: int
    """Bytes from the start of the tar to its first one."""
    size: int
    """Bytes."""


class _Header(NamedTuple):
    name: bytes
    size: int
    kind: bytes


def scan(read: Callable[[int, int], bytes], size: int) -> tuple[list[Member], int | None]:
    """All complete regular files up to the end or the first damage.

    Links, folders and sparse files (whose bytes do not lie together) are left out, and names with
    a zero byte.

    Args:
      read: bytes at (offset, size), fewer only at the end.
      size: of the whole file, bytes.

    Returns:
      Members in their order; and the byte where damage begins, or None where the tar is whole.

    Raises:
      ValueError: it does not start as a tar.
    """
    found: list[Member] = []
    common: dict[bytes, bytes] = {}
    start = at = 0
    own: dict[bytes, bytes] = {}
    while True:
        block = read(at, BLOCK)
        if block == bytes(BLOCK):
            return found, None
        header = _parse(block)
        if header is None:
            if at == 0:
                raise ValueError(_what(block))
            return found, start
        data = at + BLOCK
        if header.kind in b"LKxXg":
            records = _extra(header, read(data, min(header.size, _MAX_EXTRA + 1)))
            if records is None:
                return found, start
            if header.kind == b"g":
                common |= records
            else:
                own |= records
            at = data + _padded(header.size)
            continue
        facts, own = common | own, {}
        length = 0 if header.kind in _NO_CONTENTS else _pax_size(facts, header.size)
        if header.kind == b"S":
            data = _after_map(read, block, data)
        if length is None or data is None or data + length > size:
            return found, start
        if (name := _file_name(header, facts)) is not None:
            found.append(Member(name, data, length))
        start = at = data + _padded(length)


def _parse(block: bytes) -> _Header | None:
    """None: cut off, or damaged."""
    if len(block) < BLOCK:
        return None
    checksum, size = _number(block[148:156]), _number(block[124:136])
    rest = block[:148] + b" " * 8 + block[156:]
    if size is None or checksum is None:
        return None
    # Some old programs add signed bytes: those from 128 on count 256 less.
    if checksum != sum(rest) and checksum != sum(rest) - 256 * sum(byte > 127 for byte in rest):
        return None
    name, prefix = block[:100].partition(b"\0")[0], block[345:500].partition(b"\0")[0]
    if prefix and block[257:263] == b"ustar\0":
        name = prefix + b"/" + name
    return _Header(name, size, block[156:157])


def _number(field: bytes) -> int | None:
    """Octal digits, or (GNU) a byte 128 and a binary number; None: neither."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:])
    digits = field.partition(b"\0")[0].strip(b" ")
    return int(digits or b"0", 8) if re.fullmatch(rb"[0-7]*", digits) else None


def _extra(header: _Header, data: bytes) -> dict[bytes, bytes] | None:
    """What a header says of the next one (or of all): pax records, or a long name as one.

    None: cut off, too long, or damaged.
    """
    if header.size > _MAX_EXTRA or len(data) < header.size:
        return None
    if header.kind == b"L":
        return {b"path": data.partition(b"\0")[0]}
    if header.kind == b"K":
        return {}
    records, at = {}, 0
    while at < len(data) and data[at]:
        # "27 path=some/long/name.jpg\n": the number counts all of that.
        match = re.compile(rb"([1-9]\d{0,6}) ([^=]+)=").match(data, at)
        end = at + int(match[1]) if match else 0
        if not match or end > len(data) or end <= match.end() or data[end - 1] != 0x0A:
            return None
        records[match[2]] = data[match.end() : end - 1]
        at = end
    return records


def _file_name(header: _Header, facts: dict[bytes, bytes]) -> bytes | None:
    """None: no regular file, or one that is of no use here."""
    name = facts.get(b"path", header.name).rstrip(b"\0")
    sparse = any(key.startswith(b"GNU.sparse") for key in facts)
    folder = header.kind == b"\0" and name.endswith(b"/")
    return name if header.kind in _REGULAR and not (sparse or folder or b"\0" in name) else None


def _pax_size(facts: dict[bytes, bytes], size: int) -> int | None:
    if b"size" not in facts:
        return size
    return int(facts[b"size"]) if re.fullmatch(rb"\d{1,18}", facts[b"size"]) else None


def _after_map(read: Callable[[int, int], bytes], block: bytes, at: int) -> int | None:
    """First byte after the blocks in which GNU tar goes on with the map of a sparse file."""
    more = block[482]
    while more:
        block = read(at, BLOCK)
        if len(block) < BLOCK:
            return None
        more, at = block[504], at + BLOCK
    return at


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _what(block: bytes) -> str:
    if not block:
        return "empty file"
    if block.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")):
        return "it is compressed; unpack it"
    return "it does not start with a tar header"
