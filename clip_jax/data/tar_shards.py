"""Webdataset-style tar shards, read at random: CLIP_benchmark folders, img2dataset, plain tars."""

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import math
import os
import pathlib
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from clip_jax.config import require
from clip_jax.data.sample import BadSampleError, Fault, Sample, part_and_row, reason_of
from clip_jax.data.tar_cache import ShardCache
from clip_jax.data.tar_files import RemoteFile, Shard, ShardFile, Url, open_shard
from clip_jax.data.tar_index import IMAGES, SUFFIXES, ShardIndex, read_indexes
from clip_jax.data.tar_paths import find_shards, natural, shard_names
from clip_jax.data.windows import Window, Windows

__all__ = ["TarShards", "TarSource", "Window", "natural"]

TXT = ".txt"
"""Stands for the text file among `caption_keys`."""
_OPEN_FILES = 64
_GAP = 64 * 1024
"""Bytes between wanted members that are rather read than skipped by another read."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TarShards:
    """Tar files whose members belong to one sample if they share their name up to the first dot.

    Read are an image (jpg, jpeg, png, webp), captions (`.txt`, one a line; a newline inside a
    caption is written as backslash and n) or a key of the `.json`, and a label (`.cls`).
    Samples are ordered by shard (natural order: 2.tar before 10.tar), then as in the shard.
    """

    root: str
    """Folder with `train/*.tar`, `test/*.tar`, ...; or with `*.tar` (then it is the split
    "train"); or one tar file (also "train"). Or shards with braces, `/data/{00000..01243}.tar` or
    `/data/{cc3m,cc12m}/*.tar`, also "train" unless `{split}` stands in it. Any of these may be at
    gs:// or s3:// (install gcsfs or s3fs), shards by name also at http(s)://. `::` joins several.
    """
    caption_key: str | None = None
    """Captions are taken from this key of a sample's `.json` (a string or a list of strings)
    where there is one, otherwise from its `.txt`."""
    caption_keys: Mapping[str, float] | None = None
    """Several keys of the `.json`, with weights above 0; ".txt" is the text file. A sample gets
    the captions of one of them and keeps it: drawn by the sample's key, in proportion to the
    weights of those that are not empty in it. So the shares hold over the samples."""
    bad_shards: float = 0.0
    """Share of the shards that may be missing or unreadable when they are opened: these are left
    out with a warning. (A run goes on only with the same samples as before.)"""
    window: Window | None = None
    """Train shard by shard, shuffled in windows, where random reads are dear; None: all samples are
    shuffled together."""

    def __post_init__(self) -> None:
        weights = self.caption_keys
        require(
            self,
            (
                "caption_key",
                self.caption_key is None or weights is None,
                "None beside caption_keys",
            ),
            (
                "caption_keys",
                weights is None
                or (bool(weights) and all(0 < w < math.inf for w in weights.values())),
                "keys with weights above 0",
            ),
            ("bad_shards", 0 <= self.bad_shards < 1, "from 0 to below 1"),
        )

    def open(self, split: str) -> "TarSource":
        """Index the shards, if that was not done before: 16 at a time.

        An index lies beside its shards, or in `~/.cache/clip_jax/tar_index`.

        Raises:
          FileNotFoundError: no such folder or split, no shard in it, or shards that its
            `nshards.txt` or braces count are missing; the message names them.
          ValueError: shards that cannot be read; shards without a single sample.
        """
        shards = find_shards(self.root, split)
        found = [
            _Indexed(shard, name, index)
            for shard, name, index in zip(
                shards, shard_names(shards), read_indexes(shards, self.bad_shards), strict=True
            )
            if index is not None
        ]
        weights = self.caption_keys or ({} if self.caption_key is None else {self.caption_key: 1.0})
        strict = self.caption_keys is None
        source = TarSource(found, weights, strict=strict, window=self.window)
        if len(source) == 0:
            raise ValueError(
                f"{_first_and_last(shards)}: no sample in {len(shards)} shards; members must end "
                f"in {', '.join(f'.{s}' for s in SUFFIXES)}"
            )
        return source

    def class_names(self, split: str) -> tuple[str, ...]:
        """Lines of `classnames.txt` in the root, the same for all splits; empty without it.

        Only a local folder has one.
        """
        path = pathlib.Path(self.root) / "classnames.txt"
        return tuple(path.read_text("utf-8").splitlines()) if path.is_file() else ()


@dataclasses.dataclass(frozen=True)
class _Indexed:
    """A shard, what it is called in keys of samples, and where its samples lie."""

    shard: Shard
    name: str
    index: ShardIndex


class TarSource:
    """Samples of a list of shards; safe to use from several threads, after a fork, and to pickle.

    Images stay encoded. Of local shards, the 64 used last are kept open. A shard that is not what
    was indexed any more gives no sample: its offsets may point into others.
    """

    def __init__(
        self,
        shards: Sequence[_Indexed],
        weights: Mapping[str, float],
        *,
        strict: bool,
        window: Window | None = None,
        folder: pathlib.Path | None = None,
        numbers: bool = False,
    ):
        """Args:
        strict: a `.json` that lacks a key makes its sample bad, and without a `.json` captions
          come from the text file.
        folder: where another process of this run keeps shards that are near.
        numbers: read the `.npy`, too.
        """
        self._shards = tuple(shards)
        self._weights = dict(weights)
        self._strict = strict
        self._numbers = numbers
        self._ends = np.cumsum([len(shard.index) for shard in shards], dtype=np.int64)
        # It drops a file before the last reader is done with it, who keeps it open that long.
        self._local = functools.lru_cache(maxsize=_OPEN_FILES)(open_shard)
        self._window = window
        self.windows = Windows(self._ends, window.shards) if window else None
        states = [(shard.shard, shard.index.stamp) for shard in shards]
        self._cache = ShardCache(states, window, folder) if window else None
        # These hold no handle, but remember what failed.
        self._remote: dict[Url, ShardFile] = {
            shard: self._cache.file(number, shard, stamp) if self._cache else RemoteFile(shard)
            for number, (shard, stamp) in enumerate(states)
            if isinstance(shard, Url)
        }

    def __reduce__(self) -> tuple[Any, ...]:
        folder = self._cache.folder if self._cache else None
        options = {"strict": self._strict, "window": self._window, "folder": folder}
        made = functools.partial(TarSource, **options, numbers=self._numbers)
        return made, (self._shards, self._weights)

    def with_numbers(self) -> "TarSource":
        """The same samples with what their `.npy` hold: a vector of whole numbers.

        A `.npy` of anything else makes its sample bad; nothing pickled is ever loaded.
        """
        return TarSource(self._shards, self._weights, strict=self._strict, numbers=True)

    def all_keys(self) -> Iterator[str]:
        """Keys of all samples in their order; no image is read."""
        for shard in self._shards:
            for key in shard.index.keys.tolist():
                yield f"{shard.name}/{os.fsdecode(key)}"

    def digest(self) -> str:
        """A hash of where every member lies and of each shard's size and time of change."""
        mark = hashlib.sha256()
        for shard in self._shards:
            index = shard.index
            mark.update(repr((shard.name, tuple(index.stamp), index.keys.tolist())).encode())
            mark.update(index.offsets.tobytes() + index.sizes.tobytes())
        return mark.hexdigest()

    def near(self, shards: Sequence[int]) -> contextlib.AbstractContextManager[None]:
        """See `data.windows.Windowed`."""
        return self._cache.near(shards) if self._cache else contextlib.nullcontext()

    def open(self) -> None:
        """See `data.windows.Windowed`; it is open from the start."""
        if self._cache:
            self._cache.open()

    def close(self) -> None:
        """Delete what was fetched of its shards; it can still be read."""
        if self._cache:
            self._cache.close()

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int, /) -> Sample:
        number, row = part_and_row(self._ends, index)
        shard = self._shards[number]
        key = f"{shard.name}/{os.fsdecode(shard.index.keys.item(row))}"
        where = str(shard.shard)
        try:
            return self._sample(key, where, self._read(shard, row))
        except (Fault, OSError) as fault:
            text = f"{where}: sample {key!r}: {fault}"
            raise BadSampleError(text, reason=reason_of(fault), shard=where) from fault

    def _file(self, shard: Shard) -> ShardFile:
        return self._remote[shard] if isinstance(shard, Url) else self._local(shard)

    def _read(self, shard: _Indexed, row: int) -> dict[str, bytes]:
        """The members that matter, by suffix; those that lie close together at once.

        Raises:
          Fault: the shard is shorter than it was, or another.
          OSError: it cannot be read.
        """
        sizes, begins = shard.index.sizes[row].tolist(), shard.index.offsets[row].tolist()
        wanted = self._wanted(sizes)
        if not wanted:
            return {}
        file, found = self._file(shard.shard), {}
        start = min([begins[column] for column in wanted])
        length = max([begins[column] + sizes[column] for column in wanted]) - start
        total = sum([sizes[column] for column in wanted])
        data, stamp = file.read(start, length) if length <= total + _GAP else (None, None)
        for column in wanted:
            offset, size = begins[column], sizes[column]
            if data is None:
                piece, stamp = file.read(offset, size)
            else:
                piece = data[offset - start : offset - start + size]
            if len(piece) != size:
                raise Fault(
                    "truncated",
                    f"the shard was cut off while in use (member .{SUFFIXES[column]})",
                )
            if stamp != shard.index.stamp:
                raise Fault("changed", "the shard has changed since it was indexed; start again")
            found[SUFFIXES[column]] = piece
        return found

    def _wanted(self, sizes: Sequence[int]) -> list[int]:
        """Columns of an index: the first image that is not empty, captions, label."""
        wanted = [column for column, size in enumerate(sizes[: len(IMAGES)]) if size > 0][:1]
        record = sizes[_JSON] >= 0 and any(key != TXT for key in self._weights)
        if sizes[_TXT] >= 0 and (TXT in self._weights or (self._strict and not record)):
            wanted.append(_TXT)
        if record:
            wanted.append(_JSON)
        if sizes[_CLS] >= 0:
            wanted.append(_CLS)
        if sizes[_NPY] >= 0 and self._numbers:
            wanted.append(_NPY)
        return wanted

    def _sample(self, key: str, shard: str, members: Mapping[str, bytes]) -> Sample:
        images = [members[suffix] for suffix in IMAGES if suffix in members]
        if not images:
            raise Fault("missing image", f"no image ({', '.join(IMAGES)}), or an empty one")
        texts = self._texts(key, members)
        label, numbers = members.get("cls"), members.get("npy")
        if texts is None and label is None and numbers is None:
            raise Fault("missing caption", "neither captions nor a label")
        if texts is not None and not texts and label is None:
            raise Fault("empty caption", "its captions are empty")
        return Sample(
            key=key,
            image=images[0],
            texts=tuple(texts or ()),
            label=None if label is None else _label(label),
            numbers=() if numbers is None else _vector(numbers),
            shard=shard,
        )

    def _texts(self, key: str, members: Mapping[str, bytes]) -> list[str] | None:
        """Captions, stripped, none of them empty; None where the sample has no place for any.

        Raises:
          Fault: no UTF-8, no JSON, or not what should be in it.
        """
        found: dict[str, list[str]] = {}
        try:
            if "json" in members:
                record = json.loads(members["json"])
                for name in self._weights:
                    if name != TXT and (self._strict or _has(record, name)):
                        found[name] = _captions(record, name)
            if "txt" in members:
                lines = members["txt"].decode("utf-8").split("\n")
                found[TXT] = [line.replace("\\n", "\n") for line in lines]
        except (ValueError, RecursionError) as fault:
            raise Fault("bad caption", str(fault)) from fault
        if not found and "json" not in members:
            return None
        full = {name: kept for name, texts in found.items() if (kept := _stripped(texts))}
        if len(full) < 2:
            return next(iter(full.values()), [])
        return full[_draw(key, {name: self._weights.get(name, 1.0) for name in full})]


