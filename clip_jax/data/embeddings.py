"""Embeddings of pictures that were computed before, by the keys of their samples."""

import functools
import pathlib
from typing import Any

import numpy as np
from jaxtyping import Float

COLUMNS = ("path", "embedding")


class EmbeddingTable:
    """A parquet file as `clip-jax embed` writes it, held in memory in the file's own precision.

    It needs the columns `path` and `embedding` (lists of one length of float16 or float32, of
    length 1). A sample's key is a path, or one without its ending, as in tar shards.
    """

    def __init__(self, path: str | pathlib.Path):
        """Reads nothing yet but the columns.

        Raises:
          FileNotFoundError: there is no such file.
          ValueError: it is no such table.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.path = pathlib.Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"there is no table of embeddings {path}: see clip-jax embed")
        schema = pq.read_schema(self.path)
        if missing := [name for name in COLUMNS if name not in schema.names]:
            raise ValueError(f"{path} has no columns {missing}, only {schema.names}")
        kind: Any = schema.field("embedding").type
        if not pa.types.is_fixed_size_list(kind) or kind.value_type not in (
            pa.float16(),
            pa.float32(),
        ):
            raise ValueError(
                f"{path}: embedding is {kind}, not a float16 or float32 list of a size"
            )
        self.width: int = kind.list_size
        """Numbers of an embedding (D)."""

    def __reduce__(self) -> tuple[Any, ...]:
        return EmbeddingTable, (self.path,)

    def get(self, key: str) -> Float[np.ndarray, "D"] | None:
        """The embedding of a sample, or None."""
        row = self._rows.get(key)
        return None if row is None else self._vectors[row]

    @functools.cached_property
    def _vectors(self) -> Float[np.ndarray, "N D"]:
        """Raises:
        ValueError: embeddings are missing, or not of length 1.
        """
        import pyarrow.parquet as pq

        column = pq.read_table(self.path, columns=["embedding"])["embedding"].combine_chunks()
        if column.null_count or column.flatten().null_count:
            raise ValueError(f"{self.path} has empty embeddings")
        vectors = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, self.width)
        step = 1 << 16  # A copy in float32 of all would take as much memory again.
        for start in range(0, len(vectors), step):
            lengths = np.linalg.norm(vectors[start : start + step].astype(np.float32), axis=1)
            if not np.allclose(lengths, 1, atol=1e-2):
                wrong = start + int(np.argmin(np.isclose(lengths, 1, atol=1e-2)))
                raise ValueError(f"{self.path}: the embedding of row {wrong} is not of length 1")
        return vectors

    @functools.cached_property
    def _rows(self) -> dict[str, int]:
        """Row by key. Raises ValueError if two rows have one path."""
        import pyarrow.parquet as pq

        paths = pq.read_table(self.path, columns=["path"])["path"].to_pylist()
        rows: dict[str, int] = {}
        for row, path in enumerate(paths):
            if rows.setdefault(path, row) != row:
                raise ValueError(f"{self.path} has {path!r} twice")
        short: dict[str, int | None] = {}
        for row, path in enumerate(paths):
            stem = str(pathlib.PurePosixPath(path).with_suffix(""))
            short[stem] = None if stem in short else row  # Of two files none is meant.
        return {stem: row for stem, row in short.items() if row is not None} | rows
