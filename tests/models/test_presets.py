import csv

import jax
import pytest

from clip_jax import tree
from clip_jax.models.clip import init_params
from clip_jax.models.presets import PRESETS, preset


@pytest.mark.parametrize("name", PRESETS)
def test_parameter_counts_equal_the_published_ones(name, shared):
    with (shared / "reference" / "model_sizes.csv").open() as file:
        row = next(row for row in csv.DictReader(file) if row["model"] == name)
    shapes = jax.eval_shape(lambda: init_params(PRESETS[name], jax.random.key(0)))
    image = tree.count(shapes["image"])
    text = tree.count(shapes["text"])
    assert image / 1e6 == pytest.approx(float(row["image_mparams"]), abs=0.005)
    # The published table counts the temperature with the text tower.
    assert (text + 1) / 1e6 == pytest.approx(float(row["text_mparams"]), abs=0.005)
    assert tree.count(shapes) / 1e6 == pytest.approx(float(row["mparams"]), abs=0.005)
    assert PRESETS[name].image.image_size == int(row["image_size"])
    assert PRESETS[name].embed_dim == int(row["embed_dim"])


def test_an_unknown_preset_is_named_with_the_nearest():
    with pytest.raises(
        ValueError, match=r"no preset 'ViT-B/32'; nearest 'ViT-B-32' of \['ViT-B-16'"
    ):
        preset("ViT-B/32")
