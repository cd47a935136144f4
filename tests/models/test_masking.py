"""Fewer tokens in training: patch dropout, and parts of captions."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.models.clip import ClipConfig
from clip_jax.models.flops import flops
from clip_jax.models.pooling import MapPool
from clip_jax.models.posemb import sincos_2d
from clip_jax.models.text import TextConfig, TextTower
from clip_jax.models.transformer import Stack, StackConfig
from clip_jax.models.vit import ViT, ViTConfig, patches

STACK = StackConfig(width=8, layers=1, heads=2)
IMAGES = jax.random.normal(jax.random.key(5), (3, 6, 6, 3))
PLAIN = {"pre_norm": False, "project": False}


def random_params(module, *args):
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *args))["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: jnp.float32(rng.normal(0.2, 0.4, s.shape)), shapes)


def sensitive(config, params, images, rows=None, key=None):
    """Output, and which patches of each image it depends on."""

    rngs = None if key is None else {"dropout": key}
    (_, out), slopes = value_and_slopes(config)(images, params, rows, rngs)
    return np.asarray(out), np.abs(patches(slopes, 2)).max(axis=2) > 0


@functools.cache
def value_and_slopes(config):
    def value(images, params, rows, rngs):
        out = ViT(config, 8).apply({"params": params}, images, rows, rngs=rngs)
        return jnp.sum(out * jnp.arange(8.0)[None]), out

    return jax.jit(jax.value_and_grad(value, has_aux=True))


TOWERS = {
    "class": {"pool": "class"},
    "mean": {"pool": "mean"},
    "mean beside a class token": {"pool": "mean", "class_token": True},
    "map": {"pool": "map"},
    "sines": {"pool": "mean", "class_token": True, "positions": "sincos"},
}


@pytest.mark.parametrize("fields", TOWERS.values(), ids=TOWERS.keys())
def test_training_sees_so_many_patches_at_their_own_places_and_use_sees_all(fields):
    config = ViTConfig(
        image_size=6, patch_size=2, stack=STACK, patch_dropout=0.4, **fields, **PLAIN
    )
    whole = dataclasses.replace(config, patch_dropout=0.0)
    params = random_params(ViT(whole, 8), IMAGES)
    _, seen = sensitive(config, params, IMAGES)
    assert seen.all()
    found, seen = sensitive(config, params, IMAGES, key=jax.random.key(1))
    assert config.kept_patches == 5 and (seen.sum(axis=1) == 5).all()
    alone = jax.jit(lambda params: masked(whole, params, seen))(params)
    np.testing.assert_allclose(found, alone, atol=1e-5)
    assert not np.array_equal(seen, sensitive(config, params, IMAGES, key=jax.random.key(2))[1])


def masked(config, params, seen):
    """The whole tower step by step, where no token sees what is not `seen`."""
    width, tokens = 8, seen
    x = patches(IMAGES, 2) @ params["patch"]["kernel"]
    table = sincos_2d((3, 3), width) if config.positions == "sincos" else None
    table = params["positions"]["embedding"] if table is None else table
    if config.has_class_token:
        tokens = np.concatenate([np.ones((3, 1), bool), seen], axis=1)
        x = jnp.concatenate([jnp.broadcast_to(params["class_embedding"], (3, 1, 8)), x], axis=1)
        if len(table) == 9:
            table = np.concatenate([np.zeros((1, width), np.float32), table])
    mask = jnp.broadcast_to(tokens[:, None, None], (3, 1, tokens.shape[1], tokens.shape[1]))
    x = Stack(STACK).apply({"params": params["stack"]}, x + table[None], mask)
    x = x - x.mean(axis=-1, keepdims=True)
    x = x / jnp.sqrt(jnp.square(x).mean(axis=-1, keepdims=True) + 1e-5)
    x = x * params["norm"]["scale"].reshape(1, 1, -1) + params["norm"]["bias"].reshape(1, 1, -1)
    if config.pool == "class":
        return x[:, 0]
    if config.pool == "mean":
        x = x[:, 1:] if config.has_class_token else x
        return (x * seen[..., None]).sum(axis=1) / seen.sum(axis=1, keepdims=True)
    return MapPool(STACK).apply({"params": params["pool"]}, x, jnp.asarray(tokens[:, None, None]))


def test_every_patch_is_left_out_as_often_and_by_the_number_of_its_row():
    config = ViTConfig(image_size=6, patch_size=2, stack=STACK, patch_dropout=0.4, **PLAIN)
    params = random_params(ViT(config, 8), IMAGES)
    many = jax.random.normal(jax.random.key(6), (600, 6, 6, 3))
    rows = jnp.arange(600)
    _, seen = sensitive(config, params, many, rows, jax.random.key(1))
    assert np.abs(seen.mean(axis=0) - 5 / 9).max() < 4.5 * np.sqrt(5 / 9 * 4 / 9 / 600)
    assert len(np.unique(seen, axis=0)) > 0.9 * 126, "of 126 choices of 5 in 9"
    _, moved = sensitive(config, params, many, rows[::-1], jax.random.key(1))
    np.testing.assert_array_equal(moved, seen[::-1])


def test_patch_dropout_that_cannot_be_is_refused():
    def build(**fields):
        return ViTConfig(image_size=6, patch_size=2, stack=STACK, **fields)

    for rate in (-0.1, 1.0):
        with pytest.raises(ValueError, match=r"patch_dropout must lie in \[0, 1\), got"):
            build(patch_dropout=rate)
    with pytest.raises(ValueError, match=r"patch_dropout 0\.95 leaves none of 3\^2 patches"):
        build(patch_dropout=0.95)
    with pytest.raises(ValueError, match="patch_dropout is not for positions 'naflex'"):
        build(patch_dropout=0.5, pool="map", positions="naflex")


EOT = 63
LAYOUTS = {
    # A tower, words as it gets them, and which tokens may be chosen at which start.
    "CLIP": (
        {},
        lambda words: [62, *words, EOT],
        lambda words, k: [
            [0, *range(s, s + k - 2), len(words) + 1] for s in range(1, len(words) - k + 4)
        ],
    ),
    "SigLIP": (
        {"pool": "last", "causal": False},
        lambda words: [*words, *[1] * (10 - len(words))],
        lambda words, k: [[*range(s, s + k - 1), 9] for s in range(len(words) - k + 2)],
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_training_reads_a_run_of_a_long_caption_and_all_of_a_short_one(name):
    fields, lay, choices = LAYOUTS[name]
    config = TextConfig(
        context_length=10, vocab_size=64, stack=STACK, project=False, train_length=5, **fields
    )
    captions = [[7, 8, 9, 10, 11, 12, 13], [20, 21]]
    rows = [lay(words) for words in captions]
    tokens = jnp.array([row + [0] * (10 - len(row)) for row in rows], jnp.int32)
    tower = TextTower(config, 8)
    params = random_params(tower, tokens)

    @jax.jit
    def train(which, rows):
        rngs = {"dropout": jax.random.key(0)}
        return tower.apply({"params": params}, tokens[which], rows, rngs=rngs)

    long = train(jnp.zeros(40, int), jnp.arange(40))
    hand = jax.jit(by_hand, static_argnames=("config", "pooled"))
    wanted = hand(params, tokens[0], jnp.array(choices(captions[0], 5)), config)
    chosen = np.abs(long[:, None] - wanted[None]).max(axis=2) < 1e-5
    assert (chosen.sum(axis=1) == 1).all() and chosen.any(axis=0).all()
    short = train(jnp.ones(40, int), jnp.arange(40))
    if name == "CLIP":
        np.testing.assert_allclose(
            short, jnp.broadcast_to(used(tower, params, tokens)[1:], short.shape), atol=1e-5
        )
    np.testing.assert_allclose(short, jnp.broadcast_to(short[:1], short.shape), atol=1e-6)
    kept = [0, 1, 2, 3, 4] if name == "CLIP" else [0, 1, 2, 3, 9]
    pooled = 3 if name == "CLIP" else 4
    wanted = hand(params, tokens[1], jnp.array([kept]), config, pooled)
    np.testing.assert_allclose(short[:1], wanted, atol=1e-5)


def used(tower, params, tokens):
    return jax.jit(lambda p: tower.apply({"params": p}, tokens))(params)


def by_hand(params, row, kept, config, pooled=4):
    """The tower on the tokens of one caption that each row of `kept` chooses."""
    x = params["tokens"]["embedding"][row[kept]] + params["positions"]["embedding"][kept]
    mask = jnp.tril(jnp.ones((1, 1, 5, 5), bool)) if config.causal else None
    x = Stack(STACK).apply({"params": params["stack"]}, x, mask)[:, pooled]
    x = (x - x.mean(axis=-1, keepdims=True)) / jnp.sqrt(x.var(axis=-1, keepdims=True) + 1e-5)
    return x * params["norm"]["scale"][None] + params["norm"]["bias"][None]


def test_a_train_length_that_cannot_be_is_refused(tiny, tiny_params):
    for length in (2, 11):
        with pytest.raises(
            ValueError, match=f"train_length {length} must be from 3 to context_len"
        ):
            TextConfig(context_length=10, stack=STACK, train_length=length)


def test_training_is_counted_by_the_tokens_that_it_sees():
    image = ViTConfig(image_size=6, patch_size=2, stack=STACK)
    text = TextConfig(context_length=10, vocab_size=64, stack=STACK)
    cfg = ClipConfig(image=image, text=text, embed_dim=4)
    fewer = dataclasses.replace(
        cfg,
        image=dataclasses.replace(image, patch_dropout=5 / 9),
        text=dataclasses.replace(text, train_length=4),
    )
    small = dataclasses.replace(
        cfg,
        image=dataclasses.replace(image, image_size=4),
        text=dataclasses.replace(text, context_length=4),
    )
    assert flops(fewer) == flops(cfg)
    assert flops(fewer, train=True) == flops(small, train=True)
