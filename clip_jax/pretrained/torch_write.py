"""A state dict as torch.save writes it, without PyTorch."""

import math
import pathlib
import struct
import sys
import zipfile
from collections.abc import Mapping
from typing import IO

import numpy as np
from jaxtyping import Shaped

from clip_jax.pretrained.torch_values import STORAGES

_FOLDER = "archive"
_ALIGNMENT = 64
"""Storages begin at multiples of this, so that `torch.load(mmap=True)` can use them in place."""
_PADDING_ID = 0x4246
"""PyTorch's own id of an extra field that is padding."""
_LOCAL_HEADER = 30
_ZIP64_FIELD = 20


def write_torch_zip(path: pathlib.Path, arrays: Mapping[str, Shaped[np.ndarray, "..."]]) -> None:
    """Write arrays of the dtypes in `STORAGES`, one after the other; equal input, equal bytes."""
    with zipfile.ZipFile(path, "w") as file:
        _add(file, "data.pkl", np.frombuffer(_pickle(arrays), np.uint8))
        _add(file, "byteorder", np.frombuffer(sys.byteorder.encode(), np.uint8))
        for key, array in enumerate(arrays.values()):
            # reshape copies what is not contiguous.
            _add(file, f"data/{key}", array.reshape(-1).view(np.uint8))
        _add(file, "version", np.frombuffer(b"3\n", np.uint8))


def _add(file: zipfile.ZipFile, name: str, data: Shaped[np.ndarray, " bytes"]) -> None:
    """One uncompressed member whose content is aligned."""
    member = zipfile.ZipInfo(f"{_FOLDER}/{name}")
    stream: IO[bytes] | None = file.fp
    assert stream is not None
    first = stream.tell() + _LOCAL_HEADER + len(member.filename) + _ZIP64_FIELD + 4
    padding = -first % _ALIGNMENT
    member.extra = struct.pack("<HH", _PADDING_ID, padding) + bytes(padding)
    # Always with the field for members above 2 GiB: one layout, whatever the size.
    with file.open(member, "w", force_zip64=True) as out:
        out.write(data.data)


def _pickle(arrays: Mapping[str, Shaped[np.ndarray, "..."]]) -> bytes:
    """An OrderedDict of tensors in pickle protocol 2, the only one `weights_only` accepts."""
    classes = {dtype: name for name, dtype in STORAGES.items()}
    out = [b"\x80\x02", _global("collections.OrderedDict"), b")R("]
    for key, (name, array) in enumerate(arrays.items()):
        identity = _text("storage") + _global(classes[array.dtype]) + _text(str(key)) + _text("cpu")
        strides = [math.prod(array.shape[i + 1 :]) for i in range(array.ndim)]
        out += [
            _text(name),
            _global("torch._utils._rebuild_tensor_v2"),
            b"((" + identity + _whole(array.size) + b"tQ",
            _whole(0),
            _sizes(array.shape),
            _sizes(strides),
            b"\x89",  # requires_grad: False
            _global("collections.OrderedDict") + b")R",  # no hooks
            b"tR",
        ]
    return b"".join([*out, b"u."])


def _global(name: str) -> bytes:
    module, _, attribute = name.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


def _text(text: str) -> bytes:
    encoded = text.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def _whole(number: int) -> bytes:
    """An int of 0 to 2^63 - 1."""
    if number < 1 << 31:
        return b"J" + struct.pack("<i", number)
    return b"\x8a\x08" + struct.pack("<q", number)


def _sizes(sizes: tuple[int, ...] | list[int]) -> bytes:
    return b"(" + b"".join(_whole(int(size)) for size in sizes) + b"t"