_TXT, _JSON, _CLS, _NPY = (SUFFIXES.index(kind) for kind in ("txt", "json", "cls", "npy"))


def _draw(key: str, weights: Mapping[str, float]) -> str:
    """One of the names in proportion to its weight: a function of the key."""
    names = sorted(weights)
    upto = np.cumsum([weights[name] for name in names])
    number = int.from_bytes(hashlib.blake2b(os.fsencode(key), digest_size=6).digest())
    return names[int(np.searchsorted(upto, number / 2**48 * upto[-1], side="right"))]


def _stripped(texts: Sequence[str]) -> list[str]:
    return [stripped for text in texts if (stripped := text.strip())]


def _has(record: Any, key: str) -> bool:
    return isinstance(record, dict) and record.get(key) is not None


def _captions(record: Any, key: str) -> list[str]:
    """One string or a list of them, from a JSON object.

    Raises:
      ValueError: no object, no such key, or another type under it; half a character ("\\ud800").
    """
    if not isinstance(record, dict) or key not in record:
        has = ", ".join(record) if isinstance(record, dict) else f"a {type(record).__name__}"
        raise ValueError(f"its .json has no {key!r}; it has {has}")
    value = record[key]
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{key!r} in its .json is neither a string nor a list of strings")
    for text in texts:
        text.encode("utf-8")
    return texts


