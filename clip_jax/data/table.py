"""Tables of pictures and captions: CSV, TSV, JSON lines, parquet."""

import dataclasses
import hashlib
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from clip_jax.config import require
from clip_jax.data.sample import BadSampleError, Fault, Sample, part_and_row, reason_of
from clip_jax.data.table_file import READ_ERRORS, Rows
from clip_jax.data.table_parquet import ParquetRows
from clip_jax.data.table_text import open_csv, open_json
from clip_jax.data.tar_shards import natural

_SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """Rows that name a picture (or hold it) and its captions, in files of any of these kinds.

    * `.csv`, `.tsv`: the first row names the columns; open_clip's files need no setting.
    * `.jsonl`, `.json`: one object a line; captions may be a string or a list of strings.
    * `.parquet`: so may they here; pictures are paths, encoded files (binary), or structs of
      `bytes` and `path` as Hugging Face's and img2dataset's.

    Blank lines are no rows. A row that cannot be read is a bad sample, and so is one without a
    picture, or with neither caption nor label.
    """

    path: str
    """One table (then it is the split "train"); or a folder with `train.csv`, `train-*.csv` or
    `train/*.csv` (any of the kinds), ...; or a path with `{split}` in it. `*` and `?` stand for
    any characters, so that a split may be many files, in natural order."""
    image_key: str = "filepath"
    """Column of the picture."""
    caption_key: str | dict[str, float] | None = "title"
    """Column of the captions. Of several, with weights, a sample gets one column and keeps it:
    drawn by its key, in proportion to the weights of those that are not empty in its row. So no
    caption is repeated, and the shares hold over the samples."""
    label_key: str | None = None
    """Column of the class, a whole number from 0; captions are then optional."""
    separator: str | None = None
    """Between the cells of CSV; None: the one of TAB, comma, semicolon and bar under which the
    first row has the columns."""
    quote: str | None = '"'
    """Around cells of CSV that hold separators, line ends or, doubled, itself; None: every line
    is a row, and quotes mean nothing."""
    root: str | None = None
    """Folder where relative paths of pictures begin; None: that of their table."""

    def __post_init__(self) -> None:
        weights = self.caption_key if isinstance(self.caption_key, dict) else {}
        columns = self._columns()
        require(
            self,
            ("separator", self.separator is None or _one_sign(self.separator), "one ASCII sign"),
            ("quote", self.quote is None or _one_sign(self.quote), "one ASCII sign"),
            (
                "caption_key",
                self.caption_key != {} and all(0 < w < float("inf") for w in weights.values()),
                "a column, or columns with weights above 0",
            ),
            ("label_key", len(columns) > 1, "given where there are no captions"),
            ("image_key", len(columns) == len(set(columns)), "in no other role"),
        )

    def open(self, split: str) -> "TableSource":
        """Find the rows; they and their pictures are read when they are asked for.

        Text files are gone through once for the offsets of their rows; of parquet, the columns
        that are no pictures are kept in memory.

        Raises:
          FileNotFoundError: no such file, folder or split, and what there is; no such root.
          ValueError: files that are no tables or lack columns, all of them; no row at all.
        """
        paths = self._paths(split)
        if self.root is not None and not pathlib.Path(self.root).is_dir():
            raise FileNotFoundError(
                f"root {self.root} is not a folder; pictures' paths begin there"
            )
        tables, faults = [], []
        for path in paths:
            try:
                tables.append(self._rows(path))
            except ValueError as fault:
                faults.append(str(fault))
        if faults:
            raise ValueError("; ".join(faults))
        source = TableSource(self, paths, tables)
        if len(source) == 0:
            raise ValueError(f"no row in {', '.join(map(str, paths[:5]))}")
        return source

    def class_names(self, split: str) -> tuple[str, ...]:
        """Lines of the `classnames.txt` beside the tables; empty without it, or without labels.

        Raises:
          FileNotFoundError: no such file, folder or split.
        """
        if self.label_key is None:
            return ()
        folder = pathlib.Path(self.path)
        if not folder.is_dir():
            folder = self._paths(split)[0].parent
        path = folder / "classnames.txt"
        return tuple(path.read_text("utf-8").splitlines()) if path.is_file() else ()

    def _columns(self) -> tuple[str, ...]:
        captions = self.caption_key if isinstance(self.caption_key, dict) else [self.caption_key]
        wanted = (self.image_key, *captions, self.label_key)
        return tuple(name for name in wanted if name is not None)

    def _rows(self, path: pathlib.Path) -> Rows:
        columns = self._columns()
        try:
            match path.suffix.lower():
                case ".csv" | ".tsv":
                    return open_csv(path, columns, self.separator, self.quote)
                case ".jsonl" | ".json":
                    return open_json(path, columns)
                case ".parquet":
                    return ParquetRows(path, columns, self.image_key)
            raise ValueError(f"a table must end in {', '.join(_SUFFIXES)}")
        except READ_ERRORS as fault:
            raise ValueError(f"{path}: {fault}") from fault

    def _paths(self, split: str) -> list[pathlib.Path]:
        """Files of a split, in natural order."""
        if "://" in self.path:
            raise ValueError(f"{self.path}: tables are read from local disks: copy or mount it")
        folder = None
        if "{split}" in self.path:
            patterns = [self.path.replace("{split}", split)]
        elif pathlib.Path(self.path).is_dir():
            folder = self.path
            names = (split, f"{split}-*", f"{split}/*")
            patterns = [name + suffix for name in names for suffix in _SUFFIXES]
        else:
            patterns = [self.path] if split == "train" else []
        found = {pattern: paths for pattern in patterns if (paths := _matching(pattern, folder))}
        if len(found) > 1:
            raise ValueError(
                f"{self.path}: the split {split!r} could be any of {', '.join(found)}: name one"
            )
        if not found:
            raise FileNotFoundError(f"{self.path} has no split {split!r}; {self._what_exists()}")
        return next(iter(found.values()))

    def _what_exists(self) -> str:
        """For a message: what else could have been meant."""
        path = pathlib.Path(self.path)
        if path.is_file():
            return "one file is the split 'train'"
        if path.is_dir():
            there, where = sorted(path.iterdir()), f"{path} holds"
        elif "{split}" in self.path:
            there, where = _matching(self.path.replace("{split}", "*")), "there are"
        else:
            folder = next(p for p in path.parents if p.is_dir())
            there, where = sorted(folder.iterdir()), f"{folder} holds"
        names = [p.name for p in there if not p.name.startswith(".")]
        more = f" and {len(names) - 10} more" if len(names) > 10 else ""
        return f"{where} {', '.join(names[:10]) or 'nothing'}{more}"


