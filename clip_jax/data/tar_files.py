"""Bytes of a shard at a position, from a disk, an object store or a web server."""

import dataclasses
import hashlib
import http.client
import io
import os
import pathlib
import random
import re
import stat
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

_WAITS = (0.5, 1.0, 2.0)
"""Seconds before a network read is tried again; each is lengthened by up to its double."""
_TIMEOUT = 30.0
_FINAL = (FileNotFoundError, PermissionError, io.UnsupportedOperation)
"""What asking again does not change."""
_VERSIONS = ("etag", "ETag", "generation", "mtime", "LastModified", "last_modified", "created")
"""Where object stores tell the state of an object, by fsspec's names."""
_sleep = time.sleep


class Stamp(NamedTuple):
    """The state of a file; another one means that offsets in it are void."""

    size: int
    version: int
    """Time of the last change in ns, or a hash of what the server says of it; 0: it says nothing"""


@dataclasses.dataclass(frozen=True)
class Url:
    """A shard elsewhere, with the names that a path has."""

    text: str

    @property
    def name(self) -> str:
        return self.text.partition("?")[0].rpartition("/")[2]

    @property
    def stem(self) -> str:
        return self.name.removesuffix(".tar")

    def __str__(self) -> str:
        return self.text


Shard = pathlib.Path | Url


class LocalFile:
    """A file handle that is closed with its last user; `pread` shares no position."""

    window = 4096
    """Bytes that cost hardly more than one."""

    def __init__(self, path: pathlib.Path):
        self.name = str(path)
        self._handle = -1
        # Opening a pipe would wait for its writer.
        self._handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        if not stat.S_ISREG(os.fstat(self._handle).st_mode):
            raise OSError(f"{path} is not a regular file")

    def __del__(self, close: Callable[[int], None] = os.close):  # `os` may go before this does.
        if self._handle >= 0:
            close(self._handle)

    def read(self, offset: int, size: int) -> tuple[bytes, Stamp]:
        """Bytes (fewer only at the end of the file), and the state of the file after that.

        Raises:
          OSError: it cannot be read.
        """
        data = os.pread(self._handle, size, offset)
        state = os.fstat(self._handle)
        return data, Stamp(state.st_size, state.st_mtime_ns)


class RemoteFile:
    """Ranged reads, each tried again three times.

    A shard that stays away would cost this for each of its samples. So it is then asked only after
    as many reads have failed at once as had failed before, until it answers.
    """

    window = 8 * 2**20

    def __init__(self, url: Url):
        self.name = url.text
        self._failed = 0
        self._why: OSError | None = None

    def read(self, offset: int, size: int) -> tuple[bytes, Stamp]:
        """As that of a local file.

        Raises:
          OSError: it cannot be read; FileNotFoundError: it is not there.
        """
        failed = self._failed
        if failed & (failed - 1):
            self._failed += 1
            kind = FileNotFoundError if isinstance(self._why, FileNotFoundError) else OSError
            raise kind(f"{self._why} (and {failed} reads in a row have failed)")
        get = _from_web if re.match(r"https?://", self.name) else _from_store
        try:
            answer = _retried(
                lambda: get(self.name, offset, size),
                waits=() if failed else _WAITS,
                seed=f"{self.name} {offset}",
            )
        except OSError as fault:
            self._failed, self._why = self._failed + 1, fault
            raise
        self._failed = 0
        return answer


@runtime_checkable
class ShardFile(Protocol):
    """Random access for several threads at once; see `LocalFile` and `RemoteFile`."""

    name: str
    window: int

    def read(self, offset: int, size: int) -> tuple[bytes, Stamp]: ...


def open_shard(shard: Shard) -> ShardFile:
    """Raises:
    OSError: a local file that cannot be opened; others are not asked before they are read.
    """
    return RemoteFile(shard) if isinstance(shard, Url) else LocalFile(shard)


def object_store(url: str) -> tuple[Any, str]:
    """A file system of fsspec, and the path in it; made anew in each thread and forked process.

    Raises:
      ValueError: no package for such addresses is installed, or there is none.
    """
    import fsspec.core

    try:
        return fsspec.core.url_to_fs(url)
    except ImportError as fault:
        raise ValueError(f"{url}: {fault}") from fault


def _retried(
    call: Callable[[], tuple[bytes, Stamp]], waits: tuple[float, ...], seed: str
) -> tuple[bytes, Stamp]:
    """The waits differ between reads, so that many readers do not come back all at once."""
    rng = random.Random(seed)
    for wait in waits:
        try:
            return call()
        except _FINAL:
            raise
        except OSError:
            _sleep(wait * (1 + rng.random()))
    return call()


def _from_store(url: str, offset: int, size: int) -> tuple[bytes, Stamp]:
    store, path = object_store(url)
    try:
        data = store.cat_file(path, start=offset, end=offset + size) if size else b""
        store.invalidate_cache(store._parent(path))
        info = store.info(path)
    except OSError:
        raise
    except Exception as fault:  # Stores have exceptions of their own for the network's failures.
        raise OSError(f"{type(fault).__name__}: {fault}") from fault
    version = next((str(info[name]) for name in _VERSIONS if info.get(name)), "")
    return data, Stamp(int(info["size"]), _hashed(version))


def _from_web(url: str, offset: int, size: int) -> tuple[bytes, Stamp]:
    last = offset + max(size, 1) - 1
    headers = {"Range": f"bytes={offset}-{last}", "Accept-Encoding": "identity"}
    request = urllib.request.Request(url, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
            span = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", answer.headers["Content-Range"] or "")
            if answer.status != 206 or not span or int(span[1]) != offset:
                raise io.UnsupportedOperation(
                    "the server cannot read parts of a file (it ignores the header Range): "
                    "download the shards"
                )
            stamp = Stamp(int(span[3]), _version(answer.headers))
            wanted = min(last + 1, stamp.size) - offset
            data = answer.read(wanted)
    except urllib.error.HTTPError as fault:
        with fault:
            return _refused(fault)
    except http.client.HTTPException as fault:
        raise OSError(f"{type(fault).__name__}: {fault}") from fault
    if len(data) != wanted:
        raise OSError(f"the connection ended after {len(data)} of {wanted} bytes")
    return data[:size], stamp


def _refused(fault: urllib.error.HTTPError) -> tuple[bytes, Stamp]:
    """What a status of 400 or more means: only 416 (nothing is left from there on) is an answer."""
    reason = f"the server says {fault.code} {fault.reason}"
    if fault.code in (404, 410):
        raise FileNotFoundError(reason) from fault
    end = re.fullmatch(r"bytes \*/(\d+)", fault.headers["Content-Range"] or "")
    if fault.code == 416 and end:
        return b"", Stamp(int(end[1]), _version(fault.headers))
    if 400 <= fault.code < 500 and fault.code not in (408, 425, 429):
        raise PermissionError(reason) from fault
    raise OSError(reason) from fault


def _version(headers: Any) -> int:
    return _hashed(headers["ETag"] or headers["Last-Modified"] or "")


def _hashed(text: str) -> int:
    if not text:
        return 0
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest())
