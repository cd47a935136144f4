"""Which parameters decay, and how fast each one learns."""

import math
from collections.abc import Mapping
from typing import Any

from clip_jax import tree

DECAYED = {
    "kernel": True,
    "embedding": True,
    "probe": True,
    "bias": False,
    "scale": False,
    "scale_attend": False,
    "scale_mlp": False,
    "mean": False,
    "var": False,
    "class_embedding": False,
    "logit_scale": False,
    "logit_bias": False,
}
"""Whether a parameter is a matrix, by the last part of its path.

The number of dimensions would not tell: parameters of blocks are stacked, so that the gains of
all layers together form a matrix, too.
"""


def decayed(params: Any) -> Any:
    """Whether weight decay applies to each parameter: to matrices, not to gains or biases.

    Args:
      params: a tree of arrays or shapes.

    Returns:
      A tree like `params` of bool.

    Raises:
      ValueError: lists all parameters whose name is not in `DECAYED`.

    Source: Radford et al. 2021, arXiv:2103.00020, section 2.5.
    """
    unknown = [path for path in tree.paths(params) if _name(path) not in DECAYED]
    if unknown:
        raise ValueError(
            f"matrix or not? no rule for {len(unknown)} parameters: {', '.join(unknown)};"
            f" known names: {', '.join(DECAYED)}"
        )
    return tree.map_with_path(lambda path, _: DECAYED[_name(path)], params)


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def rate_multipliers(params: Any, rates: Mapping[str, float]) -> Any:
    """Factor on the learning rate of each parameter.

    Args:
      params: a tree of arrays or shapes.
      rates: factors by path pattern (`image/*`); where several match, the last one counts;
        0 freezes; a parameter that none matches has 1.

    Returns:
      A tree like `params` of float.

    Raises:
      ValueError: a pattern matches no parameter, or a factor is negative or not finite.
    """
    wrong = {pattern: rate for pattern, rate in rates.items() if not 0 <= rate < math.inf}
    if wrong:
        raise ValueError(f"rates must be finite and not below 0, got {wrong}")
    tree.require_matches(rates, params, "rates")

    def multiplier(path: str, _: Any) -> float:
        return [1.0, *(float(r) for p, r in rates.items() if tree.matches(p, path))][-1]

    return tree.map_with_path(multiplier, params)


def frozen(params: Any, rates: Mapping[str, float]) -> Any:
    """Whether each parameter has a learning rate of exactly zero.

    Args and errors are those of `rate_multipliers`.

    Returns:
      A tree like `params` of bool.
    """
    return tree.map_with_path(lambda _, rate: rate == 0, rate_multipliers(params, rates))
