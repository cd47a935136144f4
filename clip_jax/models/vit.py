"""The vision transformer: an image as a sequence of square patches."""

import dataclasses
from typing import Literal

import einops
import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from clip_jax.models.attention import Dense
from clip_jax.models.pooling import MapPool
from clip_jax.models.posemb import LearnedPositions, sincos_2d
from clip_jax.models.transformer import Stack, StackConfig, layer_norm


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """A vision transformer tower; the defaults are OpenAI's choices."""

    image_size: int = 224
    """Height and width of its input, in pixels."""
    patch_size: int = 16
    """Height and width of one patch, in pixels."""
    stack: StackConfig
    pool: Literal["class", "mean", "map"] = "class"
    """A class token, the mean over patches, or attention with one learned query."""
    positions: Literal["learned", "sincos"] = "learned"
    pre_norm: bool = True
    """A LayerNorm before the first block, as OpenAI's."""
    patch_bias: bool = False
    project: bool = True
    """A last matrix to the embedding size; without it the width must equal that size."""

    def __post_init__(self) -> None:
        if self.patch_size < 1 or self.image_size % self.patch_size:
            raise ValueError(
                f"image_size {self.image_size} is no multiple of patch_size {self.patch_size}"
            )

    @property
    def grid(self) -> int:
        """Patches along each side."""
        return self.image_size // self.patch_size


def patches(images: Float[Array, "B height width C"], size: int) -> Float[Array, "B L P"]:
    """Square patches row by row, each flattened as (row, column, channel)."""
    return einops.rearrange(images, "b (h p) (w q) c -> b (h w) (p q c)", p=size, q=size)


def patch_init(key, shape, dtype):
    """PyTorch's default for a convolution: uniform within fan_in ** -0.5, as OpenAI's conv1."""
    bound = shape[0] ** -0.5
    return nn.initializers.uniform(2 * bound)(key, shape, dtype) - bound


class ViT(nn.Module):
    """Images to one vector each, not yet normalised.

    Source: Dosovitskiy et al. 2020, arXiv:2010.11929; pre-norm layer and initial scales of
    patches, class token, positions and head as openai/CLIP, clip/model.py. Its blocks start at
    the scales that OpenAI gives the text blocks; for image blocks its code leaves PyTorch's.
    """

    cfg: ViTConfig
    embed_dim: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, images: Float[Array, "B height width 3"]) -> Float[Array, "B D"]:
        """`images` are normalised by the mean and standard deviation of the recipe.

        Raises:
          ValueError: images are not of the configured size.
        """
        cfg, width = self.cfg, self.cfg.stack.width
        if images.shape[1:3] != (cfg.image_size, cfg.image_size):
            raise ValueError(f"images are {images.shape[1:3]}, the tower takes {cfg.image_size}")
        embed = Dense(
            width, self.dtype, use_bias=cfg.patch_bias, kernel_init=patch_init, name="patch"
        )
        x = self._with_positions(embed(patches(images, cfg.patch_size)))
        if cfg.pre_norm:
            x = layer_norm(cfg.stack.norm_eps, self.dtype, "norm_pre")(x)
        stack = Stack(cfg.stack, self.dtype, name="stack")
        norm = layer_norm(cfg.stack.norm_eps, self.dtype, "norm")
        if cfg.pool == "class":
            pooled = norm(stack(x, ends=jnp.zeros((len(x), 1), jnp.int32)))
        elif cfg.pool == "mean":
            pooled = norm(stack(x)).mean(axis=1)
        else:
            pooled = MapPool(cfg.stack, self.dtype, name="pool")(norm(stack(x)))
        if not cfg.project:
            return pooled
        init = nn.initializers.normal(width**-0.5)
        head = Dense(self.embed_dim, self.dtype, use_bias=False, kernel_init=init, name="head")
        return head(pooled)

    def _with_positions(self, x: Float[Array, "B L W"]) -> Float[Array, "B M W"]:
        """Adds the class token, if there is one, and every token's position."""
        cfg, (batch, _, width) = self.cfg, x.shape
        std = width**-0.5
        if cfg.positions == "sincos":
            x = x + jnp.asarray(sincos_2d((cfg.grid, cfg.grid), width), x.dtype)[None]
        if cfg.pool == "class":
            init = nn.initializers.normal(std)
            token = self.param("class_embedding", init, (width,), jnp.float32)
            token = jnp.broadcast_to(token.astype(x.dtype), (batch, 1, width))
            x = jnp.concatenate([token, x], axis=1)
        if cfg.positions == "sincos":
            return x
        return LearnedPositions(x.shape[1], std, name="positions")(x)
