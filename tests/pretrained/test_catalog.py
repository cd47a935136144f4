import dataclasses
import re

import pytest

from clip_jax.models.flops import flops, parameters
from clip_jax.models.presets import PRESETS
from clip_jax.preprocess.naflex import NaflexRecipe
from clip_jax.preprocess.recipe import OPENAI_MEAN, OPENAI_STD, Recipe
from clip_jax.pretrained import catalog
from clip_jax.pretrained.catalog import TokenizerSource, find, list_models, published
from clip_jax.tokenizers.clip_bpe import VOCAB_SIZE

HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


@pytest.mark.parametrize("name", published())
def test_every_row_holds_together(name):
    row = published()[name]
    assert row.name == name == f"{row.model}/{row.tag}"
    assert row.preset in (row.model, f"{row.model}-quickgelu")
    assert re.fullmatch(r"[\w-]+/[\w.-]+", row.hub)
    assert re.fullmatch(r"[a-z0-9_]+", row.tag)  # `find` looks for nothing else.
    config = PRESETS[row.preset]
    if isinstance(row.recipe, NaflexRecipe):
        assert config.image.positions == "naflex"
        assert row.recipe.patch_size == config.image.patch_size
        assert row.recipe.max_patches == config.image.grid**2
    else:
        assert row.recipe.size == config.image.image_size
    assert (row.tokenizer is None) == (config.text.vocab_size == VOCAB_SIZE)
    assert row.tokenizer is None or "/" in row.tokenizer.hub or row.tokenizer.hub.startswith("bert")
    assert find(name) is row


def test_weights_of_openais_activation_have_both_names_and_one_preset():
    for name, row in published().items():
        other = published().get(f"{row.preset}/{row.tag}")
        assert other == dataclasses.replace(row, model=row.preset), name
    assert published()["ViT-B-32/openai"].preset == "ViT-B-32-quickgelu"
    assert published()["ViT-B-32/laion2b_s34b_b79k"].preset == "ViT-B-32"
    assert "ViT-B-32-quickgelu/laion2b_s34b_b79k" not in published()


def test_different_weights_lie_in_different_places():
    homes = {}
    for row in published().values():
        homes.setdefault(row.hub, set()).add((row.preset, row.tag))
    shared = {hub for hub, rows in homes.items() if len(rows) > 1}
    # At 378 pixels the same weights see the same 27 x 27 patches, without a rest.
    assert shared == {"timm/ViT-SO400M-14-SigLIP-384"}


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        ("ViT-B-32/openai", Recipe()),
        ("ViT-L-14-336/openai", Recipe(size=336)),
        ("ViT-L-14/laion2b_s32b_b82k", Recipe(**HALF)),
        ("ViT-H-14-quickgelu/dfn5b", Recipe(resize="squash")),
        (
            "ViT-H-14-CLIPA-336/datacomp1b",
            Recipe(
                size=336,
                resize="squash",
                interpolation="bilinear",
                mean=(0.485, 0.456, 0.406),
                std=(0.229, 0.224, 0.225),
            ),
        ),
        ("ViT-B-16-SigLIP-512/webli", Recipe(size=512, resize="squash", **HALF)),
        ("ViT-B-16-SigLIP2-NaFlex/webli", NaflexRecipe(patch_size=16, max_patches=256)),
    ],
)
def test_the_recipe_is_the_one_it_was_evaluated_with(name, recipe):
    assert find(name).recipe == recipe
    assert (Recipe().mean, Recipe().std) == (OPENAI_MEAN, OPENAI_STD)


@pytest.mark.parametrize(
    ("name", "tokenizer"),
    [
        ("RN50/openai", None),
        ("ViT-L-14-CLIPA", TokenizerSource(hub="bert-base-uncased", strip_separator=True)),
        (
            "ViT-L-16-SigLIP-384",
            TokenizerSource(hub="timm/ViT-B-16-SigLIP", clean="canonicalize"),
        ),
        (
            "ViT-gopt-16-SigLIP2-384",
            TokenizerSource(hub="timm/ViT-gopt-16-SigLIP2-384", clean="canonicalize"),
        ),
        ("ViT-bigG-14-worldwide", TokenizerSource(hub="facebook/xlm-v-base")),
    ],
)
def test_the_tokenizer_is_the_one_it_was_trained_with(name, tokenizer):
    assert find(name).tokenizer == tokenizer


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("ViT-L-14/datacomp_xl", "ViT-L-14/datacomp_xl_s13b_b90k"),
        ("ViT-L-14/DataComp-XL", "ViT-L-14/datacomp_xl_s13b_b90k"),
        ("ViT-B-16-SigLIP", "ViT-B-16-SigLIP/webli"),
        ("ViT-B-16-SigLIP/", "ViT-B-16-SigLIP/webli"),
        # Whole, though another begins with it.
        ("ViT-L-14/dfn2b", "ViT-L-14/dfn2b"),
        ("ViT-L-14/dfn2b_s", "ViT-L-14/dfn2b_s39b"),
    ],
)
def test_a_start_that_only_one_tag_has_is_enough(given, meant):
    assert find(given).name == meant


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            "ViT-g-14/laion2b",
            "'ViT-g-14/laion2b' may mean any of ViT-g-14/laion2b_s12b_b42k, "
            "ViT-g-14/laion2b_s34b_b88k",
        ),
        (
            "ViT-g-14",
            "'ViT-g-14' may mean any of ViT-g-14/laion2b_s12b_b42k, ViT-g-14/laion2b_s34b_b88k",
        ),
        (
            "RN50/opnai",
            "no known weights 'RN50/opnai'; nearest 'openai' of RN50: "
            "['openai', 'yfcc15m', 'cc12m']",
        ),
        ("ViT-S-32/openai", "'ViT-S-32' is an architecture without known weights"),
        (
            "ViT-B32/openai",
            "no known weights 'ViT-B32/openai'; nearest ViT-B-32/openai, ViT-B-16/openai, "
            "ViT-L-14/openai (`clip-jax models` lists all)",
        ),
    ],
)
def test_what_is_not_meant_or_not_known_is_explained(given, said):
    with pytest.raises(ValueError) as caught:
        find(given)
    assert str(caught.value) == said


def test_the_catalogue_cannot_be_changed_by_accident():
    with pytest.raises(TypeError):
        published()["ViT-B-32/mine"] = published()["ViT-B-32/openai"]  # pyright: ignore


def test_models_are_listed_with_costs_and_every_tag():
    rows = {row.name: row for row in list_models()}
    assert list(rows) == list(PRESETS)
    assert {f"{row.name}/{tag}" for row in rows.values() for tag in row.tags} == set(published())
    for name, row in rows.items():
        config, cost = PRESETS[name], flops(PRESETS[name])
        assert row.parameters == parameters(config).model
        assert (row.image_gflops, row.text_gflops) == (cost.image / 1e9, cost.text / 1e9)
        assert row.image_size == config.image.image_size
        assert (row.embed_dim, row.context_length) == (config.embed_dim, config.text.context_length)
    assert rows["ViT-B-32"].tags[0] == "openai"
    assert rows["ViT-S-32"].tags == ()


def test_listing_traces_and_makes_nothing(monkeypatch):
    import jax

    def forbidden(*_, **__):
        raise AssertionError("the listing must cost nothing")

    for name in ("eval_shape", "jit", "make_jaxpr"):
        monkeypatch.setattr(jax, name, forbidden)
    assert len(catalog.list_models()) == len(PRESETS)
