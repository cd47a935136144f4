"""The vision transformer: an image as a sequence of square patches."""

import dataclasses
from functools import partial
from typing import Literal, NamedTuple

import einops
import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from clip_jax.models.attention import Dense
from clip_jax.models.draws import Draws, key_words, row_words
from clip_jax.models.pooling import MapPool
from clip_jax.models.posemb import LearnedPositions, NaflexPositions, sincos_2d
from clip_jax.models.transformer import Fetch, Stack, StackConfig, layer_norm


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """A vision transformer tower; the defaults are OpenAI's choices."""

    image_size: int = 224
    """Height and width of its input, in pixels."""
    patch_size: int = 16
    """Height and width of one patch, in pixels."""
    trim: bool = False
    """Leave out pixels beyond the last whole patch, as SigLIP SO400M/14 does at 384."""
    stack: StackConfig
    pool: Literal["class", "mean", "map"] = "class"
    """A class token, the mean over patches, or attention with one learned query."""
    class_token: bool | None = None
    """A token beside the patches; None: exactly when it is pooled. CLIPA's is there, not pooled."""
    positions: Literal["learned", "sincos", "naflex"] = "learned"
    """A table of one image size, fixed sines, or a table resized to the grid of each image: the
    tower then takes `Patches` of any proportions (SigLIP 2 NaFlex)."""
    pre_norm: bool = True
    """A LayerNorm before the first block, as OpenAI's."""
    norm_after_pool: bool = False
    """Pool 'mean' only: the mean is taken first and then normalised, as CLIPA's."""
    patch_bias: bool = False
    project: bool = True
    """A last matrix to the embedding size; without it the width must equal that size."""
    patch_dropout: float = 0.0
    """Share of the patches of each image, chosen at random, that training leaves out; the class
    token stays. Li et al. 2022, arXiv:2212.00794 (FLIP), section 3."""

    def __post_init__(self) -> None:
        whole = self.patch_size > 0 and self.image_size % self.patch_size == 0
        if not whole and not (self.trim and 0 < self.patch_size <= self.image_size):
            raise ValueError(
                f"image_size {self.image_size} is no multiple of patch_size {self.patch_size}"
            )
        if self.pool == "class" and self.class_token is False:
            raise ValueError("pool 'class' needs a class token")
        if self.norm_after_pool and self.pool != "mean":
            raise ValueError(f"norm_after_pool is for pool 'mean', not {self.pool!r}")
        if self.positions == "naflex" and self.pool != "map":
            raise ValueError("positions 'naflex' needs pool 'map': others would count the padding")
        if self.has_class_token and self.pool == "map":
            raise ValueError("pool 'map' takes no class token")
        if not 0 <= self.patch_dropout < 1:
            raise ValueError(f"patch_dropout must lie in [0, 1), got {self.patch_dropout}")
        if self.patch_dropout and self.positions == "naflex":
            raise ValueError("patch_dropout is not for positions 'naflex': images are padded there")
        if self.patch_dropout and not self.kept_patches:
            raise ValueError(
                f"patch_dropout {self.patch_dropout} leaves none of {self.grid}^2 patches"
            )

    @property
    def grid(self) -> int:
        """Patches along each side."""
        return self.image_size // self.patch_size

    @property
    def kept_patches(self) -> int:
        """Patches of an image that are computed in training."""
        return round((1 - self.patch_dropout) * self.grid**2)

    @property
    def has_class_token(self) -> bool:
        """Whether a token stands before the patches."""
        return self.pool == "class" if self.class_token is None else self.class_token


class Patches(NamedTuple):
    """Images of any proportions as rows of patches, for `positions="naflex"`.

    Image b has `grid[b, 0] * grid[b, 1]` patches, row by row from the top left; what follows in
    its row of `pixels` is padding, which changes nothing.
    """

    pixels: Shaped[Array | np.ndarray, "B L P"]
    """Each patch flattened as (row, column, channel); P = 3 * patch_size ** 2."""
    grid: Int[Array | np.ndarray, "B 2"]
    """Rows and columns of patches, at least 1 each."""


