"""Where each sample of a tar shard lies: read once from its headers, then kept in a small file."""

import dataclasses
import hashlib
import logging
import os
import pathlib
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int, Shaped

log = logging.getLogger(__name__)

IMAGES = ("jpg", "jpeg", "png", "webp")
SUFFIXES = (*IMAGES, "txt", "json", "cls")
"""Members with another suffix are not looked at."""
FOLDER = ".tar_index"
"""Indexes lie in a folder of this name beside their shards, where that can be written."""

_FORMAT = 1
_BLOCK = 512
_QUIET_SECONDS = 2.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardIndex:
    """Samples of one shard, in the order in which they begin; columns are `SUFFIXES`."""

    keys: Shaped[np.ndarray, " n"]
    """UTF-8 names up to the first dot of the base name, folders included."""
    offsets: Int[np.ndarray, "n suffixes"]
    """Bytes from the start of the file to the member's first byte."""
    sizes: Int[np.ndarray, "n suffixes"]
    """Bytes; -1 where the sample has no such member."""

    def __len__(self) -> int:
        return len(self.keys)


def read_indexes(shards: Sequence[pathlib.Path]) -> list[ShardIndex]:
    """Indexes of all shards, from their files where these are current.

    An index is current while its shard keeps size and time of change. A line on stderr counts the
    shards where reading headers takes more than two seconds.

    Raises:
      ValueError: lists all shards that are no tar files, or hold one member twice.
    """
    found, faults = [], []
    start, told = time.monotonic(), False
    for number, shard in enumerate(shards, 1):
        try:
            found.append(_read_index(shard))
        except ValueError as fault:
            faults.append(str(fault))
        if told or time.monotonic() - start > _QUIET_SECONDS:
            told = True
            print(f"\rindexing shards: {number} of {len(shards)}", end="", file=sys.stderr)
    if told:
        print(file=sys.stderr)
    if faults:
        raise ValueError("; ".join(faults))
    return found


def _read_index(shard: pathlib.Path) -> ShardIndex:
    try:
        state = shard.stat()
    except OSError as fault:
        raise ValueError(f"{shard}: cannot be read: {fault.strerror}") from fault
    stamp = [_FORMAT, state.st_size, state.st_mtime_ns]
    beside, cached = _places(shard)
    for place in (beside, cached):
        if place is not None and (index := _load(place, stamp)) is not None:
            return index
    index = _build(shard, state.st_size)
    # The administrator can write everywhere, but a folder marked read-only is meant to stay as is.
    if not (os.access(shard.parent, os.W_OK) and shard.parent.stat().st_mode & 0o222):
        beside = None
    for place in (beside, cached):
        try:
            if place is not None:
                _save(place, index, stamp)
                return index
        except OSError:
            continue
    log.warning("%s: its index can be kept nowhere, so each start reads the shard again", shard)
    return index


def _places(shard: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path | None]:
    """Where the index may lie: beside the shard, and in the user's cache (if there is a home)."""
    shard = shard.resolve()
    beside = shard.parent / FOLDER / f"{shard.name}.npz"
    name = hashlib.blake2b(os.fsencode(shard), digest_size=8).hexdigest() + f"-{shard.name}.npz"
    try:
        return beside, pathlib.Path.home() / ".cache" / "clip_jax" / "tar_index" / name
    except RuntimeError:
        return beside, None


def _load(place: pathlib.Path, stamp: list[int]) -> ShardIndex | None:
    try:
        with place.open("rb") as whole, np.load(whole) as file:
            if file["stamp"].tolist() == stamp:
                return ShardIndex(keys=file["keys"], offsets=file["offsets"], sizes=file["sizes"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass  # None yet, or damaged: it is made anew.
    return None


def _save(place: pathlib.Path, index: ShardIndex, stamp: list[int]) -> None:
    """Whole or not at all: several processes may index the same shards at once."""
    place.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=place.parent, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, stamp=np.array(stamp, np.int64), **dataclasses.asdict(index))
        pathlib.Path(temporary).replace(place)
    except BaseException:
        pathlib.Path(temporary).unlink(missing_ok=True)
        raise


def _build(shard: pathlib.Path, size: int) -> ShardIndex:
    """Read all headers; the members' contents are skipped.

    Raises:
      ValueError: the file is no uncompressed tar, or holds a member twice.
    """
    rows: dict[str, dict[int, tuple[str, int, int]]] = {}
    twice = []
    try:
        for name, offset, length in _members(shard, size):
            key, column = _split_name(name)
            if column is None:
                continue
            row = rows.setdefault(key, {})
            if column in row:
                first = row[column]
                twice.append(f"{first[0]!r} (byte {first[1]}) and {name!r} (byte {offset})")
            row[column] = (name, offset, length)
    except (tarfile.TarError, OSError) as fault:
        hint = "; if it is compressed, unpack it" if _looks_compressed(shard) else ""
        raise ValueError(f"{shard}: is no readable tar file: {fault}{hint}") from fault
    if twice:
        raise ValueError(f"{shard}: two members for one place of a sample: {', '.join(twice)}")
    offsets = np.zeros((len(rows), len(SUFFIXES)), np.int64)
    sizes = np.full((len(rows), len(SUFFIXES)), -1, np.int64)
    for number, row in enumerate(rows.values()):
        for column, (_, offset, length) in row.items():
            offsets[number, column], sizes[number, column] = offset, length
    keys = np.array([os.fsencode(key) for key in rows], np.bytes_)
    return ShardIndex(keys=keys, offsets=offsets, sizes=sizes)


def _members(shard: pathlib.Path, size: int) -> Iterator[tuple[str, int, int]]:
    """Name, offset and length of each complete file; a warning where damage hides the rest."""
    with tarfile.open(shard, "r:") as tar:
        reached = 0
        try:
            while (member := tar.next()) is not None:
                if member.offset_data + member.size > size:
                    break
                reached = tar.offset
                # Without this it keeps every header of a large shard in memory.
                tar.members = []  # pyright: ignore[reportAttributeAccessIssue]
                if member.isfile():
                    yield member.name, member.offset_data, member.size
        except tarfile.ReadError:
            if reached == 0:
                raise
    with shard.open("rb") as file:
        file.seek(reached)
        if file.read(_BLOCK) != bytes(_BLOCK):
            log.warning(
                "%s: damaged or cut off at byte %d of %d; the complete members before it are used",
                shard,
                reached,
                size,
            )


def _split_name(name: str) -> tuple[str, int | None]:
    """The sample's key, and the column of the member's suffix (None: of no use)."""
    folder, _, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    if not stem or suffix.lower() not in SUFFIXES:
        return name, None
    return f"{folder}/{stem}" if folder else stem, SUFFIXES.index(suffix.lower())


def _looks_compressed(shard: pathlib.Path) -> bool:
    with shard.open("rb") as file:
        start = file.read(6)
    return start.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"))
