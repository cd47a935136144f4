"""Position embeddings: a learned table, or fixed sines and cosines over a 2-D grid."""

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
        table = table.astype(x.dtype)
        return x + (table[None] if positions is None else table[positions])


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
