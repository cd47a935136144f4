"""How a model wants its pictures: a frozen recipe, and the normalisation run on the device."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

if TYPE_CHECKING:
    from PIL import Image

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """Preprocessing for evaluation and use; `data` augments by `Augment` to the same size."""

    size: int = 224
    """Side of the square that the model sees, in pixels."""
    resize: Literal["shortest", "squash"] = "shortest"
    """Shorter side to `size`, then the middle; or both sides to `size`."""
    mean: tuple[float, float, float] = OPENAI_MEAN
    """Of red, green, blue, in units of the full range (0 to 1)."""
    std: tuple[float, float, float] = OPENAI_STD

    def __post_init__(self):
        if self.size < 1:
            raise ValueError(f"Recipe.size must be at least 1 pixel, got {self.size}")
        if min(self.std) <= 0:
            raise ValueError(f"Recipe.std must be above 0, got {self.std}")

    def __call__(
        self, image: bytes | Image.Image | np.ndarray
    ) -> UInt8[np.ndarray, "{self.size} {self.size} 3"]:
        """One picture, cut and resized exactly as Pillow does it; not yet normalised.

        Args:
          image: an encoded file's bytes, a Pillow image of any mode, or uint8 (H, W, 3) or (H, W).

        Raises:
          ValueError: it cannot be decoded, or has another shape or type; the message says why.
        """
        from clip_jax.preprocess import geometry

        pixels = geometry.as_rgb(image)
        fit = geometry.shortest_side if self.resize == "shortest" else geometry.squash
        return fit(pixels, self.size)


def normalize(
    images: UInt8[Array, "*B height width 3"], recipe: Recipe
) -> Float[Array, "*B height width 3"]:
    """(images / 255 - mean) / std, in float32 whatever the model computes in."""
    channels = (1,) * (images.ndim - 1) + (3,)
    mean, std = (jnp.array(v, jnp.float32).reshape(channels) for v in (recipe.mean, recipe.std))
    return (images.astype(jnp.float32) / 255 - mean) / std
