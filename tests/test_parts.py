"""Where a model's tokenizer and preprocessing come from."""

import dataclasses
import json
import pathlib
import shutil
import warnings

import numpy as np
import pytest

import clip_jax
from clip_jax.api import parts
from clip_jax.preprocess.recipe import Recipe
from clip_jax.pretrained.catalog import published
from clip_jax.tokenizers import ClipBpe, HubTokenizer, SentencePiece, files, sentencepiece

MODELS = pathlib.Path(__file__).parent / "golden" / "models"
WORDS = ["a red fox and two dogs", "one hat", "a very long tale that goes on", "the fox"]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    """A folder as a tokenizer's repository has it."""
    folder = tmp_path_factory.mktemp("vocabulary")
    path = folder / "trained.model"
    sentencepiece.train(WORDS * 5, path, vocab_size=27)
    files.write(SentencePiece(model=str(path), clean="siglip"), folder / "repository")
    return folder / "repository"


@pytest.fixture
def model(tmp_path):
    shutil.copytree(MODELS / "open_clip_ViT_GELU", tmp_path / "model")
    return tmp_path / "model"


def edit(folder, change):
    path = folder / "open_clip_config.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_the_repository_that_a_config_names_is_fetched_for_its_tokenizer(
    model, vocabulary, monkeypatch
):
    asked = []

    def fetch(name, *, weights=True):
        asked.append((name, weights))
        return vocabulary

    monkeypatch.setattr(parts.hub, "fetch", fetch)
    edit(model, lambda d: d["model_cfg"]["text_cfg"].update(hf_tokenizer_name="org/words"))
    clip = clip_jax.load(model)
    assert asked == [("org/words", False)]
    assert clip.tokenizer.context_length == 16
    assert clip.tokenizer(["a red fox"]).shape == (1, 16)


def test_without_the_hub_images_can_be_embedded_and_texts_say_why_not(model, monkeypatch):
    def fetch(name, **_):
        raise ConnectionError(f"{name}: no network; connect once")

    monkeypatch.setattr(parts.hub, "fetch", fetch)
    edit(model, lambda d: d["model_cfg"]["text_cfg"].update(hf_tokenizer_name="org/words"))
    with pytest.warns(UserWarning, match=r"has no tokenizer: org/words: no network"):
        clip = clip_jax.load(model, batch=1)
    from PIL import Image

    assert clip.encode_image([Image.new("RGB", (40, 30), "red")]).shape == (1, 24)
    with pytest.raises(ValueError, match="has no tokenizer: org/words: no network; connect once"):
        clip.encode_text(["a red fox"])
    resized = clip_jax.interpolate(clip, context_length=20)
    assert resized.tokenizer.context_length == 20


def test_a_tokenizer_can_be_handed_in(model, vocabulary):
    mine = SentencePiece(model=str(vocabulary / "spiece.model"), context_length=16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # There is nothing to warn of.
        assert clip_jax.load(model, tokenizer=mine).tokenizer == mine


def test_a_catalogued_name_brings_its_own_recipe(model):
    """As in open_clip, a name stands for its row, whatever a config beside the weights says."""
    row = published()["ViT-B-16-SigLIP/webli"]
    from clip_jax.pretrained.formats import open_stored

    assert parts.choose_recipe(open_stored(model), None) == Recipe(size=32)
    told = parts.choose_recipe(open_stored(model), row)
    assert told == dataclasses.replace(row.recipe, size=32) != Recipe(size=32)


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        ("OpenAI_ViT", Recipe(size=32)),
        ("transformers_CLIP_GELU", Recipe(size=32)),
        (
            "transformers_SigLIP",
            Recipe(size=32, resize="squash", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        ),
    ],
)
def test_where_nothing_is_told_the_recipe_is_that_of_the_authors(name, recipe):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*has no tokenizer")
        assert clip_jax.load(MODELS / name).preprocess == recipe


def test_a_saved_folder_brings_its_tokenizer(model, vocabulary, tmp_path):
    for file in vocabulary.iterdir():
        shutil.copy(file, model)
    edit(model, lambda d: d["model_cfg"]["text_cfg"].update(hf_tokenizer_name="org/words"))
    clip = clip_jax.load(model)
    assert isinstance(clip.tokenizer, SentencePiece | HubTokenizer)
    texts = ["A Red Fox!", "", "two dogs " * 20]
    before = clip.tokenizer(texts)
    clip_jax.save(clip, tmp_path / "out", format="open_clip")
    shutil.rmtree(model)
    again = clip_jax.load(tmp_path / "out")
    np.testing.assert_array_equal(again.tokenizer(texts), before)
    assert str(tmp_path / "out") in repr(again.tokenizer)
    saved = json.loads((tmp_path / "out" / "open_clip_config.json").read_text())
    assert saved["model_cfg"]["text_cfg"]["hf_tokenizer_name"]


def test_clips_own_vocabulary_needs_no_file(tmp_path):
    config = {"vocab_size": 49408, "context_length": 16}
    found = files.find(tmp_path, **config, open_clip={})
    assert found == ClipBpe(context_length=16)
