"""Arrays by name, on disk or in memory, with a cap: what was used longest ago goes first."""

import collections
import contextlib
import dataclasses
import os
import pathlib
import time
import zipfile
from collections.abc import Iterator, Mapping

import numpy as np

_PART = ".part"
_STALE_SECONDS = 3600.0
"""Age at which an unfinished file is what a killed process left."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cache:
    """A folder of `NAME.npz`; several processes may use it at once.

    A file appears whole or not at all. Reading one makes it the latest used.
    """

    folder: pathlib.Path
    limit: int
    """Bytes of all files together; what alone is larger is not kept, so 0 keeps nothing."""

    def read(self, name: str) -> dict[str, np.ndarray] | None:
        """The arrays of that name; None where there are none, or where the file is damaged."""
        path = self._path(name)
        try:
            with np.load(path, allow_pickle=False) as file:
                found = {key: file[key] for key in file.files}
            os.utime(path)
            return found
        except OSError:
            return None
        except (ValueError, EOFError, KeyError, zipfile.BadZipFile):
            path.unlink(missing_ok=True)
            return None

    def write(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Keep arrays under a name; then remove what was used longest ago, down to the limit.

        Raises:
          OSError: the folder cannot be written.
        """
        if _bytes(arrays) > self.limit:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self._path(name)
        part = path.with_name(f"{path.name}.{os.getpid()}{_PART}")
        try:
            with part.open("wb") as file:
                np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        self._trim()

    def names(self, prefix: str) -> list[str]:
        """Names of all that is kept and begins so."""
        return sorted(path.stem for path in self.folder.glob(f"{prefix}*.npz"))

    def _path(self, name: str) -> pathlib.Path:
        return self.folder / f"{name}.npz"

    def _trim(self) -> None:
        for path, state in self._states(f"*{_PART}"):
            if time.time() - state.st_mtime > _STALE_SECONDS:
                path.unlink(missing_ok=True)
        files = sorted(self._states("*.npz"), key=lambda pair: (pair[1].st_mtime_ns, pair[0]))
        total = sum(state.st_size for _, state in files)
        for path, state in files:
            if total <= self.limit:
                return
            path.unlink(missing_ok=True)
            total -= state.st_size

    def _states(self, pattern: str) -> Iterator[tuple[pathlib.Path, os.stat_result]]:
        for path in self.folder.glob(pattern):
            with contextlib.suppress(FileNotFoundError):  # Another process may trim, too.
                yield path, path.stat()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """As `Cache`, but gone with the object: for weights that nobody will see again."""

    limit: int
    """Bytes of all arrays together; what alone is larger is not kept."""
    _kept: collections.OrderedDict[str, dict[str, np.ndarray]] = dataclasses.field(
        default_factory=collections.OrderedDict, init=False, repr=False
    )

    def read(self, name: str) -> dict[str, np.ndarray] | None:
        """The arrays of that name; None where there are none."""
        if name in self._kept:
            self._kept.move_to_end(name)
        return self._kept.get(name)

    def write(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Keep arrays under a name; then forget what was used longest ago, down to the limit."""
        if _bytes(arrays) > self.limit:
            return
        self._kept[name] = dict(arrays)
        self._kept.move_to_end(name)
        total = sum(map(_bytes, self._kept.values()))
        while total > self.limit:
            total -= _bytes(self._kept.popitem(last=False)[1])

    def names(self, prefix: str) -> list[str]:
        """Names of all that is kept and begins so."""
        return sorted(name for name in self._kept if name.startswith(prefix))


def _bytes(arrays: Mapping[str, np.ndarray]) -> int:
    return sum(array.nbytes for array in arrays.values())
