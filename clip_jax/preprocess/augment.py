"""Random changes of training pictures: a pure function of the picture, the size and a generator."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import UInt8

if TYPE_CHECKING:
    from PIL import Image


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augment:
    """A square crop, resized once; then perhaps mirrored and tinted.

    The crop's side is drawn uniformly from the whole numbers of pixels between `min_crop` and 1
    times the shorter side, and its place uniformly from all places. With `min_crop=1.0`, a square
    picture is only resized, and an oblong one loses nothing of its shorter side.
    """

    min_crop: float = 0.9
    """Least side of the crop, as a fraction of the shorter side: above 0, up to 1."""
    flip: bool = False
    """Mirror every second picture (left is right); wrong where pictures hold text or digits."""
    color_jitter: float = 0.0
    """Each channel is multiplied by its own factor, uniform in 1 - j to 1 + j; below 1."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"

    def __post_init__(self):
        faults = []
        if not 0 < self.min_crop <= 1:
            faults.append(f"min_crop must be above 0 and at most 1, got {self.min_crop}")
        if not 0 <= self.color_jitter < 1:
            faults.append(f"color_jitter must be from 0 to below 1, got {self.color_jitter}")
        if faults:
            raise ValueError("Augment: " + "; ".join(faults))

    def __call__(
        self, image: bytes | Image.Image | np.ndarray, size: int, rng: np.random.Generator
    ) -> UInt8[np.ndarray, "{size} {size} 3"]:
        """One random view of a picture.

        Args:
          image: an encoded file's bytes, a Pillow image, or uint8 (H, W, 3) or (H, W).
          size: side of the result, in pixels.
          rng: the same seven numbers are drawn whatever the fields say, so that switching one
            change on leaves the others as they were.

        Raises:
          ValueError: as `Recipe.__call__`.
        """
        from clip_jax.preprocess import geometry

        side, x, y, mirror, *tint = rng.random(7)
        # A JPEG is decoded at a reduced scale where the crop keeps at least `size` pixels.
        fraction = self.min_crop + (1 - self.min_crop) * side
        pixels = geometry.as_rgb(image, min_side=math.ceil((size + 2) / fraction))
        box = self._square(pixels.shape[0], pixels.shape[1], side, x, y)
        view = geometry.resize(pixels, size, size, box=box, interpolation=self.interpolation)
        if self.flip and mirror < 0.5:
            view = view[:, ::-1]
        if self.color_jitter:
            gain = 1 + self.color_jitter * (2 * np.array(tint, np.float32) - 1)
            view = np.minimum(view * gain.astype(np.float32) + 0.5, 255).astype(np.uint8)
        return np.ascontiguousarray(view)

    def _square(
        self, height: int, width: int, side: float, x: float, y: float
    ) -> tuple[int, int, int, int]:
        """Left, top, right, bottom; each draw in [0, 1) chooses among equally likely integers."""
        largest = min(height, width)
        least = max(1, round(self.min_crop * largest))
        pixels = least + int(side * (largest - least + 1))
        left, top = int(x * (width - pixels + 1)), int(y * (height - pixels + 1))
        return left, top, left + pixels, top + pixels
