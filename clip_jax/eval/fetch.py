"""Data sets from the Hugging Face hub, under the names of both suites."""

import pathlib
from typing import Any

from clip_jax.eval.folders import SPLIT, TRAIN, Layout
from clip_jax.eval.tasks import Task

_OWNERS = {"datacomp": "djghosh", "benchmark": "clip-benchmark"}
_TARS = ("*.txt", f"{SPLIT}/*")
_TABLES = (f"*{SPLIT}*.parquet", f"*{SPLIT}/*.parquet")
_CONVERTED = "refs/convert/parquet"
"""The branch with the hub's own copy as parquet, where a repository holds a program instead."""


def repositories(task: Task, first: Layout) -> list[str]:
    """Where the hub may have a data set, the preferred one first."""
    found = {
        f"{_OWNERS['benchmark']}/{task.benchmark}": task.benchmark,
        f"{_OWNERS['datacomp']}/{task.datacomp}": task.datacomp,
    }
    names = [name for name, folder in found.items() if folder]
    return (names if first == "benchmark" else names[::-1]) + ([task.hub] if task.hub else [])


def fetch(task: Task, first: Layout = "benchmark", *, train: bool = False) -> pathlib.Path:
    """A local folder with the test split; what the hub library's cache has is not fetched again.

    Args:
      train: fetch the train split, too, where there is one.

    Raises:
      FileNotFoundError: no repository has it, or none that its owner lets everyone read.
      ConnectionError: the hub does not answer, or the download broke off.
    """
    names = repositories(task, first)
    if not names:
        raise FileNotFoundError(f"{task.key} is not on the hub; give the folder as --root")
    faults = []
    for name in names:
        revisions = (None, _CONVERTED) if name == task.hub else (None,)
        for revision in revisions:
            folder, fault = _download(name, revision, train)
            if folder is not None and any(
                folder.rglob("*.parquet" if name == task.hub else "*.tar")
            ):
                return folder
            faults.append(fault or f"{name} has no picture in its split {SPLIT!r}")
    raise FileNotFoundError(f"{task.key}: {'; '.join(dict.fromkeys(faults))}")


def _download(name: str, revision: str | None, train: bool) -> tuple[pathlib.Path | None, str]:
    """The folder; or None, and why there is none."""
    from huggingface_hub import constants, errors, snapshot_download

    where = f"{constants.ENDPOINT}/datasets/{name}"
    patterns = [*_TARS, *_TABLES, *([f"{TRAIN}/*"] if train else [])]
    ask: Any = snapshot_download
    try:
        found = ask(name, repo_type="dataset", revision=revision, allow_patterns=patterns)
        return pathlib.Path(found), ""
    except errors.GatedRepoError:
        return None, f"{where} is gated: accept its conditions there, then log in (`hf auth login`)"
    except errors.RepositoryNotFoundError:
        return None, f"there is no {where}"
    except errors.RevisionNotFoundError:
        return None, f"{where} has no branch {revision}"
    except errors.LocalEntryNotFoundError as fault:
        raise ConnectionError(
            f"{name} is not in the cache {constants.HF_HUB_CACHE} and cannot be had from "
            f"{constants.ENDPOINT} now"
        ) from fault
    except errors.HfHubHTTPError as fault:
        raise ConnectionError(f"{where}: {str(fault).strip().partition(chr(10))[0]}") from fault
    except OSError:
        raise
    except Exception as fault:  # The errors of whichever HTTP library huggingface_hub uses.
        raise ConnectionError(f"{where}: {type(fault).__name__}: {fault}") from fault
