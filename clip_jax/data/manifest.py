"""What `clip-jax pack` wrote: the files of a split, and what each of them must hold."""

import dataclasses
import pathlib
from typing import Any

from clip_jax.config import from_data, read_json

SUFFIX = ".array_record"

_VERSION = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
    """What a finished file must hold."""

    samples: int
    size: int
    """Bytes of the file."""
    sha256: str
    """Of all records, each behind its length in 8 bytes, the lowest first; hexadecimal."""
    left_out: tuple[str, ...] = ()
    """Why samples of the source that belong here are not there."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """`<split>.json` beside the files `<split>-00000-of-00008.array_record`."""

    version: int = _VERSION
    made_from: dict[str, Any]
    """All that decides what the files hold; free of meaning to readers."""
    class_names: tuple[str, ...] = ()
    shards: tuple[Shard | None, ...]
    """None: this file is not finished."""

    @property
    def samples(self) -> int:
        return sum(shard.samples for shard in self.shards if shard)

    @property
    def left_out(self) -> tuple[str, ...]:
        return tuple(reason for shard in self.shards if shard for reason in shard.left_out)


def manifest_path(root: pathlib.Path, split: str) -> pathlib.Path:
    """Where a split's manifest lies."""
    return root / f"{split}.json"


def shard_paths(root: pathlib.Path, split: str, shards: int) -> list[pathlib.Path]:
    """Where a packed split's files lie, in their order."""
    return [root / f"{split}-{i:05d}-of-{shards:05d}{SUFFIX}" for i in range(shards)]


def read_manifest(path: pathlib.Path) -> Manifest:
    """Raises:
    ValueError: no manifest, or one of a later version; names the file.
    """
    data = read_json(path)
    version = data.get("version") if isinstance(data, dict) else None
    if version != _VERSION:
        what = "no manifest of clip-jax pack" if version is None else f"of version {version!r}"
        raise ValueError(f"{path} is {what}; this program reads version {_VERSION}")
    return from_data(Manifest, data, str(path))
