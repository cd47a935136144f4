"""From the devices at hand to the one mesh of a run."""

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

AXES = ("replica", "data", "model")
V5E = ("TPU v5 lite", "TPU v5e")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Devices along each axis; one of them may be -1: all devices that are left."""

    replica: int = 1
    """Copies of the parameters across slow links."""
    data: int = -1
    """Shares of the batch; under FSDP also of the parameters."""
    model: int = 1
    """Shares of each tensor."""

    def __post_init__(self) -> None:
        sizes = [self.replica, self.data, self.model]
        if sizes.count(-1) > 1 or any(s < 1 and s != -1 for s in sizes):
            raise ValueError(f"mesh sizes are positive, at most one of them -1; got {sizes}")


def build_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh with axes ("replica", "data", "model"); axes of size 1 cost nothing.

    Devices of several slices, between which is only their hosts' network, lie along `replica`, so
    that no other axis leaves a slice; within each they follow its links. Of GPUs, whose hosts
    count as slices, the other axes may also go on from one host to the next, in order.

    Raises:
      ValueError: the sizes do not multiply to the number of devices, or replicas cannot be
        dealt out to slices; names the slices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = [config.replica, config.data, config.model]
    rest = math.prod(s for s in sizes if s != -1)
    sizes = [len(devices) // rest if s == -1 else s for s in sizes]
    shape = dict(zip(AXES, (config.replica, config.data, config.model), strict=True))
    if math.prod(sizes) != len(devices):
        raise ValueError(f"mesh {shape} does not fit {len(devices)} devices")
    slices = Counter(map(_slice, devices))
    fits = sizes[0] % len(slices) == 0 and len(set(slices.values())) == 1
    if len(slices) > 1 and not fits and devices[0].platform == "tpu":
        held = ", ".join(f"{number}: {slices[number]}" for number in sorted(slices))
        raise ValueError(
            f"mesh {shape} does not fit {len(slices)} slices (devices of each: {held}): replica "
            f"must be a multiple of {len(slices)}, and slices equally large"
        )
    if fits:
        placed = _placed(sizes, devices, len(slices))
    else:
        ordered = sorted(devices, key=lambda device: (_slice(device), device.id))
        placed = np.array(ordered, dtype=object).reshape(sizes)
    return Mesh(placed, AXES, axis_types=(AxisType.Auto,) * 3)


def _slice(device: Any) -> int:
    """Its number; devices of one slice may have none."""
    return getattr(device, "slice_index", None) or 0


def _placed(sizes: list[int], devices: list[Any], slices: int) -> np.ndarray:
    """The devices in an array of these sizes, the first of which goes over all slices."""
    inside = (sizes[0] // slices, *sizes[1:])

    def place(split: bool) -> np.ndarray:
        if slices == 1:
            return mesh_utils.create_device_mesh(inside, devices, allow_split_physical_axes=split)
        return mesh_utils.create_hybrid_device_mesh(
            inside, (slices, 1, 1), devices, allow_split_physical_axes=split
        )

    try:
        return place(split=devices[0].device_kind in V5E)  # As jax.make_mesh does.
    except NotImplementedError:  # One side of the torus must serve two axes of the mesh.
        return place(split=True)
