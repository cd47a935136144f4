"""Webdataset-style tar shards, read at random: CLIP_benchmark folders, img2dataset, plain tars."""

import dataclasses
import functools
import json
import logging
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from clip_jax.data.sample import BadSampleError, Sample
from clip_jax.data.tar_index import IMAGES, SUFFIXES, ShardIndex, read_indexes

log = logging.getLogger(__name__)

_OPEN_FILES = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class TarShards:
    """Tar files whose members belong to one sample if they share their name up to the first dot.

    Read are an image (jpg, jpeg, png, webp), captions (`.txt`, one a line; a newline inside a
    caption is written as backslash and n) or a key of the `.json`, and a label (`.cls`).
    Samples are ordered by shard (natural order: 2.tar before 10.tar), then as in the shard.
    """

    root: str
    """Folder with `train/*.tar`, `test/*.tar`, ...; or with `*.tar` (then it is the split
    "train"); or one tar file (also "train")."""
    caption_key: str | None = None
    """Captions are taken from this key of a sample's `.json` (a string or a list of strings)
    where there is one, otherwise from its `.txt`."""

    def open(self, split: str) -> "TarSource":
        """Index the shards, if that was not done before.

        An index lies beside its shards, or in `~/.cache/clip_jax/tar_index`.

        Raises:
          FileNotFoundError: no such folder or split, no shard in it, or shards that its
            `nshards.txt` counts are missing; the message names them.
          ValueError: shards that cannot be read; shards without a single sample.
        """
        shards = _shards(pathlib.Path(self.root), split)
        source = TarSource(shards, read_indexes(shards), self.caption_key)
        if len(source) == 0:
            raise ValueError(
                f"{_first_and_last(shards)}: no sample in {len(shards)} shards; members must end "
                f"in {', '.join(f'.{s}' for s in SUFFIXES)}"
            )
        return source

    def class_names(self, split: str) -> tuple[str, ...]:
        """Lines of `classnames.txt` in the root, the same for all splits; empty without it."""
        path = pathlib.Path(self.root) / "classnames.txt"
        return tuple(path.read_text("utf-8").splitlines()) if path.is_file() else ()


class TarSource:
    """Samples of a list of shards; safe to use from several threads, after a fork, and to pickle.

    Images stay encoded. Of the shards, the 64 used last are kept open.
    """

    def __init__(
        self,
        shards: Sequence[pathlib.Path],
        indexes: Sequence[ShardIndex],
        caption_key: str | None = None,
    ):
        self.shards = tuple(shards)
        self.indexes = tuple(indexes)
        self.caption_key = caption_key
        self._ends = np.cumsum([len(index) for index in self.indexes], dtype=np.int64)
        # It drops a file before the last reader is done with it, who keeps it open that long.
        self._file = functools.lru_cache(maxsize=_OPEN_FILES)(_OpenFile)

    def __reduce__(self) -> tuple[Any, ...]:
        return TarSource, (self.shards, self.indexes, self.caption_key)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int, /) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        number = int(np.searchsorted(self._ends, index, side="right"))
        row = index - (int(self._ends[number - 1]) if number else 0)
        key = f"{self.shards[number].stem}/{os.fsdecode(bytes(self.indexes[number].keys[row]))}"
        try:
            return self._sample(number, row, key)
        except (ValueError, OSError) as fault:
            raise BadSampleError(f"{self.shards[number]}: sample {key!r}: {fault}") from fault

    def _sample(self, number: int, row: int, key: str) -> Sample:
        image = next((data for s in IMAGES if (data := self._read(number, row, s))), None)
        if image is None:
            raise ValueError(f"no image ({', '.join(IMAGES)}), or an empty one")
        texts = self._texts(number, row)
        label = self._read(number, row, "cls")
        if texts is None and label is None:
            raise ValueError("neither captions nor a label")
        if texts is not None and not any(texts) and label is None:
            raise ValueError("its captions are empty")
        return Sample(
            key=key,
            image=image,
            texts=tuple(text for text in texts or () if text),
            label=None if label is None else _label(label),
        )

    def _texts(self, number: int, row: int) -> list[str] | None:
        """Captions, stripped; None where the sample has no place for any."""
        if self.caption_key and (data := self._read(number, row, "json")) is not None:
            return [text.strip() for text in _captions(data, self.caption_key)]
        if (data := self._read(number, row, "txt")) is not None:
            lines = data.decode("utf-8").split("\n")
            return [line.replace("\\n", "\n").strip() for line in lines]
        return None

    def _read(self, number: int, row: int, suffix: str) -> bytes | None:
        """The member's bytes, or None where the sample has none."""
        index, column = self.indexes[number], SUFFIXES.index(suffix)
        size = int(index.sizes[row, column])
        if size < 0:
            return None
        file = self._file(self.shards[number])
        data = os.pread(file.handle, size, int(index.offsets[row, column]))
        if len(data) != size:
            raise OSError(f"the shard was cut off while in use (member .{suffix})")
        return data


