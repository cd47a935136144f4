"""Where each logical axis of an array lives on the device mesh."""

import dataclasses
import difflib
from typing import Literal

from jax.sharding import PartitionSpec

MeshAxes = tuple[Literal["replica", "data", "model"], ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class AxisRules:
    """The mesh axes over which each logical axis is split; empty: every device holds it whole.

    A model names what its dimensions mean; only this table knows where they go.
    Data-parallel, FSDP and tensor-parallel are different tables, never model edits.
    """

    batch: MeshAxes = ("replica", "data")
    layers: MeshAxes = ()
    vocab: MeshAxes = ()
    length: MeshAxes = ()
    patch: MeshAxes = ()
    width: MeshAxes = ()
    heads: MeshAxes = ()
    head: MeshAxes = ()
    mlp: MeshAxes = ()
    embed: MeshAxes = ()

    def spec(self, axes: tuple[str | None, ...]) -> PartitionSpec:
        """Mesh axes for an array whose dimensions are `axes` (None: not split).

        Raises:
          ValueError: an axis is unknown, or two dimensions claim one mesh axis.
        """
        known = [f.name for f in dataclasses.fields(self)]
        for axis in axes:
            if axis is not None and axis not in known:
                near = difflib.get_close_matches(axis, known, n=1, cutoff=0.0)[0]
                raise ValueError(f"no rule for axis {axis!r}; nearest {near!r} of {known}")
        placed = [self.mesh_axes(axis) for axis in axes]
        used = [mesh_axis for entry in placed for mesh_axis in entry]
        if len(used) != len(set(used)):
            raise ValueError(f"axes {axes} would use a mesh axis twice: {placed}")
        return PartitionSpec(*(entry or None for entry in placed))

    def mesh_axes(self, axis: str | None) -> MeshAxes:
        """Mesh axes of one known logical axis."""
        return () if axis is None else getattr(self, axis)


DATA_PARALLEL = AxisRules()
"""Every device holds all parameters and a share of the batch."""
FSDP = AxisRules(width=("data",))
"""Parameters and optimizer state are split too, and gathered layer by layer when used."""
