"""Features of tensorflow-datasets: what there is, under which path, and what it is good for."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from clip_jax.config import nearest


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A feature without parts."""

    key: str
    """Its name in the protocol buffer."""
    feature: Any
    depth: int
    """Number of sequences that it lies in."""

    def __str__(self) -> str:
        name = type(self.feature).__name__
        if name == "Tensor":
            name += f" {self.feature.np_dtype.name}{list(self.feature.shape)}"
        return "Sequence of " * self.depth + name


def choose(features: Any, wanted: Mapping[str, str | None]) -> dict[str, Leaf]:
    """The features for the roles "image", "text" and "label", without those that are None.

    Raises:
      ValueError: lists all that do not exist or do not fit, with the nearest and what there is.
    """
    there = dict(_leaves(features))
    fits = {"image": _is_image, "text": _is_text, "label": _is_label}
    paths = {role: path for role, path in wanted.items() if path is not None}
    faults = []
    for role, path in paths.items():
        if path not in there:
            faults.append(f"no feature {path!r} for the {role}{nearest(path, there)}")
        elif not fits[role](there[path]):
            faults.append(f"{path!r} cannot be the {role}: it is {there[path]}")
    if faults:
        has = ", ".join(f"{path} ({leaf})" for path, leaf in there.items())
        raise ValueError(f"{'; '.join(faults)}; it has {has}")
    return {role: there[path] for role, path in paths.items()}


def _leaves(feature: Any, path: tuple[str, ...] = (), depth: int = 0) -> Iterator[tuple[str, Leaf]]:
    """Dotted path and place of every feature that has no parts itself."""
    from tensorflow_datasets import features

    if isinstance(feature, features.FeaturesDict):
        for name, part in feature.items():
            yield from _leaves(part, (*path, name), depth)
    elif isinstance(feature, features.Sequence):
        yield from _leaves(feature.feature, path, depth + 1)
    else:
        # Sequences in a sequence are stored flat, with their lengths beside them.
        tail = ("ragged_flat_values",) if depth > 1 else ()
        yield ".".join(path), Leaf("/".join((*path, *tail)), feature, depth)


def _is_image(leaf: Leaf) -> bool:
    from tensorflow_datasets import features

    feature = leaf.feature
    if leaf.depth:
        return False
    if isinstance(feature, features.Image):
        return feature.np_dtype != np.float32  # Floats are stored as the bytes of a PNG.
    if feature.np_dtype != np.uint8 or len(feature.shape) != 3 or feature.shape[2] not in (1, 3):
        return False
    stored = feature.get_serialized_info()  # Of another shape where it is compressed.
    return feature.shape.count(None) < 2 and getattr(stored, "shape", None) == feature.shape


def _is_text(leaf: Leaf) -> bool:
    dtype = leaf.feature.np_dtype
    is_string = isinstance(dtype, (np.dtype, type)) and np.dtype(dtype).kind in "OSU"
    return is_string and leaf.feature.shape == ()


def _is_label(leaf: Leaf) -> bool:
    from tensorflow_datasets import features

    return leaf.depth == 0 and isinstance(leaf.feature, features.ClassLabel)
