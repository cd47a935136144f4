import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from clip_jax.losses import Sigmoid, Softmax
from clip_jax.losses.softmax import batch_accuracy
from clip_jax.sharding.mesh import MeshConfig, build_mesh

BATCH_AXES = ("replica", "data")
BOTH = [Softmax, Sigmoid]
MESHES = {
    "1 device": MeshConfig(data=1),
    "2 devices": MeshConfig(data=2),
    "8 devices": MeshConfig(data=8),
    "2 replicas of 2 x 2": MeshConfig(replica=2, data=2, model=2),
    "a model axis alone": MeshConfig(data=1, model=2),
}


def mesh_of(name):
    config = MESHES[name]
    return build_mesh(config, jax.devices()[: config.replica * config.data * config.model])


def pairs(batch, width=6, seed=0, likeness=0.6):
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(batch, width))
    text = likeness * image + rng.normal(size=(batch, width))
    return [jnp.float32(x / np.linalg.norm(x, axis=1, keepdims=True)) for x in (image, text)]


def value_and_grads(loss, mesh):
    """`(image, text, scale, bias) -> ((loss, accuracy), gradients)`, jitted."""
    used = (0, 1, 2, 3) if isinstance(loss, Sigmoid) else (0, 1, 2)
    return jax.jit(jax.value_and_grad(loss.on(mesh, BATCH_AXES), used, has_aux=True))


@functools.cache
def prepared(loss, name):
    mesh = mesh_of(name)
    return value_and_grads(loss, mesh), NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def computed(loss, name, image, text, scale, bias=-3.0):
    run, rows = prepared(loss, name)
    image, text = jax.device_put((image, text), rows)
    return run(image, text, jnp.float32(scale), jnp.float32(bias))


def assert_same(ours, theirs, tolerance=1e-5):
    (value, accuracy), grads = ours
    (true_value, true_accuracy), true_grads = theirs
    assert float(value) == pytest.approx(float(true_value), rel=tolerance)
    assert float(accuracy) == float(true_accuracy)
    for grad, true in zip(grads, true_grads, strict=True):
        np.testing.assert_allclose(grad, true, rtol=0, atol=tolerance * float(abs(true).max()))


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize(
    ("name", "each", "tile"),
    [
        ("1 device", 5, 3),
        ("1 device", 7, 1),
        ("2 devices", 5, 64),
        ("8 devices", 5, 3),
        ("8 devices", 1, 2),
        ("2 replicas of 2 x 2", 7, 3),
        ("a model axis alone", 6, 3),
    ],
)
def test_value_and_gradients_are_the_obvious_ones(kind, name, each, tile):
    mesh = mesh_of(name)
    given = pairs(each * mesh.shape["replica"] * mesh.shape["data"])
    for scale in (1.0, 100.0):
        ours = computed(kind(tile=tile), name, *given, scale)
        assert_same(ours, computed(kind(), "1 device", *given, scale))


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("sign", [1, -1])
def test_the_highest_scale_overflows_nothing(kind, sign):
    image, _ = pairs(10)
    bias = -10.0
    ours = computed(kind(tile=3), "2 devices", image, sign * image, 100.0, bias)
    theirs = computed(kind(), "1 device", image, sign * image, 100.0, bias)
    assert all(np.isfinite(grad).all() for grad in ours[1])
    if sign < 0:  # Pairs that match leave nothing but rounding.
        assert_same(ours, theirs)
    else:
        assert float(ours[0][0]) == pytest.approx(float(theirs[0][0]), abs=1e-5)


@pytest.mark.parametrize("tile", [1, 5, 12])
def test_a_tie_is_a_miss_wherever_the_twin_lies(tile):
    # Entries of a half multiply and add without rounding, so that ties are exact.
    rng = np.random.default_rng(tile)
    image = rng.choice(np.float32([-0.5, 0.5]), (24, 4))
    text = np.where(rng.random((24, 1)) < 0.6, image, rng.choice(image, 24))
    known = np.float32([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0.6, 0.8], [0, 0, -0.6, 0.8]])
    image[[2, 9, 13, 22]], text[[2, 9, 13, 22]] = known, known
    objective = jax.jit(Softmax(tile=tile).on(mesh_of("2 devices"), BATCH_AXES))
    _, accuracy = objective(image, text, jnp.float32(7.0), None)
    assert 0 < float(accuracy) < 1
    assert float(accuracy) == float(batch_accuracy(jnp.array(image), jnp.array(text)))


