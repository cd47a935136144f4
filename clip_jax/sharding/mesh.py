"""From the devices at hand to the one mesh of a run."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

AXES = ("replica", "data", "model")


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

    Raises:
      ValueError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = [config.replica, config.data, config.model]
    rest = math.prod(s for s in sizes if s != -1)
    sizes = [len(devices) // rest if s == -1 else s for s in sizes]
    if math.prod(sizes) != len(devices):
        shape = dict(zip(AXES, (config.replica, config.data, config.model), strict=True))
        raise ValueError(f"mesh {shape} does not fit {len(devices)} devices")
    slices = len({getattr(device, "slice_index", None) or 0 for device in devices})
    if slices > 1 and sizes[0] % slices == 0:  # No other axis then crosses the slow links.
        inside, across = (sizes[0] // slices, *sizes[1:]), (slices, 1, 1)
        placed = mesh_utils.create_hybrid_device_mesh(inside, across, devices)
        return Mesh(placed, AXES, axis_types=(AxisType.Auto,) * 3)
    return jax.make_mesh(tuple(sizes), AXES, (AxisType.Auto,) * 3, devices=devices)
