"""ArrayRecord files of samples: one read gives one sample, from any place, at the same price."""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from clip_jax.data.manifest import SUFFIX, manifest_path, read_manifest, shard_paths
from clip_jax.data.record import read_record
from clip_jax.data.sample import BadSampleError, Sample, part_and_row
from clip_jax.data.tar_shards import natural

_OPEN_FILES = 512
"""Opening one costs as much as forty reads, so that many more are kept than of tar files."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArrayRecords:
    """What `clip-jax pack` wrote: quick to read at random, and to check.

    Samples come in the order in which they were packed.
    """

    root: str
    """Holds `train.json` and its `train-00000-of-00008.array_record`, ...; or a folder `train/` of
    such files without a manifest, as one gets by putting several packs together."""

    def open(self, split: str) -> "ArrayRecordSource":
        """Check that all files are there with their sizes; nothing else is read.

        Raises:
          FileNotFoundError: no such folder or split; files are missing, all of them.
          ValueError: packing is not finished; files of a wrong size; files that cannot be read;
            no samples.
        """
        if "://" in self.root:
            raise ValueError(f"{self.root}: records are read from local folders: copy or mount it")
        root = pathlib.Path(self.root)
        path = manifest_path(root, split)
        if path.is_file():
            shards, counts = _packed(path, split)
        else:
            shards, counts = _loose(root, split)
        if not sum(counts):
            raise ValueError(f"{root} holds no samples of split {split!r}")
        return ArrayRecordSource(shards, counts)

    def class_names(self, split: str) -> tuple[str, ...]:
        """As of the packed data set; empty without labels, or without a manifest.

        Raises:
          ValueError: a damaged manifest.
        """
        path = manifest_path(pathlib.Path(self.root), split)
        return read_manifest(path).class_names if path.is_file() else ()


def _packed(path: pathlib.Path, split: str) -> tuple[list[pathlib.Path], list[int]]:
    """Files that a manifest names, and their numbers of samples."""
    manifest = read_manifest(path)
    done = [shard for shard in manifest.shards if shard]
    if len(done) < len(manifest.shards):
        raise ValueError(
            f"{path}: packing was interrupted after {len(done)} of {len(manifest.shards)} files; "
            "the same `clip-jax pack` command goes on"
        )
    shards = shard_paths(path.parent, split, len(done))
    if missing := [shard.name for shard in shards if not shard.is_file()]:
        raise FileNotFoundError(
            f"{len(missing)} of {len(shards)} files are missing in {path.parent}: "
            f"{', '.join(missing[:10])}"
        )
    wrong = [
        f"{shard.name} has {size:,} bytes, not {facts.size:,}"
        for shard, facts in zip(shards, done, strict=True)
        if (size := shard.stat().st_size) != facts.size
    ]
    if wrong:
        raise ValueError(
            f"{path.parent}: {'; '.join(wrong)}; copy them again, or delete them and give the same "
            "`clip-jax pack` command"
        )
    return shards, [facts.samples for facts in done]


def _loose(root: pathlib.Path, split: str) -> tuple[list[pathlib.Path], list[int]]:
    """Files of a split's folder, and their numbers of samples."""
    shards = sorted((root / split).glob(f"*{SUFFIX}"), key=lambda path: natural(path.name))
    if not shards:
        splits = {path.name.rpartition("-of-")[0][:-6] for path in root.glob(f"*-of-*{SUFFIX}")}
        bare = sorted(name for name in splits if not manifest_path(root, name).is_file())
        splits |= {path.parent.name for path in root.glob(f"*/*{SUFFIX}")}
        has = ", ".join(map(repr, sorted(splits - set(bare)))) or "none"
        hint = (
            f"; copy {', '.join(f'{n}.json' for n in bare)} too, beside its files" if bare else ""
        )
        what = f"has no split {split!r}; it has {has}{hint}" if root.is_dir() else "is no folder"
        raise FileNotFoundError(f"{root} {what}")
    counts, faults = [], []
    for shard in shards:
        try:
            counts.append(len(RecordFile(shard)))
        except ValueError as fault:
            faults.append(str(fault))
    if faults:
        raise ValueError("; ".join(faults))
    return shards, counts


class ArrayRecordSource:
    """Samples of some files; safe to use from several threads, and to pickle."""

    def __init__(self, shards: Sequence[pathlib.Path], counts: Sequence[int]):
        self.shards = tuple(shards)
        self.counts = tuple(counts)
        self._ends = np.cumsum(self.counts, dtype=np.int64)
        self._file = functools.lru_cache(maxsize=_OPEN_FILES)(RecordFile)

    def __reduce__(self) -> tuple[Any, ...]:
        return ArrayRecordSource, (self.shards, self.counts)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int, /) -> Sample:
        number, row = part_and_row(self._ends, index)
        where = str(self.shards[number])
        try:
            sample = read_record(self._file(self.shards[number]).read(row, row + 1)[0])
        except ValueError as fault:
            raise BadSampleError(f"{where}: sample {row}: {fault}", shard=where) from fault
        return dataclasses.replace(sample, shard=where)


class RecordFile:
    """One file, open for reading at random."""

    def __init__(self, path: pathlib.Path):
        """Raises:
        ValueError: the file is not there, damaged or cut off; names it.
        """
        from array_record.python.array_record_module import ArrayRecordReader

        self.path = path
        self._reader = ArrayRecordReader(
            str(path),
            options="readahead_buffer_size:0,max_parallelism:0",
            file_reader_buffer_size=32768,
        )
        if not self._reader.ok():
            try:
                self._reader.read([0])
                reason = "cannot be read"
            except RuntimeError as fault:
                reason = str(fault)
            raise ValueError(f"{path}: no whole ArrayRecord file: {reason}")

    def __len__(self) -> int:
        return self._reader.num_records()

    def read(self, start: int, stop: int) -> list[bytes]:
        """Records from `start` to before `stop`.

        Raises:
          ValueError: they are damaged, or not there.
        """
        try:
            return self._reader.read(list(range(start, stop)))
        except RuntimeError as fault:
            raise ValueError(str(fault)) from fault
