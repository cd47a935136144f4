"""Where each sample of a tar shard lies: read once from its headers, then kept in a small file."""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import logging
import os
import pathlib
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, Shaped

from clip_jax.data.tar_files import Shard, ShardFile, Stamp, open_shard
from clip_jax.data.tar_members import scan

log = logging.getLogger(__name__)

IMAGES = ("jpg", "jpeg", "png", "webp")
SUFFIXES = (*IMAGES, "txt", "json", "cls", "npy")
"""Members with another suffix are not looked at."""
FOLDER = ".tar_index"
"""Indexes lie in a folder of this name beside their shards, where that can be written."""

_FORMAT = 3
_QUIET_SECONDS = 2.0
_THREADS = 16
"""Shards that are indexed at once: most of the time is waiting for a disk or a network."""
_SHOWN = 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardIndex:
    """Samples of one shard, in the order in which they begin; columns are `SUFFIXES`."""

    stamp: Stamp
    """State of the shard that was indexed."""
    keys: Shaped[np.ndarray, " n"]
    """UTF-8 names up to the first dot of the base name, folders included."""
    offsets: Int[np.ndarray, "n suffixes"]
    """Bytes from the start of the file to the member's first byte."""
    sizes: Int[np.ndarray, "n suffixes"]
    """Bytes; -1 where the sample has no such member."""

    def __len__(self) -> int:
        return len(self.keys)


def read_indexes(shards: Sequence[Shard], bad_share: float = 0.0) -> list[ShardIndex | None]:
    """Indexes of all shards, from their files where these are current.

    An index is current while its shard keeps size and time of change (or what a server says in its
    place). A line on stderr counts the shards where reading headers takes more than two seconds.

    Args:
      bad_share: of the shards, 0 to 1, that may be missing, no tar files, or hold one member twice:
        they are told in a warning, and None stands in their place.

    Raises:
      FileNotFoundError: more than that are missing; names 20 of them.
      ValueError: more than that are bad in some way; says why for 20 of them.
    """
    found: list[ShardIndex | None] = []
    faults: list[ValueError | OSError] = []
    start, told = time.monotonic(), False
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        for number, made in enumerate(pool.map(_try_index, shards), 1):
            if isinstance(made, ShardIndex):
                found.append(made)
            else:
                found.append(None)
                faults.append(made)
            if told or time.monotonic() - start > _QUIET_SECONDS:
                told = True
                print(f"\rindexing shards: {number} of {len(shards)}", end="", file=sys.stderr)
    if told:
        print(file=sys.stderr)
    if faults:
        more = f"; and {len(faults) - _SHOWN} more shards" if len(faults) > _SHOWN else ""
        message = "; ".join(map(str, faults[:_SHOWN])) + more
        if len(faults) > bad_share * len(shards):
            missing = all(isinstance(fault, FileNotFoundError) for fault in faults)
            raise (FileNotFoundError if missing else ValueError)(message)
        log.warning("%d of %d shards are left out: %s", len(faults), len(shards), message)
    return found


def _try_index(shard: Shard) -> "ShardIndex | ValueError | OSError":
    """The index, or what is wrong, in words that name the shard."""
    try:
        return _read_index(shard)
    except FileNotFoundError as fault:
        return FileNotFoundError(f"{shard}: cannot be read: {fault.strerror or fault}")
    except OSError as fault:
        return OSError(f"{shard}: cannot be read: {fault.strerror or fault}")
    except ValueError as fault:
        return ValueError(f"{shard}: {fault}")


def _read_index(shard: Shard) -> ShardIndex:
    file = open_shard(shard)
    stamp = file.read(0, 0)[1]
    places = _places(shard)
    for place in places:
        if (index := _load(place, stamp)) is not None:
            return index
    index = _build(file, stamp)
    if isinstance(shard, pathlib.Path) and not _writable(shard.parent):
        places = places[1:]
    for place in places:
        try:
            _save(place, index)
            return index
        except OSError:
            continue
    log.warning("%s: its index can be kept nowhere, so each start reads the shard again", shard)
    return index


def _writable(folder: pathlib.Path) -> bool:
    # The administrator can write everywhere, but a folder marked read-only is meant to stay as is.
    return os.access(folder, os.W_OK) and bool(folder.stat().st_mode & 0o222)


