"""One update, as a pure function."""

from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
import optax
from jaxtyping import Array, Float

from clip_jax.losses import LossConfig
from clip_jax.losses.softmax import batch_accuracy
from clip_jax.models.clip import CLIP, Output, cap_scale
from clip_jax.preprocess.recipe import Recipe, normalize
from clip_jax.train.state import State

Metrics = dict[str, Float[Array, ""]]
Step = Callable[[State, Mapping[str, Array]], tuple[State, Metrics]]


def make_step(
    model: CLIP,
    loss: LossConfig,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    recipe: Recipe,
    seed: int,
) -> Step:
    """A pure `(state, batch) -> (state, metrics)`; jit and shardings are the caller's.

    The batch holds `images` (uint8 NHWC) and `tokens` (int32). Metrics are those of the
    parameters before the update; `accuracy` is `batch_accuracy`.
    """

    def evaluate(params: Any, batch: Mapping[str, Array], key: Any):
        images = normalize(batch["images"], recipe)
        rngs = {"dropout": key}
        out = cast(Output, model.apply({"params": params}, images, batch["tokens"], rngs=rngs))
        return loss(*out), batch_accuracy(out.image, out.text)

    def step(state: State, batch: Mapping[str, Array]) -> tuple[State, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        value_and_grad = jax.value_and_grad(evaluate, has_aux=True)
        (value, accuracy), grads = value_and_grad(state.params, batch, key)
        updates, opt = optimizer.update(grads, state.opt, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {
            "loss": value,
            "accuracy": accuracy,
            "learning_rate": schedule(state.step),
            "temperature": 1 / jax.numpy.exp(state.params["logit_scale"]),
            "grad_norm": optax.tree.norm(grads),
            "update_norm": optax.tree.norm(updates),
        }
        return State(state.step + 1, cap_scale(params, model.cfg.max_scale), opt), metrics

    return step
