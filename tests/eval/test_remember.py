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


def test_another_split_and_other_features_are_embedded_anew(counted):
    _, made, asked, _ = counted
    data = Shapes()
    first = made.split(data, "test")
    once = asked.count("images")
    assert made.split(data, "train") is not first
    assert asked.count("images") == 2 * once > 0
    features = made.of_features.split(data, "test")
    assert features is not first
    assert made.of_features.split(data, "test") is features


def even(sample):
    return None if int(sample.key) % 2 == 0 else "it is odd"


def small(sample):
    return None if int(sample.key) < 4 else "it is large"


@pytest.mark.parametrize("order", [(even, small), (small, even)])
def test_readers_who_want_other_samples_share_the_pictures(counted, order):
    plain, made, asked, told = counted
    data = Shapes()
    once = []
    for check in order:
        found = made.split(data, "test", check)
        once.append(asked.count("images"))
        wanted = plain.split(data, "test", check)
        np.testing.assert_array_equal(found.images, wanted.images)
        assert (found.keys, found.indices) == (wanted.keys, wanted.indices)
        # Whoever was not read has another reason, but is among those left out all the same.
        names = [[line.split(": ")[0] for line in one.skipped] for one in (found, wanted)]
        assert sorted(names[0]) == sorted(names[1])
        assert len(told) == 2 * len(once)
    assert once[0] == once[1] > 0
    with pytest.raises(ValueError, match=r"^split 'test' holds no usable sample; 10 left out: "):
        made.split(data, "test", lambda sample: "it is not liked")


def test_what_remembers_already_stays_as_it_is(counted):
    _, made, _, _ = counted
    assert remembering(made) is made


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


def test_what_only_one_process_takes_for_the_same_all_embed_again(toy, pair):
    """Two folders may be one on one machine, and two on another."""
    both = Shapes(), Shapes()
    calls = [0, 0]

    def work(number, embedder):
        def counting(images):
            calls[number] += 1
            return embedder.image_fn(images)

        made = remembering(dataclasses.replace(embedder, image_fn=counting, warn=[].append))
        first = made.split(both[0], "test")
        before = calls[number]
        second = made.split(both[number], "test")
        assert calls[number] == 2 * before > 0
        third = made.split(both[0], "test")
        assert calls[number] == 2 * before
        return [one.images.tolist() for one in (first, second, third)]

    ends = pair(toy.embedder(), work)
    assert isinstance(ends[0], list) and ends[0] == ends[1]
    assert ends[0][0] == ends[0][1] == ends[0][2]
