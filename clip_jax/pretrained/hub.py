"""Files of a Hugging Face repository: fetched once, then read from the library's cache."""

import fnmatch
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

_CONFIGS = ("*.json", "*.model", "*.txt")
"""Configurations, tokenizers, vocabularies."""

_WEIGHTS = (
    ("open_clip_model.safetensors",),
    ("open_clip_pytorch_model.safetensors",),
    ("open_clip_pytorch_model.bin",),
    ("model.safetensors", "model-*-of-*.safetensors"),
    ("pytorch_model.bin", "pytorch_model-*-of-*.bin"),
    ("*.safetensors",),
    ("*.npz",),
    ("*.pt", "*.bin"),
)
"""Of the first line that a repository has anything of, all is fetched. OpenCLIP's own files come
first in either format: beside them `model.safetensors` may hold the image tower alone."""


def fetch(
    repo_id: str, *, revision: str | None = None, offline: bool = False, weights: bool = True
) -> Path:
    """A local folder with the files of a model that clip_jax reads, and no others.

    The hub is asked for the newest commit; where it does not answer, what the cache holds is
    taken. The cache is huggingface_hub's, which also takes HF_HOME, HF_TOKEN and HF_ENDPOINT.

    Args:
      repo_id: `organisation/name`.
      revision: a branch, tag or commit; the main branch if not given.
      offline: take what the cache holds and ask nobody, as with HF_HUB_OFFLINE=1.
      weights: False leaves the weights out: for a tokenizer.

    Raises:
      FileNotFoundError: no such repository or revision, no weights in it, or neither the hub
        within reach nor all files in the cache; says which, and what to do.
      PermissionError: its owner wants conditions accepted first.
      ConnectionError: the download broke off; what is complete is kept for the next time.
      ValueError: `repo_id` is no repository's name, or its weights are ambiguous.
    """
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    folder = _download(repo_id, revision, offline, _CONFIGS, bars=False)
    if not weights:
        if not folder.is_dir():
            raise FileNotFoundError(f"{repo_id} has no file {' or '.join(_CONFIGS)}")
        return folder
    try:
        names = [file.path for file in get_cached_repo_tree(repo_id, revision=folder.name)]
    except CachedRepoTreeNotFoundError:  # Another program filled the cache, file by file.
        names = [path.name for path in folder.glob("*")]
    chosen = choose_weights(names, repo_id)
    if all((folder / name).is_file() for name in chosen):
        return folder
    return _download(repo_id, folder.name, offline, chosen, bars=sys.stderr.isatty())


def choose_weights(names: Iterable[str], repo_id: str) -> list[str]:
    """Of all files of a repository those of one set of weights, in one format.

    Raises:
      FileNotFoundError: there are none, or parts are missing; names what there is.
      ValueError: there are several and nothing says which is meant.
    """
    names = sorted(name for name in names if "/" not in name)
    groups = (
        [name for name in names if any(fnmatch.fnmatchcase(name, p) for p in patterns)]
        for patterns in _WEIGHTS
    )
    chosen = next((group for group in groups if group), [])
    if not chosen:
        raise FileNotFoundError(
            f"{repo_id} has no weights that clip_jax reads (.safetensors, .bin, .pt, .npz), "
            f"only {', '.join(names) or 'nothing'}"
        )
    parts = [re.search(r"-\d+-of-0*(\d+)\.", name) for name in chosen]
    whole = [name for name, part in zip(chosen, parts, strict=True) if not part]
    if len(whole) == 1:
        return whole
    if whole:
        raise ValueError(
            f"{repo_id} has several weights, {', '.join(whole)}: download one and load the file"
        )
    count = max(int(part[1]) for part in parts if part)
    if len(chosen) != count:
        raise FileNotFoundError(
            f"of the {count} parts of {repo_id} there are {len(chosen)}: {', '.join(chosen)}"
        )
    return chosen


def _download(
    repo_id: str, revision: str | None, offline: bool, names: Sequence[str], *, bars: bool
) -> Path:
    """The snapshot's folder with these files of its root, all of them whole."""
    from huggingface_hub import constants, errors, snapshot_download

    where = f"{constants.ENDPOINT}/{repo_id}"
    try:
        folder = snapshot_download(
            repo_id,
            revision=revision,
            allow_patterns=list(names),
            ignore_patterns=["*/*"],
            local_files_only=offline,
            tqdm_class=None if bars else _no_bars(),
        )
    except errors.HFValidationError as fault:
        raise ValueError(f"{repo_id!r} is no repository's name (organisation/name)") from fault
    except errors.GatedRepoError as fault:
        raise PermissionError(
            f"{repo_id} is gated: accept its conditions at {where}, then log in (`hf auth login`, "
            "or set HF_TOKEN)"
        ) from fault
    except errors.RepositoryNotFoundError as fault:
        raise FileNotFoundError(
            f"there is no {where}; if it is private, log in (`hf auth login`, or set HF_TOKEN)"
        ) from fault
    except errors.RevisionNotFoundError as fault:
        raise FileNotFoundError(
            f"{repo_id} has no branch, tag or commit {revision!r}; see {where}/tree/main"
        ) from fault
    except errors.LocalEntryNotFoundError as fault:
        raise FileNotFoundError(
            f"{repo_id} is not whole in the cache {constants.HF_HUB_CACHE} and cannot be had from "
            f"{constants.ENDPOINT} now: load it once with a connection, set HF_HOME to where that "
            f"was done, or give the folder of a copy ({_first_line(fault)})"
        ) from fault
    except errors.HfHubHTTPError as fault:
        raise ConnectionError(f"{where}: {_first_line(fault)}") from fault
    except OSError:
        raise
    except Exception as fault:  # The errors of whichever HTTP library huggingface_hub uses.
        try:
            return _download(repo_id, revision, True, names, bars=bars)
        except FileNotFoundError:
            raise ConnectionError(f"{where}: {type(fault).__name__}: {fault}") from fault
    return Path(folder)


def _first_line(fault: Exception) -> str:
    return str(fault).strip().split("\n")[0]


def _no_bars() -> Any:
    """For small files, where bars would only flicker, and for logs."""
    from huggingface_hub.utils import tqdm

    class Hidden(tqdm):
        def __init__(self, *args: Any, **options: Any):
            super().__init__(*args, **{**options, "disable": True})

    return Hidden
