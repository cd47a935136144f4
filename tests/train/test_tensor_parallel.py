"""A whole step whose matrices are split by heads, hidden channels and words."""

import dataclasses
from functools import partial

import jax
import numpy as np
import pytest

from clip_jax import tree
from clip_jax.data.packing import Packing
from clip_jax.losses import Softmax
from clip_jax.optim.build import AdamW, OptimConfig
from clip_jax.preprocess.recipe import Recipe
from clip_jax.sharding.mesh import MeshConfig, build_mesh
from clip_jax.sharding.place import batch_parts, place_batch
from clip_jax.sharding.rules import DATA_PARALLEL, TENSOR_PARALLEL
from clip_jax.train.assemble import assemble

BATCH = 16
LAYOUTS = {
    "tensors": (MeshConfig(data=4, model=2), TENSOR_PARALLEL, Softmax()),
    "tensors, and FSDP in two replicas": (
        MeshConfig(replica=2, data=2, model=2),
        dataclasses.replace(TENSOR_PARALLEL, params=("data",)),
        Softmax(tile=3),
    ),
}


def batch():
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 63, (BATCH, 8)).astype(np.int32)
    ends = rng.integers(2, 8, BATCH)
    tokens[np.arange(BATCH), ends] = 63
    tokens[np.arange(8) > ends[:, None]] = 0
    return {"images": rng.integers(0, 256, (BATCH, 8, 8, 3), np.uint8), "tokens": tokens}


@pytest.fixture(scope="module")
def model(tiny):
    """Random draws in one tower are enough."""
    still = dataclasses.replace(tiny.image.stack, dropout=0.0)
    return dataclasses.replace(tiny, image=dataclasses.replace(tiny.image, stack=still))


def put_together(model, mesh, rules, loss, accumulate=1):
    return assemble(
        model=model,
        loss=loss,
        optim=OptimConfig(method=AdamW(b1=0.5), learning_rate=1e-3, clip_norm=None),
        recipe=Recipe(size=8),
        rules=rules,
        mesh=mesh,
        seed=0,
        steps=1,
        accumulate=accumulate,
    )


def one_step(parts, begin, arrange=dict):
    """Metrics, and gradients by their paths: after one update the first moment holds them."""
    where = jax.tree.map(lambda leaf: leaf.sharding, parts.abstract)
    placed = place_batch(arrange(batch()), parts.batch_sharding)
    state, metrics = parts.step(jax.device_put(begin, where), placed)
    moments = {
        path.partition("mu/")[2]: leaf
        for path, leaf in zip(tree.paths(state.opt), jax.tree.leaves(state.opt), strict=True)
        if "mu/" in path
    }
    assert sorted(moments) == sorted(tree.paths(state.params))
    return metrics, moments


@pytest.fixture(scope="module")
def alone(model):
    """The state at the beginning; metrics and gradients of the whole batch on one device."""
    mesh = build_mesh(MeshConfig(), jax.devices()[:1])
    parts = put_together(model, mesh, DATA_PARALLEL, Softmax())
    begin = jax.device_get(parts.init())
    return begin, *one_step(parts, begin)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_split_tensors_in_parts_give_the_loss_and_gradients_of_one_device(model, alone, layout):
    begin, their_metrics, theirs = alone
    sizes, rules, loss = LAYOUTS[layout]
    mesh = build_mesh(sizes)
    packing = Packing(row=12, tokens_per_caption=8.0)
    packed = partial(packing, groups=2 * batch_parts(rules, mesh))
    metrics, grads = one_step(put_together(model, mesh, rules, loss, 2), begin, packed)
    for name in ("loss", "accuracy", "grad_norm"):
        assert float(metrics[name]) == pytest.approx(float(their_metrics[name]), rel=1e-5), name
    largest = max(np.abs(leaf).max() for leaf in theirs.values())
    for path, leaf in theirs.items():
        np.testing.assert_allclose(grads[path], leaf, atol=1e-5 * largest, err_msg=path)
    up = grads["text/stack/blocks/mlp/up/kernel"]
    shares = 2 * (mesh.shape["data"] if rules.params else 1)
    assert np.prod(up.sharding.shard_shape(up.shape)) == up.size // shares
