"""Whole shards in a folder on the local disk while they are near, for all processes of a run.

A file there is one whole shard in one state; its name is a hash of both. It is written under
another name, whose lock its writer holds, and renamed when it is complete. Every process has a
file with the names of the shards that are near to it, which it holds locked while it lives, and
whoever moves on deletes what is near to nobody. So a process may be killed at any time.
"""

import contextlib
import fcntl
import functools
import hashlib
import logging
import os
import pathlib
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from clip_jax.data.sample import Fault
from clip_jax.data.tar_files import LocalFile, RemoteFile, Shard, Stamp, Url
from clip_jax.data.tar_folder import NEAR, alone, claim, delete_if_left, join, named, new_folder
from clip_jax.data.windows import Window

log = logging.getLogger(__name__)

_PIECE = 32 * 2**20
"""Bytes that are asked for, and tried again, at once."""
_RECENT = 4
"""Calls whose shards stay near after they ended: threads do not end in the order they began."""
_PATIENCE_S = 5.0
"""Seconds that threads may take to stop amid a piece."""


class ShardCache:
    """What processes of a run share; each has its own fetcher, made when it is first needed."""

    def __init__(
        self,
        shards: Sequence[tuple[Shard, Stamp]],
        window: Window,
        folder: pathlib.Path | None = None,
    ):
        """Args:
        shards: with the states in which they were indexed.
        folder: of another process of this run.
        """
        self.folder = folder or new_folder(window.cache)
        self._make = functools.partial(_Fetcher, self.folder, tuple(shards), window.fetches)
        # By process: a forked one inherits neither threads nor locks that anybody will release.
        self._fetchers: dict[int, _Fetcher] = {}
        self._closed = False
        weakref.finalize(self, _close, self._fetchers, self.folder)

    def near(self, shards: Sequence[int]) -> contextlib.AbstractContextManager[None]:
        """See `Windowed.near`."""
        fetcher = self._fetcher()  # First: if that is a new one, `close` has been called before.
        return contextlib.nullcontext() if self._closed else fetcher.near(shards)

    def file(self, number: int, url: Url, stamp: Stamp) -> "CachedFile":
        """To read one of the shards by its number."""
        return CachedFile(lambda: self._fetcher().whole(number), url, stamp)

    def open(self) -> None:
        """Fetch what is near, again after `close`."""
        self._closed = False

    def close(self) -> None:
        """Stop fetching; the last process to do so deletes the folder."""
        self._closed = True
        _close(self._fetchers, self.folder)

    def _fetcher(self) -> "_Fetcher":
        process = os.getpid()
        return self._fetchers.get(process) or self._fetchers.setdefault(process, self._make())


class CachedFile:
    """A shard from elsewhere: read from the disk while it is near, and otherwise where it is."""

    window = LocalFile.window

    def __init__(self, whole: Callable[[], pathlib.Path | None], url: Url, stamp: Stamp):
        """`whole` gives the path of the whole shard, or None."""
        self.name = url.text
        self._whole = whole
        self._stamp = stamp
        self._remote = RemoteFile(url)

    def read(self, offset: int, size: int) -> tuple[bytes, Stamp]:
        """As that of a local file.

        Raises:
          OSError: it cannot be fetched, or read.
          Fault: it is not what it was when it was indexed.
        """
        while (path := self._whole()) is not None:
            # Deleted just now by a process that did not know of this one: fetched once more.
            with contextlib.suppress(FileNotFoundError):
                return LocalFile(path).read(offset, size)[0], self._stamp
        return self._remote.read(offset, size)


class _NoPlaceError(Exception):
    """The folder cannot take a shard."""


