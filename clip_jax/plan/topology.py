"""Chips that are not there: `v5e:16x16`, `v5p-128` or `h100:64`, as devices to compile for."""

import dataclasses
import difflib
import math
import os
import re
from typing import Any

from clip_jax.sharding.chips import CHIPS, Chip

FLAT = {1: (1, 1), 4: (2, 2), 8: (2, 4), 16: (4, 4), 32: (4, 8), 64: (8, 8), 128: (8, 16),
        256: (16, 16)}  # fmt: skip
"""Shapes of v5e and v6e slices by their chips."""
CUBES = {4: (2, 2, 1), 8: (2, 2, 2), 16: (2, 2, 4), 32: (2, 4, 4), 64: (4, 4, 4),
         128: (4, 4, 8), 256: (4, 8, 8), 512: (8, 8, 8), 1024: (8, 8, 16), 2048: (8, 16, 16),
         4096: (16, 16, 16)}  # fmt: skip
"""Shapes of v4 and v5p slices by their chips."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Topology:
    """Chips of one kind, in one slice or several."""

    chip: Chip
    shape: tuple[int, ...]
    """Chips along each side of a slice's torus; of GPUs their number."""
    slices: int = 1
    """Slices, or of GPUs 1; between them is only the network of their hosts."""

    @property
    def chips(self) -> int:
        """In all slices."""
        return math.prod(self.shape) * self.slices

    @property
    def processes(self) -> int:
        """Hosts that feed them."""
        return max(1, self.chips // self.chip.host)

    def __str__(self) -> str:
        name = f"{self.chip.name}:{'x'.join(map(str, self.shape))}"
        return name if self.slices == 1 else f"{self.slices} slices of {name}"


def parse(text: str, slices: int = 1) -> Topology:
    """A topology by the name of its chips and its shape, or by Google's name of a slice.

    Args:
      text: `v5e:16x16`; `v5p-128`, whose number counts cores, as Google's does (two a chip; of v5e
        and v6e one); `h100:64`, whose number counts GPUs.
      slices: so many of them.

    Raises:
      ValueError: the kind or the shape is unknown.
    """
    named = re.fullmatch(r"([a-z0-9]+)(?::(\d+(?:x\d+)*)|-(\d+))", text.lower())
    if not named:
        raise ValueError(f"topology {text!r} is not of the form v5e:16x16, v5p-128 or h100:64")
    name, sides, number = named.groups()
    if name not in CHIPS:
        near = difflib.get_close_matches(name, CHIPS, n=1, cutoff=0.0)[0]
        raise ValueError(f"no figures for {name!r}; nearest {near!r} of {list(CHIPS)}")
    if slices < 1:
        raise ValueError(f"slices must be at least 1, got {slices}")
    chip = CHIPS[name]
    if not chip.is_tpu:
        count = math.prod(int(side) for side in (sides or number).split("x"))
        if count < 1 or slices > 1:
            raise ValueError(f"{text!r}: GPUs are given by their number alone, in one slice")
        return Topology(chip=chip, shape=(count,))
    cubic = chip.rings == 4
    if sides:
        shape = tuple(int(side) for side in sides.split("x"))
    else:
        chips = int(number) // 2 if cubic else int(number)
        known = CUBES if cubic else FLAT
        if chips not in known:
            names = [f"{name}-{n * 2 if cubic else n}" for n in known]
            raise ValueError(f"no slice {text!r}: there are {', '.join(names)}")
        shape = known[chips]
    if len(shape) != (3 if cubic else 2) or min(shape) < 1:
        example = "4x4x8" if cubic else "16x16"
        raise ValueError(f"{text!r}: {name} slices have {3 if cubic else 2} sides, as {example}")
    return Topology(chip=chip, shape=shape, slices=slices)


def devices(topology: Topology) -> list[Any]:
    """Devices that programs can be compiled for, though no TPU is here.

    Raises:
      ValueError: libtpu is not installed, or has no such slice.
    """
    # libtpu would look for a TPU's metadata and complain that there is none.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # It only compiles.
    from jax.errors import JaxRuntimeError
    from jax.experimental import topologies

    name = f"{topology.chip.name}:{'x'.join(map(str, topology.shape))}"
    more: dict[str, Any] = {"num_slices": topology.slices} if topology.slices > 1 else {}
    if topology.chip.name == "v4":
        more["chip_config_name"] = "megacore"  # Both cores as one device, as JAX runs them.
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=name, **more)
    except (JaxRuntimeError, NotImplementedError, RuntimeError) as error:
        if "libtpu" in str(error) and "INVALID_ARGUMENT" not in str(error):
            raise ValueError(
                "planning for TPUs needs their compiler: pip install '.[plan]' in the repository"
            ) from error
        raise ValueError(f"the TPU compiler has no slice {topology}: {error}") from error
    return list(found.devices)
