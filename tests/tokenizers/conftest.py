"""One small vocabulary for the whole folder, trained once."""

import itertools

import pytest

from clip_jax.tokenizers import sentencepiece

CAPTIONS = [
    f"{number} {colour} {thing} {place}"
    for number, colour, thing, place in itertools.product(
        ["a", "one", "another", "my"],
        ["red", "blue", "dark green", "yellow", "shiny purple"],
        ["dog", "bicycle", "teapot", "mountain", "elephant", "jacket"],
        ["on the beach", "under a tree", "in the snow", "near two children", "at the airport"],
    )
]


@pytest.fixture(scope="session")
def captions():
    return CAPTIONS


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """Path of a `.model` file with 50 pieces."""
    path = tmp_path_factory.mktemp("vocabulary") / "captions.model"
    sentencepiece.train(CAPTIONS, path, 50)
    return str(path)
