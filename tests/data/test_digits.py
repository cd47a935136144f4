import re
from collections import Counter

import numpy as np
import pytest

from clip_jax.data import digits
from clip_jax.data.digits import CLASSES, COLORS, DIGITS, GROUNDS, HELD_OUT, Digits
from clip_jax.data.sample import Dataset, Source

SPLITS = ("train", "test", "unseen_images", "unseen_combinations")
FEW = Digits(colourings=2)


def samples(split, dataset=FEW):
    source = dataset.open(split)
    return [source[i] for i in range(len(source))]


@pytest.fixture(scope="module")
def everything():
    return {split: samples(split) for split in SPLITS}


def original(sample):
    return int(sample.key.rsplit("-", 1)[1])


def digit_of(text):
    words = re.findall(r"\w+", text)
    named = [w for w in words if w in DIGITS or w.isdigit()]
    assert len(named) == 1, text
    return DIGITS.index(named[0]) if named[0] in DIGITS else int(named[0])


def color_of(text):
    named = [w for w in re.findall(r"\w+", text) if w in COLORS]
    assert len(named) <= 1, text
    return named[0] if named else None


def nearest_color(image):
    """The stroke colour that the brightest pixels show."""
    pixels = image.reshape(-1, 3).astype(int)
    brightest = pixels[np.argsort(pixels.sum(1))[-12:]].mean(0)
    return min(COLORS, key=lambda name: np.abs(np.array(COLORS[name]) - brightest).sum())


def test_the_contracts_are_kept():
    assert isinstance(FEW, Dataset) and isinstance(FEW.open("test"), Source)


def test_no_original_image_is_in_training_and_in_testing(everything):
    train = {original(s) for s in everything["train"]}
    tests = [{original(s) for s in everything[split]} for split in SPLITS[1:]]
    assert tests[0] == tests[1] > tests[2]
    assert not train & tests[0]
    assert len(train | tests[0]) == 1797
    assert 0.19 < len(tests[0]) / 1797 < 0.21


def test_every_digit_is_divided_alike(everything):
    train = Counter(s.label for s in everything["train"])
    test = Counter(s.label for s in everything["test"])
    for digit in range(10):
        assert 0.19 < test[digit] / (train[digit] / 2 + test[digit]) < 0.22


def test_held_out_combinations_are_a_diagonal():
    assert [color for _, color in HELD_OUT] == list(range(7))
    assert len({digit for digit, _ in HELD_OUT}) == 7


def test_training_sees_every_other_combination_and_no_held_out_one(everything):
    seen = Counter((s.label, nearest_color(s.image)) for s in everything["train"])
    names = tuple(COLORS)
    held_out = {(digit, names[color]) for digit, color in HELD_OUT}
    every = {(digit, color) for digit in range(10) for color in names}
    assert set(seen) == every - held_out
    assert min(seen.values()) >= 20
    assert not held_out & {(s.label, nearest_color(s.image)) for s in everything["test"]}


def test_unseen_combinations_are_exactly_the_held_out_ones(everything):
    names = tuple(COLORS)
    expected = {CLASSES.index(f"{names[color]} {DIGITS[digit]}") for digit, color in HELD_OUT}
    assert {s.label for s in everything["unseen_combinations"]} == expected
    for sample in everything["unseen_combinations"]:
        color, digit = CLASSES[sample.label].split()
        assert nearest_color(sample.image) == color
        assert digit == DIGITS[digits._originals()[1][original(sample)]]


def test_captions_are_true(everything):
    for sample in everything["train"][::5] + everything["test"]:
        color = nearest_color(sample.image)
        for text in sample.texts:
            assert digit_of(text) == sample.label
            assert color_of(text) in (None, color)


def test_grounds_in_captions_are_those_of_the_corners(everything):
    for sample in everything["test"]:
        ground = sample.texts[0].split(" on a ")[1].removesuffix(" background")
        corners = sample.image[[0, 0, -1, -1], [0, -1, 0, -1]].astype(int)
        assert min(np.abs(corners - GROUNDS[ground]).sum(1)) == 0


def test_four_of_ten_captions_name_the_digit_alone(everything):
    for sample in everything["train"][:200]:
        assert len(sample.texts) == 10
        assert sum(color_of(text) is None for text in sample.texts) == 4


def test_captions_vary_in_words_and_numerals(everything):
    texts = [text for sample in everything["train"] for text in sample.texts]
    numerals = sum(bool(re.search(r"\d", text)) for text in texts)
    assert 0.45 < numerals / len(texts) < 0.55
    assert len(set(texts)) > 2000
    assert {"a photo of the number 4", "the digit seven", "a blue 4"} <= set(texts)
    assert "a photo of the digit seven in red on a navy background" in texts


def test_test_captions_are_all_different(everything):
    texts = [sample.texts for sample in everything["test"]]
    assert all(len(t) == 1 for t in texts) and len(set(texts)) == len(texts)


def test_unseen_images_are_the_test_pictures_with_digits_for_classes(everything):
    for plain, captioned in zip(everything["unseen_images"], everything["test"], strict=True):
        assert original(plain) == original(captioned)
        assert plain.label == captioned.label and plain.texts == ()
        assert nearest_color(plain.image) == nearest_color(captioned.image)
    assert FEW.class_names("unseen_images") == FEW.class_names("test") == DIGITS
    assert len(set(FEW.class_names("unseen_combinations"))) == 70


def test_every_ground_is_darker_than_every_stroke():
    def luminance(color):
        return np.dot(color, (0.299, 0.587, 0.114))

    assert min(map(luminance, COLORS.values())) > 1.5 * max(map(luminance, GROUNDS.values()))
    assert not set(COLORS) & set(GROUNDS)


def test_pictures_lie_on_the_canvas_whole(everything):
    """The share of ink that is drawn does not depend on the place."""
    ink = np.zeros((8, 8), np.float32)
    ink[:, 3:5] = 1.0
    black, white = (0, 0, 0), (255, 255, 255)
    sums = [
        digits.draw(ink, white, black, np.random.default_rng(seed)).astype(int).sum()
        for seed in range(200)
    ]
    assert max(sums) / min(sums) < (28 / 24) ** 2 * 1.1
    places = {int(s.image.astype(int).sum(2).argmax()) for s in everything["train"]}
    assert len(places) > 100


def test_samples_depend_on_seed_and_index_alone():
    first, again, other = (Digits(seed=s).open("train") for s in (0, 0, 1))
    later = first[1234]
    assert first[77].texts == again[77].texts
    np.testing.assert_array_equal(first[77].image, again[77].image)
    assert again[1234].key == later.key
    assert any(first[i].texts != other[i].texts for i in range(5))
    assert len(first) == 10 * len(FEW.open("train"))


def test_keys_are_unique(everything):
    for split in SPLITS:
        assert len({s.key for s in everything[split]}) == len(everything[split])


def test_an_unknown_split_is_named_with_the_nearest():
    for ask in (FEW.open, FEW.class_names):
        with pytest.raises(ValueError, match=r"no split 'tests' \(nearest: 'test'\); it has \('tr"):
            ask("tests")


def test_impossible_fields_are_refused():
    with pytest.raises(ValueError, match="colourings must be at least 1"):
        Digits(colourings=0)
    with pytest.raises(ValueError, match="seed at least 0"):
        Digits(seed=-1)


def test_positions_outside_are_refused():
    with pytest.raises(IndexError, match="sample -1 of"):
        FEW.open("test")[-1]
