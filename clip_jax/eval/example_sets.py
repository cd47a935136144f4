"""Data sets that are no tar files: parquet tables of pictures, SugarCrepe's lists of captions."""

import hashlib
import pathlib
from collections.abc import Callable, Iterable, Sequence

from clip_jax.config import read_json
from clip_jax.data.table import Table, TableSource
from clip_jax.data.table_file import READ_ERRORS, stamp_of
from clip_jax.data.table_parquet import ParquetRows
from clip_jax.data.tar_shards import natural
from clip_jax.eval.cells import Cells, Named, Place, words_of
from clip_jax.eval.folders import SPLIT, open_tars
from clip_jax.eval.opened import Example, Opened
from clip_jax.eval.tasks import Task

_SPLITS = ("train", "test", "validation", "val", "dev")
_CREPE = ("filename", "caption", "negative_caption")
_PICTURES = ("val2017", "images", "coco/val2017", "../val2017", ".")
"""Where the pictures of SugarCrepe may lie, beside its lists."""


def tables(folder: pathlib.Path, split: str = SPLIT) -> list[pathlib.Path]:
    """Parquet files of a split at any depth, in natural order.

    They are told by the first part of their name or by a folder's, whatever the case: as
    `data/test-00000-of-00002.parquet`, `default/test/0000.parquet`. Where no name tells a split,
    all files belong to it.
    """
    paths = [path for path in folder.rglob("*.parquet") if not path.name.startswith(".")]

    def splits(path: pathlib.Path) -> set[str]:
        *folders, name = path.relative_to(folder).parts
        words = {part.lower() for part in folders} | {name.lower().partition(".")[0].split("-")[0]}
        return words & set(_SPLITS)

    chosen = [p for p in paths if split in splits(p)] if any(map(splits, paths)) else paths
    return sorted(chosen, key=lambda path: natural(path.as_posix()))


def open_captions(task: Task, folder: pathlib.Path) -> Opened:
    """Pictures with their captions in the columns `image` and `caption` of parquet files.

    Raises:
      FileNotFoundError: no table of the split.
      ValueError: tables without these columns.
    """
    paths = _tables(task, folder)
    columns = ("image", "caption")
    try:
        rows = [ParquetRows(path, columns, "image") for path in paths]
    except READ_ERRORS as fault:
        raise ValueError(f"{task.key}: {folder}: {fault}") from fault
    config = Table(path=str(folder), image_key="image", caption_key="caption")
    source = TableSource(config, paths, rows)
    return Opened(task=task, folder=folder, source=source, pictures=_mark(paths))


def open_winogavil(task: Task, folder: pathlib.Path) -> Opened:
    """Cues, the pictures to choose from, and those that people associated with each cue.

    A picture is known by its candidate's name, under which it may be in many rows.

    Raises:
      FileNotFoundError, ValueError: as `open_captions`; rows whose lists do not fit each other.
    """
    paths = _tables(task, folder)
    words = ("cue", "candidates", "associations")
    places: dict[str, Place] = {}
    numbers: dict[str, int] = {}
    examples, faults = [], []
    for where, row in words_of(paths, words, ("candidate_images",)):
        names, associated = row["candidates"] or [], set(row["associations"] or [])
        if not row["cue"] or not names or not associated & set(names):
            faults.append(f"{where}: no cue, no candidate or none that is associated")
            continue
        for item, name in enumerate(names):
            places.setdefault(name, Place(where, "candidate_images", item))
            numbers.setdefault(name, len(numbers))
        examples.append(
            Example(
                key=str(where),
                pictures=tuple(numbers[name] for name in names),
                texts=(cue_prompt(row["cue"]),),
                right=tuple(name in associated for name in names),
            )
        )
    _require_rows(task, examples, faults)
    return _of_cells(task, folder, paths, places, examples)


def cue_prompt(cue: str) -> str:
    """The cue as a caption: "A werewolf", "An eagle"."""
    cue = cue.lower()
    return f"An {cue}" if cue[0] in "aeiou" else f"A {cue}"