def patches(images: Float[Array, "B height width C"], size: int) -> Float[Array, "B L P"]:
    """Whole square patches row by row, each flattened as (row, column, channel)."""
    height, width = (side // size * size for side in images.shape[1:3])
    images = images[:, :height, :width]
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
    fetch: Fetch | None = None
    """Of the stack's layers."""

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "B height width 3"] | Patches,
        rows: Int[Array, "B"] | None = None,
        project: bool = True,
    ) -> Float[Array, "B D"]:
        """`images` are normalised by the mean and standard deviation of the recipe.

        `rows` are as in `CLIP.__call__`. Without `project` the last matrix is left out.

        Raises:
          ValueError: images, or patches, are not of the configured size; or they are `Patches`
            and the positions are not "naflex", or the other way round.
        """
        cfg, width = self.cfg, self.cfg.stack.width
        if isinstance(images, Patches) != (cfg.positions == "naflex"):
            wanted = "Patches" if cfg.positions == "naflex" else "images"
            raise ValueError(f"a tower with positions {cfg.positions!r} takes {wanted}")
        if rows is None:
            rows = jnp.arange(len(images.grid if isinstance(images, Patches) else images))
        x, mask = self._embedded(images, rows)
        if cfg.pre_norm:
            x = layer_norm(cfg.stack.norm_eps, self.dtype, "norm_pre")(x)
        pooled = self._pooled(x, mask, rows)
        if not (cfg.project and project):
            return pooled
        init = nn.initializers.normal(width**-0.5)
        head = Dense(self.embed_dim, self.dtype, use_bias=False, kernel_init=init, name="head")
        return head(pooled)

    def _embedded(
        self, images: Float[Array, "B height width 3"] | Patches, rows: Int[Array, "B"]
    ) -> tuple[Float[Array, "B L W"], Bool[Array, "B 1 1 L"] | None]:
        """Tokens with their positions; for `Patches` also which are no padding."""
        cfg, width = self.cfg, self.cfg.stack.width
        embed = Dense(
            width, self.dtype, use_bias=cfg.patch_bias, kernel_init=patch_init, name="patch"
        )
        if not isinstance(images, Patches):
            if images.shape[1:3] != (cfg.image_size, cfg.image_size):
                found = images.shape[1:3]
                raise ValueError(f"images are {found}, the tower takes {cfg.image_size}")
            cut, kept = patches(images, cfg.patch_size), None
            if cfg.patch_dropout and self.has_rng("dropout"):
                words = row_words(self.make_rng("dropout"), rows, cut.shape[1])
                kept = jnp.argsort(words, axis=1)[:, : cfg.kept_patches]
                cut = jnp.take_along_axis(cut, kept[:, :, None], axis=1)
            return self._with_positions(embed(cut), kept), None
        pixels, grid = (jnp.asarray(part) for part in images)
        if pixels.shape[2] != 3 * cfg.patch_size**2:
            raise ValueError(
                f"patches have {pixels.shape[2]} numbers, the tower takes {3 * cfg.patch_size**2}"
            )
        real = jnp.arange(pixels.shape[1])[None] < jnp.prod(grid, axis=1)[:, None]
        # A weight of zero does not undo an infinity: it must not arise.
        pixels = jnp.where(real[..., None], pixels, jnp.zeros((), pixels.dtype))
        positions = NaflexPositions(cfg.grid, width**-0.5, name="positions")
        return positions(embed(pixels), grid), real[:, None, None]

    def _pooled(
        self,
        x: Float[Array, "B L W"],
        mask: Bool[Array, "B 1 1 L"] | None,
        rows: Int[Array, "B"],
    ) -> Float[Array, "B W"]:
        """All blocks, and one vector made of what comes out."""
        cfg, draws = self.cfg, None
        if cfg.stack.dropout and self.has_rng("dropout"):
            places = jnp.arange(x.shape[1])[None]
            draws = Draws(key_words(self.make_rng("dropout")), rows[:, None], places)
        stack = partial(Stack(cfg.stack, self.dtype, self.fetch, name="stack"), draws=draws)
        norm = layer_norm(cfg.stack.norm_eps, self.dtype, "norm")
        if cfg.pool == "class":
            return norm(stack(x, ends=jnp.zeros((len(x), 1), jnp.int32)))
        if cfg.pool == "map":
            batch, length, _ = x.shape
            among = None if mask is None else jnp.broadcast_to(mask, (batch, 1, length, length))
            return MapPool(cfg.stack, self.dtype, name="pool")(norm(stack(x, among)), mask)
        x = stack(x)
        if cfg.has_class_token:
            x = x[:, 1:]
        return norm(x.mean(axis=1)) if cfg.norm_after_pool else norm(x).mean(axis=1)

    def _with_positions(
        self, x: Float[Array, "B L W"], kept: Int[Array, "B L"] | None
    ) -> Float[Array, "B M W"]:
        """Adds the class token, if there is one, and every token's position.

        `kept` says which patches these are; None: all, in order.
        """
        cfg, (batch, _, width) = self.cfg, x.shape
        std = width**-0.5
        if cfg.positions == "sincos":
            table = jnp.asarray(sincos_2d((cfg.grid, cfg.grid), width), x.dtype)
            x = x + (table[None] if kept is None else table[kept])
        if cfg.has_class_token:
            init = nn.initializers.normal(std)
            token = self.param("class_embedding", init, (width,), jnp.float32)
            token = jnp.broadcast_to(token.astype(x.dtype), (batch, 1, width))
            x = jnp.concatenate([token, x], axis=1)
            kept = None if kept is None else jnp.pad(kept + 1, ((0, 0), (1, 0)))
        if cfg.positions == "sincos":
            return x
        length = cfg.grid**2 + cfg.has_class_token
        return LearnedPositions(length, std, name="positions")(x, kept)
