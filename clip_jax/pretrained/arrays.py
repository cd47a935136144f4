"""Files of named arrays, read lazily and without PyTorch, and written whole or not at all."""

import contextlib
import dataclasses
import difflib
import functools
import json
import os
import pathlib
import secrets
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import ml_dtypes
import numpy as np
from jaxtyping import Shaped

from clip_jax.pretrained.archive import open_archive
from clip_jax.pretrained.npz import is_npz, open_npz, read_npz, write_npz_file
from clip_jax.pretrained.torch_write import write_torch_zip
from clip_jax.pretrained.torch_zip import is_torch_zip, open_torch_zip

Kind = Literal["safetensors", "torch", "torchscript", "npz"]

_SAFETENSORS = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
"""The dtypes that every format has."""
_LONGEST_HEADER = 100_000_000
"""Bytes that the safetensors library reads of a header."""
_OTHERS = {
    b"version https://git-lfs": "is a pointer of Git LFS, not the file itself: run `git lfs pull`",
    b"<": "is a web page or XML, not weights: was it saved from a page that asks to log in?",
    b"\x1f\x8b": "is compressed by gzip: unpack it first",
    b"\x89HDF": "is an HDF5 file, which is not read: convert it to safetensors",
}


@dataclasses.dataclass(frozen=True)
class StoredArray:
    """An array in a file."""

    shape: tuple[int, ...]
    dtype: np.dtype
    """In this machine's byte order; ml_dtypes.bfloat16 where it is bfloat16."""
    read: Callable[[], np.ndarray]
    """Reads it, each time anew, into memory of its own: the caller may write to it. Raises
    ValueError where its bytes are cut off or damaged."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightsFile:
    """A file of named arrays, none of them read."""

    kind: Kind
    arrays: Mapping[str, StoredArray]
    """By the names in the file; those of PyTorch's as in `module.state_dict()`, without the
    `module.` and `_orig_mod.` of wrappers."""
    extras: Mapping[str, Any]
    """Plain values beside the arrays: ints, floats, strings, bools."""


def open_weights(path: str | os.PathLike[str]) -> WeightsFile:
    """Open a file of weights, whose format is told by its content and not by its name.

    Read are safetensors, the index of a model in several safetensors or PyTorch files, NumPy's
    npz, and files of torch.save (a state dict or a training checkpoint) and torch.jit.save since
    PyTorch 1.6. Nothing in a file is ever run. The file must not change while it is in use.

    Raises:
      FileNotFoundError: there is no such file; names the nearest.
      ValueError: the file is damaged, of no known format, asks for more than tensors and plain
        values, or leaves open which of its tensors are the weights; names the file.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        raise ValueError(f"{path}: is a folder; name a file of weights in it")
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file{_nearest(path)}")
    found = _open_one(path)
    return _open_shards(path) if found is None else found


def _open_one(path: pathlib.Path) -> WeightsFile | None:
    """A file that holds arrays itself; None for JSON, which may be the index of several."""
    with path.open("rb") as file:
        head = file.read(32)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _LONGEST_HEADER:
        return _open_safetensors(path)
    if head.startswith((b"PK\3\4", b"PK\5\6")):
        return _open_zip(path)
    if head.lstrip().startswith(b"{"):
        return None
    raise ValueError(f"{path}: {_described(head)}")


def _nearest(path: pathlib.Path) -> str:
    if not path.parent.is_dir():
        return f", nor the folder {path.parent}"
    names = [entry.name for entry in path.parent.iterdir()]
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.4)
    return f" (nearest: {near[0]!r})" if near else ""


def _described(head: bytes) -> str:
    if not head:
        return "is empty: the download or the copy of it failed"
    if head[:1] == b"\x80" and head[1:2] in (b"\2", b"\3", b"\4", b"\5"):
        return (
            "is a bare pickle, as torch.save wrote before PyTorch 1.6; these are not read. Where "
            "there is a PyTorch, save it anew: torch.save(torch.load(OLD, weights_only=True), NEW)"
        )
    for start, words in _OTHERS.items():
        if head.lstrip().startswith(start):
            return words
    return (
        f"is no file of weights: it begins with {head[:16]!r}. Read are safetensors (and their "
        "index), npz, and files of torch.save and torch.jit.save"
    )


def _open_safetensors(path: pathlib.Path) -> WeightsFile:
    import safetensors

    try:
        file = safetensors.safe_open(path, framework="numpy")  # pyright: ignore
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        extras = dict(file.metadata() or {})
    except safetensors.SafetensorError as fault:
        raise ValueError(f"{path}: is cut off or damaged ({fault}); get it again") from fault
    odd = [f"{n} ({s.get_dtype()})" for n, s in slices.items() if s.get_dtype() not in _SAFETENSORS]
    if odd:
        raise ValueError(
            f"{path}: dtypes that are not read: {', '.join(odd[:8])}; read are "
            f"{', '.join(_SAFETENSORS)}"
        )
    arrays = {
        name: StoredArray(
            shape=tuple(part.get_shape()),
            dtype=_SAFETENSORS[part.get_dtype()],
            read=functools.partial(file.get_tensor, name),
        )
        for name, part in slices.items()
    }
    return WeightsFile(kind="safetensors", arrays=arrays, extras=extras)