class TableSource:
    """Samples of one split; a key is the table's name and the row, counted from 1 (`a.csv:1`)."""

    def __init__(self, config: Table, paths: Sequence[pathlib.Path], tables: Sequence[Rows]):
        self.config = config
        self.paths = tuple(paths)
        self.tables = tuple(tables)
        self._ends = np.cumsum([len(table) for table in tables])
        # Files of one name in several folders keep their keys apart.
        self._folder = os.path.commonpath([path.parent for path in paths])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int, /) -> Sample:
        number, row = part_and_row(self._ends, index)
        path = self.paths[number]
        try:
            name = path.relative_to(self._folder).as_posix()
            sample = self._sample(f"{name}:{row + 1}", self.tables[number][row], path.parent)
            return dataclasses.replace(sample, shard=str(path))
        except READ_ERRORS as fault:
            text = f"{path}: row {row + 1}: {fault}"
            raise BadSampleError(text, reason=reason_of(fault), shard=str(path)) from fault

    def _sample(self, key: str, cells: dict[str, Any], folder: pathlib.Path) -> Sample:
        config = self.config
        label = None if config.label_key is None else _label(cells.get(config.label_key))
        texts = self._texts(key, cells)
        if not texts and label is None:
            raise Fault("missing caption", "it has no caption")
        root = folder if config.root is None else pathlib.Path(config.root)
        image = _image(cells.get(config.image_key), root)
        return Sample(key=key, image=image, texts=texts, label=label)

    def _texts(self, key: str, cells: dict[str, Any]) -> tuple[str, ...]:
        """Of the one column, or of the one that the key draws."""
        captions = self.config.caption_key
        if captions is None:
            return ()
        if isinstance(captions, str):
            return _captions(captions, cells.get(captions))
        found = {name: _captions(name, cells.get(name)) for name in captions}
        names = [name for name, texts in found.items() if texts]
        if not names:
            return ()
        upto = np.cumsum([captions[name] for name in names])
        number = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=6).digest())
        return found[names[np.searchsorted(upto, number / 2**48 * upto[-1], side="right")]]


def _captions(column: str, cell: Any) -> tuple[str, ...]:
    texts = [cell] if isinstance(cell, str) else [] if cell is None else cell
    if not isinstance(texts, list) or not all(isinstance(t, (str, type(None))) for t in texts):
        raise Fault("bad caption", f"its {column!r} is neither a text nor a list of texts")
    return tuple(text.strip() for text in texts if text and text.strip())


def _image(cell: Any, root: pathlib.Path) -> bytes:
    """The encoded file."""
    if isinstance(cell, dict):
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, bytes) and cell:
        return cell
    if not cell or not isinstance(cell, str):
        raise Fault("missing image", "it has no picture")
    if re.match(r"\w+://", cell):
        where = f"{cell} is not on a local disk"
        raise Fault("missing image", f"{where}: fetch pictures with img2dataset first")
    path = root / cell
    if not path.is_file():  # A pipe could be waited for for ever.
        raise Fault("missing image", f"there is no file {path}")
    return path.read_bytes()


def _label(cell: Any) -> int:
    text = str(cell).strip()
    if not (text.isascii() and text.isdecimal()):
        raise Fault("bad label", f"its label must be a whole number from 0 on, not {cell!r}")
    return int(text)


def _one_sign(text: str) -> bool:
    return len(text) == 1 and text.isascii() and text not in "\r\n"


def _matching(pattern: str, folder: str | None = None) -> list[pathlib.Path]:
    """Files whose paths (below a folder) match, in natural order; `[` means nothing but itself."""
    path = pathlib.Path(pattern)
    start = pathlib.Path(path.anchor if folder is None else folder)
    found = start.glob(str(path.relative_to(path.anchor)).replace("[", "[[]"))
    paths = [p for p in found if p.is_file() and not p.name.startswith(".")]
    return sorted(paths, key=lambda path: natural(path.as_posix()))
