"""Data sets in the layouts of CLIP_benchmark and DataComp: tar files and lists of names."""

import collections
import dataclasses
import difflib
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Literal

from clip_jax.data.tar_shards import TarShards, TarSource
from clip_jax.eval.opened import Opened
from clip_jax.eval.tasks import Task, nearest
from clip_jax.eval.zero_shot import require_placeholders

Layout = Literal["datacomp", "benchmark"]
SPLIT = "test"
TRAIN = "train"
CLASSES = "classnames.txt"
TEMPLATES = "zeroshot_classification_templates.txt"
TYPE = "dataset_type.txt"
OBJECTIVES = ("race", "gender", "age", "toxic")
"""What is asked of a face; lines of its lists begin with one of these and a colon."""
_SAID = {"zero_shot": "classification", "faces": "classification"}
"""What `dataset_type.txt` calls a kind, where it calls it otherwise."""


def find(task: Task, root: str | os.PathLike[str], first: Layout = "benchmark") -> pathlib.Path:
    """The folder of a data set below `root`: `wds_vtab-pets`, `wds_vtab-pets_test`, `vtab/pets`.

    Args:
      first: the layout whose folder is taken where both are there.

    Raises:
      FileNotFoundError: none of them; says what was looked for, and what there is.
    """
    base = pathlib.Path(root)
    if not base.is_dir():
        raise FileNotFoundError(f"{root} is no folder; data sets are looked for in it")
    names = places(task, first)
    for name in names:
        if (base / name).is_dir():
            return base / name
    there = sorted(path.name for path in base.iterdir() if path.is_dir())
    near = difflib.get_close_matches(names[0], there, n=1, cutoff=0.6)
    hint = f" (nearest: {near[0]})" if near else ""
    holds = ", ".join(there[:20]) or "no folder"
    raise FileNotFoundError(
        f"{task.key} is not in {base}: looked for {', '.join(names)}; it holds {holds}{hint}"
    )


def places(task: Task, first: Layout = "benchmark") -> list[str]:
    """Folders below a root in which a data set may lie, the first one found counts."""
    both = [task.benchmark, task.datacomp]
    named = both if first == "benchmark" else both[::-1]
    hub = task.hub and task.hub.partition("/")[2]
    dashed = task.key.replace("/", "-")
    plain = (task.key, dashed, f"wds_{dashed}", hub, task.key.rpartition("/")[2])
    return list(dict.fromkeys(name for name in (*named, *plain) if name))


def unlisted(name: str, root: str | os.PathLike[str] | None) -> Task:
    """The task of a folder that no suite names; its `dataset_type.txt` says how it is measured.

    Args:
      root: folder of such folders; None: there is none.

    Raises:
      ValueError: there is no such folder, or its type is none; gives the nearest known name.
    """
    where = "" if root is None else f", and no folder with {SPLIT}/ in {root},"
    folder = pathlib.Path(root or "") / name
    strange = root is None or not name or ".." in pathlib.PurePath(name).parts
    if strange or not (folder / SPLIT).is_dir():
        raise ValueError(
            f"no suite or data set{where} is called {name!r} (nearest: {nearest(name)!r})"
        )
    kind = _type(folder)
    mains = {
        "classification": ("zero_shot", "acc1"),
        "multilabel": ("multilabel", "mean_average_precision"),
        "retrieval": ("retrieval", "mean_recall@1"),
    }
    if kind not in mains:
        raise ValueError(f"{folder / TYPE} says {kind!r}, not one of {', '.join(mains)}")
    return Task(key=name, name=name, kind=mains[kind][0], main=mains[kind][1])  # pyright: ignore


def open_tars(
    task: Task, folder: pathlib.Path, warn: Callable[[str], None], split: str = SPLIT
) -> Opened:
    """A data set of tar files, checked: every shard, name and template that its lists promise.

    Args:
      warn: told of keys that occur in several shards.

    Raises:
      FileNotFoundError: lists that are missing, all of them; shards that are.
      ValueError: another type than the task's; shards that nobody counted; templates without a
        placeholder; what reading shards raises.
    """
    lists = [folder / CLASSES, folder / TEMPLATES] if task.kind != "retrieval" else []
    needed = [folder / split / "nshards.txt", *lists]
    if missing := [str(path) for path in needed if not path.is_file()]:
        raise FileNotFoundError(f"{task.key}: no file {' and no file '.join(missing)}")
    _require_type(task, folder)
    source = _shards(folder / split).with_numbers()
    _report_twins(task, source, warn)
    classes, templates = map(read_lines, lists) if lists else ((), ())
    if lists:
        _require_lists(task, folder, classes, templates, warn)
    return Opened(
        task=task,
        folder=folder,
        source=source,
        pictures=source.digest(),
        classes=classes,
        templates=templates,
    )


