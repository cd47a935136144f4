"""PyTorch's zip files: which tensors of one are the weights, and how to read a tensor."""

import dataclasses
import sys
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
from jaxtyping import Shaped

from clip_jax.pretrained.archive import Archive
from clip_jax.pretrained.torch_pickle import unpickle
from clip_jax.pretrained.torch_values import Refused, ScriptObject, Tensor

_PICKLE = "/data.pkl"
_LARGEST_PICKLE = 64 << 20
"""Bytes; a model of ten thousand tensors needs two million."""
_WRAPPERS = ("module.", "_orig_mod.")
"""Put before all names by DistributedDataParallel and by torch.compile."""
_DEEPEST = 100
_MOST = 200_000
"""Attributes visited: a few objects that hold each other could make endless names."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TorchZip:
    """The weights in a file of torch.save or torch.jit.save."""

    kind: Literal["torch", "torchscript"]
    archive: Archive
    folder: str
    """The members whose names begin so are storages."""
    swapped: bool
    """Whether the file's numbers have the other byte order than this machine."""
    tensors: Mapping[str, Tensor]
    """By the names of `module.state_dict()`."""
    extras: Mapping[str, Any]
    """Numbers and strings found beside the tensors."""

    def read(self, name: str) -> Shaped[np.ndarray, "..."]:
        """The tensor in memory of its own, contiguous.

        Raises:
          ValueError: its bytes are cut off or damaged.
        """
        tensor = self.tensors[name]
        dtype, strides = tensor.storage.dtype, tensor.strides
        if 0 in tensor.shape:
            return np.empty(tensor.shape, dtype)
        span = 1 + sum((n - 1) * step for n, step in zip(tensor.shape, strides, strict=True))
        raw = self.archive.read(
            self.folder + tensor.storage.key,
            start=tensor.offset * dtype.itemsize,
            size=span * dtype.itemsize,
        )
        if self.swapped:
            raw = raw.view(f"u{dtype.itemsize}").byteswap().view(np.uint8)
        # NumPy counts on bools that are 0 or 1.
        flat = raw != 0 if dtype == np.bool_ else raw.view(dtype)
        window = np.lib.stride_tricks.as_strided(
            flat, tensor.shape, [step * flat.itemsize for step in strides]
        )
        return np.asarray(window, order="C")  # copies if strides or repeats ask for it


def is_torch_zip(archive: Archive) -> bool:
    """Whether torch.save or torch.jit.save may have written it."""
    return any(name.endswith(_PICKLE) for name in archive.members)


def open_torch_zip(archive: Archive) -> TorchZip:
    """The weights of an archive; storages stay unread, and code in it stays unlooked at.

    Of a dict these are its tensors, or those under `state_dict`, or of its one other entry that
    is a dict of tensors (never of an optimizer). Of a TorchScript module these are the tensors
    among its attributes and those of its modules; as only its code tells buffers from other
    tensors, the latter are there too.

    Raises:
      ValueError: the pickle asks for more than tensors, or it is not clear which are the weights.
    """
    roots = [name for name in archive.members if name.endswith(_PICKLE) and name.count("/") == 1]
    if len(roots) != 1:
        raise ValueError(f"{archive.path}: has {len(roots)} members FOLDER/data.pkl, needs one")
    prefix = roots[0].removesuffix("data.pkl")
    order = _read_small(archive, f"{prefix}byteorder", sys.byteorder.encode()).decode("latin-1")
    if order not in ("little", "big"):
        raise ValueError(f"{archive.path}: its byte order is {order[:20]!r}: little or big, please")
    try:
        # TorchScript's constants hold no weights, but what is refused there is refused.
        if f"{prefix}constants.pkl" in archive.members:
            _unpickle(archive, f"{prefix}constants.pkl", f"{prefix}constants/")
        root = _unpickle(archive, roots[0], f"{prefix}data/")
        script = isinstance(root, ScriptObject)
        tensors, extras = _flatten(root) if script else _choose(root)
    except Refused as fault:
        raise Refused(f"{archive.path}: {fault}") from fault
    return TorchZip(
        kind="torchscript" if script else "torch",
        archive=archive,
        folder=f"{prefix}data/",
        swapped=order != sys.byteorder,
        tensors=_unwrap(tensors),
        extras=extras,
    )


