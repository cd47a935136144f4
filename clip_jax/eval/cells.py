"""Pictures that lie in cells of parquet files, or in files that a list names."""

import dataclasses
import functools
import pathlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from clip_jax.data.sample import BadSampleError, Fault, Sample, reason_of
from clip_jax.data.table_file import READ_ERRORS, require_columns


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a table, as messages call it."""

    path: pathlib.Path
    group: int
    row: int
    number: int
    """Counted from 1, over all row groups."""

    def __str__(self) -> str:
        return f"{self.path.name}:{self.number}"


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a picture lies: a cell, or one of several in it."""

    where: Row
    column: str
    item: int | None


class Cells:
    """Pictures in cells of parquet files; a row group at a time is in memory."""

    def __init__(self, places: Mapping[str, Place]):
        self._places = tuple(places.items())
        self._read = functools.lru_cache(maxsize=4)(_read_group)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int, /) -> Sample:
        key, place = self._places[index]
        try:
            with self._lock:  # Else every thread would read the group.
                column = self._read(place.where.path, place.where.group, place.column)
            cell = column[place.where.row].as_py()
            if place.item is not None:
                cell = cell[place.item] if cell and place.item < len(cell) else None
            data = cell.get("bytes") if isinstance(cell, dict) else cell
            if not isinstance(data, bytes) or not data:
                raise Fault("missing image", f"no picture in {place.column!r}")
            return Sample(key=key, image=data)
        except READ_ERRORS as fault:
            text = f"{place.where}: {key!r}: {fault}"
            raise BadSampleError(text, reason=reason_of(fault)) from fault


@dataclasses.dataclass(frozen=True)
class Named:
    """Pictures by the names of their files."""

    folder: pathlib.Path
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int, /) -> Sample:
        name = self.names[index]
        try:
            return Sample(key=name, image=(self.folder / name).read_bytes())
        except OSError as fault:
            text = f"sample {name!r}: {fault.strerror or fault}"
            raise BadSampleError(text, reason=reason_of(fault)) from fault


def _read_group(path: pathlib.Path, group: int, column: str) -> Any:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        return file.read_row_group(group, columns=[column])[column]


def words_of(
    paths: Sequence[pathlib.Path], columns: tuple[str, ...], pictures: tuple[str, ...]
) -> Iterator[tuple[Row, dict[str, Any]]]:
    """All rows without their pictures.

    Raises:
      ValueError: columns that are missing; a file that is none.
    """
    import pyarrow.parquet as pq

    for path in paths:
        try:
            with pq.ParquetFile(path) as file:
                require_columns((*columns, *pictures), file.schema_arrow.names)
                number = 0
                for group in range(file.num_row_groups):
                    found = file.read_row_group(group, columns=list(columns)).to_pylist()
                    for row, cells in enumerate(found):
                        number += 1
                        yield Row(path, group, row, number), cells
        except READ_ERRORS as fault:
            raise ValueError(f"{path}: {fault}") from fault
