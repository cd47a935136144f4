"""Public data sets by their keys, wherever they lie."""

import functools
import os
import pathlib
from collections.abc import Callable, Sequence

from clip_jax.eval import fetch
from clip_jax.eval.example_sets import open_folder
from clip_jax.eval.folders import Layout, find, open_with_train, unlisted
from clip_jax.eval.opened import Opened
from clip_jax.eval.tasks import TASKS, Task

HUB = "hub"
"""In place of a root: data sets are fetched from Hugging Face."""


def open_by_key(
    key: str,
    root: str | os.PathLike[str],
    warn: Callable[[str], None],
    *,
    first: Layout = "benchmark",
    train: bool = False,
) -> Opened:
    """A data set in whichever layout it has.

    Args:
      key: of a suite, or the name of a folder of one's own below the root.
      root: folder of the data sets; `HUB`: Hugging Face's.
      warn: told of what is odd, but no error.
      first: the layout that is taken where both are there.
      train: open the train split, too.

    Raises:
      ValueError: a name that is no data set; lists and shards that are wrong.
      FileNotFoundError: it is not there, or not all of it.
      ConnectionError: the hub does not answer.
    """
    task = _task(key, root)
    open_one = open_with_train if train else open_folder
    if key not in TASKS:
        return open_one(task, pathlib.Path(root) / key, warn)
    if root == HUB:
        fetched = functools.partial(fetch.fetch, train=True) if train else fetch.fetch
        return open_one(task, fetched(task, first), warn)
    return open_one(task, find(task, root, first), warn)


def require_known(keys: Sequence[str], root: str | os.PathLike[str] | None) -> None:
    """Check that keys are of a suite, or folders of one's own below the root.

    Raises:
      ValueError: names all that are neither, each with the nearest known name.
    """
    faults = []
    for key in keys:
        try:
            _task(key, root)
        except ValueError as fault:
            faults.append(str(fault))
    if faults:
        raise ValueError("; ".join(faults))


def first_layout(names: Sequence[str]) -> Layout:
    """The layout to look for first, by the names of suites and data sets that are asked for."""
    return "datacomp" if "datacomp" in names else "benchmark"


def _task(key: str, root: str | os.PathLike[str] | None) -> Task:
    return TASKS[key] if key in TASKS else unlisted(key, None if root == HUB else root)