def _read_small(archive: Archive, name: str, default: bytes) -> bytes:
    """A member that must fit in memory whatever it claims."""
    if name not in archive.members:
        return default
    claimed = archive.members[name].file_size
    if claimed > _LARGEST_PICKLE:
        raise ValueError(f"{archive.path}: {name!r} claims {claimed} bytes: no weights need that")
    return archive.read(name).tobytes()


def _unpickle(archive: Archive, name: str, storages: str) -> Any:
    sizes = {
        member.removeprefix(storages): info.file_size
        for member, info in archive.members.items()
        if member.startswith(storages)
    }
    return unpickle(_read_small(archive, name, b""), sizes)


def _choose(root: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a state dict or of a training checkpoint, and the plain values."""
    if not isinstance(root, dict):
        raise Refused(f"holds a {type(root).__name__} instead of a dict of named tensors")
    nested = {
        name: value
        for name, value in root.items()
        if isinstance(value, dict) and _tensors_of(value) and "optim" not in str(name)
    }
    if isinstance(root.get("state_dict"), dict):
        chosen = root["state_dict"]
    elif _tensors_of(root) and not nested:
        chosen = root
    elif len(nested) == 1 and not _tensors_of(root):
        (chosen,) = nested.values()
    elif nested:
        found = ", ".join(f"{str(name)!r} ({len(_tensors_of(d))})" for name, d in nested.items())
        raise Refused(
            f"holds {len(_tensors_of(root))} tensors and these dicts of tensors: {found}; which "
            "are the weights? Save those alone, or under 'state_dict'"
        )
    else:
        raise Refused(f"holds no dict of tensors; its entries: {_entries(root)}")
    tensors = _tensors_of(chosen)
    nameless = [name for name in tensors if not isinstance(name, str)]
    if nameless or not tensors:
        raise Refused(
            f"names tensors by other things than text: {nameless[:5]}"
            if nameless
            else f"holds no tensors under 'state_dict'; its entries there: {_entries(chosen)}"
        )
    return tensors, {**_plain_of(chosen), **_plain_of(root)}


def _entries(values: dict[Any, Any]) -> str:
    shown = [f"{str(name)[:40]!r} ({type(value).__name__})" for name, value in values.items()]
    return ", ".join(shown[:12]) + (" ..." if len(shown) > 12 else "") or "none"


def _tensors_of(values: dict[Any, Any]) -> dict[Any, Tensor]:
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def _plain_of(values: dict[Any, Any]) -> dict[str, Any]:
    plain = (bool, int, float, str)
    return {str(name): value for name, value in values.items() if isinstance(value, plain)}


def _flatten(root: ScriptObject) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and plain values of a TorchScript module and its modules, names joined by dots."""
    tensors: dict[str, Tensor] = {}
    extras: dict[str, Any] = {}
    for visited, (name, value) in enumerate(_attributes(root)):
        if visited > _MOST:
            raise Refused(f"has more than {_MOST} attributes")
        if isinstance(value, Tensor):
            tensors[name] = value
        # Each module has a `training` flag of its own, which says nothing of the weights.
        elif isinstance(value, (bool, int, float, str)) and not f".{name}".endswith(".training"):
            extras[name] = value
    if not tensors:
        raise Refused(f"holds an object of {root.name} without tensors")
    return tensors, extras


def _attributes(root: ScriptObject) -> Iterator[tuple[str, Any]]:
    """Name and value of each attribute, a module's own right after it."""
    inside = [("", iter((root.attributes or {}).items()))]
    while inside:
        prefix, items = inside[-1]
        for name, value in items:
            yield f"{prefix}{name}", value
            if isinstance(value, ScriptObject):
                inside.append((f"{prefix}{name}.", iter((value.attributes or {}).items())))
                break
        else:
            inside.pop()
        if len(inside) > _DEEPEST:
            raise Refused(f"has modules nested more than {_DEEPEST} deep, or one inside itself")


def _unwrap(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names without the wrappers that all of them carry."""
    for prefix in _WRAPPERS * 2:
        if all(name.startswith(prefix) and name != prefix for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors
