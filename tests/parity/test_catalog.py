"""The catalogue against OpenCLIP's table of pretrained weights."""

import pytest

torch = pytest.importorskip("torch", reason="make parity installs it")

from clip_jax.models.presets import PRESETS
from clip_jax.preprocess.published import from_open_clip
from clip_jax.pretrained.catalog import published
from tests.parity import peers

KEYS = ("mean", "std", "interpolation", "resize_mode")
OTHER_HUB = {"ViT-B-16-plus-240/laion400m_e32"}


def test_it_has_all_that_open_clip_has_on_the_hub():
    listed = {
        (model, tag)
        for model, tag in peers.open_clip().list_pretrained()
        if model in PRESETS and peers.open_clip().get_pretrained_cfg(model, tag)["hf_hub"]
    }
    ours = {(p.model, p.tag) for p in published().values() if "NaFlex" not in p.model}
    assert len(listed) > 120
    assert ours == listed


@pytest.mark.parametrize("name", [name for name in published() if "NaFlex" not in name])
def test_a_row_says_what_open_clip_says(name):
    open_clip, row = peers.open_clip(), published()[name]
    theirs = open_clip.get_pretrained_cfg(row.model, row.tag)
    assert (row.hub != theirs["hf_hub"].rstrip("/")) == (name in OTHER_HUB)
    quick = theirs.get("quick_gelu", False)
    assert row.preset == row.model.removesuffix("-quickgelu") + "-quickgelu" * quick
    size = PRESETS[row.preset].image.image_size
    assert row.recipe == from_open_clip({key: theirs[key] for key in KEYS}, size)
    text = open_clip.get_model_config(row.model)["text_cfg"]
    if "hf_tokenizer_name" not in text:
        assert row.tokenizer is None
        return
    more = text.get("tokenizer_kwargs", {})
    assert (row.tokenizer.hub, row.tokenizer.clean, row.tokenizer.strip_separator) == (
        text["hf_tokenizer_name"],
        more.get("clean", "whitespace"),
        more.get("strip_sep_token", False),
    )
