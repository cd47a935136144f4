"""From each device's share of a parameter to the whole, and of its gradient back to shares."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from clip_jax.sharding.refine import FineMesh, mesh_axes

SUBLANES, LANES = 16, 128
"""A TPU keeps bfloat16 in tiles of 16 rows and 128 columns, float32 in tiles of half the rows."""

LARGEST = 6 * 2**20
"""Bytes of the largest array that it is asked to reduce and scatter at once.

Over 32 devices some of 7.6 MiB are sent to everyone."""


class Stage(NamedTuple):
    """Shares along one link, which a collective puts together along one dimension."""

    dimension: int
    axes: tuple[str, ...]
    parts: int
    wide: bool
    """Whether gradients are summed in float32, whatever their type."""


def stages(spec: PartitionSpec, fine: FineMesh, axes: tuple[str, ...]) -> list[Stage]:
    """How an array that is split over `axes` (the user's) is made whole: the fastest link first.

    So the last stage, whose result is the whole, runs along a ring of a torus and those next to
    it, and those before it send a small part of that.
    """
    # XLA for CPU ends the process at a bfloat16 sum where an axis of the mesh is not manual.
    wide = fine.mesh.devices.flat[0].platform == "cpu"
    made = []
    for link in reversed([link for axis in axes for link in fine.links[axis]]):
        for dimension, entry in enumerate(spec):
            names = tuple(name for name in mesh_axes(entry) if name in link)
            if names:
                made.append(Stage(dimension, names, fine.size(names), wide))
    return made


def gather(share: Any, plan: list[Stage], dtype: str, *, exact: bool = False) -> Any:
    """The whole of an array, inside `jax.shard_map`; its gradient is reduced and scattered.

    Args:
      share: this device's part.
      dtype: values are rounded to it before they are sent.
      exact: return the share's own type, so that gradients come, and are added up, in that; else
        both result and gradients are of `dtype`.
    """
    kind = share.dtype

    @jax.custom_vjp
    def whole(share: Any) -> Any:
        made = share.astype(dtype)
        for stage in plan:
            made = jax.lax.all_gather(made, stage.axes, axis=stage.dimension, tiled=True)
        return made.astype(kind) if exact else made

    def backward(_: None, gradient: Any) -> tuple[Any]:
        for stage in reversed(plan):
            gradient = scatter(gradient, stage)
        return (gradient.astype(kind),)

    whole.defvjp(lambda share: (whole(share), None), backward)
    return whole(share)


def scatter(whole: Any, stage: Stage) -> Any:
    """The sum over a link of all devices' arrays, of which each device gets its share.

    A TPU does this only for shares that are whole tiles, in its own layout, of arrays of a few
    MiB; else it sends everything to everyone. So shares are laid out as rows of 128, padded to
    whole tiles, and cut into pieces.
    """
    dimension, axes, parts, wide = stage
    kind = whole.dtype
    if wide:
        whole = whole.astype(jnp.float32)
    before, after = whole.shape[:dimension], whole.shape[dimension + 1 :]
    share = (*before, whole.shape[dimension] // parts, *after)
    flat = jnp.moveaxis(whole.reshape(*before, parts, *share[dimension:]), dimension, 0)
    size, tile = math.prod(share), SUBLANES * LANES
    tiles = -(-size // tile)
    pieces = -(-parts * tiles * tile * whole.dtype.itemsize // LARGEST)
    length = -(-tiles // pieces) * tile
    flat = jnp.pad(flat.reshape(parts, -1), ((0, 0), (0, pieces * length - size)))
    rows = flat.reshape(parts, pieces, length // LANES, LANES)
    mine = [
        jax.lax.psum_scatter(
            rows[:, piece].reshape(-1, LANES), axes, scatter_dimension=0, tiled=True
        )
        for piece in range(pieces)
    ]
    return jnp.concatenate(mine).reshape(-1)[:size].reshape(share).astype(kind)
