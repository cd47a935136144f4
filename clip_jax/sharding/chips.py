"""Accelerators: what they can do at best, and what their memory holds."""

import dataclasses
from collections.abc import Iterable
from typing import Any

GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One kind of accelerator, by the figures of its maker."""

    name: str
    flops: float
    """Operations a second of bfloat16 matrix products, of one chip."""
    memory: int
    """Bytes that a program may use, less than is built in."""
    bandwidth: float
    """Bytes a second between memory and cores, of one chip."""
    link: float
    """Bytes a second that one chip sends to one neighbour; of a GPU, to all others of its host."""
    network: float
    """Bytes a second that one host sends to other slices or hosts."""
    host: int
    """Chips that one process drives."""
    rings: int | None
    """A side of the torus whose length this divides is closed to a ring; None: there is none."""
    kinds: tuple[str, ...]
    """What JAX calls devices that are one such chip, by the peak of `flops` (`device_kind`)."""
    source: str
    """Where the figures stand."""

    @property
    def is_tpu(self) -> bool:
        """Whether the TPU compiler knows it."""
        return self.rings is not None


_TPU = "https://cloud.google.com/tpu/docs/"
_NVIDIA = "https://www.nvidia.com/en-us/data-center/"

CHIPS = {
    chip.name: chip
    for chip in (
        Chip(
            name="v4",
            flops=275e12,
            memory=int(30.75 * GIB),
            bandwidth=1.2e12,
            link=50e9,
            network=25e9,
            host=4,
            rings=4,
            kinds=("TPU v4",),
            source=_TPU + "v4",
        ),
        Chip(
            name="v5e",
            flops=197e12,
            memory=int(15.75 * GIB),
            bandwidth=819e9,
            link=50e9,
            network=12.5e9,
            host=4,
            rings=16,
            kinds=("TPU v5 lite", "TPU v5e"),
            source=_TPU + "v5e",
        ),
        Chip(
            name="v5p",
            flops=459e12,
            memory=int(95.73 * GIB),
            bandwidth=2.765e12,
            link=100e9,
            network=25e9,
            host=4,
            rings=4,
            kinds=("TPU v5", "TPU v5p"),
            source=_TPU + "v5p",
        ),
        Chip(
            name="v6e",
            flops=918e12,
            memory=int(31.24 * GIB),
            bandwidth=1.638e12,
            link=100e9,
            network=50e9,
            host=4,
            rings=16,
            kinds=("TPU v6 lite", "TPU v6e"),
            source=_TPU + "v6e",
        ),
        Chip(
            name="a100",
            flops=312e12,
            memory=80_000_000_000,
            bandwidth=2.039e12,
            link=300e9,
            network=200e9,
            host=8,
            rings=None,
            kinds=(
                "NVIDIA A100-SXM4-80GB",
                "NVIDIA A100-SXM4-40GB",
                "NVIDIA A100 80GB PCIe",
                "NVIDIA A100-PCIE-40GB",
            ),
            source=_NVIDIA + "a100",
        ),
        Chip(
            name="h100",
            flops=989e12,
            memory=80_000_000_000,
            bandwidth=3.35e12,
            link=450e9,
            network=400e9,
            host=8,
            rings=None,
            kinds=("NVIDIA H100 80GB HBM3",),
            source=_NVIDIA + "h100",
        ),
        Chip(
            name="h200",
            flops=989e12,
            memory=141_000_000_000,
            bandwidth=4.8e12,
            link=450e9,
            network=400e9,
            host=8,
            rings=None,
            kinds=("NVIDIA H200",),
            source=_NVIDIA + "h200",
        ),
    )
}
"""By name. The memory of TPUs is the limit that their compiler states when a program exceeds it;
a link's rate is what the page gives for a chip in both directions, by its ports and directions.
The network of TPUs is that of a host (v5e: 2 x 100 Gbit/s, v6e: 4 x 200, for two processes each;
v4 and v5p: 200), of GPUs one card of 200 (A100) or 400 Gbit/s each."""

_BY_KIND = {kind: chip for chip in CHIPS.values() for kind in chip.kinds}


def peak_flops(devices: Iterable[Any]) -> float | None:
    """Operations a second, in bfloat16, of all these JAX devices together.

    Returns:
      None if the peak of one of them is not in the table (as of a CPU, or of an H100 on PCIe,
      which is slower than others of its name).
    """
    chips = [_BY_KIND.get(device.device_kind) for device in devices]
    peaks = [chip.flops for chip in chips if chip]
    return sum(peaks) if len(peaks) == len(chips) else None