def open_winoground(task: Task, folder: pathlib.Path) -> Opened:
    """Two pictures and two captions a row.

    Raises:
      FileNotFoundError, ValueError: as `open_captions`.
    """
    paths = _tables(task, folder)
    columns = ("image_0", "image_1")
    places: dict[str, Place] = {}
    examples, faults = [], []
    for where, row in words_of(paths, ("caption_0", "caption_1"), columns):
        texts = (row["caption_0"], row["caption_1"])
        if not all(texts):
            faults.append(f"{where}: a caption is missing")
            continue
        first = len(places)
        places |= {f"{where}/{column}": Place(where, column, None) for column in columns}
        examples.append(Example(key=str(where), pictures=(first, first + 1), texts=texts))
    _require_rows(task, examples, faults)
    return _of_cells(task, folder, paths, places, examples)


def open_sugarcrepe(task: Task, folder: pathlib.Path) -> Opened:
    """`CATEGORY.json`, each {index: {filename, caption, negative_caption}}, and COCO's pictures.

    Raises:
      FileNotFoundError: no list, or no folder with the pictures of the first one.
      ValueError: lists of another form.
    """
    lists = sorted(folder.glob("*.json"))
    if not lists:
        raise FileNotFoundError(f"{task.key}: no CATEGORY.json in {folder}")
    numbers: dict[str, int] = {}
    examples, faults = [], []
    for path in lists:
        found = read_json(path)
        for index, entry in found.items() if isinstance(found, dict) else [("", None)]:
            values = [entry.get(name) for name in _CREPE] if isinstance(entry, dict) else []
            name, *texts = [v for v in values if isinstance(v, str) and v] or [""]
            if len(texts) < 2:
                faults.append(f"{path}: entry {index!r} has not all of {', '.join(_CREPE)}")
                continue
            number = numbers.setdefault(name, len(numbers))
            examples.append(
                Example(
                    key=f"{path.stem}/{index}",
                    pictures=(number,),
                    texts=tuple(texts),
                    category=path.stem,
                )
            )
    _require_rows(task, examples, faults)
    home = _home(task, folder, tuple(numbers))
    source = Named(home, tuple(numbers))
    mark = _mark(home / name for name in numbers if (home / name).is_file())
    return Opened(task=task, folder=folder, source=source, pictures=mark, examples=tuple(examples))


def _home(task: Task, folder: pathlib.Path, names: Sequence[str]) -> pathlib.Path:
    places = [folder / place for place in _PICTURES]
    for place in places:
        if any((place / name).is_file() for name in names):
            return place
    tried = ", ".join(map(str, places))
    raise FileNotFoundError(f"{task.key}: none of its {len(names)} pictures is in {tried}")


def _of_cells(
    task: Task,
    folder: pathlib.Path,
    paths: Sequence[pathlib.Path],
    places: dict[str, Place],
    examples: Sequence[Example],
) -> Opened:
    return Opened(
        task=task,
        folder=folder,
        source=Cells(places),
        pictures=_mark(paths),
        examples=tuple(examples),
    )


def _tables(task: Task, folder: pathlib.Path) -> list[pathlib.Path]:
    paths = tables(folder)
    if not paths:
        has = sorted(path.name for path in folder.iterdir())[:10]
        raise FileNotFoundError(
            f"{task.key}: no {SPLIT}*.parquet in {folder} or below; it holds {has or 'nothing'}"
        )
    return paths


def _require_rows(task: Task, examples: Sequence[Example], faults: Sequence[str]) -> None:
    if faults:
        more = f"; and {len(faults) - 20} more" if len(faults) > 20 else ""
        raise ValueError(f"{task.key}: {'; '.join(faults[:20])}{more}")
    if not examples:
        raise ValueError(f"{task.key}: its lists are empty")


def _mark(paths: Iterable[pathlib.Path]) -> str:
    """A hash of names, sizes and times of change."""
    told = repr([(path.name, stamp_of(path.stat())) for path in paths])
    return hashlib.sha256(told.encode("utf-8", "backslashreplace")).hexdigest()


def open_folder(task: Task, folder: pathlib.Path, warn: Callable[[str], None]) -> Opened:
    """A data set in whichever layout its folder has.

    Raises:
      FileNotFoundError, ValueError: what the layout lacks; see `folders.open_tars` and above.
    """
    if task.kind in OPENERS and (task.kind != "retrieval" or tables(folder)):
        return OPENERS[task.kind](task, folder)
    return open_tars(task, folder, warn)


OPENERS: dict[str, Callable[[Task, pathlib.Path], Opened]] = {
    "retrieval": open_captions,
    "winogavil": open_winogavil,
    "winoground": open_winoground,
    "sugarcrepe": open_sugarcrepe,
}
"""By the kind of task."""
