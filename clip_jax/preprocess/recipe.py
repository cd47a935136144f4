"""How a model wants its pictures: a frozen recipe, and the normalisation run on the device."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from clip_jax.config import require
from clip_jax.preprocess.naflex import NaflexRecipe

if TYPE_CHECKING:
    from PIL import Image

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """Preprocessing for evaluation and use; `data` augments by `Augment` to the same size."""

    size: int = 224
    """Side of the square that the model sees, in pixels."""
    resize: Literal["shortest", "squash", "longest"] = "shortest"
    """Shorter side to `size`, then the middle; both sides to `size`; or the longer side to
    `size`, then `fill` on both sides."""
    mean: tuple[float, float, float] = OPENAI_MEAN
    """Of red, green, blue, in units of the full range (0 to 1)."""
    std: tuple[float, float, float] = OPENAI_STD

    interpolation: Literal["bicubic", "bilinear", "bilinear_plain"] = "bicubic"
    """The first two as Pillow, with antialiasing; "bilinear_plain" as TensorFlow without it, cut
    down to whole values, which big_vision does."""
    fill: int = 0
    """Grey level of the padding that "longest" adds, 0 to 255; the other ways add none."""

    def __post_init__(self):
        require(
            self,
            ("size", self.size >= 1, "at least 1 pixel"),
            ("std", min(self.std) > 0, "above 0"),
            ("fill", 0 <= self.fill <= 255, "from 0 to 255"),
        )

    def __call__(
        self, image: bytes | Image.Image | np.ndarray
    ) -> UInt8[np.ndarray, "{self.size} {self.size} 3"]:
        """One picture, cut and resized exactly as the original does it; not yet normalised.

        Args:
          image: an encoded file's bytes, a Pillow image of any mode, or uint8 (H, W, 3) or (H, W).

        Raises:
          ValueError: it cannot be decoded, or has another shape or type; the message says why.
        """
        from clip_jax.preprocess import geometry

        pixels = geometry.as_rgb(image)
        if self.resize == "longest":
            return geometry.longest_side(pixels, self.size, self.interpolation, self.fill)
        fit = geometry.shortest_side if self.resize == "shortest" else geometry.squash
        return fit(pixels, self.size, self.interpolation)


RecipeConfig = Recipe | NaflexRecipe


@runtime_checkable
class _Patches(Protocol):
    """`FlatPatches`, and `models.vit.Patches`: named tuples."""

    @property
    def pixels(self) -> Any: ...

    @property
    def grid(self) -> Any: ...

    def _replace(self, **fields: Any) -> Any: ...


Patched = TypeVar("Patched", bound=_Patches)


def normalize(
    images: UInt8[Array, "*B height width 3"] | Patched, recipe: RecipeConfig
) -> Float[Array, "*B height width 3"] | Patched:
    """(images / 255 - mean) / std, in float32 whatever the model computes in.

    Patches, a named tuple of uint8 `pixels` (..., L, 3 * patch_size ** 2) and their `grid`, come
    back as the same kind of tuple.
    """
    if isinstance(images, _Patches):
        return images._replace(pixels=_normalize(images.pixels, recipe))
    return _normalize(images, recipe)


def _normalize(
    pixels: UInt8[Array, "*B channels"], recipe: RecipeConfig
) -> Float[Array, "*B channels"]:
    """Channels are innermost, so those of a flattened patch are red, green, blue, red, ..."""
    shape, times = (1,) * (pixels.ndim - 1) + (-1,), pixels.shape[-1] // 3
    mean, std = (
        jnp.array(value * times, jnp.float32).reshape(shape) for value in (recipe.mean, recipe.std)
    )
    return (pixels.astype(jnp.float32) / 255 - mean) / std
