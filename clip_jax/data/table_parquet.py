"""Rows of parquet files: words in memory, pictures by row groups."""

import functools
import logging
import pathlib
from typing import Any

import numpy as np

from clip_jax.data.table_file import require_columns, require_same, stamp_of

log = logging.getLogger(__name__)

_SMALL_ROW = 512
"""Bytes; rows no larger than this on average are kept in memory, pictures or not."""
_LARGE_GROUP = 64 << 20
"""Bytes; above this, a random read takes longer than decoding the picture."""


class ParquetRows:
    """Rows of a parquet file; wanted columns are in memory, unless pictures are among them.

    Pictures are read with their whole row group, so the groups should be small.
    """

    def __init__(self, path: pathlib.Path, columns: tuple[str, ...], image: str):
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.path, self.columns, self.image = path, columns, image
        self.stamp = stamp_of(path.stat())
        with pq.ParquetFile(path, memory_map=True) as file:
            self.metadata = file.metadata
            require_columns(columns, file.schema_arrow.names)
            pictures = _holds_pictures(image, file.schema_arrow)
            groups = [self.metadata.row_group(i) for i in range(self.metadata.num_row_groups)]
            self._ends = np.cumsum([0, *(group.num_rows for group in groups)])
            sizes = [group.total_byte_size for group in groups]
            small = sum(sizes) <= _SMALL_ROW * len(self)
            self._table = file.read(columns=list(columns)) if small or not pictures else None
        pa.default_memory_pool().release_unused()  # Unpacking takes as much again.
        if self._table is None and max(sizes) > _LARGE_GROUP:
            log.warning(
                "%s has row groups of up to %d MB, and each random read takes a whole one: write "
                "it anew with about 100 rows a group",
                path,
                max(sizes) >> 20,
            )

    def __reduce__(self) -> tuple[Any, ...]:
        return ParquetRows, (self.path, self.columns, self.image)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, row: int, /) -> dict[str, Any]:
        table = self._table
        if table is None:
            require_same(self.path, self.path.stat(), self.stamp)
            group = int(np.searchsorted(self._ends, row, side="right")) - 1
            table, row = _read_group(self, group), row - int(self._ends[group])
        return {name: table[name][row].as_py() for name in self.columns}


@functools.lru_cache(maxsize=4)  # Of all files together: there may be thousands.
def _read_group(rows: ParquetRows, group: int) -> Any:
    """Kept for those who read in order."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(rows.path, metadata=rows.metadata) as file:
        return file.read_row_group(group, columns=list(rows.columns), use_threads=False)


def _holds_pictures(column: str, schema: Any) -> bool:
    """Whether a column may hold encoded files; False where it holds their paths.

    Raises:
      ValueError: it holds something else.
    """
    import pyarrow as pa

    kind = schema.field(column).type
    if pa.types.is_struct(kind) and {"bytes", "path"} & {field.name for field in kind}:
        return True
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return True
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return False
    raise ValueError(
        f"column {column!r} is of type {kind}; pictures are paths (string), files (binary) or "
        "structs with 'bytes' or 'path'"
    )
