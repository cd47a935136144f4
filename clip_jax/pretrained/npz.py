"""NumPy's zip files of arrays, one array at a time and never a pickle."""

import dataclasses
import io
import math
import pathlib
import zipfile
from collections.abc import Mapping

import ml_dtypes
import numpy as np
from jaxtyping import Shaped

from clip_jax.pretrained.archive import Archive

_SUFFIX = ".npy"
_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_NUMBERS = "biuf"
_HEADER = 16_384
"""Bytes that are sure to hold a member's header, of which NumPy reads 10,000 at most."""
_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Member:
    """One array of the archive, not yet read."""

    shape: tuple[int, ...]
    dtype: np.dtype
    """As it is stored, byte order included; `void` of two bytes is bfloat16."""
    column_major: bool
    first: int
    """Bytes of header before the numbers."""

    @property
    def native(self) -> np.dtype:
        """The dtype of the array that is read."""
        return _BFLOAT16 if self.dtype.kind == "V" else self.dtype.newbyteorder("=")


def is_npz(archive: Archive) -> bool:
    """Whether there are arrays in it and nothing else."""
    return bool(archive.members) and all(name.endswith(_SUFFIX) for name in archive.members)


def open_npz(archive: Archive) -> dict[str, Member]:
    """The arrays by name, from their headers alone.

    Raises:
      ValueError: lists all members that are damaged, or hold something else than numbers.
    """
    found, faults = {}, []
    for name, info in archive.members.items():
        head = archive.read(name, size=min(_HEADER, info.file_size)).tobytes()
        try:
            found[name.removesuffix(_SUFFIX)] = _member(head, info.file_size)
        except ValueError as fault:
            faults.append(f"{name!r} {fault}")
    if faults:
        raise ValueError(f"{archive.path}: holds what is not read: {'; '.join(faults[:8])}")
    return found


def _member(head: bytes, length: int) -> Member:
    stream = io.BytesIO(head)
    try:
        version = np.lib.format.read_magic(stream)
        shape, column_major, dtype = _READERS[version](stream)
    # NumPy's parser of the header raises whatever Python's does for text that makes no sense.
    except Exception as fault:
        raise ValueError(f"has a damaged header ({str(fault)[:80]})") from fault
    if dtype.kind not in _NUMBERS and dtype != np.dtype("V2"):
        raise ValueError(f"has dtype {str(dtype)[:40]}: not numbers (and objects would be code)")
    size = math.prod(shape) * dtype.itemsize
    if min((0, *shape)) < 0 or stream.tell() + size != length:
        raise ValueError(f"has {length - stream.tell()} bytes for shape {shape} of {dtype}")
    return Member(shape=shape, dtype=dtype, column_major=column_major, first=stream.tell())


def read_npz(archive: Archive, name: str, member: Member) -> Shaped[np.ndarray, "..."]:
    """The array in memory of its own, in this machine's byte order.

    Raises:
      ValueError: its bytes are cut off or damaged.
    """
    stored = member.native if member.dtype.kind == "V" else member.dtype
    numbers = archive.read(name + _SUFFIX)[member.first :].view(stored)
    array = numbers.reshape(member.shape, order="F" if member.column_major else "C")
    return array.astype(member.native, order="C", copy=False)


def write_npz_file(path: pathlib.Path, arrays: Mapping[str, Shaped[np.ndarray, "..."]]) -> None:
    """What np.savez writes, whatever the names; bfloat16 as the two bytes that big_vision has."""
    with zipfile.ZipFile(path, "w") as file:
        for name, array in arrays.items():
            member = zipfile.ZipInfo(name + _SUFFIX)
            plain = array.view("V2") if array.dtype == _BFLOAT16 else array
            with file.open(member, "w", force_zip64=True) as out:
                np.lib.format.write_array(out, plain, allow_pickle=False)
