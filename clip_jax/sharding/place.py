"""Abstract trees to NamedShardings, and host batches to global arrays."""

import math
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from clip_jax import tree
from clip_jax.sharding.refine import refine, spread
from clip_jax.sharding.rules import AxisRules

LIKED = {None: 0, "layers": 0, "heads": 1, "head": 1}
"""How gladly a dimension is split besides: 2 if not here. Layers are taken one by one."""


def param_shardings(params: Any, axes: Any, rules: AxisRules, mesh: Mesh) -> Any:
    """One NamedSharding per parameter, on `mesh` or on its fine form where `rules.params` asks.

    Args:
      params: arrays or shapes.
      axes: a tree like `params` of logical axes (`models.axes.logical_axes`).

    Raises:
      ValueError: lists all dimensions that the mesh does not divide as the table says; what
        `rules.params` splits is chosen such that it fits.
    """
    faults: list[str] = []
    fine = refine(mesh, rules.params)

    def place(path: str, leaf: Any, names: tuple[str | None, ...]) -> NamedSharding:
        spec = rules.spec(names)
        for size, name in zip(leaf.shape, names, strict=True):
            over = rules.mesh_axes(name)
            if size % (parts := math.prod(mesh.shape[axis] for axis in over)):
                faults.append(f"{path}: {name} of size {size} over {parts} devices {over}")
        if faults or not (rules.params and is_matrix(names)):
            return NamedSharding(fine.mesh, spec)
        liked = tuple(LIKED.get(name, 2) for name in names)
        return NamedSharding(fine.mesh, spread(leaf.shape, spec, liked, fine, rules.params))

    shardings = tree.map_with_path(place, params, axes)
    if faults:
        raise ValueError("the mesh does not divide " + "; ".join(faults))
    return shardings


def is_matrix(axes: tuple[str | None, ...]) -> bool:
    """Whether a parameter with these logical axes has dimensions of more than one meaning.

    Gains, biases and single vectors have not; heads and their channels are one dimension.
    """
    return len({"head" if name == "heads" else name for name in axes} - {None, "layers"}) > 1


def follow(state: Any, params: Any, shardings: Any, mesh: Mesh) -> Any:
    """Shardings for optimizer state: each moment lies where its parameter lies.

    A leaf of `state` follows the parameter whose path its own path ends with, if
    their shapes agree; so does one that lacks a dimension (rows or columns of a factored
    moment), but for that dimension. All others (counters) are replicated.
    """
    whole = NamedSharding(mesh, PartitionSpec())
    known = {
        path: (leaf.shape, sharding)
        for path, leaf, sharding in zip(
            tree.paths(params), jax.tree.leaves(params), jax.tree.leaves(shardings), strict=True
        )
    }

    def place(path: str, leaf: Any) -> NamedSharding:
        parts = path.split("/")
        for start in range(len(parts)):
            shape, sharding = known.get("/".join(parts[start:]), (None, whole))
            if shape is None:
                continue
            if shape == leaf.shape:
                return sharding
            spec = (*sharding.spec, *(None,) * (len(shape) - len(sharding.spec)))
            for left in range(len(shape)):
                if shape[:left] + shape[left + 1 :] == leaf.shape:
                    return NamedSharding(
                        sharding.mesh, PartitionSpec(*spec[:left], *spec[left + 1 :])
                    )
        return whole

    return tree.map_with_path(place, state)


def batch_sharding(rules: AxisRules, mesh: Mesh) -> NamedSharding:
    """The first dimension split over the batch axes, whatever the rank."""
    fine = refine(mesh, rules.params)
    return NamedSharding(fine.mesh, PartitionSpec(fine.names(rules.batch)))


def batch_parts(rules: AxisRules, mesh: Mesh) -> int:
    """Into how many parts a batch is split over the mesh."""
    return math.prod(mesh.shape[axis] for axis in rules.batch)


def check_batch(field: str, batch: int, rules: AxisRules, mesh: Mesh) -> None:
    """Raises ValueError, naming the field, if the mesh does not divide a global batch."""
    if batch % (parts := batch_parts(rules, mesh)):
        raise ValueError(f"{field} {batch} does not split over {parts} devices ({rules.batch})")


def place_batch(batch: Any, sharding: NamedSharding) -> Any:
    """This host's rows of every array of a batch as global arrays."""
    return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(sharding, rows), batch)
