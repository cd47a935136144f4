"""How the learning rate moves over a run: warm-up, decay, cool-down."""

import dataclasses
import math
from collections.abc import Callable

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int
from jaxtyping import ArrayLike as Numbers

from clip_jax.config import require

Span = int | float
"""Length of a part of a run: below 1 a share of the run, from 1 on a whole number of steps."""

Decay = Callable[[Float[Array, "..."]], Float[Array, "..."]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cosine:
    """Half a cosine from the peak down to the end.

    Source: Loshchilov and Hutter 2017, arXiv:1608.03983, equation 5, without restarts.
    """

    warmup: Span = 0.1
    """Steps (1 or more) or share of the run (below 1) of the linear rise from 0 to the peak."""
    end: float = 0.0
    """What is left when the run ends, as a share of the peak."""

    def __post_init__(self) -> None:
        require(self, _span(self, "warmup"), ("end", 0 <= self.end <= 1, "from 0 to 1"))

    def build(self, peak: float, steps: int) -> optax.Schedule:
        """Learning rate before update t, for t in [0, steps); see `_assemble`."""
        length = max(1, steps - _length(self.warmup, steps))

        def decay(past: Float[Array, "..."]) -> Float[Array, "..."]:
            wave = (1 + jnp.cos(math.pi * past / length)) / 2
            return self.end + (1 - self.end) * wave

        return _assemble(peak, steps, self.warmup, 0, decay)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rsqrt:
    """One over the square root of the steps since warm-up, for runs whose end is open.

    Source: Zhai et al. 2022, arXiv:2106.04560, section 3.5.
    """

    warmup: Span = 0.1
    """Steps (1 or more) or share of the run (below 1) of the linear rise from 0 to the peak."""
    timescale: Span = 10_000
    """Steps (or share of the run) after the warm-up at which the rate is peak / sqrt(2)."""
    cooldown: Span = 0.1
    """Steps (or share of the run) of the linear fall to 0 that ends the run."""

    def __post_init__(self) -> None:
        spans = [_span(self, name) for name in ("warmup", "timescale", "cooldown")]
        require(self, *spans, ("timescale", self.timescale != 0, "above 0"))

    def build(self, peak: float, steps: int) -> optax.Schedule:
        """Learning rate before update t, for t in [0, steps); see `_assemble`."""
        timescale = max(1, _length(self.timescale, steps))

        def decay(past: Float[Array, "..."]) -> Float[Array, "..."]:
            return (1 + past / timescale) ** -0.5

        return _assemble(peak, steps, self.warmup, self.cooldown, decay)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Constant:
    """The peak all along."""

    warmup: Span = 0.1
    """Steps (1 or more) or share of the run (below 1) of the linear rise from 0 to the peak."""
    cooldown: Span = 0.0
    """Steps (or share of the run) of the linear fall to 0 that ends the run."""

    def __post_init__(self) -> None:
        require(self, _span(self, "warmup"), _span(self, "cooldown"))

    def build(self, peak: float, steps: int) -> optax.Schedule:
        """Learning rate before update t, for t in [0, steps); see `_assemble`."""
        return _assemble(peak, steps, self.warmup, self.cooldown, jnp.ones_like)


def _span(config: object, name: str) -> tuple[str, bool, str]:
    """Condition for `require`."""
    value = getattr(config, name)
    right = 0 <= value < 1 or (math.isfinite(value) and value >= 1 and value == int(value))
    return name, right, "whole steps (1 or more) or a share of the run (0 up to 1)"


def _length(span: Span, steps: int) -> int:
    return round(span * steps) if span < 1 else int(span)


def _assemble(
    peak: float, steps: int, warmup: Span, cooldown: Span, decay: Decay
) -> optax.Schedule:
    """Warm-up, decay and cool-down put together, without a jump.

    The rate is 0 at step 0, `peak` when the warm-up ends, and where the cool-down begins it
    falls in a straight line to 0 at t = steps. Update t uses the rate at t, counted from 0: the
    first one rests (unless there is no warm-up) and the last one, t = steps - 1, still moves.

    Args:
      peak: above 0.
      steps: updates in the run, above 0.
      decay: share of the peak, given the steps since the warm-up (1 at 0).

    Raises:
      ValueError: the run is too short for warm-up and cool-down.
    """
    rise, fall = _length(warmup, steps), _length(cooldown, steps)
    if steps < 1 or rise + fall > steps:
        raise ValueError(
            f"warm-up ({rise} steps) and cool-down ({fall}) do not fit into a run of {steps} steps;"
            " give them as shares of the run, e.g. 0.1"
        )

    def rate(step: Int[Numbers, "..."]) -> Float[Array, "..."]:
        t = jnp.clip(jnp.asarray(step, jnp.float32), 0, steps)
        warm = jnp.minimum(1, t / rise) if rise else 1
        cool = jnp.minimum(1, (steps - t) / fall) if fall else 1
        past = jnp.clip(t, rise, steps - fall) - rise
        return peak * warm * cool * decay(past)

    return rate