def _label(data: bytes) -> int:
    try:
        label = int(data)
    except ValueError:
        label = -1
    if label < 0:
        raise Fault("bad label", f"its .cls must hold a number from 0 on, not {data[:20]!r}")
    return label


def _vector(data: bytes) -> tuple[int, ...]:
    """The whole numbers of a `.npy`; bytes are taken as numpy's header describes them, or not."""
    try:
        file = io.BytesIO(data)
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0}
        shape, _, kind = read.get(version, np.lib.format.read_array_header_2_0)(file)
        # The header is checked first: it could name any size, and objects to unpickle.
        if len(shape) != 1 or kind.kind not in "biuf":
            raise ValueError(f"an array of shape {shape} and type {kind}")
        values = np.frombuffer(data, kind, offset=file.tell())
        if len(values) != shape[0] or not np.array_equal(values, np.trunc(values)):
            raise ValueError(f"{len(values)} numbers of {shape[0]}, or some that are not whole")
        return tuple(int(value) for value in values)
    except (ValueError, OverflowError, SyntaxError, tokenize.TokenError) as fault:
        message = f"its .npy must hold a vector of whole numbers: {fault}"
        raise Fault("bad numbers", message) from None


def _first_and_last(paths: Sequence[Shard]) -> str:
    return str(paths[0]) if len(paths) == 1 else f"{paths[0]} to {paths[-1].name}"
