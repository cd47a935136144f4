"""What an embedding depends on, as hashes: nothing that another model made is ever used."""

import dataclasses
import hashlib
import string
from typing import Any

import jax
import numpy as np
from etils import epath

from clip_jax import tree
from clip_jax.eval.tasks import TASKS

_PROBES = (
    "",
    "a photo of a cat.",
    "Ünïcode — 猫 🐈, 12345!",
    "x" * 300,
    "don't\nSTOP  <b>&amp;</b>",
)


def weights_mark(config: Any, params: Any) -> str:
    """Of a model's architecture and every parameter, whatever devices hold them."""
    mark = hashlib.sha256(repr(config).encode())
    for path, leaf in zip(tree.paths(params), jax.tree.leaves(params), strict=True):
        array = np.asarray(leaf)
        mark.update(f"{path} {array.dtype} {array.shape}".encode())
        mark.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return mark.hexdigest()


def recipe_mark(recipe: Any) -> str:
    """Of the preprocessing of pictures."""
    return hashlib.sha256(repr(recipe).encode()).hexdigest()


def tokenizer_mark(tokenizer: Any) -> str:
    """Of a tokenizer's fields, of the contents of files that they name, and of what it does.

    So a vocabulary may move, but not change.
    """
    mark = hashlib.sha256(type(tokenizer).__name__.encode())
    names = [field.name for field in dataclasses.fields(tokenizer)] if _is_config(tokenizer) else []
    for name in names:
        value = getattr(tokenizer, name)
        mark.update(f"{name} ".encode())
        mark.update(_contents(value) or repr(value).encode("utf-8", "backslashreplace"))
    try:
        mark.update(np.asarray(tokenizer(list(_PROBES)), np.int64).tobytes())
    except ValueError as fault:  # A model without a vocabulary; embedding texts will say so.
        mark.update(str(fault).encode())
    return mark.hexdigest()


def same_ids(first: Any, other: Any) -> bool:
    """Whether two tokenizers make the same of texts, of whatever kind and files they are.

    It is tried on several hundred words and signs: two vocabularies would differ in many of these.
    """
    texts = [*_PROBES, *string.printable, *(task.name for task in TASKS.values())]
    return np.array_equal(np.asarray(first(texts)), np.asarray(other(texts)))


def _is_config(tokenizer: Any) -> bool:
    return dataclasses.is_dataclass(tokenizer)


def _contents(value: Any) -> bytes | None:
    if not isinstance(value, str) or not value:
        return None
    try:
        path = epath.Path(value).expanduser()
        return hashlib.sha256(path.read_bytes()).digest() if path.is_file() else None
    except (OSError, ValueError):
        return None
