"""What a pickle of PyTorch may hold: inert values, and the few functions that make them."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

STORAGES: Mapping[str, np.dtype] = {
    "torch.DoubleStorage": np.dtype(np.float64),
    "torch.FloatStorage": np.dtype(np.float32),
    "torch.HalfStorage": np.dtype(np.float16),
    "torch.BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch.LongStorage": np.dtype(np.int64),
    "torch.IntStorage": np.dtype(np.int32),
    "torch.ShortStorage": np.dtype(np.int16),
    "torch.CharStorage": np.dtype(np.int8),
    "torch.ByteStorage": np.dtype(np.uint8),
    "torch.BoolStorage": np.dtype(np.bool_),
}
"""PyTorch's class for a run of numbers, and what they are."""
SCRIPT = "__torch__."
"""Begins the names of TorchScript's classes, which exist in the archive alone."""

_DTYPES = {f"torch.{dtype.name}" for dtype in STORAGES.values()}
_MAX_DIMENSIONS = 32
_MAX_REPEATED = 1 << 20
"""Elements that a tensor may have beyond those of its storage (`expand` makes such tensors)."""
_MAX_MESSAGE = 600


class Refused(ValueError):
    """What the pickle says can be read, but is not followed."""

    def __init__(self, fault: str):
        # The words are partly the file's: no escape sequences, no megabytes.
        shown = fault if len(fault) <= _MAX_MESSAGE else f"{fault[:_MAX_MESSAGE]} ..."
        super().__init__("".join(c if c.isprintable() else "?" for c in shown))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Name:
    """A class or function that the pickle names; nothing was looked up."""

    name: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Storage:
    """A run of numbers in a member of the archive, not yet read."""

    key: str
    """Last part of the member's name."""
    dtype: np.dtype
    elements: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tensor:
    """A window on a storage that lies wholly inside it."""

    storage: Storage
    offset: int
    """Elements before the first."""
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    """Elements from one index to the next."""


@dataclasses.dataclass(kw_only=True)
class ScriptObject:
    """What is left of an object of TorchScript: the name of its class, and its attributes."""

    name: str
    attributes: dict[str, Any] | None = None


def refuse(what: str) -> Refused:
    """The error for a file that wants more than tensors; `what` is named in it."""
    return Refused(
        f"asks for {what[:200]}: refused; nothing in it was run. Weights need tensors and plain "
        "containers only: if you trust the file, save `model.state_dict()` of it with torch.save"
    )


def called(value: Any) -> str:
    """What to call a value in a message: never its contents, which may be endless."""
    return value.name if isinstance(value, Name) else f"a value of type {type(value).__name__}"


def known(name: str) -> Name:
    """The name, if weights need it.

    Raises:
      Refused: they do not.
    """
    if name in FUNCTIONS or name in STORAGES or name in _DTYPES or name.startswith(SCRIPT):
        return Name(name=name)
    raise refuse(name)


def make_storage(identity: Any, sizes: Mapping[str, int]) -> Storage:
    """A storage from its persistent id: ("storage", class, key, device, elements).

    Raises:
      Refused: it is of another form, or not in the archive with these sizes.
    """
    match identity:
        case ("storage", Name(name=name), str(key), str(), int(elements)) if name in STORAGES:
            dtype = STORAGES[name]
        case _:
            raise Refused("has a persistent id that is not that of a storage")
    if key not in sizes:
        raise Refused(f"lacks the member of storage {key!r}")
    if not 0 <= elements * dtype.itemsize <= sizes[key]:
        raise Refused(f"claims {elements} {dtype} in storage {key!r}, which has {sizes[key]} bytes")
    return Storage(key=key, dtype=dtype, elements=elements)


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> Tensor:
    if not isinstance(storage, Storage):
        raise Refused("has a tensor without a storage")
    if not (_is_sizes((offset,)) and _is_sizes(shape) and _is_sizes(strides)):
        raise Refused("has a tensor whose shape, strides or offset are not sizes")
    what = f"has a tensor of shape {shape}, strides {strides} and offset {offset}"
    # requires_grad and hooks change no number; the bits in a third entry (conj, neg) would.
    if len(shape) != len(strides) or rest[2:] not in ((), ({},), (None,)):
        raise Refused(f"{what} in a form that is not read")
    elements = math.prod(shape)
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if not (last < storage.elements if elements else offset <= storage.elements):
        raise Refused(f"{what}: not inside storage {storage.key!r} of {storage.elements} elements")
    if elements > storage.elements + _MAX_REPEATED:
        raise Refused(
            f"{what}: it repeats the {storage.elements} elements of storage {storage.key!r} too "
            "often; save its .contiguous()"
        )
    return Tensor(storage=storage, offset=offset, shape=shape, strides=strides)


def _is_sizes(value: Any) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) <= _MAX_DIMENSIONS
        and all(type(size) is int and size >= 0 for size in value)
    )


def _parameter(tensor: Any, requires_grad: Any, hooks: Any) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise Refused("has a parameter without a tensor")
    return tensor


def _ordered_dict() -> dict[Any, Any]:
    return {}


def _size(lengths: Any) -> tuple[Any, ...]:
    if not isinstance(lengths, (list, tuple)):
        raise Refused("has a torch.Size without lengths")
    return tuple(lengths)


def _list(values: Any) -> Any:
    """The list itself, which TorchScript wraps to keep its type."""
    return values


def _tagged(value: Any, kind: Any) -> Any:
    """The list or dict itself, which TorchScript tags with its type in words."""
    return value


FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "collections.OrderedDict": _ordered_dict,
    "torch.Size": _size,
    "torch.jit._pickle.build_intlist": _list,
    "torch.jit._pickle.build_doublelist": _list,
    "torch.jit._pickle.build_boollist": _list,
    "torch.jit._pickle.build_tensorlist": _list,
    "torch.jit._pickle.restore_type_tag": _tagged,
}
"""All that a pickle can have done, each by a function of this module."""
