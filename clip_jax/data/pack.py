"""Any data set rewritten as ArrayRecord files: smaller pictures, one read a sample, checksums."""

import contextlib
import dataclasses
import hashlib
import math
import os
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from clip_jax.config import differences, to_data, write_json
from clip_jax.data.array_records import RecordFile
from clip_jax.data.manifest import Manifest, Shard, manifest_path, read_manifest, shard_paths
from clip_jax.data.pipeline import iterate
from clip_jax.data.record import write_record
from clip_jax.data.resize import Resize
from clip_jax.data.sample import BadSampleError, Dataset, Sample, Source

Progress = Callable[[str, int, int], None]
"""What is being done ("packing", "verifying"), how many samples are done, and of how many."""

_PER_SHARD = 20_000
_PROBES = 16
"""Samples by whose content an interrupted packing knows its source again."""
_MANY = 0.5
_TOGETHER = 64
"""Records read at once to verify them, so that a file need not fit into memory."""


def pack(
    data: Dataset,
    out: str | os.PathLike[str],
    *,
    split: str = "train",
    resize: Resize | None = None,
    shards: int | None = None,
    threads: int | None = None,
    max_bad: float = _MANY,
    progress: Progress | None = None,
) -> Manifest:
    """Write a split as `<out>/<split>-00000-of-00008.array_record`, ... and `<out>/<split>.json`.

    `ArrayRecords(root=out)` reads it: the same samples in the same order, without those that are
    bad or whose picture cannot be decoded; these are listed in the manifest, with the reasons.

    A file appears when it is whole. After an interruption the same call keeps the finished files
    and goes on. In the end everything is read again and compared with counts and checksums.

    Args:
      data: a config of plain values; it is kept in the manifest.
      resize: None keeps all pictures as they are; decoded ones then stay decoded.
      shards: number of files; None: one for each 20,000 samples.
      threads: that decode and encode; None: one a core.
      max_bad: share of bad samples above which a file is not written but the work stops: then
        rather the source is unreachable than so many pictures broken.
      progress: is told how far it is.

    Raises:
      ValueError: no samples; more shards than samples; too many bad samples, or all; `out` holds
        something else packed, or a packing of another source or with other options; files that
        do not fit their checksums afterwards.
      FileNotFoundError, ValueError: as `data.open`.
      OSError: the disk is full, and the like.
    """
    out = _folder(out, split)
    source = data.open(split)
    count = _files(len(source), shards, split)
    settings = {"shards": count, "resize": {} if resize is None else to_data(resize)}
    manifest = _begun(data, source, settings, out, split)
    work = _Work(split, resize, threads or os.cpu_count() or 1, max_bad, progress)
    manifest = _fill(source, out, manifest, work)
    if manifest.samples == 0:
        raise ValueError(f"none of the samples can be read: {'; '.join(manifest.left_out[:3])}")
    verify(out, split, progress=progress)
    return manifest


class _Work(NamedTuple):
    """How the files of one packing are written."""

    split: str
    resize: Resize | None
    threads: int
    max_bad: float
    progress: Progress | None


def _fill(source: Source, out: pathlib.Path, manifest: Manifest, work: _Work) -> Manifest:
    """Write the files that the manifest lacks, and the manifest after each."""
    count, told = len(manifest.shards), work.progress or (lambda *_: None)
    for number, path in enumerate(shard_paths(out, work.split, count)):
        start, stop = (len(source) * n // count for n in (number, number + 1))
        if manifest.shards[number] is None:
            part = _Part(source, start, stop, work.resize)
            shard = _write(part, path, work.threads, work.max_bad, told)
            done = (*manifest.shards[:number], shard, *manifest.shards[number + 1 :])
            manifest = dataclasses.replace(manifest, shards=done)
            write_json(manifest_path(out, work.split), to_data(manifest))
        told("packing", stop, len(source))
    return manifest


def _folder(out: str | os.PathLike[str], split: str) -> pathlib.Path:
    """Where to write; refuses what cannot be written to."""
    if "://" in os.fspath(out):
        raise ValueError(f"{out}: records are written to local folders: copy them there afterwards")
    if not re.fullmatch(r"\w[\w-]*", split):
        raise ValueError(
            f"a split that is packed needs a name of letters and digits, not {split!r}"
        )
    return pathlib.Path(out)


def _files(samples: int, shards: int | None, split: str) -> int:
    """How many files, if the split can be packed into so many."""
    if samples == 0:
        raise ValueError(f"split {split!r} of the source has no samples")
    count = max(1, math.ceil(samples / _PER_SHARD)) if shards is None else shards
    if not 1 <= count <= samples:
        raise ValueError(f"{count} files for {samples} samples: at least one, at most one each")
    return count


def verify(
    out: str | os.PathLike[str], split: str, *, progress: Progress | None = None
) -> Manifest:
    """Read every record of a packed split and compare counts and checksums with the manifest.

    Raises:
      FileNotFoundError: nothing of that split is packed there.
      ValueError: lists all files that are missing, damaged or not finished.
    """
    out = pathlib.Path(out)
    path = manifest_path(out, split)
    if not path.is_file():
        has = ", ".join(sorted(packed_splits(out))) or "none"
        raise FileNotFoundError(f"{out} holds no packed split {split!r}; packed: {has}")
    manifest = read_manifest(path)
    faults, done = [], 0
    for file, shard in zip(
        shard_paths(out, split, len(manifest.shards)), manifest.shards, strict=True
    ):
        if shard is None:
            faults.append(f"{file.name}: not finished")
            continue
        try:
            _check(file, shard)
        except ValueError as fault:
            faults.append(f"{file.name}: {fault}")
        done += shard.samples
        if progress:
            progress("verifying", done, manifest.samples)
    if faults:
        raise ValueError(
            f"{out}: {'; '.join(faults)}; delete these files and give the same `clip-jax pack` "
            "command again, which writes them anew"
        )
    return manifest


def packed_splits(out: str | os.PathLike[str]) -> list[str]:
    """Splits of which a folder holds a manifest."""
    found = []
    for path in sorted(pathlib.Path(out).glob("*.json")):
        with contextlib.suppress(ValueError):
            read_manifest(path)
            found.append(path.stem)
    return found


def _begun(
    data: Dataset, source: Source, settings: dict[str, Any], out: pathlib.Path, split: str
) -> Manifest:
    """What will be packed, with the files that were finished before.

    Raises:
      ValueError: the folder holds another packing of that split; or `data` is no plain config.
    """
    made_from = {
        "data": to_data(data, "data"),
        "samples": len(source),
        "content": _probe(source),
        **settings,
    }
    names, nothing = tuple(data.class_names(split)), (None,) * settings["shards"]
    plan = Manifest(made_from=made_from, class_names=names, shards=nothing)
    path = manifest_path(out, split)
    if not path.is_file():
        out.mkdir(parents=True, exist_ok=True)
        return plan
    found = read_manifest(path)
    if changed := differences(found.made_from, made_from):
        raise ValueError(
            f"{path} tells of a packing with other settings or of another source "
            f"({'; '.join(changed)}); give another folder, or delete this one"
        )
    files = shard_paths(out, split, len(nothing))
    there = (
        shard if file.is_file() else None for shard, file in zip(found.shards, files, strict=True)
    )
    return dataclasses.replace(plan, shards=tuple(there))


def _probe(source: Source) -> str:
    """A number that changes with the content of some samples, spread over the source."""
    found = hashlib.sha256()
    for place in range(_PROBES):
        try:
            found.update(write_record(source[place * len(source) // _PROBES]))
        except BadSampleError as fault:
            found.update(str(fault).encode("utf-8", "backslashreplace"))
    return found.hexdigest()


@dataclasses.dataclass(frozen=True)
class _Part:
    """The samples of one file, as they will be there."""

    source: Source
    start: int
    stop: int
    resize: Resize | None

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, index: int, /) -> Sample:
        """Raises:
        BadSampleError: as the source; or the picture cannot be decoded or encoded.
        """
        from clip_jax.preprocess import geometry

        sample = self.source[self.start + index]
        try:
            if self.resize is not None:
                return dataclasses.replace(sample, image=self.resize(sample.image))
            geometry.as_rgb(sample.image, min_side=1)
        except ValueError as fault:
            raise BadSampleError(f"sample {sample.key!r}: {fault}") from fault
        return sample


def _write(part: _Part, path: pathlib.Path, threads: int, max_bad: float, told: Progress) -> Shard:
    """One file, whole or not at all.

    Raises:
      ValueError: too many of the samples are bad.
      OSError: it cannot be written.
    """
    draft = path.with_name(f".{path.name}.part")
    digest, left_out = hashlib.sha256(), []
    with _writing(draft) as write:
        for number, sample in enumerate(iterate(part, threads=threads)):
            try:
                if isinstance(sample, BadSampleError):
                    raise sample
                record = write_record(sample)
                write(record)
                _add(digest, record)
            except BadSampleError as fault:
                left_out.append(str(fault))
            told("packing", part.start + number + 1, len(part.source))
        if len(left_out) > max_bad * len(part):
            raise ValueError(
                f"{len(left_out)} of samples {part.start} to {part.stop - 1} are bad; the first of "
                f"them: {'; '.join(left_out[:3])}; if they really are, raise max_bad (--max-bad)"
            )
    draft.replace(path)
    return Shard(
        samples=len(part) - len(left_out),
        size=path.stat().st_size,
        sha256=digest.hexdigest(),
        left_out=tuple(left_out),
    )


@contextlib.contextmanager
def _writing(draft: pathlib.Path) -> Iterator[Callable[[bytes], Any]]:
    """What takes the records of a file, which is on the disk when all went well."""
    from array_record.python.array_record_module import ArrayRecordWriter

    # Pictures are compressed already: trying again would triple the time of a read.
    writer = ArrayRecordWriter(str(draft), "group_size:1,uncompressed")
    try:
        yield writer.write
        writer.close()
        with draft.open("rb") as file:
            os.fsync(file.fileno())
    except BaseException as fault:
        draft.unlink(missing_ok=True)
        if isinstance(fault, RuntimeError):
            raise OSError(f"cannot write {draft}: {fault}") from fault
        raise


def _check(path: pathlib.Path, shard: Shard) -> None:
    """Raises:
    ValueError: the file is missing, or holds something else; says what.
    """
    if not path.is_file():
        raise ValueError("missing")
    records = RecordFile(path)
    if len(records) != shard.samples:
        raise ValueError(f"holds {len(records)} samples, not {shard.samples}")
    digest = hashlib.sha256()
    for start in range(0, len(records), _TOGETHER):
        for record in records.read(start, min(start + _TOGETHER, len(records))):
            _add(digest, record)
    if digest.hexdigest() != shard.sha256:
        raise ValueError("its checksum is another")


def _add(digest: Any, record: bytes) -> None:
    digest.update(len(record).to_bytes(8, "little"))
    digest.update(record)
