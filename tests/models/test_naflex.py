import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax import tree
from clip_jax.models.axes import logical_axes
from clip_jax.models.clip import CLIP, ClipConfig, init_params
from clip_jax.models.pooling import MapPool
from clip_jax.models.transformer import StackConfig
from clip_jax.models.vit import Patches, ViT, ViTConfig, patches
from tests.golden import check_modules

GOLDEN = dict(np.load(pathlib.Path(__file__).parents[1] / "golden" / "naflex.npz"))
"""A small Siglip2VisionModel of transformers; see golden/make_modules.py."""


@pytest.fixture(scope="module")
def tower():
    """Module, parameters and `Patches` of three grids, the last one without padding."""
    return check_modules.naflex(GOLDEN)


@pytest.fixture(scope="module")
def encode(tower):
    module, params, _ = tower
    return jax.jit(lambda given: module.apply({"params": params}, given))


def padding(given):
    """True for rows of `pixels` that are none of the image's patches."""
    return np.arange(given.pixels.shape[1])[None] >= np.prod(given.grid, axis=1)[:, None]


def test_embeddings_and_gradients_are_those_of_transformers(tower):
    found = check_modules.differences(GOLDEN, check_modules.answers(*tower))
    assert found[0] < 1e-5 and found[1] < 1e-4


@pytest.fixture(scope="module")
def grad(tower):
    """Of a sum of squares, with respect to pixels and parameters."""
    module, params, given = tower

    def square(pixels, params):
        return (module.apply({"params": params}, Patches(pixels, given.grid)) ** 2).sum()

    call = jax.jit(jax.grad(square, argnums=(0, 1)))
    return lambda pixels: call(pixels, params)


def test_what_lies_in_the_padding_changes_neither_value_nor_gradient(tower, encode, grad):
    _, _, given = tower
    pad = padding(given)
    assert pad.any(axis=1).tolist() == [True, True, False]
    plain = grad(given.pixels)
    for value in (0.0, 1e30, -3e38, np.inf, np.nan):
        filled = jnp.where(pad[..., None], value, given.pixels)
        np.testing.assert_array_equal(encode(Patches(filled, given.grid)), encode(given))
        jax.tree.map(np.testing.assert_array_equal, grad(filled), plain)


def test_every_patch_and_every_parameter_matters_and_padding_does_not(tower, grad):
    pixels, params = grad(tower[2].pixels)
    pad = padding(tower[2])
    assert not np.any(pixels[pad]) and np.all(np.any(pixels[~pad] != 0, axis=1))
    idle = [
        p for p, g in zip(tree.paths(params), jax.tree.leaves(params), strict=True) if not g.any()
    ]
    assert not idle


@pytest.mark.parametrize("length", [12, 15, 16, 23])
def test_longer_rows_change_nothing(tower, encode, length):
    _, _, given = tower
    pixels = np.full((3, 32, 12), 7.0, np.float32)
    pixels[:, :16] = given.pixels
    fits = np.prod(given.grid, axis=1) <= length
    whole, cut = encode(given), encode(Patches(jnp.asarray(pixels[:, :length]), given.grid))
    np.testing.assert_allclose(cut[fits], whole[fits], rtol=0, atol=2e-6)
    assert fits.sum() == {12: 1, 15: 2, 16: 3, 23: 3}[length]


def test_the_order_of_patches_and_the_shape_of_the_grid_matter(tower, encode):
    _, _, given = tower
    before = encode(given)
    turned = encode(Patches(given.pixels, given.grid[:, ::-1]))
    swapped = encode(Patches(given.pixels.at[:, :2].set(given.pixels[:, 1::-1]), given.grid))
    for after in (turned, swapped):
        assert np.all(np.abs(after - before).max(axis=1) > 1e-3)


