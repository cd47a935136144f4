"""Zip files that may be damaged or hostile: members listed once, then read in parts."""

import dataclasses
import pathlib
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping

import numpy as np
from jaxtyping import UInt8

_LOCAL_HEADER = 30
_CHUNK = 1 << 20
_READABLE = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_DAMAGED = (
    zipfile.BadZipFile, NotImplementedError, ValueError, struct.error, IndexError, OverflowError,
    OSError,
)  # fmt: skip
"""What Python's library raises for contents lists that make no sense."""
_ENCRYPTED = 0x1
_UTF8 = 0x800


@dataclasses.dataclass(frozen=True, kw_only=True)
class Archive:
    """The table of contents of a zip file. No file stays open."""

    path: pathlib.Path
    """The zip file, which must not change while the archive is in use."""
    members: Mapping[str, zipfile.ZipInfo]
    """By name; each is stored or deflated, and stored ones lie wholly inside the file."""

    def read(self, name: str, start: int = 0, size: int | None = None) -> UInt8[np.ndarray, " n"]:
        """Bytes `start` to `start + size` of a member (None: to its end), in memory of their own.

        A member that is read whole is checked against its CRC, unless that is 0: PyTorch can be
        told to write none.

        Raises:
          ValueError: the member is cut off or damaged, or ends before `start + size`.
        """
        member = self.members[name]
        size = member.file_size - start if size is None else size
        if start < 0 or size < 0 or start + size > member.file_size:
            raise ValueError(
                f"{self.path}: bytes {start} to {start + size} asked of {name!r}, "
                f"which has {member.file_size}"
            )
        if member.compress_type == zipfile.ZIP_STORED:
            data = np.empty(size, np.uint8)
            with self.path.open("rb") as file:
                file.seek(self._first_byte(member) + start)
                got = file.readinto(data.data)
        else:
            inflated = self._inflate(member, start + size)
            data = np.frombuffer(inflated, np.uint8)[start:]
            got = len(data)
        if got < size:
            raise ValueError(f"{self.path}: {name!r} ends {size - got} bytes early; get it again")
        if size == member.file_size and member.CRC and zlib.crc32(data.data) != member.CRC:
            raise ValueError(f"{self.path}: {name!r} is damaged (its CRC differs); get it again")
        return data

    def _first_byte(self, member: zipfile.ZipInfo) -> int:
        """Where the content begins: only the local header knows, whose padding is its own."""
        encoding = "utf-8" if member.flag_bits & _UTF8 else "cp437"
        expected = member.orig_filename.encode(encoding, "replace")
        with self.path.open("rb") as file:
            file.seek(member.header_offset)
            header = file.read(_LOCAL_HEADER)
            if len(header) == _LOCAL_HEADER and header.startswith(b"PK\3\4"):
                name_bytes, extra_bytes = struct.unpack("<HH", header[26:])
                if file.read(name_bytes) == expected:
                    return file.tell() + extra_bytes
        raise ValueError(f"{self.path}: {member.filename!r} is not where the contents list puts it")

    def _inflate(self, member: zipfile.ZipInfo, size: int) -> bytearray:
        """The first `size` bytes, and no more whatever the stream holds."""
        stream, out = zlib.decompressobj(-zlib.MAX_WBITS), bytearray()
        try:
            for chunk in self._compressed(member):
                while len(out) < size and not stream.eof:
                    piece = stream.decompress(chunk, min(_CHUNK, size - len(out)))
                    out += piece
                    chunk = stream.unconsumed_tail
                    if not piece and not chunk:
                        break
                if len(out) == size:
                    break
        except zlib.error as fault:
            raise ValueError(f"{self.path}: {member.filename!r} is damaged: {fault}") from fault
        return out

    def _compressed(self, member: zipfile.ZipInfo) -> Iterator[bytes]:
        first = self._first_byte(member)
        with self.path.open("rb") as file:
            file.seek(first)
            left = member.compress_size
            while left and (chunk := file.read(min(left, _CHUNK))):
                left -= len(chunk)
                yield chunk


def open_archive(path: pathlib.Path) -> Archive:
    """Read the contents list alone.

    Raises:
      ValueError: the file is cut off or damaged; or members are named twice, encrypted, packed in
        a way that is not read, or claim to lie outside the file (all of these at once).
    """
    try:
        with zipfile.ZipFile(path) as file:
            members = file.infolist()
    except _DAMAGED as fault:
        raise ValueError(
            f"{path}: is a zip file that was cut off or damaged ({fault}); get it again"
        ) from fault
    length = path.stat().st_size
    faults = [
        f"{name!r} is there {times} times"
        for name, times in Counter(member.filename for member in members).items()
        if times > 1
    ]
    faults += [f"{m.filename!r} {fault}" for m in members if (fault := _fault(m, length))]
    if faults:
        more = f" and {len(faults) - 8} more faults" if len(faults) > 8 else ""
        raise ValueError(f"{path}: is no weight file to trust: {'; '.join(faults[:8])}{more}")
    return Archive(path=path, members={member.filename: member for member in members})


def _fault(member: zipfile.ZipInfo, length: int) -> str | None:
    if member.flag_bits & _ENCRYPTED:
        return "is encrypted"
    if member.compress_type not in _READABLE:
        return f"is compressed by method {member.compress_type}, which is not read"
    last = member.header_offset + _LOCAL_HEADER + member.compress_size
    if member.header_offset < 0 or last > length:
        return f"claims {member.compress_size} bytes that are not in the file"
    if member.compress_type == zipfile.ZIP_STORED and member.compress_size != member.file_size:
        return f"claims {member.file_size} bytes in {member.compress_size}, uncompressed"
    return None
