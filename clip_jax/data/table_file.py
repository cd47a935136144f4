"""What every kind of table file has: rows, columns that must be there, a state that must stay."""

import os
import pathlib
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from clip_jax.config import nearest

READ_ERRORS = (ValueError, OSError, NotImplementedError)
"""What a damaged file ends in; pyarrow's own errors are among them."""


@runtime_checkable
class Rows(Protocol):
    """Random-access rows: cells by the name of their column.

    `rows[i]` raises one of `READ_ERRORS` where this row cannot be read.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, row: int, /) -> dict[str, Any]: ...


def require_columns(columns: Sequence[str], known: Sequence[str], hint: str = "") -> None:
    """Raises ValueError naming all columns that are not there, or twice, and those that are."""
    faults = []
    for name in columns:
        if known.count(name) > 1:
            faults.append(f"two columns are called {name!r}")
        elif name not in known:
            faults.append(f"no column {name!r}{nearest(name, known)}")
    if faults:
        has = ", ".join(map(repr, known)) or "none"
        raise ValueError(f"{', '.join(faults)}; its columns: {has}{hint}")


def stamp_of(state: os.stat_result) -> tuple[int, int]:
    """Size and time of change: they tell a file from what is later written in its place."""
    return state.st_size, state.st_mtime_ns


def require_same(path: pathlib.Path, state: os.stat_result, stamp: tuple[int, int]) -> None:
    """Offsets into a file that was written anew would pair pictures with others' words."""
    if stamp_of(state) != stamp:
        raise ValueError(f"{path.name} has changed since it was opened")
