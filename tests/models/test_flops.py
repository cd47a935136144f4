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


@pytest.mark.parametrize("name", VARIANTS)
def test_counts_equal_those_of_the_traced_model(name, tiny, variant, products):
    cfg = variant(tiny, **VARIANTS[name])
    shapes = jax.eval_shape(lambda: init_params(cfg, jax.random.key(0)))
    size, length = cfg.image.image_size, cfg.text.context_length

    def traced(method, *shape, dtype=float):
        encode = partial(CLIP(cfg).apply, method=method)
        return products(encode, {"params": shapes}, jnp.zeros(shape, dtype))

    image, text = flops(cfg)
    assert image == traced("encode_image", 1, size, size, 3)
    assert text == traced("encode_text", 1, length, dtype=int)
    leaves = [sum(leaf.size for leaf in jax.tree.leaves(shapes[t])) for t in ("image", "text")]
    assert list(parameters(cfg))[:2] == leaves
    assert parameters(cfg).model == sum(leaf.size for leaf in jax.tree.leaves(shapes))