def test_each_image_is_embedded_as_if_alone(tower, encode):
    _, _, given = tower
    order = np.array([2, 0, 1])
    mixed = encode(Patches(given.pixels[order], given.grid[order]))
    np.testing.assert_allclose(mixed, encode(given)[order], rtol=0, atol=2e-6)


def test_a_square_image_of_the_tables_size_is_what_an_ordinary_tower_sees(tower, variant):
    module, params, _ = tower
    images = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    ordinary = ViT(variant(module.cfg, positions="learned"), module.embed_dim)
    expected = jax.jit(lambda: ordinary.apply({"params": params}, images))()
    rows = patches(images, 2)
    given = Patches(rows, jnp.full((2, 2), 4))
    found = jax.jit(lambda: module.apply({"params": params}, given))()
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("fields", [{"unroll": 2}, {"remat": "nothing"}])
def test_how_the_stack_is_executed_changes_nothing(tower, encode, variant, fields):
    module, params, given = tower
    changed = {f"stack.{name}": value for name, value in fields.items()}
    other = ViT(variant(module.cfg, **changed), module.embed_dim)
    found = jax.jit(lambda: other.apply({"params": params}, given))()
    np.testing.assert_allclose(found, encode(given), rtol=0, atol=2e-6)


def test_attention_pooling_with_a_mask_is_pooling_of_the_tokens_it_shows():
    pool = MapPool(StackConfig(width=8, layers=1, heads=2))
    x = jax.random.normal(jax.random.key(0), (2, 7, 8))
    variables = jax.jit(pool.init)(jax.random.key(1), x)
    shown = np.array([[0, 1, 1, 0, 1, 0, 0], [1, 1, 1, 1, 1, 1, 1]], bool)
    apply = jax.jit(pool.apply)
    found = apply(variables, x, jnp.asarray(shown)[:, None, None])
    for b in range(2):
        alone = apply(variables, x[b : b + 1, shown[b]])
        np.testing.assert_allclose(found[b], alone[0], atol=1e-6)


@pytest.fixture(scope="module")
def clip(tower, tiny):
    module, _, _ = tower
    stack = StackConfig(width=16, layers=1, heads=2)
    text = type(tiny.text)(context_length=8, vocab_size=64, stack=stack)
    return ClipConfig(image=module.cfg, text=text, embed_dim=16)


def test_init_gives_the_tree_of_the_original_with_axes_for_all(clip, tower):
    shapes = jax.eval_shape(lambda: init_params(clip, jax.random.key(0)))
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), shapes["image"], tower[1])
    assert logical_axes(shapes)["image"]["positions"]["embedding"] == ("length", "width")


def test_clip_encodes_patches_in_bfloat16_too(clip, tower, encode, variant):
    _, params, given = tower
    low = CLIP(variant(clip, dtype="bfloat16"))
    shapes = jax.eval_shape(lambda: init_params(clip, jax.random.key(0)))
    rest = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    call = jax.jit(lambda p: low.apply({"params": p}, given, method="encode_image"))
    found, full = call({**rest, "image": params}), np.asarray(encode(given))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, full / np.linalg.norm(full, axis=1, keepdims=True), atol=0.03)


def test_what_does_not_fit_is_named(tower, variant):
    module, params, given = tower
    with pytest.raises(ValueError, match="a tower with positions 'naflex' takes Patches"):
        module.apply({"params": params}, jnp.zeros((1, 8, 8, 3)))
    ordinary = ViT(variant(module.cfg, positions="learned"), 16)
    with pytest.raises(ValueError, match="a tower with positions 'learned' takes images"):
        ordinary.apply({"params": params}, given)
    with pytest.raises(ValueError, match="patches have 27 numbers, the tower takes 12"):
        module.apply({"params": params}, Patches(jnp.zeros((1, 4, 27)), given.grid[:1]))
    stack = StackConfig(width=16, layers=1, heads=2)
    with pytest.raises(ValueError, match="positions 'naflex' needs pool 'map'"):
        ViTConfig(stack=stack, positions="naflex", pool="mean")
