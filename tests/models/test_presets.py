import csv
import dataclasses
import functools

import jax
import pytest

from clip_jax import tree
from clip_jax.models.clip import init_params
from clip_jax.models.flops import parameters
from clip_jax.models.presets import PRESETS, preset
from clip_jax.models.resnet import ResNetConfig

NOT_LEARNED = ("mean", "var")
"""A BatchNorm's running statistics: no parameters to PyTorch, nor to the published table."""


@functools.cache
def counts(cfg):
    """Learned numbers of the image tower, the text tower and the whole model."""
    shapes = jax.eval_shape(lambda: init_params(cfg, jax.random.key(0)))
    learned = {
        path: leaf.size
        for path, leaf in zip(tree.paths(shapes), jax.tree.leaves(shapes), strict=True)
        if path.rpartition("/")[2] not in NOT_LEARNED
    }
    towers = [
        sum(size for path, size in learned.items() if path.startswith(tower))
        for tower in ("image/", "text/")
    ]
    return (*towers, sum(learned.values()))


def with_gelu(cfg):
    """The same shapes, so that variants that differ in activation are traced once."""

    def change(tower):
        stack = dataclasses.replace(tower.stack, activation="gelu")
        return dataclasses.replace(tower, stack=stack)

    image = cfg.image if isinstance(cfg.image, ResNetConfig) else change(cfg.image)
    return dataclasses.replace(cfg, image=image, text=change(cfg.text))


@pytest.fixture(scope="module")
def table(shared):
    with (shared / "reference" / "model_sizes.csv").open() as file:
        return {row["model"]: row for row in csv.DictReader(file)}


@pytest.mark.parametrize("name", PRESETS)
def test_the_model_has_as_many_parameters_as_are_counted(name):
    assert counts(with_gelu(PRESETS[name])) == parameters(PRESETS[name])


def test_sizes_equal_the_published_ones(table):
    wrong = []
    for name in PRESETS.keys() & table.keys():
        row, (image, text, model) = table[name], counts(with_gelu(PRESETS[name]))
        # The published table counts the temperature with the text tower.
        for column, count in (("image", image), ("text", text + 1), ("", model)):
            column = f"{column}_mparams".lstrip("_")
            if abs(count / 1e6 - float(row[column])) > 0.005:
                wrong.append((name, column, count, row[column]))
        for column, ours in (
            ("image_size", PRESETS[name].image.image_size),
            ("embed_dim", PRESETS[name].embed_dim),
        ):
            if ours != int(row[column]):
                wrong.append((name, column, ours, row[column]))
    assert wrong == []


FOREIGN = ("coca", "convnext", "EVA", "mt5", "nllb", "roberta", "swin", "vit_", "xlm")
"""Families whose towers clip_jax does not have."""


def test_only_other_families_are_missing(table):
    missing = {name for name in table if name not in PRESETS and not name.startswith(FOREIGN)}
    assert missing == set()
    assert len(PRESETS.keys() & table.keys()) > 45


def test_each_name_is_another_model():
    assert len({repr(config) for config in PRESETS.values()}) == len(PRESETS)


@pytest.mark.parametrize("name", [name for name in PRESETS if name.endswith("-quickgelu")])
def test_quickgelu_is_all_that_its_variant_changes(name, variant):
    plain, changed = PRESETS[name.removesuffix("-quickgelu")], PRESETS[name]
    assert changed.text.stack.activation == "quick_gelu"
    if isinstance(changed.image, ResNetConfig):
        assert changed.image == plain.image
    else:
        assert changed.image.stack.activation == "quick_gelu"
        changed = variant(changed, **{"image.stack.activation": "gelu"})
    assert variant(changed, **{"text.stack.activation": "gelu"}) == plain


@pytest.mark.parametrize("name", [name for name in PRESETS if "SigLIP" in name])
def test_sigmoid_models_start_at_their_own_temperature_and_bias(name):
    cfg = preset(name)
    assert (cfg.temperature, cfg.bias) == (0.1, -10.0)
    assert cfg.max_scale > 120  # Published scales reach 118.
    for stack in (cfg.image.stack, cfg.text.stack):
        assert (stack.activation, stack.norm_eps) == ("gelu_tanh", 1e-6)
    assert cfg.image.trim == (name == "ViT-SO400M-14-SigLIP-384")


def test_an_unknown_preset_is_named_with_the_nearest():
    with pytest.raises(
        ValueError, match=r"no preset 'ViT-B/32'; nearest ViT-B-32, .*`clip-jax models` lists all"
    ):
        preset("ViT-B/32")