@pytest.mark.parametrize("kind", BOTH)
def test_the_accuracy_has_no_gradient(kind):
    objective = kind(tile=2).on(mesh_of("1 device"), BATCH_AXES)
    given = (*pairs(4), jnp.float32(5.0), jnp.float32(-1.0))
    grads = jax.jit(jax.grad(lambda *a: objective(*a)[1], (0, 1, 2, 3)))(*given)
    assert all(not np.any(grad) for grad in grads)


@pytest.mark.parametrize("kind", BOTH)
def test_what_follows_the_loss_scales_its_gradient(kind):
    given = (*pairs(5), jnp.float32(9.0), jnp.float32(-2.0))

    def of_square(loss):
        objective = loss.on(mesh_of("1 device"), ())
        return jax.jit(jax.grad(lambda *a: objective(*a)[0] ** 2, (0, 1, 2)))(*given)

    squares = of_square(kind(tile=2)), of_square(kind())
    for ours, theirs in zip(*squares, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * float(abs(theirs).max()))


def compiled(loss, batch, width=8):
    """Value and gradients on 8 devices, compiled and not run."""
    mesh = mesh_of("8 devices")
    rows = NamedSharding(mesh, PartitionSpec(BATCH_AXES))
    each = jax.ShapeDtypeStruct((batch, width), jnp.float32, sharding=rows)
    one = jax.ShapeDtypeStruct((), jnp.float32)
    return value_and_grads(loss, mesh).lower(each, each, one, one).compile()


def largest(text):
    shapes = re.findall(r"\b(?:f32|bf16|f16|s32|u32|pred|s8|u8)\[([\d,]+)\]", text)
    return max(math.prod(map(int, shape.split(","))) for shape in shapes)


@pytest.mark.parametrize("kind", BOTH)
def test_no_block_of_logits_is_ever_made_and_no_embedding_gathered(kind):
    batch, each, tile = 512, 64, 16
    tiled, obvious = (compiled(kind(tile=t), batch).as_text() for t in (tile, None))
    assert largest(obvious) >= batch * each and "all-gather" in obvious  # This test can fail.
    assert largest(tiled) < each * each
    assert "all-gather" not in tiled and "collective-permute" in tiled


@pytest.mark.parametrize("kind", BOTH)
def test_memory_grows_with_the_batch_and_not_with_its_square(kind):
    def extra(tile, batch):
        return compiled(kind(tile=tile), batch).memory_analysis().temp_size_in_bytes

    assert 0 < extra(16, 4096) <= 2.1 * extra(16, 2048)
    assert extra(None, 4096) >= 3.5 * extra(None, 2048)


def test_a_value_alone_costs_one_product():
    mesh = mesh_of("8 devices")
    each, one = jax.ShapeDtypeStruct((64, 8), jnp.float32), jax.ShapeDtypeStruct((), jnp.float32)
    for kind, products in ((Softmax, 4), (Sigmoid, 3)):
        objective = kind(tile=4).on(mesh, BATCH_AXES)
        alone = jax.jit(objective).lower(each, each, one, one).compile().as_text()
        assert len(re.findall(r" dot\(", alone)) == 1
        both = value_and_grads(kind(tile=4), mesh).lower(each, each, one, one).compile().as_text()
        assert len(re.findall(r" dot\(", both)) == products


def test_what_cannot_be_is_refused():
    for kind in BOTH:
        with pytest.raises(ValueError, match=r"loss\.tile must be at least 1, or None .*: 0"):
            kind(tile=0)
    one = jnp.float32(1.0)
    for tile in (None, 2):
        objective = Sigmoid(tile=tile).on(mesh_of("1 device"), BATCH_AXES)
        with pytest.raises(ValueError, match=r"needs a learned bias: set model\.bias"):
            objective(*pairs(2), one, None)
