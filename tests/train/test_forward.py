import dataclasses

import jax
import numpy as np
import pytest

from clip_jax.losses import Sigmoid
from clip_jax.models.axes import logical_axes
from clip_jax.models.clip import init_params
from clip_jax.models.resnet import ResNetConfig
from clip_jax.preprocess.recipe import Recipe
from clip_jax.sharding.mesh import MeshConfig, build_mesh
from clip_jax.sharding.place import param_shardings
from clip_jax.sharding.rules import DATA_PARALLEL, FSDP, HYBRID, TENSOR_PARALLEL, AxisRules
from clip_jax.train.forward import make_forward

TABLES = {
    "data-parallel": (MeshConfig(), DATA_PARALLEL),
    "FSDP": (MeshConfig(), FSDP),
    "FSDP, gathered once": (MeshConfig(), dataclasses.replace(FSDP, regather=False)),
    "FSDP over replicas": (MeshConfig(replica=2), AxisRules(params=("replica", "data"))),
    "hybrid": (MeshConfig(replica=2), HYBRID),
    "tensor-parallel": (MeshConfig(data=4, model=2), TENSOR_PARALLEL),
    "both": (MeshConfig(data=4, model=2), dataclasses.replace(TENSOR_PARALLEL, params=("data",))),
}
BATCH = 16


def slopes(model, loss, mesh, rules):
    """Loss and gradients of one batch, as whole arrays."""
    params = jax.jit(lambda: init_params(model, jax.random.key(0)))()
    placed = param_shardings(params, logical_axes(params), rules, mesh)
    forward = make_forward(model, placed, rules, mesh, recipe=Recipe(size=8))
    objective = loss.on(mesh, rules.batch)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (BATCH, 8, 8, 3), np.uint8)
    tokens = rng.integers(1, 64, (BATCH, 8)).astype(np.int32)

    def value(params, images, tokens, key):
        return objective(*forward(params, images, tokens, rngs={"dropout": key})[0])[0]

    found = jax.jit(jax.value_and_grad(value), in_shardings=(placed, None, None, None))(
        jax.device_put(params, placed), images, tokens, jax.random.key(1)
    )
    return jax.tree.map(np.asarray, found)


def assert_equal(found, expected):
    """To 1e-5 of the largest number of each array, and of 1."""

    def check(a, b):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(1, np.abs(b).max()))

    jax.tree.map(check, found, expected)


@pytest.fixture(scope="module")
def odd(tiny):
    """No dimension of its matrices is divided by 8, but for the words; dropout is on."""
    stack = dataclasses.replace(tiny.text.stack, width=12, mlp_width=20, remat="nothing")
    return dataclasses.replace(
        tiny,
        image=dataclasses.replace(tiny.image, stack=stack),
        text=dataclasses.replace(tiny.text, stack=stack),
        embed_dim=6,
        bias=-5.0,
    )


@pytest.fixture(scope="module")
def alone(odd):
    return slopes(odd, Sigmoid(), build_mesh(MeshConfig(), jax.devices()[:1]), DATA_PARALLEL)


@pytest.mark.parametrize("table", TABLES)
def test_every_table_gives_the_loss_and_gradients_of_one_device(odd, alone, table):
    sizes, rules = TABLES[table]
    found = slopes(odd, Sigmoid(tile=4), build_mesh(sizes), rules)
    assert_equal(found, alone)


@pytest.mark.parametrize("regather", [True, False])
def test_blocks_side_by_side_are_gathered_too(odd, alone, regather):
    def unrolled(tower):
        return dataclasses.replace(tower, stack=dataclasses.replace(tower.stack, unroll=2))

    model = dataclasses.replace(odd, image=unrolled(odd.image), text=unrolled(odd.text))
    rules = dataclasses.replace(FSDP, regather=regather)
    assert_equal(slopes(model, Sigmoid(), build_mesh(MeshConfig()), rules), alone)


def test_convolutions_are_matrices_too(odd):
    image = ResNetConfig(image_size=32, layers=(1, 1, 1, 1), width=8, heads=4)
    model = dataclasses.replace(odd, image=image)
    shapes = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    placed = param_shardings(shapes, logical_axes(shapes), FSDP, build_mesh(MeshConfig()))
    block = placed["image"]["stage2"]["block0"]
    assert not block["conv1"]["kernel"].is_fully_replicated
    assert block["norm1"]["scale"].is_fully_replicated


def test_under_fsdp_only_matrices_are_gathered_and_their_gradients_reduce_scattered(odd):
    """In the program's text, before any backend changes it."""
    model = dataclasses.replace(odd, dtype="bfloat16")
    mesh = build_mesh(MeshConfig())
    shapes = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    placed = param_shardings(shapes, logical_axes(shapes), FSDP, mesh)
    forward = make_forward(model, placed, FSDP, mesh, recipe=Recipe(size=8))

    def value(params, images, tokens):
        out, _ = forward(params, images, tokens, rngs={})
        return (out.image * out.text).sum()

    images = jax.ShapeDtypeStruct((BATCH, 8, 8, 3), np.uint8)
    tokens = jax.ShapeDtypeStruct((BATCH, 8), np.int32)
    text = jax.jit(jax.grad(value)).lower(shapes, images, tokens).as_text()
    gathered = [line for line in text.splitlines() if "stablehlo.all_gather" in line]
    assert gathered and all("f32" not in line.partition(": (")[2] for line in gathered)
    assert not [line for line in gathered if "<2x8x" in line.partition(": (")[2]]
    scattered = text.count("stablehlo.reduce_scatter")
    assert scattered >= len(gathered) // 2
