"""A run that begins with the parameters of another, of other sizes."""

import jax
import numpy as np
import pytest

import clip_jax
from clip_jax.models.axes import logical_axes
from clip_jax.models.clip import init_params
from clip_jax.sharding.mesh import MeshConfig, build_mesh
from clip_jax.sharding.place import param_shardings
from clip_jax.sharding.rules import FSDP
from clip_jax.train.begin import begin_params


def abstract(config):
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    where = param_shardings(shapes, logical_axes(shapes), FSDP, build_mesh(MeshConfig()))
    return jax.tree.map(
        lambda s, w: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=w), shapes, where
    )


@pytest.mark.parametrize("sizes", [(16, 8), (32, 5)], ids=["the same", "others"])
def test_a_run_of_any_image_size_and_context_length_will_do(finished, variant, sizes):
    image_size, context_length = sizes
    config = variant(
        finished.model,
        **{
            "image.image_size": image_size,
            "image.patch_dropout": 0.25,
            "image.stack.remat": "nothing",
            "text.context_length": context_length,
        },
    )
    want = abstract(config)
    found = begin_params(finished.run, config, want)
    wanted = clip_jax.load(finished.run, image_size=image_size, context_length=context_length)
    jax.tree.map(np.testing.assert_array_equal, found, wanted.params)
    for leaf, like in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
        assert (leaf.shape, leaf.dtype, leaf.sharding) == (like.shape, like.dtype, like.sharding)


def test_a_run_of_another_architecture_is_refused_with_all_that_differs(finished, variant):
    config = variant(
        finished.model, **{"image.stack.layers": 3, "text.stack.activation": "quick_gelu"}
    )
    with pytest.raises(ValueError, match="are of another model than the run's") as refused:
        begin_params(finished.run, config, abstract(finished.model))
    for fault in ("image.stack.layers: 2 -> 3", "text.stack.activation: 'gelu' -> 'quick_gelu'"):
        assert fault in str(refused.value)
