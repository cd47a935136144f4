"""From a path that a user gives to the data set that lies there."""

import pathlib
from collections.abc import Sequence
from typing import Any

from clip_jax.data.array_records import ArrayRecords
from clip_jax.data.folder import Folder
from clip_jax.data.manifest import SUFFIX
from clip_jax.data.sample import Dataset
from clip_jax.data.table import Table
from clip_jax.data.tar_index import IMAGES
from clip_jax.data.tar_shards import TarShards
from clip_jax.overrides import load_config, override

TABLES = (".csv", ".tsv", ".jsonl", ".parquet")
"""Ends of names that are taken for tables; `.json` is too often something else."""


def open_path(path: str, overrides: Sequence[str] = (), *, prog: str = "clip-jax") -> Dataset:
    """The data set that a path means, by default settings.

    * `x.py`: the `data` of that config file, which is run;
    * `x.tar`, also with braces or stars: `TarShards`; `x.csv` or another of `TABLES`: `Table`;
    * a folder, by what is in it or in its folders: `*.array_record` `ArrayRecords`, `*.tar`
      `TarShards`, tables (directly in it) `Table`, images `Folder`: with captions if there is any
      other text file than `classnames.txt`, and else with a class for each folder.

    Args:
      overrides: for a config file, as on the command line: `["--data.root", "/data"]`.
      prog: whose command line that is, for messages.

    Raises:
      FileNotFoundError: there is no such path.
      ValueError: it holds nothing of that, or several kinds; it was prepared by
        tensorflow-datasets, where features must be chosen; overrides for something else than a
        config.
    """
    file = pathlib.Path(path)
    if file.suffix == ".py":
        config: Any = override(load_config(path), overrides, prog)
        if not isinstance(getattr(config, "data", None), Dataset):
            raise ValueError(f"{path}: the config has no data set under `data`")
        return config.data
    if overrides:
        raise ValueError(f"{' '.join(overrides)}: only a config file takes overrides, not {path}")
    if ".tar" in file.suffixes:
        return TarShards(root=path)
    if "://" in path:
        return TarShards(root=path)
    if not file.exists():
        raise FileNotFoundError(f"{path} does not exist; give a config file, a folder or a table")
    if file.is_dir():
        return _in_folder(file)
    if file.suffix in TABLES:
        return Table(path=path)
    raise ValueError(
        f"{path} is neither a config file (.py) nor shards (.tar) nor a table ({', '.join(TABLES)})"
    )


def _in_folder(folder: pathlib.Path) -> Dataset:
    """Raises:
    ValueError: nothing that is known, or several kinds.
    """
    root = str(folder)
    if (folder / "features.json").is_file():
        raise ValueError(
            f"{root} was prepared by tensorflow-datasets: choose its features in a config, with "
            "data=Tfds(name=..., text=...) or data=Tfds(name=..., label=...)"
        )
    found = [kind for kind in (SUFFIX, ".tar") if _holds(folder, kind)]
    if len(found) > 1:
        raise ValueError(
            f"{root} holds both *{found[0]} and *{found[1]}: give the folder of one of them, or a "
            "config that says which"
        )
    if found:
        return ArrayRecords(root=root) if found == [SUFFIX] else TarShards(root=root)
    if any(path.suffix in TABLES for path in folder.iterdir()):
        return Table(path=root)
    if not any(path.suffix[1:].lower() in IMAGES for path in folder.rglob("*.*")):
        has = ", ".join(sorted(path.name for path in folder.iterdir())[:10]) or "nothing"
        raise ValueError(
            f"{root} holds neither records (*{SUFFIX}) nor shards (*.tar) nor a table nor images "
            f"({', '.join(IMAGES)}); it holds {has}"
        )
    captions = any(path.name != "classnames.txt" for path in folder.rglob("*.txt"))
    return Folder(root=root, class_folders=not captions)


def _holds(folder: pathlib.Path, suffix: str) -> bool:
    return any(next(folder.glob(f"{depth}*{suffix}"), None) for depth in ("", "*/"))
