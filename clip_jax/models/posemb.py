"""Position embeddings: learned tables, also for other grids, and fixed sines and cosines."""

from typing import Any, Literal

import einops
import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


class LearnedPositions(nn.Module):
    """Adds one learned vector per position."""

    length: int
    """Positions in all."""
    std: float
    """Standard deviation of the initial table."""

    @nn.compact
    def __call__(
        self, x: Float[Array, "B L W"], positions: Int[Array, "B L"] | None = None
    ) -> Float[Array, "B L W"]:
        """`positions` says where each token stands; None: in order, from the first on."""
        init = nn.initializers.normal(self.std)
        table = self.param("embedding", init, (self.length, x.shape[-1]), jnp.float32)
        if positions is None:
            return x + table.astype(x.dtype)[None]
        # Rows are chosen before they are rounded: their gradients add up in float32.
        return x + table[positions].astype(x.dtype)


def sincos_2d(
    grid: tuple[int, int], width: int, base: float = 10_000.0
) -> Float[np.ndarray, "L W"]:
    """Fixed embedding of each cell of a (rows, columns) grid, row by row.

    A quarter of the channels each: sin and cos of the column, sin and cos of the row,
    at frequencies from 1 down to 1 / base.

    Raises:
      ValueError: `width` is not a multiple of 4.

    Source: Chen et al. 2021, arXiv:2104.02057 (MoCo v3), section 4.3.
    """
    if width % 4:
        raise ValueError(f"2-D sine positions need a width that 4 divides, got {width}")
    quarter = width // 4
    rates = base ** -(np.arange(quarter) / max(quarter - 1, 1))
    rows, columns = np.meshgrid(*map(np.arange, grid), indexing="ij")
    angles = [place.reshape(-1, 1) * rates.reshape(1, -1) for place in (columns, rows)]
    return np.concatenate([f(a) for a in angles for f in (np.sin, np.cos)], 1).astype(np.float32)


class NaflexPositions(nn.Module):
    """Adds positions from one table of a square grid, resized to the grid of each image.

    Bilinear with antialiasing, as PyTorch's `F.interpolate` (align_corners=False): a resized
    table is a product of one weight matrix an axis, so each token's row of either is computed
    from the image's own grid, and no shape depends on it.

    Source: Tschannen et al. 2025, arXiv:2502.14786, section 2.4.
    """

    side: int
    """Rows, and columns, of the table."""
    std: float
    """Standard deviation of the initial table."""

    @nn.compact
    def __call__(self, x: Float[Array, "B L W"], grid: Int[Array, "B 2"]) -> Float[Array, "B L W"]:
        """`grid` holds rows and columns of each image; tokens beyond them are padding."""
        init = nn.initializers.normal(self.std)
        table = self.param("embedding", init, (self.side**2, x.shape[-1]), jnp.float32)
        rows, columns = grid[:, :1], grid[:, 1:]
        index = jnp.arange(x.shape[1])[None]
        row = jnp.minimum(index // columns, rows - 1)  # Padding takes part in no sum that counts.
        across = axis_weights(row, self.side, rows, "bilinear")
        along = axis_weights(index % columns, self.side, columns, "bilinear")
        weights = einops.einsum(across, along, "b l g, b l k -> b l g k")
        weights = einops.rearrange(weights, "b l g k -> b l (g k)")
        return x + jnp.matmul(weights, table, precision="highest").astype(x.dtype)


Method = Literal["bicubic", "bilinear"]


def axis_weights(
    places: Any, old: int, new: Any, method: Method, *, antialias: bool = True
) -> Float[Array, "... G"]:
    """How much each of `old` samples counts at some places of the same axis in `new` samples.

    Args:
      places: indices among the new samples; any shape.
      old: samples that there are, G.
      new: samples to be made; may be traced, and of a shape that broadcasts with `places`.
      antialias: widen the kernel where there are fewer new samples than old ones.

    Returns:
      Weights that sum to 1 over the last axis, float32.
    """
    kernel = _cubic if method == "bicubic" else _triangle
    scale = old / jnp.asarray(new, jnp.float32)
    centre = (jnp.asarray(places, jnp.float32) + 0.5) * scale
    width = jnp.maximum(scale, 1.0) if antialias else jnp.ones_like(scale)
    width = jnp.broadcast_to(width, centre.shape)
    samples = jnp.arange(old, dtype=jnp.float32) + 0.5
    samples = samples.reshape((1,) * centre.ndim + (-1,))
    weights = kernel((samples - centre[..., None]) / width[..., None])
    return weights / weights.sum(axis=-1, keepdims=True)


def _triangle(x: Float[Array, "..."]) -> Float[Array, "..."]:
    return jnp.maximum(1 - jnp.abs(x), 0)


def _cubic(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Keys 1981 with a = -0.5, the sharpness of Pillow and of PyTorch with antialiasing."""
    x = jnp.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return jnp.where(x < 1, near, jnp.where(x < 2, far, 0))


def resample(
    table: Float[Array | np.ndarray, "L W"],
    grid: tuple[int, int],
    new_grid: tuple[int, int],
    *,
    prefix: int = 0,
    method: Method = "bicubic",
) -> Float[Array, "M W"]:
    """A table of positions for another grid, antialiased as open_clip does it.

    Args:
      table: first `prefix` rows that belong to no cell, then the cells row by row.
      grid, new_grid: rows and columns of cells.
      prefix: class tokens; they stay as they are.

    Raises:
      ValueError: the table does not have that many rows, or the new grid has no cell.
    """
    if len(table) != prefix + grid[0] * grid[1]:
        raise ValueError(f"{len(table)} positions are not {prefix} and a grid of {grid}")
    if min(new_grid) < 1:
        raise ValueError(f"a grid of {new_grid} has no cell")
    cells = jnp.asarray(table[prefix:], jnp.float32).reshape(*grid, -1)
    rows, columns = (
        axis_weights(np.arange(new), old, new, method)
        for old, new in zip(grid, new_grid, strict=True)
    )
    made = jnp.einsum("rg,ck,gkw->rcw", rows, columns, cells, precision="highest")
    made = made.reshape(new_grid[0] * new_grid[1], -1).astype(table.dtype)
    return jnp.concatenate([table[:prefix], made])


def resample_length(table: Float[Array | np.ndarray, "L W"], length: int) -> Float[Array, "M W"]:
    """A table of text positions for another length, linearly and not antialiased, as open_clip."""
    weights = axis_weights(np.arange(length), len(table), length, "bilinear", antialias=False)
    values = jnp.asarray(table, jnp.float32)
    return jnp.matmul(weights, values, precision="highest").astype(table.dtype)
