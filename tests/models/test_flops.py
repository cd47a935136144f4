import csv
from functools import partial

import jax
import jax.numpy as jnp
import pytest

from clip_jax.models.clip import CLIP, init_params
from clip_jax.models.flops import flops, parameters
from clip_jax.models.presets import PRESETS


@pytest.fixture(scope="module")
def table(shared):
    with (shared / "reference" / "model_sizes.csv").open() as file:
        return {row["model"]: row for row in csv.DictReader(file)}


def test_flops_equal_the_published_ones(table):
    wrong = []
    for name in PRESETS.keys() & table.keys():
        for tower, count in flops(PRESETS[name])._asdict().items():
            published = float(table[name][f"{tower}_gflops"])
            if abs(count / 1e9 / published - 1) > 0.003:
                wrong.append((name, tower, count, published))
    assert wrong == []


VARIANTS = {
    "OpenAI": {},
    "CLIPA": {
        "image.pool": "mean",
        "image.class_token": True,
        "image.norm_after_pool": True,
        "image.pre_norm": False,
        "text.pool": "last",
        "text.causal": False,
    },
    "SigLIP": {
        "image.pool": "map",
        "image.patch_bias": True,
        "image.pre_norm": False,
        "text.head_bias": True,
        "bias": -10.0,
    },
    "sines": {"image.positions": "sincos", "image.pool": "mean"},
    "narrow": {"image.stack.mlp_width": 20, "text.stack.mlp_width": 12, "image.image_size": 16},
    "bare": {"embed_dim": 16, "image.project": False, "text.project": False},
}


def left_out(tower, tokens):
    """Operations of the last block for what is not pooled: all but keys and values."""
    width, hidden = tower.stack.width, tower.stack.mlp_width or 4 * tower.stack.width
    return (tokens - 1) * (2 * 2 * width**2 + 2 * 2 * width * hidden + 2 * 2 * tokens * width)


@pytest.mark.parametrize("name", VARIANTS)
def test_counts_equal_those_of_the_traced_model(name, tiny, variant, products):
    cfg = variant(tiny, **VARIANTS[name])
    shapes = jax.eval_shape(lambda: init_params(cfg, jax.random.key(0)))
    size, length = cfg.image.image_size, cfg.text.context_length

    def traced(method, *shape, dtype=float):
        """Of the plain form, which makes the parameters, and of that which uses them."""
        inputs = jnp.zeros(shape, dtype)
        plain = products(partial(CLIP(cfg).init, method=method), jax.random.key(0), inputs)
        used = products(partial(CLIP(cfg).apply, method=method), {"params": shapes}, inputs)
        return plain, plain - used

    image, text = flops(cfg)
    tokens = cfg.image.grid**2 + cfg.image.has_class_token
    pooled = cfg.image.pool == "class"
    assert traced("encode_image", 1, size, size, 3) == (image, left_out(cfg.image, tokens) * pooled)
    assert traced("encode_text", 1, length, dtype=int) == (text, left_out(cfg.text, length))
    used = flops(cfg, train=True)
    assert image - used.image == left_out(cfg.image, tokens) * pooled
    assert text - used.text == left_out(cfg.text, length)
    leaves = [sum(leaf.size for leaf in jax.tree.leaves(shapes[t])) for t in ("image", "text")]
    assert list(parameters(cfg))[:2] == leaves
    assert parameters(cfg).model == sum(leaf.size for leaf in jax.tree.leaves(shapes))
