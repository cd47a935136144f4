"""Published weights as the first parameters of a run."""

import dataclasses
import pathlib
import warnings

import jax
import numpy as np
import pytest

import clip_jax
from clip_jax.models.axes import logical_axes
from clip_jax.models.clip import init_params
from clip_jax.pretrained.start import start_params
from clip_jax.sharding.mesh import MeshConfig, build_mesh
from clip_jax.sharding.place import param_shardings
from clip_jax.sharding.rules import FSDP

GOLDEN = str(pathlib.Path(__file__).parents[1] / "golden" / "models" / "open_clip_ViT_GELU")


@pytest.fixture(scope="module")
def loaded():
    return resized(GOLDEN)


def resized(folder):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*has no tokenizer")
        return clip_jax.load(folder, image_size=48, context_length=8)


def abstract(config):
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    mesh = build_mesh(MeshConfig())
    where = param_shardings(shapes, logical_axes(shapes), FSDP, mesh)
    return jax.tree.map(
        lambda s, w: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=w), shapes, where
    )


def test_they_are_placed_as_the_run_wants_and_resampled_for_its_sizes(loaded, variant):
    config = variant(loaded.model.cfg, **{"image.stack.dropout": 0.1, "text.stack.unroll": 9})
    want = abstract(config)
    params = start_params(GOLDEN, config, want)
    jax.tree.map(np.testing.assert_array_equal, params, loaded.params)
    for leaf, wanted in zip(jax.tree.leaves(params), jax.tree.leaves(want), strict=True):
        assert leaf.sharding == wanted.sharding and leaf.dtype == wanted.dtype


def test_another_architecture_is_refused_with_all_that_differs(loaded, variant):
    config = variant(
        loaded.model.cfg,
        **{"image.stack.activation": "quick_gelu", "text.stack.heads": 2, "embed_dim": 12},
    )
    with pytest.raises(ValueError, match=r"weights of .* are of another model") as found:
        start_params(GOLDEN, config, abstract(loaded.model.cfg))
    text = str(found.value)
    for fault in (
        "image.stack.activation: 'gelu' -> 'quick_gelu'",
        "text.stack.heads: 4 -> 2",
        "embed_dim: 24 -> 12",
    ):
        assert fault in text


def test_a_run_begins_with_them(experiment, tmp_path):
    clipa = GOLDEN.replace("ViT_GELU", "CLIPA")
    loaded = resized(clipa)
    from rich.console import Console

    from clip_jax.optim.build import OptimConfig
    from clip_jax.preprocess.recipe import Recipe
    from clip_jax.train.experiment import train

    config = experiment(
        tmp_path / "run",
        start_from=clipa,
        steps=1,
        evals={},
        recipe=Recipe(size=48),
        model=loaded.model.cfg,
        optim=OptimConfig(learning_rate=1e-9),
    )
    tokenizer = dataclasses.replace(config.tokenizer, context_length=8)
    with (tmp_path / "log").open("w") as log:
        train(dataclasses.replace(config, tokenizer=tokenizer), Console(file=log))
    after = clip_jax.load(tmp_path / "run")
    for ours, start in zip(
        jax.tree.leaves(after.params), jax.tree.leaves(loaded.params), strict=True
    ):
        np.testing.assert_allclose(ours, start, atol=1e-7)