class _Fetcher:
    """One process's threads, and what is near to it."""

    def __init__(self, folder: pathlib.Path, shards: tuple[tuple[Shard, Stamp], ...], threads: int):
        self._folder = folder
        self._shards = shards
        self._count = threads
        self._changed = threading.Condition()
        """Guards all that follows; told whenever a fetch ends, or there is more to fetch."""
        self._within: dict[object, tuple[int, ...]] = {}
        self._recent: deque[tuple[int, ...]] = deque(maxlen=_RECENT)
        self._near: dict[int, None] = {}
        self._queue: deque[int] = deque()
        self._busy: dict[int, threading.Thread] = {}
        """Who fetches what."""
        self._failed: dict[int, Exception] = {}
        self._list = -1
        """The handle of this process's file of names."""
        self._threads: list[threading.Thread] = []
        self._closed = False

    @contextlib.contextmanager
    def near(self, shards: Sequence[int]) -> Iterator[None]:
        token = object()
        with self._changed:
            self._within[token] = tuple(shards)
            self._recent.append(tuple(shards))
            if not self._closed:
                self._move()
        try:
            yield
        finally:
            with self._changed:
                del self._within[token]

    def whole(self, number: int) -> pathlib.Path | None:
        """Where a shard lies, after it was fetched; None if it is not near, or has no place.

        Raises:
          OSError, Fault: it cannot be fetched. That is found out once, while it stays near.
        """
        path = self._path(number)
        while not path.exists():
            with self._changed:
                while number in self._busy:
                    self._changed.wait()
                if number not in self._near:
                    return None
                if (fault := self._failed.get(number)) is not None:
                    if isinstance(fault, _NoPlaceError):
                        return None
                    raise _again(fault)
                if path.exists():
                    return path
                self._busy[number] = threading.current_thread()
            self._get(number, wait=True)
        return path

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._near = {}
            self._queue.clear()
            self._changed.notify_all()
        # Readers fetch, too: nobody may write to a folder that is deleted. But whoever collects
        # garbage closes what he finds there, and may himself be one of those that are waited for.
        end, own = time.monotonic() + _PATIENCE_S, threading.current_thread()
        for thread in self._threads:
            if thread is not own:
                thread.join(max(0.0, end - time.monotonic()))
        with self._changed:
            rest = max(0.0, end - time.monotonic())
            self._changed.wait_for(lambda: not {*self._busy.values()} - {own}, rest)
        if self._list >= 0:
            fcntl.flock(self._list, fcntl.LOCK_UN)  # A forked process may have a copy of it.
            os.close(self._list)

    def _path(self, number: int) -> pathlib.Path:
        shard, stamp = self._shards[number]
        state = f"{stamp.size} {stamp.version} {shard}"
        return self._folder / (hashlib.blake2b(os.fsencode(state), digest_size=16).hexdigest())

    def _remote(self, number: int) -> bool:
        return isinstance(self._shards[number][0], Url)

    def _move(self) -> None:
        """Bring what is near up to date; the guard is held.

        Raises:
          OSError: the folder cannot be made.
        """
        named = [self._recent[-1], *self._recent, *self._within.values()]
        near = dict.fromkeys(number for numbers in named for number in numbers)
        if near.keys() == self._near.keys():
            return
        new = [number for number in near if number not in self._near]
        gone = [number for number in self._near if number not in near]
        self._near = near
        self._failed = {n: fault for n, fault in self._failed.items() if n in near}
        self._queue = deque(number for number in (*self._queue, *new) if number in near)
        if any(map(self._remote, near)):
            self._tell()
        if any(map(self._remote, gone)):
            self._delete()
        while len(self._threads) < self._count:
            thread = threading.Thread(target=self._work, name="fetch", daemon=True)
            self._threads.append(thread)
            thread.start()
        self._changed.notify_all()

    def _tell(self) -> None:
        """Write the names of what is near for the other processes."""
        if self._list < 0:
            self._list = join(self._folder)
        names = " ".join(self._path(n).name for n in self._near if self._remote(n)).encode()
        os.pwrite(self._list, names, 0)
        os.ftruncate(self._list, len(names))

    def _delete(self) -> None:
        """What is near to no process."""
        kept = {self._path(number).name for number in self._near}
        with contextlib.suppress(FileNotFoundError):  # Somebody else has deleted the folder.
            there = list(self._folder.iterdir())
            for path in there:
                if path.suffix == NEAR:
                    kept.update(named(path))
            for path in there:
                if not path.suffix and path.name not in kept:
                    path.unlink(missing_ok=True)

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._queue and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return
                number = self._queue.popleft()
                if number in self._busy or number in self._failed:
                    continue  # A reader was faster.
                self._busy[number] = threading.current_thread()
            self._get(number, wait=False)

    def _get(self, number: int, *, wait: bool) -> None:
        """Fetch a shard and note what went wrong; it is noted as busy.

        Args:
          wait: for another process that fetches it.
        """
        fault = None
        try:
            shard = self._shards[number][0]
            if isinstance(shard, Url):
                self._fetch(number, shard, wait=wait)
            else:
                _read_ahead(shard)
        except _NoPlaceError as error:
            fault = error
            log.warning("%s: %s; it is read where it is", self._shards[number][0], error)
        except (Fault, OSError) as error:
            fault = error
        finally:
            with self._changed:
                self._busy.pop(number, None)
                if fault is not None and number in self._near:
                    self._failed[number] = fault
                self._changed.notify_all()

    def _fetch(self, number: int, url: Url, *, wait: bool) -> None:
        path = self._path(number)
        if path.exists():
            return
        with _placed(path):
            handle = claim(path.with_suffix(".partial"), wait)
        if handle is None:
            return
        complete = False
        try:
            if not path.exists() and self._copy(number, url, handle):
                with _placed(path):
                    path.with_suffix(".partial").replace(path)
                complete = True
        finally:
            if not complete:
                path.with_suffix(".partial").unlink(missing_ok=True)
            fcntl.flock(handle, fcntl.LOCK_UN)
            os.close(handle)
        with self._changed:
            if complete and not self._closed and number not in self._near:
                self._delete()

    def _copy(self, number: int, url: Url, handle: int) -> bool:
        """False if it is not near any more, or this process is to stop."""
        remote, stamp = RemoteFile(url), self._shards[number][1]
        for offset in range(0, stamp.size, _PIECE):
            if number not in self._near:
                return False
            length = min(_PIECE, stamp.size - offset)
            data, now = remote.read(offset, length)
            if now != stamp:
                raise Fault("changed", "the shard has changed since it was indexed; start again")
            if len(data) != length:
                raise OSError(f"{len(data)} bytes came in place of {length}")
            with _placed(self._path(number)):
                rest = memoryview(data)
                while rest:
                    rest = rest[os.write(handle, rest) :]
        return True


def _again(fault: Exception) -> Exception:
    """The same without its trace, which would grow with each time that it is raised."""
    if isinstance(fault, Fault):
        return Fault(fault.reason, str(fault))
    return (FileNotFoundError if isinstance(fault, FileNotFoundError) else OSError)(str(fault))


@contextlib.contextmanager
def _placed(path: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except OSError as fault:
        why = f"it cannot be kept in {path.parent}: {fault.strerror or fault}"
        raise _NoPlaceError(why) from fault


def _read_ahead(path: pathlib.Path) -> None:
    """Ask the system for a local file; where that cannot be, its readers will wait for it."""
    advise = getattr(os, "posix_fadvise", None)
    if advise is not None:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            advise(handle, 0, 0, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(handle)


def _close(fetchers: dict[int, _Fetcher], folder: pathlib.Path) -> None:
    fetcher = fetchers.pop(os.getpid(), None)
    if fetcher is not None:
        fetcher.close()
    if folder.exists():
        with alone(folder.parent):
            delete_if_left(folder)
