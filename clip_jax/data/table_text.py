"""Rows of CSV and JSON-lines files, found by the offsets of their first bytes."""

import array
import csv
import dataclasses
import functools
import io
import json
import mmap
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from clip_jax.data.table_file import require_columns, require_same, stamp_of

SEPARATORS = ("\t", ",", ";", "|")
"""Tried in this order where none is given; open_clip's comes first."""

_BOM = b"\xef\xbb\xbf"
_BLOCK = 1 << 24
_FIRST_ROWS = 100
"""JSON lines need not have the same keys; so many are looked at for the names of columns."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextRows:
    """Rows between offsets of a text file; 8 bytes of each stay in memory."""

    path: pathlib.Path
    stamp: tuple[int, int]
    """Size and time of change of the file that the offsets belong to."""
    starts: Int[np.ndarray, " starts"]
    """First byte of each row, and the file's end."""
    parse: Callable[[str], dict[str, Any]]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, row: int, /) -> dict[str, Any]:
        first, end = (int(byte) for byte in self.starts[row : row + 2])
        with self.path.open("rb") as file:
            require_same(self.path, os.fstat(file.fileno()), self.stamp)
            file.seek(first)
            data = file.read(end - first)
        return self.parse(data.decode("utf-8"))


def open_csv(
    path: pathlib.Path, columns: Sequence[str], separator: str | None, quote: str | None
) -> TextRows:
    """Rows of a file whose first row names the columns; for the other arguments see `Table`.

    Raises:
      ValueError: columns are missing, or the header is not UTF-8.
    """
    stamp = stamp_of(path.stat())
    begin = _text_begin(path)
    dialects = [_dialect(s, quote) for s in ([separator] if separator else SEPARATORS)]
    headers = [_header(path, begin, dialect) for dialect in dialects]
    # The separator under which most columns are there; none is there: that with most cells.
    best = max(range(len(headers)), key=lambda i: (_found(columns, headers[i]), len(headers[i])))
    dialect, header = dialects[best], headers[best]
    require_columns(columns, header, f" (read with the separator {dialect['delimiter']!r})")
    # Only quotes let a row run over several lines, and looking for them takes no time.
    quoted = quote is not None and _contains(path, quote.encode())
    starts = _record_starts(path, begin, dialect) if quoted else _line_starts(path, begin)
    return TextRows(
        path=path,
        stamp=stamp,
        starts=starts[1:],
        parse=functools.partial(_parse_csv, tuple(header), dialect),
    )


def _dialect(separator: str, quote: str | None) -> dict[str, Any]:
    """Strict: what follows a closing quote must be a separator, so that damage shows."""
    quoting = csv.QUOTE_NONE if quote is None else csv.QUOTE_MINIMAL
    return {"delimiter": separator, "quotechar": quote, "quoting": quoting, "strict": True}


def _header(path: pathlib.Path, begin: int, dialect: dict[str, Any]) -> list[str]:
    """Cells of the first row; none where it does not follow the dialect."""
    lines = (line.decode("utf-8") for line in _lines(path, begin))
    try:
        return next(filter(None, csv.reader(lines, **dialect)), [])
    except csv.Error:
        return []


def _found(columns: Sequence[str], header: Sequence[str]) -> int:
    return sum(name in header for name in columns)


def _parse_csv(header: tuple[str, ...], dialect: dict[str, Any], text: str) -> dict[str, Any]:
    try:
        cells = next(csv.reader(io.StringIO(text, newline="\n"), **dialect))
    except csv.Error as fault:
        raise ValueError(f"it cannot be read: {fault}") from fault
    if len(cells) != len(header):
        raise ValueError(f"it has {len(cells)} cells, but the header has {len(header)}")
    return dict(zip(header, cells, strict=True))


def open_json(path: pathlib.Path, columns: Sequence[str]) -> TextRows:
    """Rows of a file with one object a line; a missing key is found by whoever asks for it.

    Raises:
      ValueError: columns that none of the first rows has, or these are no JSON objects.
    """
    stamp = stamp_of(path.stat())
    begin = _text_begin(path)
    rows = TextRows(path=path, stamp=stamp, starts=_line_starts(path, begin), parse=_parse_json)
    if not len(rows):
        return rows
    known: dict[str, None] = {}
    first_fault: Exception | None = None
    for row in range(min(len(rows), _FIRST_ROWS)):
        try:
            known.update(dict.fromkeys(rows[row]))
        except ValueError as fault:
            first_fault = first_fault or fault
    if not known and first_fault:
        raise ValueError(f"no JSON objects, one a line: {first_fault}") from first_fault
    require_columns(columns, tuple(known))
    return rows


def _parse_json(text: str) -> dict[str, Any]:
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as fault:
        raise ValueError(f"it is not JSON: {fault}") from fault
    if not isinstance(record, dict):
        raise ValueError(f"it is not an object but {type(record).__name__}")
    return record


def _text_begin(path: pathlib.Path) -> int:
    """Where the text begins: after the mark that some editors write."""
    with path.open("rb") as file:
        start = file.read(3)
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise ValueError("it is UTF-16; save it as UTF-8")
    return len(_BOM) if start == _BOM else 0


def _lines(path: pathlib.Path, begin: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(begin)
        yield from file


def _contains(path: pathlib.Path, part: bytes) -> bool:
    if path.stat().st_size == 0:  # Which cannot be mapped.
        return False
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return data.find(part) >= 0


def _line_starts(path: pathlib.Path, begin: int) -> Int[np.ndarray, " starts"]:
    """First byte of each line that is not blank, and the file's end."""
    at, found = begin, [np.array([begin], np.int64)]
    with path.open("rb") as file:
        file.seek(begin)
        while block := file.read(_BLOCK):
            found.append(np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + (at + 1))
            at += len(block)
        starts = np.concatenate(found)
        if starts[-1] != at:
            starts = np.append(starts, at)
        blank = []
        for line in np.flatnonzero(np.diff(starts) <= len("\r\r\n")):
            file.seek(starts[line])
            if not file.read(starts[line + 1] - starts[line]).strip(b"\r\n"):
                blank.append(line)
    return np.delete(starts, blank)


def _record_starts(
    path: pathlib.Path, begin: int, dialect: dict[str, Any]
) -> Int[np.ndarray, " starts"]:
    """The same for CSV whose cells may hold line ends; a broken record ends with its line."""
    starts, at = array.array("q", [begin]), begin

    def lines() -> Iterator[str]:
        nonlocal at
        for line in _lines(path, begin):
            at += len(line)
            yield line.decode("latin-1")  # One character a byte; only structure is looked at.

    records = csv.reader(lines(), **dialect)
    while True:
        try:
            if next(records):
                starts.append(at)
            else:
                starts[-1] = at  # A blank line.
        except csv.Error:
            starts.append(at)
        except StopIteration:
            return np.array(starts, np.int64)
