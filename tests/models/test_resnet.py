import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax import tree
from clip_jax.models.axes import logical_axes
from clip_jax.models.clip import CLIP, ClipConfig, init_params
from clip_jax.models.resnet import AttentionPool, BatchNorm, Bottleneck, ResNet, ResNetConfig
from clip_jax.models.vit import Patches
from clip_jax.optim.masks import decayed
from tests.golden import check_modules

GOLDEN = dict(np.load(pathlib.Path(__file__).parents[1] / "golden" / "resnet.npz"))
"""open_clip's ModifiedResNet with few channels; see golden/make_modules.py."""
CFG = ResNetConfig(image_size=32, layers=(1, 2, 1, 1), width=4, heads=2)


@pytest.fixture(scope="module")
def clip(tiny):
    return ClipConfig(image=CFG, text=tiny.text, embed_dim=6)


@pytest.fixture(scope="module")
def shapes(clip):
    return jax.eval_shape(lambda: init_params(clip, jax.random.key(0)))


def drawn(shapes):
    """Any values will do where initial ones are not the point; these need no compiling."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        value = rng.normal(0, 0.3, leaf.shape)
        return jnp.float32(1 + np.abs(value) if path.endswith(("scale", "var")) else value)

    return tree.map_with_path(draw, shapes)


@pytest.fixture(scope="module")
def params(shapes):
    return drawn(shapes)


@pytest.fixture(scope="module")
def encode():
    """Image embeddings, compiled once for all weights."""
    return jax.jit(lambda params, images: ResNet(CFG, 6).apply({"params": params}, images))


@pytest.fixture(scope="module")
def images():
    return jax.random.normal(jax.random.key(1), (3, 32, 32, 3))


def test_embeddings_and_gradients_are_those_of_open_clip():
    found = check_modules.differences(GOLDEN, check_modules.answers(*check_modules.resnet(GOLDEN)))
    assert found[0] < 1e-5 and found[1] < 1e-4


def expected_shapes():
    """The contract of names with tables of weights, spelled out."""

    def norm(path, channels):
        return {f"{path}/{leaf}": (channels,) for leaf in ("scale", "bias", "mean", "var")}

    shapes, inputs = {}, 3
    for k, width in enumerate((2, 2, 4), 1):
        shapes |= {f"stem/conv{k}/kernel": (3, 3, inputs, width), **norm(f"stem/norm{k}", width)}
        inputs = width
    for stage, blocks in enumerate((1, 2, 1, 1), 1):
        width = 4 * 2 ** (stage - 1)
        for block in range(blocks):
            name = f"stage{stage}/block{block}"
            convs = ((1, inputs, width), (3, width, width), (1, width, 4 * width))
            for k, (size, before, after) in enumerate(convs, 1):
                shapes[f"{name}/conv{k}/kernel"] = (size, size, before, after)
                shapes |= norm(f"{name}/norm{k}", after)
            if block == 0:
                shapes[f"{name}/shortcut/conv/kernel"] = (1, 1, inputs, 4 * width)
                shapes |= norm(f"{name}/shortcut/norm", 4 * width)
            inputs = 4 * width
    pool = {"positions/embedding": (2, 128), "out/kernel": (2, 64, 6), "out/bias": (6,)}
    for name in ("query", "key", "value"):
        pool |= {f"{name}/kernel": (128, 2, 64), f"{name}/bias": (2, 64)}
    return shapes | {f"attend_pool/{name}": shape for name, shape in pool.items()}


def test_names_and_shapes_are_those_that_weight_tables_expect(shapes):
    image = shapes["image"]
    found = {
        p: leaf.shape for p, leaf in zip(tree.paths(image), jax.tree.leaves(image), strict=True)
    }
    assert found == expected_shapes()


def test_every_parameter_has_axes_and_is_known_to_decay_or_not(shapes):
    axes = logical_axes(shapes)["image"]
    assert axes["stem"]["conv1"]["kernel"] == (None, None, "patch", "width")
    assert axes["stage2"]["block0"]["shortcut"]["conv"]["kernel"] == (None, None, "patch", "width")
    assert axes["attend_pool"]["out"]["kernel"] == ("heads", "head", "embed")
    decays = decayed(shapes)["image"]["stage1"]["block0"]
    assert decays["conv2"] == {"kernel": True}
    assert not any(decays["norm2"].values()) and len(decays["norm2"]) == 4


def test_initial_values_are_openais():
    block = Bottleneck(8, 2)
    params = jax.jit(lambda k: block.init(k, jnp.zeros((1, 4, 4, 64))))(jax.random.key(0))["params"]
    conv = np.asarray(params["conv2"]["kernel"])
    bound = (9 * 8) ** -0.5
    assert 0.98 * bound < np.abs(conv).max() <= bound
    assert conv.std() == pytest.approx(bound / 3**0.5, rel=0.05) and abs(conv.mean()) < bound / 20
    norms = {"norm1": 1, "norm2": 1, "norm3": 0, "shortcut": 1}
    for name, scale in norms.items():
        found = params[name]["norm"] if name == "shortcut" else params[name]
        assert {leaf: set(np.asarray(v).tolist()) for leaf, v in found.items()} == {
            "scale": {scale},
            "bias": {0},
            "mean": {0},
            "var": {1},
        }
    pool = AttentionPool(2, 30)
    params = jax.jit(lambda k: pool.init(k, jnp.zeros((1, 4, 4, 64))))(jax.random.key(0))["params"]
    drawn = [params[name]["kernel"] for name in ("query", "key", "value", "out")]
    for array in [*drawn, params["positions"]["embedding"]]:
        assert float(jnp.std(array)) == pytest.approx(1 / 8, rel=0.1)


def test_statistics_are_constants_to_gradients_but_not_to_the_result():
    block, x = Bottleneck(2, 2), jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
    params = drawn(jax.eval_shape(block.init, jax.random.key(0), x)["params"])

    def value(params):
        y = block.apply({"params": params}, x)
        return (y * jnp.arange(float(y.size)).reshape(y.shape)).sum()

    grads = jax.jit(jax.grad(value))(params)
    call = jax.jit(value)
    for path, grad in zip(tree.paths(grads), jax.tree.leaves(grads), strict=True):
        moved = tree.map_with_path(lambda p, v, path=path: v + 0.5 * (p == path), params)
        assert abs(call(moved) - call(params)) > 1e-3, path
        assert bool(jnp.any(grad != 0)) != path.endswith(("mean", "var")), path


def test_batch_norm_is_the_textbook_formula_and_computed_in_float32():
    rng = np.random.default_rng(0)
    x = (1000 + rng.normal(size=(2, 3, 4, 5))).astype(np.float32)
    stored = {"scale": rng.normal(size=5), "bias": rng.normal(size=5)}
    stored |= {"mean": 1000 + rng.normal(size=5), "var": np.array([0, 1e-6, 1e-3, 1, 1e4])}
    params = jax.tree.map(jnp.float32, stored)
    expected = (x - stored["mean"]) / np.sqrt(stored["var"] + 1e-5)
    expected = expected * stored["scale"] + stored["bias"]
    found = BatchNorm().apply({"params": params}, jnp.asarray(x))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=0.02)
    half = BatchNorm("bfloat16").apply({"params": params}, jnp.asarray(x))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_array_equal(half, found.astype(jnp.bfloat16))


def test_each_row_depends_on_its_own_image_only(params, encode, images):
    before = encode(params["image"], images)
    after = encode(params["image"], images.at[1].set(0.0))
    np.testing.assert_allclose(after[::2], before[::2], rtol=1e-5)
    assert not np.allclose(after[1], before[1], rtol=1e-2)


def test_a_clip_with_a_resnet_gives_unit_embeddings_and_bfloat16_comes_near(
    clip, params, encode, images, variant
):
    low = CLIP(variant(clip, dtype="bfloat16"))
    call = jax.jit(lambda p: low.apply({"params": p}, images, method="encode_image"))
    found, full = call(params), np.asarray(encode(params["image"], images))
    full = full / np.linalg.norm(full, axis=1, keepdims=True)
    np.testing.assert_allclose(jnp.linalg.norm(found, axis=1), 1, rtol=1e-5)
    assert found.dtype == jnp.float32 and not np.array_equal(found, full)
    np.testing.assert_allclose(found, full, atol=0.05)


def test_features_are_embeddings_of_any_length(clip, params, encode, images):
    assert not clip.projects_images
    call = jax.jit(
        lambda p: CLIP(clip).apply({"params": p}, images, method="image_features"),
    )
    np.testing.assert_allclose(call(params), encode(params["image"], images), atol=1e-5)


def test_what_does_not_fit_is_named(clip, params):
    model, params = CLIP(clip), {"params": params}
    with pytest.raises(ValueError, match=r"images are \(64, 64\), the tower takes 32"):
        model.apply(params, jnp.zeros((1, 64, 64, 3)), method="encode_image")
    patches = Patches(jnp.zeros((1, 4, 12)), jnp.ones((1, 2), jnp.int32))
    with pytest.raises(ValueError, match="a ResNet tower takes images, not Patches"):
        model.apply(params, patches, method="encode_image")
    for fields, message in (
        ({"image_size": 100}, "image_size 100 is no multiple of 32"),
        ({"layers": (1, 0, 1, 1)}, r"layers \(1, 0, 1, 1\) must be four counts"),
        ({"width": 4, "heads": 3}, r"width 4 \* 32 does not split into 3 heads"),
    ):
        with pytest.raises(ValueError, match=message):
            ResNetConfig(**fields)
