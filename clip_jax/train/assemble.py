"""Model, loss, optimizer and mesh put together: a jitted step and the state it changes."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from clip_jax.losses import LossConfig
from clip_jax.models.axes import logical_axes
from clip_jax.models.clip import CLIP, ClipConfig, init_params, param_shapes
from clip_jax.optim import masks
from clip_jax.optim.build import DType, OptimConfig, build
from clip_jax.preprocess.recipe import Recipe
from clip_jax.sharding import place
from clip_jax.sharding.rules import AxisRules
from clip_jax.train.config import TrainConfig
from clip_jax.train.forward import check_accumulate, make_forward
from clip_jax.train.state import State
from clip_jax.train.step import Step, make_step


@dataclasses.dataclass(frozen=True, kw_only=True)
class Assembled:
    """What a run needs besides data."""

    model: CLIP
    mesh: Mesh
    step: Step
    """Jitted; it donates the state it is given."""
    init: Callable[[], State]
    """Fresh state, already in its place on the mesh."""
    abstract: State
    """Shapes and shardings of the state."""
    batch_sharding: NamedSharding


def assemble(
    *,
    model: ClipConfig,
    loss: LossConfig,
    optim: OptimConfig,
    recipe: Recipe,
    rules: AxisRules,
    mesh: Mesh,
    seed: int,
    steps: int,
    begin: int = 0,
    accumulate: int = 1,
    ema: float | None = None,
    param_dtype: DType = "float32",
) -> Assembled:
    """Everything compiled lazily; initial values depend on the seed, not on the mesh.

    Arguments are as the fields of `TrainConfig`; before the first of `steps` updates the state's
    number of updates is `begin`.

    Raises:
      ValueError: the mesh does not divide a parameter, or a pattern in `optim` is idle.
    """
    shapes = param_shapes(model)
    optimizer, schedule = build(optim, shapes, steps)
    init = partial(_fresh, model, optimizer, seed, averaged=ema is not None)
    state = jax.eval_shape(init)
    shardings = state_shardings(state, rules, mesh)
    batch, whole = place.batch_sharding(rules, mesh), shardings.step
    frozen = masks.frozen(shapes, optim.rates)
    parts = {"recipe": recipe, "accumulate": accumulate, "param_dtype": param_dtype}
    forward = make_forward(model, shardings.params, rules, mesh, **parts, frozen=frozen)
    module, objective = CLIP(model), loss.on(mesh, rules.batch)
    step = jax.jit(
        make_step(
            module, forward, objective, optimizer, lambda t: schedule(t - begin), seed, ema, frozen
        ),
        in_shardings=(shardings, batch),
        out_shardings=(shardings, whole),
        donate_argnums=0,
    )
    return Assembled(
        model=module,
        mesh=mesh,
        step=step,
        init=jax.jit(init, out_shardings=shardings),
        abstract=jax.tree.map(_abstract, state, shardings),
        batch_sharding=batch,
    )


def _fresh(
    model: ClipConfig, optimizer: optax.GradientTransformation, seed: int, *, averaged: bool
) -> State:
    """The state before the first update."""
    params = init_params(model, jax.random.key(seed))
    average = jax.tree.map(jnp.copy, params) if averaged else None
    return State(jnp.int32(0), params, optimizer.init(params), average)


def state_shardings(state: State, rules: AxisRules, mesh: Mesh) -> State:
    """Where each part of a state of shapes lies: the optimizer's and the average's as parameters.

    Raises:
      ValueError: the mesh does not divide a parameter.
    """
    params = place.param_shardings(state.params, logical_axes(state.params), rules, mesh)
    opt = place.follow(state.opt, state.params, params, mesh)
    whole = NamedSharding(mesh, PartitionSpec())
    return State(whole, params, opt, None if state.ema is None else params)


def _abstract(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def assemble_run(config: TrainConfig, mesh: Mesh, begin: int = 0) -> Assembled:
    """The parts of a run (one of `TrainConfig.stages`) on a mesh, the same for training and for
    planning it; `begin` is as for `assemble`.

    Raises:
      ValueError: batch, accumulation, model and mesh do not fit together.
    """
    place.check_batch("batch", config.batch, config.rules, mesh)
    check_accumulate(config.batch, config.accumulate, config.rules, mesh)
    return assemble(
        model=config.model,
        loss=config.loss,
        optim=config.optim,
        recipe=config.recipe,
        rules=config.rules,
        mesh=mesh,
        seed=config.seed,
        steps=config.steps,
        begin=begin,
        accumulate=config.accumulate,
        ema=config.ema,
        param_dtype=config.param_dtype,
    )