class _OpenFile:
    """A file handle that is closed with its last user; `pread` shares no position."""

    def __init__(self, path: pathlib.Path):
        self.handle = -1
        self.handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self):
        if self.handle >= 0:
            os.close(self.handle)


def _captions(data: bytes, key: str) -> list[str]:
    """One string or a list of them, from a JSON object.

    Raises:
      ValueError: no object, no such key, or another type under it.
    """
    record = json.loads(data)
    if not isinstance(record, dict) or key not in record:
        has = ", ".join(record) if isinstance(record, dict) else f"a {type(record).__name__}"
        raise ValueError(f"its .json has no {key!r}; it has {has}")
    value = record[key]
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{key!r} in its .json is neither a string nor a list of strings")
    return texts


def _label(data: bytes) -> int:
    try:
        label = int(data)
    except ValueError:
        label = -1
    if label < 0:
        raise ValueError(f"its .cls must hold a number from 0 on, not {data[:20]!r}")
    return label


def _shards(root: pathlib.Path, split: str) -> list[pathlib.Path]:
    """Paths of a split's shards in natural order, checked against `nshards.txt`."""
    if re.match(r"[a-z][a-z0-9]+:/", str(root)):  # A path has lost one slash of "gs://".
        raise ValueError(f"{root}: shards are read from local folders only: copy or mount them")
    if not root.exists():
        raise FileNotFoundError(f"{root} does not exist; it should hold train/*.tar or *.tar")
    if root.is_file() and split == "train":
        return [root]
    folder = root / split
    if not folder.is_dir():
        if root.is_file() or split != "train":
            raise FileNotFoundError(f"{root} has no split {split!r}; it has {_splits(root)}")
        folder = root
    shards = sorted(folder.glob("*.tar"), key=lambda path: natural(path.name))
    _check_count(folder, shards)
    if not shards:
        has = sorted(path.name for path in folder.iterdir())[:10]
        raise FileNotFoundError(f"no *.tar in {folder}; it holds {has or 'nothing'}")
    return shards


def _splits(root: pathlib.Path) -> str:
    """Splits that could be opened, for a message."""
    found = [] if root.is_file() else sorted({path.parent.name for path in root.glob("*/*.tar")})
    loose = root.is_file() or any(root.glob("*.tar"))
    if loose and "train" not in found:
        found.append("train")
    return ", ".join(repr(name) for name in found) or "none: no *.tar in it or in its folders"


def _check_count(folder: pathlib.Path, shards: list[pathlib.Path]) -> None:
    """Compare the shards with the count that CLIP_benchmark writes beside them."""
    path = folder / "nshards.txt"
    if not path.is_file():
        return
    text = path.read_text("utf-8").strip()
    if not text.isdecimal():
        raise ValueError(f"{path} must hold one number, not {text[:40]!r}")
    if all(shard.stem.isdecimal() for shard in shards):
        width = len(shards[0].stem) if shards else 1
        there = {int(shard.stem) for shard in shards}
        missing = [f"{n:0{width}d}.tar" for n in range(int(text)) if n not in there]
    else:
        missing = [f"{int(text) - len(shards)} of them"] if len(shards) < int(text) else []
    if missing:
        more = f" and {len(missing) - 20} more" if len(missing) > 20 else ""
        raise FileNotFoundError(
            f"{path} counts {text} shards; missing: {', '.join(missing[:20])}{more}; copy them "
            "again, or correct the number to train without them"
        )
    if len(shards) > int(text):
        log.warning("%s counts %s shards, but there are %d; all are used", path, text, len(shards))


def natural(name: str) -> list[tuple[int, str]]:
    """Key to sort names by, with digits by their value: 2 before 10."""
    parts = re.split(r"(\d+)", name)
    return [(int(part), part) if part.isdecimal() else (-1, part) for part in parts]


def _first_and_last(paths: list[pathlib.Path]) -> str:
    return str(paths[0]) if len(paths) == 1 else f"{paths[0]} to {paths[-1].name}"