def _open_zip(path: pathlib.Path) -> WeightsFile:
    archive = open_archive(path)
    if is_torch_zip(archive):
        found = open_torch_zip(archive)
        arrays = {
            name: StoredArray(
                shape=tensor.shape,
                dtype=tensor.storage.dtype,
                read=functools.partial(found.read, name),
            )
            for name, tensor in found.tensors.items()
        }
        return WeightsFile(kind=found.kind, arrays=arrays, extras=found.extras)
    if is_npz(archive):
        arrays = {
            name: StoredArray(
                shape=member.shape,
                dtype=member.native,
                read=functools.partial(read_npz, archive, name, member),
            )
            for name, member in open_npz(archive).items()
        }
        return WeightsFile(kind="npz", arrays=arrays, extras={})
    inside = ", ".join(repr(name) for name in list(archive.members)[:5]) or "nothing"
    raise ValueError(f"{path}: is a zip file without weights; it holds {inside}")


def _open_shards(path: pathlib.Path) -> WeightsFile:
    """All files that an index names, as one."""
    try:
        index = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as fault:
        raise ValueError(f"{path}: looks like JSON, but is damaged ({fault})") from fault
    places = index.get("weight_map")
    if not (isinstance(places, dict) and places and all(map(_is_file_name, places.values()))):
        raise ValueError(
            f"{path}: is JSON, but no index of weights: it has no `weight_map` from the names of "
            "arrays to the names of files beside it"
        )
    names = sorted(set(places.values()))
    absent = [name for name in names if not (path.parent / name).is_file()]
    if absent:
        raise FileNotFoundError(f"{path}: names files that are not beside it: {', '.join(absent)}")
    opened = {name: _open_one(path.parent / name) for name in names}
    shards = {name: shard for name, shard in opened.items() if shard is not None}
    if len(shards) < len(opened):
        inner = ", ".join(sorted(set(opened) - set(shards)))
        raise ValueError(f"{path}: names files that are JSON again, not weights: {inner}")
    faults = [f"{n} is not in {places[n]}" for n in places if n not in shards[places[n]].arrays]
    faults += [
        f"{n} is in {name}, but not in the index"
        for name, shard in shards.items()
        for n in shard.arrays
        if places.get(n) != name
    ]
    kinds: set[Kind] = {shard.kind for shard in shards.values()}
    if len(kinds) > 1:
        faults.append(f"the files are of different kinds: {', '.join(sorted(kinds))}")
    if faults:
        raise ValueError(f"{path}: does not fit its files: {'; '.join(faults[:8])}")
    extras = {key: value for shard in shards.values() for key, value in shard.extras.items()}
    arrays = {name: shards[place].arrays[name] for name, place in places.items()}
    return WeightsFile(kind=kinds.pop(), arrays=arrays, extras=extras)


def _is_file_name(name: Any) -> bool:
    """Whether it stays in the folder, on any system."""
    return isinstance(name, str) and name not in ("", ".", "..") and not set(name) & set("/\\:\0")


def write_safetensors(
    path: str | os.PathLike[str],
    arrays: Mapping[str, Shaped[np.ndarray, "..."]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write arrays, with the dtypes they have, for every library that reads safetensors.

    Raises:
      FileNotFoundError: there is no folder to write into.
      ValueError: lists all names and dtypes that the format does not have.
    """
    import safetensors.numpy

    arrays = _checked(path, arrays)
    with _whole(path) as draft:
        safetensors.numpy.save_file(dict(arrays), draft, dict(metadata) if metadata else None)


def write_torch(
    path: str | os.PathLike[str], arrays: Mapping[str, Shaped[np.ndarray, "..."]]
) -> None:
    """Write arrays as a state dict, which `torch.load(path, weights_only=True)` gives back.

    Raises:
      FileNotFoundError: there is no folder to write into.
      ValueError: lists all names and dtypes that the format does not have.
    """
    arrays = _checked(path, arrays)
    with _whole(path) as draft:
        write_torch_zip(draft, arrays)


def write_npz(
    path: str | os.PathLike[str], arrays: Mapping[str, Shaped[np.ndarray, "..."]]
) -> None:
    """Write arrays for `np.load`, as big_vision does: bfloat16 as `V2`, nothing compressed.

    Raises:
      FileNotFoundError: there is no folder to write into.
      ValueError: lists all names and dtypes that the format does not have.
    """
    arrays = _checked(path, arrays)
    with _whole(path) as draft:
        write_npz_file(draft, arrays)


def _checked(
    path: str | os.PathLike[str], arrays: Mapping[str, Shaped[np.ndarray, "..."]]
) -> dict[str, Shaped[np.ndarray, "..."]]:
    """The arrays, contiguous and in this machine's byte order."""
    known = set(_SAFETENSORS.values())
    faults = [f"{n} ({a.dtype})" for n, a in arrays.items() if _native(a.dtype) not in known]
    if faults:
        dtypes = ", ".join(sorted(dtype.name for dtype in known))
        raise ValueError(f"{path}: dtypes with no place in it: {', '.join(faults)}; has {dtypes}")
    bad = [name for name in arrays if not name or "\0" in name or name == "__metadata__"]
    if bad:
        raise ValueError(f"{path}: names with no place in it: {', '.join(map(repr, bad))}")
    # asarray, since ascontiguousarray makes vectors of scalars; safetensors takes the memory as is.
    return {n: np.asarray(a, dtype=_native(a.dtype), order="C") for n, a in arrays.items()}


def _native(dtype: np.dtype) -> np.dtype:
    return dtype if dtype.isnative else dtype.newbyteorder("=")


@contextlib.contextmanager
def _whole(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """A file to write that takes the place of `path` when all is well, and else is removed."""
    path = pathlib.Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {path.parent} to write into")
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        yield draft
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
