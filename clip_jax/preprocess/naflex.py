"""SigLIP 2 NaFlex: a picture keeps its proportions and becomes a row of patches."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Array, Int, Shaped

from clip_jax.config import require

if TYPE_CHECKING:
    from PIL import Image


class FlatPatches(NamedTuple):
    """Pictures of any proportions in one shape; the fields are those of `models.vit.Patches`.

    The first `grid[0] * grid[1]` rows of `pixels` are patches, row by row from the top left;
    the rest is padding.
    """

    pixels: Shaped[Array | np.ndarray, "*B L P"]
    """Each patch flattened as (row, column, channel); P = 3 * patch_size ** 2."""
    grid: Int[Array | np.ndarray, "*B 2"]
    """Rows and columns of patches."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class NaflexRecipe:
    """Preprocessing of a model that takes patches of any grid.

    Source: Tschannen et al. 2025, arXiv:2502.14786, section 2.4; sizes and pixels are those of
    transformers' Siglip2ImageProcessor on Pillow.
    """

    patch_size: int = 16
    """Height and width of one patch, in pixels."""
    max_patches: int = 256
    """Every picture fills at most this many, and is padded to exactly this many: L."""
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Of red, green, blue, in units of the full range (0 to 1)."""
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def __post_init__(self):
        require(
            self,
            ("patch_size", self.patch_size >= 1, "at least 1 pixel"),
            ("max_patches", self.max_patches >= 1, "at least 1"),
            ("std", min(self.std) > 0, "above 0"),
        )

    def __call__(self, image: bytes | Image.Image | np.ndarray) -> FlatPatches:
        """One picture as uint8 (max_patches, P), padded with zeros, and its int32 grid (2,).

        Args:
          image: an encoded file's bytes, a Pillow image of any mode, or uint8 (H, W, 3) or (H, W).

        Raises:
          ValueError: as `Recipe.__call__`.
        """
        from clip_jax.preprocess import geometry

        source, patch = geometry.as_rgb(image), self.patch_size
        rows, columns = fitted_grid(source.shape[0], source.shape[1], patch, self.max_patches)
        resized = geometry.resize(
            source, columns * patch, rows * patch, interpolation="bilinear"
        ).reshape(rows, patch, columns, patch, 3)
        pixels = np.zeros((self.max_patches, 3 * patch * patch), np.uint8)
        pixels[: rows * columns] = resized.swapaxes(1, 2).reshape(rows * columns, -1)
        return FlatPatches(pixels, np.array([rows, columns], np.int32))


def fitted_grid(height: int, width: int, patch_size: int, max_patches: int) -> tuple[int, int]:
    """Rows and columns of patches for a picture of `height` x `width` pixels, each at least 1.

    Both sides are scaled alike and rounded up to whole patches. The scale is the largest, up to
    100, for which they are at most `max_patches`, found by halving an interval until it is below
    1e-5. Starting and ending elsewhere would give other grids now and then, so transformers'
    bounds are kept.
    """

    def grid(scale: float) -> tuple[int, int]:
        rows, columns = (max(1, math.ceil(side * scale / patch_size)) for side in (height, width))
        return rows, columns

    fits, limit = 1e-6, 100.0
    while limit - fits >= 1e-5:
        middle = (fits + limit) / 2
        rows, columns = grid(middle)
        if rows * columns <= max_patches:
            fits = middle
        else:
            limit = middle
    return grid(fits)
