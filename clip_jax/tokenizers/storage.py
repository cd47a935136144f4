"""Files of vocabularies: read with a telling error, written whole or not at all."""

import dataclasses
import difflib
import os
import uuid
from typing import Any

from etils import epath


def read(path: epath.PathLike, what: str, endings: tuple[str, ...]) -> bytes:
    """The bytes of a file; local, gs:// or s3://.

    Args:
      path: the file; `~` is the home folder.
      what: how messages call it, e.g. "SentencePiece model".
      endings: of the files beside it that are worth naming if it is missing, e.g. (".model",).

    Raises:
      FileNotFoundError: no such file; names the nearest one, and those that the folder has.
      ValueError: the path is a folder.
    """
    path = epath.Path(path).expanduser()
    if path.is_dir():
        raise ValueError(f"{path} is a folder, not a {what}{_beside(path, path.name, endings)}")
    if not path.exists():
        raise FileNotFoundError(f"no {what} {path}{_beside(path.parent, path.name, endings)}")
    return path.read_bytes()


def write_whole(path: epath.PathLike, data: bytes) -> None:
    """Write a file and the folders it needs; an interrupted write leaves the old file as it was.

    Raises:
      OSError: the file cannot be written; names it.
    """
    path = epath.Path(path).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.parent / f".{path.name}.{uuid.uuid4().hex}"
    try:
        draft.write_bytes(data)
        draft.replace(path)
    except OSError as error:
        reason = f"could not write the file: {error.strerror or error}"
        raise OSError(error.errno, reason, os.fspath(path)) from error
    finally:
        draft.unlink(missing_ok=True)


def _beside(folder: epath.Path, name: str, endings: tuple[str, ...]) -> str:
    if not folder.is_dir():
        return ""
    known = sorted(file.name for file in folder.iterdir() if file.name.endswith(endings))
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
    return f" (nearest: {near[0]}; {folder} has {', '.join(known)})" if near else ""


def keep(tokenizer: Any, folder: epath.PathLike) -> None:
    """Copy a tokenizer's file into the folder of a run, which can then be moved or sent away.

    Raises:
      FileNotFoundError, OSError: the file is missing, or cannot be written.
    """
    if (field := _file_field(tokenizer)) is not None:
        data = epath.Path(getattr(tokenizer, field)).expanduser().read_bytes()
        kept = _kept(tokenizer, field, folder)
        if not kept.exists() or kept.read_bytes() != data:
            write_whole(kept, data)


def found_again(tokenizer: Any, folder: epath.PathLike) -> Any:
    """The tokenizer with the file that `keep` copied, if its own is no longer where it was."""
    field = _file_field(tokenizer)
    if field is None or epath.Path(getattr(tokenizer, field)).expanduser().exists():
        return tokenizer
    kept = _kept(tokenizer, field, folder)
    if not kept.exists():
        return tokenizer  # Whoever uses it is told which file is missing.
    return dataclasses.replace(tokenizer, **{field: os.fspath(kept)})


def _file_field(tokenizer: Any) -> str | None:
    """The field that names the tokenizer's file, if it has one."""
    return next((name for name in ("model", "file") if hasattr(tokenizer, name)), None)


def _kept(tokenizer: Any, field: str, folder: epath.PathLike) -> epath.Path:
    return epath.Path(folder) / f"tokenizer{epath.Path(getattr(tokenizer, field)).suffix}"
