"""One update, as a pure function."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from clip_jax.losses import Objective
from clip_jax.models.clip import CLIP, cap_scale
from clip_jax.models.resnet import with_statistics
from clip_jax.train.forward import Forward
from clip_jax.train.state import State

Metrics = dict[str, Float[Array, ""]]
Step = Callable[[State, Mapping[str, Array]], tuple[State, Metrics]]


def make_step(
    model: CLIP,
    forward: Forward,
    loss: Objective,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    seed: int,
    ema: float | None = None,
    frozen: Any = None,
) -> Step:
    """A pure `(state, batch) -> (state, metrics)`; jit and shardings are the caller's.

    The batch holds `images` (uint8 NHWC) and `tokens` (int32). Metrics are those of the
    parameters before the update; `accuracy` is `losses.softmax.batch_accuracy`; `grad_norm` is
    that of the gradients of trained parameters.

    Args:
      ema: as `TrainConfig.ema`, for a state that holds an average.
      frozen: a tree like the parameters of bool (`optim.masks.frozen`), None if all are trained.
        By frozen ones nothing is differentiated: what only their gradients need is not computed.
    """

    def evaluate(params: Any, batch: Mapping[str, Array], key: Any):
        rngs = {"dropout": key}
        output, seen = forward(hold(params, frozen), batch["images"], batch["tokens"], rngs=rngs)
        value, accuracy = loss(*output)
        return value, (accuracy, seen)

    def step(state: State, batch: Mapping[str, Array]) -> tuple[State, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        value_and_grad = jax.value_and_grad(evaluate, has_aux=True)
        (value, (accuracy, seen)), grads = value_and_grad(state.params, batch, key)
        updates, opt = optimizer.update(grads, state.opt, state.params)
        params = with_statistics(optax.apply_updates(state.params, updates), seen, frozen)
        metrics = {
            "loss": value,
            "accuracy": accuracy,
            "learning_rate": schedule(state.step),
            "temperature": 1 / jnp.exp(state.params["logit_scale"]),
            "grad_norm": optax.tree.norm(grads),
            "update_norm": optax.tree.norm(updates),
        }
        params, average = cap_scale(params, model.cfg.max_scale), None
        if ema is not None:
            average = averaged(state.ema, params, ema, state.step)
        return State(state.step + 1, params, opt, average), metrics

    return step


def hold(params: Any, frozen: Any) -> Any:
    """The parameters, of which those where the tree `frozen` is true count as constants."""
    if frozen is None:
        return params
    return jax.tree.map(
        lambda leaf, still: jax.lax.stop_gradient(leaf) if still else leaf, params, frozen
    )


def averaged(average: Any, params: Any, decay: float, step: Int[Array, ""]) -> Any:
    """The moving average after one more update, in float32.

    Early on it forgets faster, by min(decay, (1 + step) / (10 + step)), so that the first
    parameters, which are random, do not stay in it for 1 / (1 - decay) updates.

    Args:
      step: updates before this one.

    Source: Polyak and Juditsky 1992, SIAM J. Control Optim. 30(4); the warm-up as `num_updates`
    of tf.train.ExponentialMovingAverage.
    """
    share = 1 - jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda old, new: old + share * (new - old), average, params)