def open_with_train(task: Task, folder: pathlib.Path, warn: Callable[[str], None]) -> Opened:
    """Both splits of a data set of tar files, `test` and, as its field `train`, `train`.

    Raises:
      FileNotFoundError: there is no such split; as `open_tars`.
      ValueError: as `open_tars`.
    """
    if not (folder / TRAIN / "nshards.txt").is_file():
        raise FileNotFoundError(
            f"{task.key}: no {TRAIN}/nshards.txt in {folder}: a probe learns from that split, "
            "which the folders of CLIP_benchmark have and those of DataComp lack"
        )
    train = open_tars(task, folder, warn, TRAIN)
    return dataclasses.replace(open_tars(task, folder, warn), train=train)


def read_lines(path: pathlib.Path) -> tuple[str, ...]:
    """Lines without the blanks around them.

    Raises:
      ValueError: the file is no UTF-8 text.
    """
    try:
        return tuple(line.strip() for line in path.read_text("utf-8").splitlines())
    except UnicodeDecodeError as fault:
        raise ValueError(f"{path} is no UTF-8 text: {fault}") from fault


def by_objective(lines: Sequence[str], what: str) -> dict[str, tuple[str, ...]]:
    """`race:black` and the like, sorted by what stands before the colon.

    Raises:
      ValueError: lines without an objective, all of them; objectives without a line.
    """
    found: dict[str, list[str]] = {name: [] for name in OBJECTIVES}
    strange = []
    for line in lines:
        name, colon, text = line.partition(":")
        if colon and name in found:
            found[name].append(text)
        else:
            strange.append(line)
    lacking = [name for name, texts in found.items() if not texts]
    if strange or lacking:
        faults = [f"{line!r} does not" for line in strange[:20]]
        faults += [f"none begins with {name}:" for name in lacking]
        begin = " or ".join(f"{name}:" for name in OBJECTIVES)
        raise ValueError(f"{what}: each line begins with {begin}; {', '.join(faults)}")
    return {name: tuple(texts) for name, texts in found.items()}


def _type(folder: pathlib.Path) -> str:
    path = folder / TYPE
    return path.read_text("utf-8").strip().lower() if path.is_file() else "classification"


def _require_type(task: Task, folder: pathlib.Path) -> None:
    said, wanted = _type(folder), _SAID.get(task.kind, task.kind)
    # One folder may carry labels of both kinds; then each sample is asked for the right one.
    labels = ("classification", "multilabel")
    if said != wanted and not (said in labels and wanted in labels):
        raise ValueError(f"{folder / TYPE} says {said!r}, but {task.key} is measured as {wanted!r}")


def _shards(folder: pathlib.Path) -> TarSource:
    """The shards that `nshards.txt` counts, which are all there are.

    Raises:
      ValueError, FileNotFoundError: too many, too few.
    """
    counted = (folder / "nshards.txt").read_text("utf-8").strip()
    there = len(list(folder.glob("*.tar")))
    if counted.isdecimal() and there > int(counted):
        raise ValueError(
            f"{folder / 'nshards.txt'} counts {counted} shards, but there are {there}: remove "
            "those that do not belong there, or correct the number"
        )
    return TarShards(root=os.fspath(folder)).open("train")  # A folder of shards is this split.


def _report_twins(task: Task, source: TarSource, warn: Callable[[str], None]) -> None:
    shards: dict[str, list[str]] = collections.defaultdict(list)
    for key in source.all_keys():
        shard, _, name = key.partition("/")
        shards[name].append(shard)
    twins = {name: found for name, found in shards.items() if len(found) > 1}
    if twins:
        name, found = next(iter(twins.items()))
        warn(
            f"{task.key}: {len(twins)} keys occur in several shards, the first, {name!r}, in "
            f"{' and '.join(f'{shard}.tar' for shard in found)}; a shard may be there twice"
        )


def _require_lists(
    task: Task,
    folder: pathlib.Path,
    classes: Sequence[str],
    templates: Sequence[str],
    warn: Callable[[str], None],
) -> None:
    try:
        if task.kind == "faces":
            by_objective(classes, str(folder / CLASSES))
            found = by_objective(templates, str(folder / TEMPLATES))
            templates = [template for group in found.values() for template in group]
        require_placeholders(templates)
    except ValueError as fault:
        where = "" if str(folder) in str(fault) else f"{folder / TEMPLATES}: "
        raise ValueError(f"{where}{fault}") from fault
    if task.classes not in (None, len(classes)):
        warn(
            f"{task.key}: {len(classes)} class names, but the data set of that name has "
            f"{task.classes} classes; the figures are not those in print"
        )
    if empty := [k for k, name in enumerate(classes) if not name]:
        raise ValueError(f"{folder / CLASSES}: empty class names: those of classes {empty}")
