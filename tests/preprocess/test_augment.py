import re

import numpy as np
import pytest

from clip_jax.preprocess.augment import Augment
from clip_jax.preprocess.recipe import Recipe


def generator(seed=0):
    return np.random.default_rng(seed)


def test_the_same_generator_gives_the_same_view_and_another_another(photo):
    augment = Augment(min_crop=0.5, flip=True, color_jitter=0.2)
    views = [augment(photo, 24, generator(seed)) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(views[0], views[1])
    assert not np.array_equal(views[0], views[2])
    assert views[0].shape == (24, 24, 3) and views[0].flags.c_contiguous


def test_a_square_picture_without_changes_is_only_resized(photo):
    square = photo[:, :43]
    for seed in range(5):
        view = Augment(min_crop=1.0)(square, 24, generator(seed))
        np.testing.assert_array_equal(view, Recipe(size=24)(square))


def positions():
    """A square picture whose every pixel says where it is."""
    y, x = np.mgrid[0:96, 0:96]
    return np.stack([x, y, x + y], -1).astype(np.uint8)


def test_crops_lie_inside_with_every_side_and_place():
    augment, sides, corners = Augment(min_crop=0.875), set(), set()
    for seed in range(400):
        left, top, right, bottom = augment._square(96, 120, *generator(seed).random(3))
        assert right - left == bottom - top
        assert 0 <= left < right <= 120 and 0 <= top < bottom <= 96
        sides.add(right - left)
        corners.add(left)
    assert sides == set(range(84, 97))
    assert corners >= set(range(20))


def test_an_unresized_crop_is_a_part_of_the_picture():
    source, exact, found = positions(), Augment(min_crop=0.625), 0
    for seed in range(200):
        view = exact(source, 60, generator(seed))
        left, top = view[0, 0, :2]  # Where a view that was not resized says it begins.
        part = source[top : top + 60, left : left + 60]
        found += part.shape == view.shape and np.array_equal(view, part)
    assert 1 <= found <= 20  # One of 37 sides is exactly 60.


def test_flip_mirrors_about_half_and_changes_nothing_else(photo):
    plain, mirrored = Augment(min_crop=0.7), Augment(min_crop=0.7, flip=True)
    turned = 0
    for seed in range(60):
        before, after = plain(photo, 16, generator(seed)), mirrored(photo, 16, generator(seed))
        if np.array_equal(before, after):
            continue
        np.testing.assert_array_equal(before[:, ::-1], after)
        turned += 1
    assert 15 < turned < 45


def test_jitter_is_one_gain_a_channel_within_its_bounds():
    grey = np.full((32, 32, 3), 100, np.uint8)
    seen = []
    for seed in range(100):
        view = Augment(color_jitter=0.1)(grey, 32, generator(seed))
        assert (view == view[0, 0]).all()
        seen.append(view[0, 0])
    assert np.min(seen) in (90, 91, 92) and np.max(seen) in (108, 109, 110)
    assert len({tuple(s) for s in seen}) > 80


def test_jitter_stops_at_white():
    white = np.full((8, 8, 3), 255, np.uint8)
    for seed in range(20):
        assert Augment(color_jitter=0.5)(white, 8, generator(seed)).min() >= 127


def test_the_generator_is_used_alike_whatever_is_switched_on(photo):
    after = []
    for augment in (Augment(), Augment(flip=True, color_jitter=0.3, min_crop=0.2)):
        rng = generator()
        augment(photo, 8, rng)
        after.append(rng.random())
    assert after[0] == after[1]


def test_a_large_jpeg_is_decoded_small_and_looks_the_same(encode):
    y, x = np.mgrid[0:480, 0:640]
    big = np.stack([x * 255 // 639, y * 255 // 479, (x + y) * 255 // 1118], -1).astype(np.uint8)
    augment = Augment(min_crop=0.8)
    for seed in range(5):
        fast = augment(encode(big, "JPEG", quality=95), 64, generator(seed))
        slow = augment(big, 64, generator(seed))
        assert np.abs(fast.astype(int) - slow).mean() < 3


def test_all_faults_are_reported_at_once():
    with pytest.raises(ValueError, match=re.escape("min_crop must be above 0")) as caught:
        Augment(min_crop=0.0, color_jitter=1.0)
    assert "color_jitter must be from 0 to below 1, got 1.0" in str(caught.value)
