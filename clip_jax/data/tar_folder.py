"""The folder that processes of a run share for whole shards: who lives, and who writes what."""

import contextlib
import fcntl
import os
import pathlib
import shutil
import tempfile
import threading
import uuid
from collections.abc import Iterator

_PREFIX = "clip_jax-shards-"
NEAR = ".near"
"""Ends the name of a process's file of names, which it holds locked while it lives."""


def new_folder(cache: str | None) -> pathlib.Path:
    """A path of its own for a run, in this folder or in one of the user's for temporary files."""
    if cache is None:
        parent = pathlib.Path(tempfile.gettempdir()) / f"clip_jax-{os.getuid()}"
    else:
        parent = pathlib.Path(cache).absolute()
    return parent / f"{_PREFIX}{uuid.uuid4().hex}"


def join(folder: pathlib.Path) -> int:
    """Make the folder and in it this process's file of names, and lock that; delete what dead
    processes left beside it.
    """
    with alone(folder.parent):
        for other in folder.parent.glob(f"{_PREFIX}*"):
            if other != folder:
                delete_if_left(other)
        folder.mkdir(mode=0o700, exist_ok=True)
        path = folder / f"{uuid.uuid4().hex}{NEAR}"
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(handle, fcntl.LOCK_EX)
    return handle


def delete_if_left(folder: pathlib.Path) -> None:
    """Delete a run's folder, if none of the processes that joined it lives; `alone` is needed."""
    joined = list(folder.glob(f"*{NEAR}"))  # Without one it is none of ours.
    if joined and not any(map(_alive, joined)):
        shutil.rmtree(folder, ignore_errors=True)


def named(path: pathlib.Path) -> list[str]:
    """Of the shards that are near to a process, if it lives."""
    try:
        return path.read_text("ascii").split() if _alive(path) else []
    except FileNotFoundError:
        return []


def _alive(path: pathlib.Path) -> bool:
    """Whether a process holds its file of names."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(handle)


_held: set[tuple[int, pathlib.Path]] = set()
"""Threads, and the folders that they are alone in."""


@contextlib.contextmanager
def alone(folder: pathlib.Path) -> Iterator[None]:
    """Folders in this one are made and deleted by one thread of one process at a time.

    A thread that is here already goes on: a cache may be collected as garbage amid another's work.
    """
    own = threading.get_ident(), folder
    if own in _held:
        yield
        return
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        _held.add(own)
        yield
    finally:
        _held.discard(own)
        fcntl.flock(handle, fcntl.LOCK_UN)  # A forked process may have a copy of the handle.
        os.close(handle)


def claim(partial: pathlib.Path, wait: bool) -> int | None:
    """A handle of the empty file, locked; None if another process has it and `wait` is False."""
    while True:
        handle = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        mine = False
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            # Whoever had it may have renamed or deleted it: then it is another file's lock.
            mine = os.path.samestat(os.fstat(handle), partial.stat())
            if mine:
                os.ftruncate(handle, 0)
                return handle
        except BlockingIOError:
            return None
        except FileNotFoundError:
            pass
        finally:
            if not mine:
                os.close(handle)
