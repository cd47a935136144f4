"""Batch norms that train by the statistics of the global batch."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax import tree
from clip_jax.losses import Softmax
from clip_jax.models.clip import CLIP
from clip_jax.models.resnet import (
    MOMENTUM,
    STATISTICS,
    BatchNorm,
    Norms,
    ResNetConfig,
    convolve,
    with_statistics,
)
from clip_jax.optim.build import OptimConfig
from clip_jax.optim.schedule import Constant
from clip_jax.preprocess.recipe import Recipe, normalize
from clip_jax.sharding.mesh import MeshConfig, build_mesh
from clip_jax.sharding.place import place_batch
from clip_jax.sharding.rules import DATA_PARALLEL, FSDP
from clip_jax.train.assemble import assemble

BATCH, STEPS = 16, 3


@pytest.fixture(scope="module")
def model(tiny):
    image = ResNetConfig(
        image_size=32, layers=(1, 1, 1, 1), width=8, heads=4, batch_statistics=True
    )
    stack = dataclasses.replace(tiny.text.stack, dropout=0.0, layers=1)
    return dataclasses.replace(tiny, image=image, text=dataclasses.replace(tiny.text, stack=stack))


def batch(number):
    rng = np.random.default_rng(number)
    tokens = rng.integers(1, 63, (BATCH, 8)).astype(np.int32)
    tokens[:, -1] = 63
    images = rng.integers(0, 256, (BATCH, 32, 32, 3)) * rng.uniform(0.2, 1, (BATCH, 1, 1, 3))
    return {"images": images.astype(np.uint8), "tokens": tokens}


def run(model, mesh, rules, ema=0.5):
    """Metrics of each step, and states before, after the first and after the last."""
    parts = assemble(
        model=model,
        loss=Softmax(),
        optim=OptimConfig(learning_rate=1e-3, schedule=Constant(warmup=0.0)),
        recipe=Recipe(size=32),
        rules=rules,
        mesh=mesh,
        seed=0,
        steps=STEPS,
        ema=ema,
    )
    state, seen = parts.init(), []
    states = [jax.tree.map(np.array, state)]
    for number in range(STEPS):
        state, metrics = parts.step(state, place_batch(batch(number), parts.batch_sharding))
        seen.append({name: float(value) for name, value in metrics.items()})
        states.append(jax.tree.map(np.array, state))
    return seen, states


@pytest.fixture(scope="module")
def alone(model):
    return run(model, build_mesh(MeshConfig(), jax.devices()[:1]), DATA_PARALLEL)


def test_eight_devices_take_the_statistics_of_the_global_batch(model, alone):
    seen, states = run(model, build_mesh(MeshConfig()), FSDP)
    for ours, theirs in zip(seen, alone[0], strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
    assert seen[0]["loss"] == pytest.approx(alone[0][0]["loss"], rel=1e-5)
    assert seen[0]["grad_norm"] == pytest.approx(alone[0][0]["grad_norm"], rel=1e-4)

    def near(path, a, b):  # Of the first batch, before Adam magnifies rounding.
        if path.endswith(("mean", "var")):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6, err_msg=path)

    tree.map_with_path(near, states[1].params, alone[1][1].params)


def statistics(params):
    pairs = zip(tree.paths(params), jax.tree.leaves(params), strict=True)
    return {path: leaf for path, leaf in pairs if path.endswith(("mean", "var"))}


def test_running_statistics_move_by_momentum_and_by_nothing_else(model, alone):
    first, second = alone[1][0].params, alone[1][1].params
    images = normalize(jnp.asarray(batch(0)["images"]), Recipe(size=32))
    kernel = first["image"]["stem"]["conv1"]["kernel"]
    x = np.asarray(convolve(images, jnp.asarray(kernel), 2), np.float64)
    rows = x.reshape(-1, x.shape[-1])
    found = second["image"]["stem"]["norm1"]
    np.testing.assert_allclose(found["mean"], MOMENTUM * rows.mean(0), rtol=1e-4, atol=1e-6)
    expected = 1 - MOMENTUM + MOMENTUM * rows.var(0, ddof=1)
    np.testing.assert_allclose(found["var"], expected, rtol=1e-4)
    for state in alone[1][1:]:
        moved = statistics(state.params)
        assert all(not np.array_equal(moved[path], statistics(first)[path]) for path in moved)


def test_the_average_of_parameters_takes_their_statistics_along(alone):
    for before, after in zip(alone[1], alone[1][1:], strict=False):
        share = 1 - min(0.5, (1 + before.step) / (10 + before.step))
        for path, new in statistics(after.params).items():
            old = statistics(before.ema)[path]
            wanted = old + share * (new - old)
            np.testing.assert_allclose(statistics(after.ema)[path], wanted, rtol=1e-5, atol=1e-7)


def test_what_is_used_is_the_running_statistics(model, alone):
    params = alone[1][-1].params
    images = normalize(jnp.asarray(batch(7)["images"]), Recipe(size=32))
    plain = dataclasses.replace(
        model, image=dataclasses.replace(model.image, batch_statistics=False)
    )
    whole, one = (jax.jit(partial(CLIP(m).apply, method="encode_image")) for m in (model, plain))
    ours = whole({"params": params}, images)
    np.testing.assert_array_equal(ours, one({"params": params}, images))
    few = one({"params": params}, images[:3])
    np.testing.assert_allclose(few, ours[:3], atol=1e-5)


@pytest.fixture(scope="module")
def norm():
    """Output, statistics and gradient of a training batch norm on numbers far from zero."""
    rng = np.random.default_rng(0)
    x = (50 + 3 * rng.normal(size=(4, 3, 2, 5))).astype(np.float32)
    params = {"scale": rng.normal(size=5), "bias": rng.normal(size=5), "mean": np.zeros(5)}
    params = jax.tree.map(jnp.float32, {**params, "var": np.ones(5)})
    weights = rng.normal(size=x.shape).astype(np.float32)
    module, rngs = BatchNorm(norms=Norms(batch=True)), {"dropout": jax.random.key(0)}

    def value(params, x):
        y, seen = module.apply({"params": params}, x, rngs=rngs, mutable=[STATISTICS])
        return (y * weights).sum(), (y, seen[STATISTICS])

    (_, (y, seen)), grads = jax.jit(jax.value_and_grad(value, (0, 1), has_aux=True))(params, x)
    return x, params, y, seen, grads, weights


def test_a_training_batch_norm_is_the_textbook_formula(norm):
    x, params, y, seen, _, _ = norm
    rows = x.reshape(-1, 5).astype(np.float64)
    expected = (x - rows.mean(0)) / np.sqrt(rows.var(0) + 1e-5)
    expected = expected * np.asarray(params["scale"]) + np.asarray(params["bias"])
    np.testing.assert_allclose(y, expected, atol=1e-4)
    np.testing.assert_allclose(seen["mean"], rows.mean(0), rtol=1e-6)
    np.testing.assert_allclose(seen["var"], rows.var(0, ddof=1), rtol=1e-4)


def test_its_gradient_is_that_of_a_function_which_no_shift_and_no_stretch_changes(norm):
    x, _, _, _, (of_params, of_x), weights = norm
    rows = (x - x.reshape(-1, 5).mean(0)).reshape(-1, 5)
    size = np.abs(of_x).max()
    assert size > 0.01
    np.testing.assert_allclose(of_x.sum(axis=(0, 1, 2)), 0, atol=1e-4 * size)
    np.testing.assert_allclose((of_x.reshape(-1, 5) * rows).sum(0), 0, atol=1e-2 * size)
    np.testing.assert_allclose(of_params["bias"], weights.sum(axis=(0, 1, 2)), rtol=1e-5)
    assert not np.any(of_params["mean"]) and not np.any(of_params["var"])


def test_nothing_moves_where_nothing_was_seen():
    params = {"image": {"norm": {"mean": jnp.ones(2)}, "other": jnp.zeros(1)}}
    assert with_statistics(params, {}) is params
    moved = with_statistics(params, {"image": {"norm": {"mean": jnp.full(2, 3.0)}}})
    np.testing.assert_allclose(moved["image"]["norm"]["mean"], 1 + MOMENTUM * 2)
    assert moved["image"]["other"] is params["image"]["other"]


def test_parts_of_a_batch_have_no_statistics_of_the_whole(experiment, model):
    with pytest.raises(ValueError, match="accumulate needs batch norms that do not look at"):
        plain = experiment("run")
        image = dataclasses.replace(model.image, image_size=32)
        dataclasses.replace(
            plain,
            model=dataclasses.replace(plain.model, image=image),
            recipe=Recipe(size=32),
            accumulate=2,
        )
