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
    params: MeshAxes = ()
    """Axes over which every matrix is split besides, along whichever of its dimensions they
    divide. A layer's matrices are gathered when it is used, and their gradients reduced and
    scattered; gains and biases stay whole, as gathering them would cost more than it saves."""

    regather: bool = True
    """Whether what `params` splits is gathered again in the backward pass; else the matrices of
    all layers are kept from the forward pass on, and a third less is sent."""

    def __post_init__(self) -> None:
        both = [axis for axis in self.params if axis not in self.batch]
        if both:
            raise ValueError(f"params over {both}, which do not split the batch {self.batch}")

    def spec(self, axes: tuple[str | None, ...]) -> PartitionSpec:
        """Mesh axes for an array whose dimensions are `axes` (None: not split).

        What `params` splits besides depends on the sizes: see `place.param_shardings`.

        Raises:
          ValueError: an axis is unknown, or two dimensions claim one mesh axis.
        """
        known = [f.name for f in dataclasses.fields(self) if f.name not in ("params", "regather")]
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
FSDP = AxisRules(params=("data",))
"""Parameters and optimizer state are split too, and gathered layer by layer when used.

Source: Zhao et al. 2023, arXiv:2304.11277; Rajbhandari et al. 2020, arXiv:1910.02054 (stage 3).
"""
HYBRID = FSDP
"""The same table: on a mesh with replicas, `MeshConfig(replica=slices)`, each replica splits its
own copy, and only shares of the gradients cross the slow links between replicas."""
TENSOR_PARALLEL = AxisRules(heads=("model",), mlp=("model",), vocab=("model",))
"""Each matrix is split over `model` by heads, hidden channels or words; activations are whole.

`dataclasses.replace(TENSOR_PARALLEL, params=("data",))` is both.
Source: Shoeybi et al. 2019, arXiv:1909.08053, section 3.
"""
