"""Pictures made smaller once and for all, before training reads them many times."""

import dataclasses
import io
from typing import Literal

import numpy as np
from jaxtyping import UInt8

from clip_jax.config import require


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resize:
    """Pictures whose shorter side is longer than `size` are reduced to it and encoded again.

    The others stay as they are, byte for byte. Of a JPEG at least twice as large, libjpeg itself
    does the first part of the reduction.
    """

    size: int = 256
    """Pixels of the shorter side; the longer one is rounded down."""
    encoding: Literal["jpeg", "webp"] = "jpeg"
    quality: int = 95
    """1 to 100."""

    def __post_init__(self):
        require(
            self,
            ("size", self.size >= 1, "at least 1"),
            ("quality", 1 <= self.quality <= 100, "from 1 to 100"),
        )

    def __call__(self, image: bytes | UInt8[np.ndarray, "height width 3"]) -> bytes:
        """The picture as an encoded file.

        Args:
          image: an encoded file, or uint8 (height, width, 3).

        Raises:
          ValueError: it cannot be decoded, or not be encoded (WebP ends at 16,383 pixels a side).
        """
        from clip_jax.preprocess import geometry

        pixels = geometry.as_rgb(image, min_side=2 * self.size)
        height, width = pixels.shape[:2]
        short = min(height, width)
        if short > self.size:
            pixels = geometry.resize(
                pixels, width * self.size // short, height * self.size // short
            )
        elif isinstance(image, bytes):
            return image
        return self._encode(pixels)

    def _encode(self, pixels: UInt8[np.ndarray, "height width 3"]) -> bytes:
        if self.encoding == "jpeg":
            import simplejpeg

            pixels = np.ascontiguousarray(pixels)
            return simplejpeg.encode_jpeg(pixels, quality=self.quality, colorsubsampling="420")
        from PIL import Image

        data = io.BytesIO()
        Image.fromarray(pixels).save(data, "WEBP", quality=self.quality)
        return data.getvalue()
