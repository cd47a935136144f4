"""Random changes of training pictures: a pure function of the picture, the size and a generator."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Float, UInt8

from clip_jax.config import require

if TYPE_CHECKING:
    from PIL import Image

Box = tuple[int, int, int, int]
"""Left, top, right, bottom."""

_TINT, _TRIES, _JITTER, _GRAY = slice(4, 7), slice(7, 27), slice(27, 32), 32
"""Places among the numbers that are drawn; the first four are side, x, y and mirror."""
_DRAWS = 33
"""A new change appends its own: each number keeps its meaning, so old configs keep their views."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AreaCrop:
    """A part of the picture that need not be square: open_clip's crop, torchvision's in its way.

    Area and ratio are drawn up to ten times, until they fit into the picture; where they never do,
    the largest part in the middle is taken whose ratio is allowed. The result is squeezed to a
    square.
    """

    area: tuple[float, float] = (0.9, 1.0)
    """Least and largest share of the picture's area; uniform."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Least and largest width over height; its logarithm is uniform."""

    def __post_init__(self):
        require(
            self,
            ("area", 0 < self.area[0] <= self.area[1] <= 1, "two rising numbers, in (0, 1]"),
            ("ratio", 0 < self.ratio[0] <= self.ratio[1], "two rising numbers, above 0"),
        )

    def box(
        self, height: int, width: int, tries: Float[np.ndarray, "tries 2"], x: float, y: float
    ) -> Box:
        """The part that the draws, all in [0, 1), choose of a picture of this size."""
        (least, most), (slim, broad) = self.area, self.ratio
        pixels, spread, reach = height * width, broad / slim, most - least
        for size, shape in tries.tolist():
            area, ratio = pixels * (least + reach * size), slim * spread**shape
            columns, rows = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < columns <= width and 0 < rows <= height:
                left, top = int(x * (width - columns + 1)), int(y * (height - rows + 1))
                return left, top, left + columns, top + rows
        columns = min(width, max(1, round(height * broad)))
        rows = min(height, max(1, round(width / slim)))
        left, top = (width - columns) // 2, (height - rows) // 2
        return left, top, left + columns, top + rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Jitter:
    """Brightness, contrast and saturation, in random order, as Pillow and torchvision do them.

    Each is multiplied by its own factor, uniform in 1 - j to 1 + j.
    """

    brightness: float = 0.32
    contrast: float = 0.32
    saturation: float = 0.32
    probability: float = 0.8
    """Of changing a picture at all."""

    def __post_init__(self):
        require(
            self,
            ("brightness", 0 <= self.brightness <= 1, "from 0 to 1"),
            ("contrast", 0 <= self.contrast <= 1, "from 0 to 1"),
            ("saturation", 0 <= self.saturation <= 1, "from 0 to 1"),
            ("probability", 0 <= self.probability <= 1, "from 0 to 1"),
        )

    def __call__(
        self, view: UInt8[np.ndarray, "size size 3"], draws: Float[np.ndarray, "*draws"]
    ) -> UInt8[np.ndarray, "size size 3"]:
        """Changed by draws in [0, 1): whether, the order, and one for each of the three."""
        from PIL import Image, ImageEnhance

        whether, order, *places = draws.tolist()
        if whether >= self.probability:
            return view
        strengths = (self.brightness, self.contrast, self.saturation)
        kinds = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
        picture = Image.fromarray(view)
        for i in list(itertools.permutations(range(3)))[int(order * 6)]:
            if strengths[i]:
                picture = kinds[i](picture).enhance(1 + strengths[i] * (2 * places[i] - 1))
        return np.array(picture)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augment:
    """A crop, resized once; then perhaps mirrored, tinted, jittered and made grey, in this order.

    Without `crop` it is OpenAI's random square: its side is drawn uniformly from the whole numbers
    of pixels between `min_crop` and 1 times the shorter side, and its place uniformly from all
    places. With `min_crop=1.0`, a square picture is only resized, and an oblong one loses nothing
    of its shorter side. open_clip's is `crop=AreaCrop()`.
    """

    min_crop: float = 0.9
    """Least side of the square crop, as a fraction of the shorter side: above 0, up to 1."""
    crop: AreaCrop | None = None
    """In place of the square crop; then `min_crop` has no meaning."""
    flip: bool = False
    """Mirror every second picture (left is right); wrong where pictures hold text or digits."""
    color_jitter: float = 0.0
    """Each channel is multiplied by its own factor, uniform in 1 - j to 1 + j; below 1."""
    jitter: Jitter | None = None
    gray: float = 0.0
    """Probability of making a picture grey."""
    interpolation: Literal["bicubic", "bilinear", "opencv"] = "bicubic"
    """The first two as Pillow; "opencv" is bicubic, too, eight times as fast, but antialiases
    coarsely (whole factors only), and needs `pip install opencv-python-headless`."""

    def __post_init__(self):
        faults = []
        if not 0 < self.min_crop <= 1:
            faults.append(f"min_crop must be above 0 and at most 1, got {self.min_crop}")
        if not 0 <= self.color_jitter < 1:
            faults.append(f"color_jitter must be from 0 to below 1, got {self.color_jitter}")
        if not 0 <= self.gray <= 1:
            faults.append(f"gray must be from 0 to 1, got {self.gray}")
        if faults:
            raise ValueError("Augment: " + "; ".join(faults))

    def __call__(
        self,
        image: bytes | Image.Image | np.ndarray,
        size: int,
        rng: np.random.Generator,
        out: UInt8[np.ndarray, "{size} {size} 3"] | None = None,
    ) -> UInt8[np.ndarray, "{size} {size} 3"]:
        """One random view of a picture.

        Args:
          image: an encoded file's bytes, a Pillow image, or uint8 (H, W, 3) or (H, W).
          size: side of the result, in pixels.
          rng: the same number of draws is made whatever the fields say, so that switching one
            change on leaves the others as they were.
          out: contiguous; is filled and returned, in place of a new array.

        Raises:
          ValueError: as `Recipe.__call__`.
          ModuleNotFoundError: `interpolation="opencv"` without OpenCV.
        """
        draws = rng.random(_DRAWS)
        view = self._view(image, size, draws, out)
        if self.flip and draws[3] < 0.5:
            view = view[:, ::-1].copy()
        if self.color_jitter:
            gain = 1 + self.color_jitter * (2 * draws[_TINT].astype(np.float32) - 1)
            view = np.minimum(view * gain.astype(np.float32) + 0.5, 255).astype(np.uint8)
        if self.jitter:
            view = self.jitter(view, draws[_JITTER])
        if draws[_GRAY] < self.gray:
            view = _grey(view)
        if out is None or view is out:
            return view
        out[...] = view
        return out

    def _view(
        self,
        image: bytes | Image.Image | np.ndarray,
        size: int,
        draws: Float[np.ndarray, "*draws"],
        out: UInt8[np.ndarray, "{size} {size} 3"] | None,
    ) -> UInt8[np.ndarray, "{size} {size} 3"]:
        """Crop and resize; the crop of a JPEG is chosen first, then decoded no larger than needed.

        The same draws give the same crop of a JPEG and of its pixels.
        """
        from clip_jax.preprocess import geometry

        whole = geometry.jpeg_size(image) if isinstance(image, bytes) else None
        if whole is None:
            pixels = geometry.as_rgb(image)
            box = self._box(pixels.shape[0], pixels.shape[1], draws)
        else:
            left, top, right, bottom = self._box(*whole, draws)
            part = min(right - left, bottom - top)
            pixels = geometry.as_rgb(image, min_side=geometry.min_side_for(*whole, part, size))
            down, across = pixels.shape[0] / whole[0], pixels.shape[1] / whole[1]
            box = (left * across, top * down, right * across, bottom * down)
        way = self.interpolation
        return geometry.resize(pixels, size, size, box=box, interpolation=way, out=out)

    def _box(self, height: int, width: int, draws: Float[np.ndarray, "*draws"]) -> Box:
        side, x, y = draws[:3].tolist()
        if self.crop:
            return self.crop.box(height, width, draws[_TRIES].reshape(-1, 2), x, y)
        return self._square(height, width, side, x, y)

    def _square(self, height: int, width: int, side: float, x: float, y: float) -> Box:
        """Each draw in [0, 1) chooses among equally likely integers."""
        largest = min(height, width)
        least = max(1, round(self.min_crop * largest))
        pixels = least + int(side * (largest - least + 1))
        left, top = int(x * (width - pixels + 1)), int(y * (height - pixels + 1))
        return left, top, left + pixels, top + pixels


def _grey(view: UInt8[np.ndarray, "size size 3"]) -> UInt8[np.ndarray, "size size 3"]:
    from PIL import Image

    grey = np.asarray(Image.fromarray(view).convert("L"))
    return np.repeat(grey[..., None], 3, axis=2)