def _places(shard: Shard) -> list[pathlib.Path]:
    """Where the index may lie: beside a local shard, and in the user's cache."""
    places = []
    if isinstance(shard, pathlib.Path):
        shard = shard.resolve()
        places.append(shard.parent / FOLDER / f"{shard.name}.npz")
    name = (
        hashlib.blake2b(os.fsencode(str(shard)), digest_size=8).hexdigest() + f"-{shard.name}.npz"
    )
    with contextlib.suppress(RuntimeError):  # There may be no home.
        places.append(pathlib.Path.home() / ".cache" / "clip_jax" / "tar_index" / name)
    return places


def _load(place: pathlib.Path, stamp: Stamp) -> ShardIndex | None:
    try:
        with place.open("rb") as whole, np.load(whole) as file:
            if file["stamp"].tolist() == [_FORMAT, *stamp]:
                fields = {name: file[name] for name in ("keys", "offsets", "sizes")}
                return ShardIndex(stamp=stamp, **fields)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass  # None yet, or damaged: it is made anew.
    return None


def _save(place: pathlib.Path, index: ShardIndex) -> None:
    """Whole or not at all: several processes may index the same shards at once."""
    place.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=place.parent, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            stamp = np.array([_FORMAT, *index.stamp], np.int64)
            np.savez(file, stamp=stamp, keys=index.keys, offsets=index.offsets, sizes=index.sizes)
        pathlib.Path(temporary).replace(place)
    except BaseException:
        pathlib.Path(temporary).unlink(missing_ok=True)
        raise


def _build(file: ShardFile, stamp: Stamp) -> ShardIndex:
    """Read all headers; the members' contents are skipped where they are long.

    Raises:
      ValueError: the file is no uncompressed tar, holds a member twice, or changes meanwhile.
    """
    rows: dict[bytes, dict[int, tuple[bytes, int, int]]] = {}
    twice = []
    try:
        members, damage = scan(_Ahead(file, stamp), stamp.size)
    except _ChangedError:
        raise
    except ValueError as fault:
        raise ValueError(f"is no readable tar file: {fault}") from fault
    if damage is not None:
        log.warning(
            "%s: damaged or cut off at byte %d of %d; the complete members before it are used",
            file.name,
            damage,
            stamp.size,
        )
    for name, offset, length in members:
        key, column = _split_name(name)
        if column is None:
            continue
        row = rows.setdefault(key, {})
        if column in row:
            first = row[column]
            twice.append(
                f"{os.fsdecode(first[0])!r} (byte {first[1]}) and {os.fsdecode(name)!r} (byte "
                f"{offset})"
            )
        row[column] = (name, offset, length)
    # Some keep arrays apart from their pictures: those alone are no samples.
    rows = {key: row for key, row in rows.items() if row.keys() != {_NPY}}
    if twice:
        more = f" and {len(twice) - _SHOWN} more" if len(twice) > _SHOWN else ""
        raise ValueError(
            f"two members for one place of a sample: {', '.join(twice[:_SHOWN])}{more}"
        )
    offsets = np.zeros((len(rows), len(SUFFIXES)), np.int64)
    sizes = np.full((len(rows), len(SUFFIXES)), -1, np.int64)
    for number, row in enumerate(rows.values()):
        for column, (_, offset, length) in row.items():
            offsets[number, column], sizes[number, column] = offset, length
    return ShardIndex(
        stamp=stamp, keys=np.array(list(rows), np.bytes_), offsets=offsets, sizes=sizes
    )


class _ChangedError(ValueError):
    """The shard is being written."""


class _Ahead:
    """Reads in windows, as headers follow each other."""

    def __init__(self, file: ShardFile, stamp: Stamp):
        self._file, self._stamp = file, stamp
        self._start, self._data = 0, b""

    def __call__(self, offset: int, size: int) -> bytes:
        if offset < self._start or offset + size > self._start + len(self._data):
            self._data, stamp = self._file.read(offset, max(size, self._file.window))
            self._start = offset
            if stamp != self._stamp:
                raise _ChangedError("changed while it was indexed; start again when it is complete")
        begin = offset - self._start
        return self._data[begin : begin + size]


def _split_name(name: bytes) -> tuple[bytes, int | None]:
    """The sample's key, and the column of the member's suffix (None: of no use)."""
    folder, _, base = name.rpartition(b"/")
    stem, _, suffix = base.partition(b".")
    column = _COLUMNS.get(suffix.lower())
    return (folder + b"/" + stem if folder else stem), column if stem else None


_NPY = SUFFIXES.index("npy")
_COLUMNS = {suffix.encode(): column for column, suffix in enumerate(SUFFIXES)}
