"""A mesh axis seen as the links it consists of, so that one parameter can use several dimensions.

An axis of 256 devices divides neither of the dimensions of a (1152, 4304) matrix, and an
all-gather or reduce-scatter over all of a torus at once is slower than one ring after the other.
So where parameters are split, their axis is taken apart: first into links (the rings of a torus,
or machines and the devices of each), and each link into its prime factors. The devices and
their order stay, so that an array on the fine mesh and one on the user's lie in the same place.

What the exchanges before the last one send comes on top of the whole: a 16th of it, where the
last is along a ring of 16. So in a torus the last link is longer than a ring: neighbours join it.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jax.sharding import AxisType, Mesh, PartitionSpec

Link = tuple[str, ...]
"""Names of the fine axes that make up one link, the slowest first."""

LONGEST = 32
"""Devices of the slowest link of a torus, if there are so many and some are left for another."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FineMesh:
    """The devices of a mesh with some of its axes taken apart."""

    mesh: Mesh
    links: Mapping[str, tuple[Link, ...]]
    """Of each axis of the user's mesh, the slowest first."""

    def names(self, axes: Iterable[str]) -> tuple[str, ...]:
        """The fine axes that some of the user's axes consist of, as their devices lie."""
        held = [{name for link in self.links[axis] for name in link} for axis in axes]
        return tuple(name for own in held for name in self.mesh.axis_names if name in own)

    def size(self, names: Iterable[str]) -> int:
        """Devices along some fine axes."""
        return math.prod(self.mesh.shape[name] for name in names)

    def whole(self, name: str) -> str:
        """The user's axis that a fine one is part of."""
        return next(axis for axis in self.links if name in self.names((axis,)))


def refine(mesh: Mesh, axes: tuple[str, ...]) -> FineMesh:
    """The mesh with `axes` taken apart; the mesh itself where there are none."""
    sizes: dict[str, int] = {}
    links: dict[str, tuple[Link, ...]] = {}
    for axis, size in mesh.shape.items():
        if axis not in axes or size == 1:
            links[axis], sizes[axis] = ((axis,),), size
            continue
        made: list[Link] = []
        line = np.moveaxis(mesh.devices, mesh.axis_names.index(axis), 0)
        line = line.reshape(size, -1)[:, 0].tolist()
        for length in rings(line):
            factors = _primes(length)
            start = sum(map(len, made))
            made.append(tuple(f"{axis}{start + i}" for i in range(len(factors))))
            sizes |= dict(zip(made[-1], factors, strict=True))
        one_torus = len({_place(device)[0] for device in line}) == 1
        links[axis] = _lengthened(made, sizes) if one_torus else tuple(made)
    if tuple(sizes) != mesh.axis_names:
        kinds = (AxisType.Auto,) * len(sizes)
        mesh = Mesh(mesh.devices.reshape(tuple(sizes.values())), tuple(sizes), axis_types=kinds)
    return FineMesh(mesh=mesh, links=links)


def spread(
    shape: tuple[int, ...], spec: PartitionSpec, liked: tuple[int, ...], fine: FineMesh, axes: Any
) -> PartitionSpec:
    """A parameter split over `axes` too, each link along the dimension that is then largest.

    A link that divides no dimension is split up into its factors; a factor that divides none is
    left out, and its devices hold copies.

    Args:
      spec: how it is split already, on the user's mesh.
      liked: how gladly each dimension is split; 0: not at all.
    """
    placed: list[list[str]] = [[] for _ in shape]
    given = [fine.names(mesh_axes(entry)) for entry in spec]
    local = [size // fine.size(names) for size, names in zip(shape, given, strict=True)]

    def put(names: tuple[str, ...]) -> bool:
        parts = fine.size(names)
        fits = [d for d, size in enumerate(local) if liked[d] and size % parts == 0]
        if fits:
            best = max(fits, key=lambda d: (liked[d], local[d]))
            placed[best] += names
            local[best] //= parts
        return bool(fits)

    for axis in axes:
        for link in fine.links[axis]:
            if not put(link):
                for name in link:
                    put((name,))
    entries = [(*ours, *theirs) for ours, theirs in zip(placed, given, strict=True)]
    return PartitionSpec(*(entry or None for entry in entries))


def mesh_axes(entry: Any) -> tuple[str, ...]:
    """One entry of a PartitionSpec, which may be a name, several, or None, as names."""
    return (entry,) if isinstance(entry, str) else tuple(entry or ())


def rings(devices: Sequence[Any]) -> list[int]:
    """Lengths of the rings, or numbers of machines and their devices, that a line consists of.

    The slowest comes first; their product is the length of the line.
    """
    places = np.array([_place(device) for device in devices])
    turns = []
    for place in places.T:
        first = int(np.argmax(place != place[0]))  # The faster one turns, the nearer.
        if first:
            turns.append((first, len(np.unique(place))))
    lengths = [length for _, length in sorted(turns, reverse=True)]
    if math.prod(lengths) == len(devices):
        return lengths
    machines = len(np.unique(places[:, 0]))
    if len(devices) % machines:
        return [len(devices)]
    return [number for number in (machines, len(devices) // machines) if number > 1]


def _lengthened(links: list[Link], sizes: Mapping[str, int]) -> tuple[Link, ...]:
    """Links of which the first has taken neighbours, the fastest factors, from those after it.

    Args:
      sizes: of all fine axes, in their order.
    """
    first, rest = set(links[0]), [list(link) for link in links[1:]]
    while sum(map(len, rest)) > 1 and math.prod(sizes[name] for name in first) < LONGEST:
        first.add(rest[0].pop())
        rest = [link for link in rest if link]
    return tuple(name for name in sizes if name in first), *map(tuple, rest)


def _place(device: Any) -> tuple[int, ...]:
    """Machine or slice, then the place in its torus."""
    if hasattr(device, "coords"):
        return (getattr(device, "slice_index", 0) or 0, *device.coords, device.core_on_chip)
    return (device.process_index, device.id)


def _primes(number: int) -> list[int]:
    found = []
    for factor in range(2, number + 1):
        while number % factor == 0:
            found.append(factor)
            number //= factor
    return found
