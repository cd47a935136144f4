"""Small copies of a few pictures, kept with an outcome for its report."""

from collections.abc import Sequence

import numpy as np

from clip_jax.data.sample import BadSampleError, Source
from clip_jax.preprocess.recipe import Recipe

SIDE = 96
"""Pixels."""


def thumbnails(
    source: Source, indices: Sequence[int], rows: Sequence[int]
) -> dict[str, np.ndarray]:
    """The arrays `pictures` and `picture_rows` of an outcome; those that cannot be read lack.

    Args:
      indices: position in the source of each row.
      rows: those that are wanted; each is taken once.
    """
    recipe = Recipe(size=SIDE)
    found: dict[int, np.ndarray] = {}
    for row in dict.fromkeys(rows):
        try:
            found[row] = recipe(source[indices[row]].image)
        except (BadSampleError, ValueError, OSError):
            continue
    pictures = np.stack(list(found.values())) if found else np.zeros((0, SIDE, SIDE, 3), np.uint8)
    return {"pictures": pictures, "picture_rows": np.array(list(found), np.int64)}
