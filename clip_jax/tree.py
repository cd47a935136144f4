"""Paths of a pytree: name leaves, select them by pattern, count them."""

import difflib
import fnmatch
import math
from collections.abc import Callable, Iterable
from typing import Any

import jax


def path_name(path: tuple[Any, ...]) -> str:
    """Key path of one leaf as text, e.g. `image/blocks/mlp/up/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def paths(tree: Any) -> list[str]:
    """Path of every leaf, in the order of `jax.tree.leaves`."""
    return [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def map_with_path(function: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """`jax.tree.map` whose function is given the leaf's path first."""
    return jax.tree_util.tree_map_with_path(
        lambda path, *leaves: function(path_name(path), *leaves), tree, *rest
    )


def matches(pattern: str, path: str) -> bool:
    """Whether a path fits a shell pattern; `*` also crosses slashes (`image/*`)."""
    return fnmatch.fnmatchcase(path, pattern)


def require_matches(patterns: Iterable[str], tree: Any, what: str) -> None:
    """Check that each pattern selects a leaf.

    Raises:
      ValueError: lists all patterns that select nothing, each with the nearest path.
    """
    known = paths(tree)
    idle = [p for p in patterns if not any(matches(p, path) for path in known)]
    if idle:
        raise ValueError(f"{what}: " + "; ".join(_no_match(p, known) for p in idle))


def _no_match(pattern: str, known: list[str]) -> str:
    near = difflib.get_close_matches(pattern, known, n=1, cutoff=0.0)
    hint = f" (nearest: {near[0]!r})" if near else ""
    return f"pattern {pattern!r} matches no parameter{hint}"


def count(tree: Any) -> int:
    """Number of scalars in all arrays (or shapes) of the tree."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
