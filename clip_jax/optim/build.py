"""From an optimizer's config to an optax transformation."""

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from clip_jax.config import require
from clip_jax.optim import masks
from clip_jax.optim.schedule import Constant, Cosine, Rsqrt

DType = Literal["float32", "bfloat16"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamW:
    """Adam with decoupled weight decay; the defaults are those of OpenAI's ViTs.

    Source: Loshchilov and Hutter 2019, arXiv:1711.05101, algorithm 2; Radford et al. 2021,
    arXiv:2103.00020, table 18.
    """

    b1: float = 0.9
    """Decay of the mean of gradients."""
    b2: float = 0.98
    """Decay of the mean of squared gradients."""
    eps: float = 1e-6
    """Added to the root of that mean."""
    weight_decay: float = 0.2
    """Times the learning rate: the share of each matrix that an update takes away."""
    moment_dtype: DType = "float32"
    """Of the mean of gradients; that of squared gradients stays float32."""

    def __post_init__(self) -> None:
        require(self, *_decays(self), ("eps", self.eps > 0, "above 0"))

    def direction(self) -> optax.GradientTransformation:
        """Gradients to steps of unit learning rate, before weight decay."""
        return optax.scale_by_adam(self.b1, self.b2, self.eps, mu_dtype=self.moment_dtype)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lion:
    """The sign of a mean of gradients; wants a rate 3 to 10 times below AdamW's.

    Source: Chen et al. 2023, arXiv:2302.06675, algorithm 2 and section 5.
    """

    b1: float = 0.9
    """Weight of the mean, against the newest gradient, in the step."""
    b2: float = 0.99
    """Decay of the mean of gradients."""
    weight_decay: float = 1.0
    """As AdamW's, but as many times larger as the rate is smaller."""
    moment_dtype: DType = "float32"

    def __post_init__(self) -> None:
        require(self, *_decays(self))

    def direction(self) -> optax.GradientTransformation:
        """Gradients to steps of unit learning rate, before weight decay."""
        return optax.scale_by_lion(self.b1, self.b2, mu_dtype=self.moment_dtype)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adafactor:
    """Adam's second moment kept as rows and columns, with plain momentum: half of Adam's memory.

    Source: Shazeer and Stern 2018, arXiv:1804.04235; as modified by Zhai et al. 2022,
    arXiv:2106.04560, section 3.4 (momentum, a cap on b2, no scaling by the parameter's size).
    """

    b1: float | None = 0.9
    """Decay of the mean of steps; None for no momentum and no memory for it."""
    b2: float = 0.999
    """Cap on the decay of the second moment, which is 1 - t^-0.8 at update t."""
    eps: float = 1e-30
    """Added to squared gradients."""
    factor_from: int = 32
    """Smallest size of the two largest dimensions for which a matrix is factored.

    Gains and biases never are. Where attention kernels are stacked from more layers than a head
    has channels, a larger value keeps the layers apart.
    """
    weight_decay: float = 0.2
    """As AdamW's."""
    moment_dtype: DType = "float32"
    """Of the momentum."""

    def __post_init__(self) -> None:
        known = ("eps", self.eps > 0, "above 0"), ("factor_from", self.factor_from > 0, "above 0")
        require(self, *_decays(self), *known)

    def direction(self) -> optax.GradientTransformation:
        """Gradients to steps of unit learning rate, before weight decay."""
        momentum = optax.identity()
        if self.b1 is not None:
            momentum = optax.ema(self.b1, debias=False, accumulator_dtype=self.moment_dtype)
        return optax.chain(
            optax.masked(self._second_moment(True), masks.decayed),
            optax.masked(self._second_moment(False), _not_decayed),
            momentum,
        )

    def _second_moment(self, factored: bool) -> optax.GradientTransformation:
        return optax.scale_by_factored_rms(
            factored,
            min_dim_size_to_factor=self.factor_from,
            epsilon=self.eps,
            decay_rate_fn=lambda t, _: jnp.minimum(self.b2, 1 - jnp.power(t + 1.0, -0.8)),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """How parameters move."""

    method: AdamW | Lion | Adafactor = dataclasses.field(default_factory=AdamW)
    """Update rule."""
    learning_rate: float
    """At the schedule's peak."""
    schedule: Cosine | Rsqrt | Constant = dataclasses.field(default_factory=Cosine)
    """How the learning rate moves over the run."""
    clip_norm: float | None = 1.0
    """Gradients longer than this, over all trained parameters, are shortened to it."""
    rates: dict[str, float] = dataclasses.field(default_factory=dict)
    """Factor on the rate by path pattern ('image/*'); of several, the last counts; 0 freezes."""

    def __post_init__(self) -> None:
        require(
            self,
            ("learning_rate", 0 < self.learning_rate < math.inf, "above 0 and finite"),
            ("clip_norm", self.clip_norm is None or self.clip_norm > 0, "above 0, or None"),
        )


def build(
    config: OptimConfig, params: Any, steps: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The optimizer of a run, and its learning rate.

    An update is `-rate * multiplier * (direction + weight_decay * parameter)`: decay is decoupled
    from the gradient and scaled by the learning rate, as in `optax.adamw` and PyTorch's AdamW.
    Frozen parameters get updates of exactly zero, have no moments, and do not count in the norm
    by which gradients are clipped.

    The path of every moment in the state ends with the path of its parameter, and but for
    Adafactor's second moments it has its shape, so the state can be sharded like the parameters.

    Args:
      params: arrays or shapes, with the paths of the model (their names say what decays).
      steps: updates in the run, for the schedule.

    Returns:
      The transformation, whose `update` needs the parameters, and the schedule it follows.

    Raises:
      ValueError: a pattern in `rates` matches nothing, all parameters are frozen, a parameter's
        name is unknown, or the schedule does not fit into the run.
    """
    schedule = config.schedule.build(config.learning_rate, steps)
    rates = masks.rate_multipliers(params, config.rates)
    trained = jax.tree.map(lambda rate: rate > 0, rates)
    frozen = jax.tree.map(lambda rate: rate == 0, rates)
    if not any(jax.tree.leaves(trained)):
        raise ValueError(f"rates {config.rates} freeze every parameter")
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    return optax.chain(
        optax.masked(optax.chain(clip, config.method.direction()), trained),
        optax.add_decayed_weights(config.method.weight_decay, masks.decayed(params)),
        optax.stateless(lambda updates, _: jax.tree.map(jnp.multiply, updates, rates)),
        optax.scale_by_learning_rate(schedule),
        optax.masked(optax.set_to_zero(), frozen),
    ), schedule


def _not_decayed(params: Any) -> Any:
    return jax.tree.map(lambda is_matrix: not is_matrix, masks.decayed(params))


def _decays(method: AdamW | Lion | Adafactor) -> tuple[tuple[str, bool, str], ...]:
    """Conditions for `require` on the fields that all methods have."""
    return (
        ("b1", method.b1 is None or 0 <= method.b1 < 1, "in [0, 1)"),
        ("b2", 0 <= method.b2 < 1, "in [0, 1)"),
        ("weight_decay", 0 <= method.weight_decay < math.inf, "finite and not below 0"),
    )
