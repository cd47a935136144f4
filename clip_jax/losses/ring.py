"""All logits of a global batch, a tile at a time, while texts walk a ring of devices."""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tiling:
    """Where a batch lies, and how many of its logits exist at a time."""

    mesh: Mesh
    axes: tuple[str, ...]
    """Mesh axes that split the batch; along the others all devices do the same work."""
    tile: int
    """Rows and columns of a tile, at most."""


class Tile(NamedTuple):
    """R images against C texts."""

    logits: Float[Array, "R C"]
    """Without bias; -inf for a pair that an earlier tile had."""
    own: Bool[Array, "R C"]
    """Where image and text belong together."""
    images: tuple[Array, ...]
    """Scaled embeddings, transposed (D R), then the rows of what else came with the images."""
    texts: tuple[Array, ...]
    """Embeddings (C D), then the rows of what else came with the texts."""


Sums = tuple[Array, ...]
Visit = Callable[[Tile, Sums, Sums], tuple[Sums, Sums]]
"""Takes a tile and the sums so far of its rows and of its columns; returns the new sums."""


def walk(
    visit: Visit,
    scale: Float[Array, ""],
    images: tuple[Array, ...],
    texts: tuple[Array, ...],
    rows: Sums,
    columns: Sums,
    tiling: Tiling,
) -> tuple[Sums, Sums]:
    """Visit every pair of a global batch once.

    A device keeps its images and their sums. Texts and their sums go from device to device
    until they are home again; the program is as long for a thousand devices as for two.

    Args:
      visit: what to do with a tile; it may close over scalars.
      scale: one over the temperature.
      images, texts: embeddings (B D), then other arrays whose first dimension is B.
      rows: sums to begin with, for each image: arrays whose first dimension is B.
      columns: likewise for each text: arrays whose last dimension is B.

    Returns:
      The final rows and columns.

    Source: the ring of Liu et al. 2023, arXiv:2310.01889; tiles within a device as in
    Cheng et al. 2024, arXiv:2410.17243.
    """
    axes = tiling.axes
    devices = math.prod(tiling.mesh.shape[axis] for axis in axes)
    send = partial(_send, axes=axes, devices=devices)

    def share(images: Any, texts: Any, rows: Any, columns: Any) -> Any:
        visit_tiles = partial(_visit_tiles, visit, scale, images, tile=tiling.tile)
        if devices == 1:
            return visit_tiles(texts, rows, columns, home=jnp.bool_(True))

        def hop(number: Any, carry: Any) -> Any:
            texts, rows, columns = carry
            coming = send(texts)  # Before the work, so that both can go on at once.
            rows, columns = visit_tiles(texts, rows, columns, home=number == 0)
            return coming, rows, send(columns)

        return lax.fori_loop(0, devices, hop, (texts, rows, columns))[1:]

    first = PartitionSpec(axes)
    last = tuple(PartitionSpec(*[None] * (sums.ndim - 1), axes) for sums in columns)
    split = jax.shard_map(
        share, mesh=tiling.mesh, in_specs=(first, first, first, last), out_specs=(first, last)
    )
    return split(images, texts, rows, columns)


def _send(arrays: Any, *, axes: tuple[str, ...], devices: int) -> Any:
    """What the device before this one in the ring had."""
    onward = [(place, (place + 1) % devices) for place in range(devices)]
    return jax.tree.map(lambda array: lax.ppermute(array, axes, onward), arrays)


def _visit_tiles(
    visit: Visit,
    scale: Float[Array, ""],
    images: tuple[Array, ...],
    texts: tuple[Array, ...],
    rows: Sums,
    columns: Sums,
    *,
    tile: int,
    home: Bool[Array, ""],
) -> tuple[Sums, Sums]:
    """All tiles of one device's images against one device's texts; at home, text i is i's own."""
    size = len(images[0])
    cuts = _Cuts(size, math.ceil(size / math.ceil(size / tile)))
    eye = jnp.eye(cuts.tile, dtype=bool)

    def row(i: Any, carry: Any) -> Any:
        rows, columns = carry
        image, *others = cuts.take(images, i)
        image = scale * image
        # Turned once for all columns: a product over both factors' first axis is slower.
        turned = (image.T, *others)

        def column(j: Any, carry: Any) -> Any:
            mine, columns = carry
            theirs = cuts.take(columns, j, axis=-1)
            text = cuts.take(texts, j)
            # "highest": a float32 product is otherwise rounded to fewer bits on TPU and GPU.
            logits = jnp.matmul(image, text[0].T, precision="highest")
            own = eye & (home & (i == j))
            if cuts.overlap:
                new = cuts.new(i)[:, None] & cuts.new(j)[None]
                logits, own = jnp.where(new, logits, -jnp.inf), own & new
            mine, theirs = visit(Tile(logits, own, turned, text), mine, theirs)
            return mine, cuts.put(columns, theirs, j, axis=-1)

        mine, columns = lax.fori_loop(0, cuts.count, column, (cuts.take(rows, i), columns))
        return cuts.put(rows, mine, i), columns

    return lax.fori_loop(0, cuts.count, row, (rows, columns))


@dataclasses.dataclass(frozen=True)
class _Cuts:
    """Arrays of `size` entries cut into equal tiles; the last may overlap the one before."""

    size: int
    tile: int

    @property
    def count(self) -> int:
        return math.ceil(self.size / self.tile)

    @property
    def overlap(self) -> bool:
        return self.size % self.tile != 0

    def take(self, arrays: tuple[Array, ...], number: Any, axis: int = 0) -> tuple[Array, ...]:
        start = self._start(number)
        return tuple(
            lax.dynamic_slice_in_dim(array, start, self.tile, axis % array.ndim) for array in arrays
        )

    def put(
        self, arrays: tuple[Array, ...], parts: tuple[Array, ...], number: Any, axis: int = 0
    ) -> tuple[Array, ...]:
        start = self._start(number)
        return tuple(
            lax.dynamic_update_slice_in_dim(array, part, start, axis % array.ndim)
            for array, part in zip(arrays, parts, strict=True)
        )

    def new(self, number: Any) -> Bool[Array, "T"]:
        """Which entries of a tile were in no tile before it."""
        return self._start(number) + jnp.arange(self.tile) >= number * self.tile

    def _start(self, number: Any) -> Int[Array, ""]:
        return jnp.minimum(number * self.tile, self.size - self.tile)
