import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.models.posemb import sincos_2d
from clip_jax.models.transformer import Stack, StackConfig
from clip_jax.models.vit import ViT, ViTConfig, patches

STACK = StackConfig(width=8, layers=2, heads=2)
CLIPA = {"pool": "mean", "class_token": True, "pre_norm": False, "project": False}
IMAGES = jax.random.normal(jax.random.key(5), (3, 6, 6, 3))


def build(**fields):
    """Module and random parameters of a tower that sees 3 x 3 patches."""
    module = ViT(ViTConfig(image_size=6, patch_size=2, stack=STACK, **fields), 8)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), IMAGES))["params"]
    rng = np.random.default_rng(0)
    return module, jax.tree.map(lambda s: jnp.float32(rng.normal(0.2, 0.4, s.shape)), shapes)


def apply(module, params, images=IMAGES):
    return jax.jit(lambda p, i: module.apply({"params": p}, i))(params, images)


def normed(x, params):
    params = jax.tree.map(np.asarray, params)
    spread = np.sqrt(x.var(axis=-1, keepdims=True) + 1e-5)
    return (x - x.mean(axis=-1, keepdims=True)) / spread * params["scale"] + params["bias"]


@pytest.mark.parametrize("after", [False, True])
def test_the_mean_is_over_patches_alone_and_the_norm_comes_before_or_after_it(after):
    module, params = build(**CLIPA, norm_after_pool=after)
    embedded = patches(IMAGES, 2) @ params["patch"]["kernel"]
    token = jnp.broadcast_to(params["class_embedding"], (3, 1, 8))
    x = jnp.concatenate([token, embedded], axis=1) + params["positions"]["embedding"][None]
    x = np.asarray(jax.jit(Stack(STACK).apply)({"params": params["stack"]}, x))
    outcomes = {
        (first, norm_after): normed(x[:, first:].mean(axis=1), params["norm"])
        if norm_after
        else normed(x[:, first:], params["norm"]).mean(axis=1)
        for first in (0, 1)
        for norm_after in (False, True)
    }
    found = apply(module, params)
    for case, outcome in outcomes.items():
        assert np.allclose(found, outcome, atol=1e-5) == (case == (1, after)), case


def test_the_class_token_of_a_mean_is_seen_by_the_patches():
    module, params = build(**CLIPA)
    moved = {**params, "class_embedding": -params["class_embedding"]}
    assert not np.allclose(apply(module, params), apply(module, moved), atol=1e-3)
    assert params["positions"]["embedding"].shape == (10, 8)


def test_a_class_token_beside_fixed_sines_has_no_position():
    module, params = build(**CLIPA, positions="sincos")
    learned, same = build(**CLIPA)
    table = np.concatenate([np.zeros((1, 8), np.float32), sincos_2d((3, 3), 8)])
    assert "positions" not in params
    same = {**params, "positions": {"embedding": jnp.asarray(table)}}
    np.testing.assert_allclose(apply(module, params), apply(learned, same), atol=1e-5)


def test_trimmed_images_lose_what_lies_beyond_the_last_whole_patch():
    cfg = ViTConfig(image_size=7, patch_size=2, trim=True, stack=STACK, **CLIPA)
    _, params = build(**CLIPA)
    wide = jnp.pad(IMAGES, ((0, 0), (0, 1), (0, 1), (0, 0)), constant_values=9.0)
    found = apply(ViT(cfg, 8), params, wide)
    np.testing.assert_allclose(found, apply(build(**CLIPA)[0], params), atol=1e-6)


def test_choices_that_exclude_each_other_are_refused():
    for fields, message in (
        ({"class_token": False}, "pool 'class' needs a class token"),
        ({"norm_after_pool": True}, "norm_after_pool is for pool 'mean', not 'class'"),
        ({"pool": "map", "class_token": True}, "pool 'map' takes no class token"),
        ({"image_size": 7, "patch_size": 2}, "image_size 7 is no multiple of patch_size 2"),
    ):
        with pytest.raises(ValueError, match=message):
            ViTConfig(stack=STACK, **fields)
