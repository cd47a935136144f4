import dataclasses

import numpy as np
import pytest

from clip_jax.data import Digits
from clip_jax.data.sample import Sample
from clip_jax.eval.remember import remembering


class Shapes:
    """Ten pictures, one of them broken."""

    def open(self, split):
        return [Sample(key=str(i), image=b"" if i == 3 else picture(i)) for i in range(10)]

    def class_names(self, split):
        return ()


def picture(seed):
    return np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)


@pytest.fixture
def counted(toy):
    """An embedder that remembers, what it asks of its towers, and what it tells."""
    asked, told = [], []
    plain = toy.embedder(warn=told.append)

    def counting(name, function):
        def count(rows):
            asked.append(name)
            return function(rows)

        return count

    made = dataclasses.replace(
        plain,
        image_fn=counting("images", plain.image_fn),
        text_fn=counting("texts", plain.text_fn),
        feature_fn=plain.image_fn,
    )
    return plain, remembering(made), asked, told


def test_a_split_is_embedded_once_and_as_ever(counted):
    plain, made, asked, told = counted
    data = Shapes()
    first = made.split(data, "test")
    calls = len(asked)
    assert calls and len(told) == 1
    assert made.split(data, "test") is first
    assert len(asked) == calls and len(told) == 1
    np.testing.assert_array_equal(first.images, plain.split(data, "test").images)


def test_another_split_another_check_and_other_features_are_embedded_anew(counted):
    _, made, asked, _ = counted
    data = Shapes()
    first = made.split(data, "test")
    once = asked.count("images")
    found = made.split(data, "train"), made.split(data, "test", lambda sample: None)
    assert all(one is not first for one in found)
    assert asked.count("images") == 3 * once > 0
    assert made.of_features.split(data, "test") is not first


def test_data_sets_that_are_equal_are_the_same(counted):
    _, made, asked, _ = counted
    first = made.split(Digits(), "test")
    calls = len(asked)
    assert made.split(Digits(), "test") is first and len(asked) == calls


def test_each_text_is_embedded_once_in_any_order(counted):
    plain, made, asked, _ = counted
    made.texts(["a dog", "a cat"])
    calls = asked.count("texts")
    np.testing.assert_allclose(
        made.texts(["a cat", "a dog", "a cat"]), plain.texts(["a cat", "a dog", "a cat"]), atol=1e-6
    )
    assert asked.count("texts") == calls
    made.texts(["a cat", "a fox"])
    assert asked.count("texts") == calls + 1
    assert made.texts([]).shape == plain.texts([]).shape
