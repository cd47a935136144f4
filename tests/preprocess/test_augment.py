import re
import sys

import numpy as np
import pytest
from PIL import Image

from clip_jax.config import from_data, to_data
from clip_jax.preprocess.augment import AreaCrop, Augment, Jitter
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
    everything = Augment(
        flip=True, color_jitter=0.3, min_crop=0.2, crop=AreaCrop(), jitter=Jitter(), gray=0.5
    )
    for augment in (Augment(), everything):
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


def test_old_configs_are_read_and_keep_their_views(photo):
    old = {"min_crop": 0.6, "flip": True, "color_jitter": 0.2, "interpolation": "bilinear"}
    augment = from_data(Augment, {"type": "Augment", **old})
    assert augment == Augment(**old)
    for seed in range(8):
        side, x, y, mirror, *tint = generator(seed).random(7)  # All that was drawn then.
        pixels = 26 + int(side * (43 - 26 + 1))
        left, top = int(x * (61 - pixels + 1)), int(y * (43 - pixels + 1))
        box = (left, top, left + pixels, top + pixels)
        view = Image.fromarray(photo).resize((24, 24), Image.Resampling.BILINEAR, box=box)
        view = np.asarray(view)[:, :: -1 if mirror < 0.5 else 1]
        gain = np.float32(0.8) + np.float32(0.4) * np.array(tint, np.float32)
        expected = np.minimum(view * gain + 0.5, 255).astype(int)
        assert np.abs(augment(photo, 24, generator(seed)) - expected).max() <= 1


def test_a_config_with_every_change_survives_json():
    jitter = Jitter(brightness=0.1, contrast=0.2, saturation=0.3, probability=0.4)
    augment = Augment(crop=AreaCrop(area=(0.3, 0.8), ratio=(0.5, 2.0)), jitter=jitter, gray=0.2)
    assert from_data(Augment, to_data(augment)) == augment


def boxes(crop, height, width, count):
    rng = np.random.default_rng(7)
    return np.array(
        [crop.box(height, width, rng.random((10, 2)), *rng.random(2)) for _ in range(count)]
    )


def test_area_crops_lie_inside_and_have_the_areas_and_ratios_of_rejection_sampling():
    height, width, rng = 480, 640, np.random.default_rng(3)
    left, top, right, bottom = boxes(AreaCrop(area=(0.3, 1.0)), height, width, 4000).T
    assert left.min() == top.min() == 0 and right.max() == width and bottom.max() == height
    assert (right > left).all() and (bottom > top).all()
    w, h, expected = right - left, bottom - top, []
    while len(expected) < 4000:  # Without an end to the tries, which hardly ever is reached here.
        area = rng.uniform(0.3, 1) * height * width
        ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        if (area * ratio) ** 0.5 <= width and (area / ratio) ** 0.5 <= height:
            expected.append((area / height / width, np.log(ratio)))
    found = np.array([w * h / (height * width), np.log(w / h)]).T
    for q in (0.05, 0.25, 0.5, 0.75, 0.95):
        np.testing.assert_allclose(
            np.quantile(found, q, axis=0), np.quantile(expected, q, axis=0), atol=0.03
        )
    room = width - w
    assert 0.47 < np.mean(left[room > 9] / room[room > 9]) < 0.53


@pytest.mark.parametrize(
    "shape, box",
    [
        ((100, 300), (83, 0, 216, 100)),  # As broad as 4 to 3 allows.
        ((300, 100), (0, 83, 100, 216)),
        ((1, 900), (449, 0, 450, 1)),
        ((90, 100), (0, 0, 100, 90)),
    ],
)
def test_where_no_try_fits_the_middle_is_taken(shape, box):
    tries = np.tile([0.999, 0.0 if shape[0] < shape[1] else 0.999], (10, 1))
    assert AreaCrop().box(*shape, tries, 0.9, 0.9) == box


def test_the_whole_picture_is_squeezed_where_the_crop_says_so(photo):
    crop = AreaCrop(area=(1.0, 1.0), ratio=(0.1, 10.0))
    expected = Recipe(size=24, resize="squash")(photo)
    np.testing.assert_array_equal(Augment(crop=crop)(photo, 24, generator()), expected)


def test_a_jpeg_and_its_pixels_are_cut_alike(encode):
    y, x = np.mgrid[0:480, 0:640]
    big = np.stack([x * 255 // 639, y * 255 // 479, (x + y) * 255 // 1118], -1).astype(np.uint8)
    data = encode(big, "JPEG", quality=95, subsampling="4:4:4")
    for seed, size in enumerate((32, 64, 224, 300, 500)):
        for crop in (None, AreaCrop(area=(0.3, 1.0))):
            augment = Augment(min_crop=0.4, crop=crop)
            fast, slow = augment(data, size, generator(seed)), augment(big, size, generator(seed))
            inner = np.abs(fast.astype(int) - slow)[1:-1, 1:-1]
            assert inner.max() <= 4  # One pixel to the side would be up to 5 at size 32 alone,
            assert np.abs((fast.astype(float) - slow)[1:-1, 1:-1].mean()) < 0.5  # and one-sided.


def test_jitter_and_grey_change_nothing_else(photo):
    jitter, changed = Jitter(probability=0.5), 0
    for seed in range(40):
        plain = Augment(flip=True)(photo, 16, generator(seed))
        tinted = Augment(flip=True, jitter=jitter)(photo, 16, generator(seed))
        grey = Augment(flip=True, gray=1.0)(photo, 16, generator(seed))
        luma = np.asarray(Image.fromarray(plain).convert("L"))
        assert (grey == luma[..., None]).all()
        np.testing.assert_array_equal(tinted, jitter(plain, generator(seed).random(33)[27:32]))
        changed += not np.array_equal(plain, tinted)
    assert 10 < changed < 30


def test_grey_comes_as_often_as_asked(photo):
    grey = sum(
        (view[..., :1] == view).all()
        for seed in range(200)
        if (view := Augment(gray=0.2)(photo, 8, generator(seed))) is not None
    )
    assert 25 < grey < 55


def test_each_part_of_jitter_does_what_it_says(photo):
    off = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "probability": 1.0}
    high, square = np.full(5, 0.999), photo[:43, :43]
    luma = square @ np.array([0.299, 0.587, 0.114])
    for name, expected in {
        "brightness": square * 1.5,
        "contrast": luma.mean() + (square - luma.mean()) * 1.5,
        "saturation": luma[..., None] + (square - luma[..., None]) * 1.5,
    }.items():
        view = Jitter(**{**off, name: 0.5})(square, high)
        assert np.abs(view - np.clip(expected, 0, 255)).max() < 3
        assert not np.array_equal(view, square)
    np.testing.assert_array_equal(Jitter(**off)(square, high), square)


def test_the_order_of_jitter_is_drawn(photo):
    square = photo[:43, :43]
    views = {
        Jitter(probability=1.0)(square, np.array([0.5, order / 6, 0.9, 0.9, 0.1])).tobytes()
        for order in range(6)
    }
    assert len(views) > 2


def test_faults_of_crop_and_jitter_name_the_field():
    with pytest.raises(
        ValueError, match=r"AreaCrop\.area must be two rising .* got \(0\.9, 0\.3\)"
    ):
        AreaCrop(area=(0.9, 0.3))
    with pytest.raises(ValueError, match=r"AreaCrop\.ratio must be two rising numbers, above 0"):
        AreaCrop(ratio=(0.0, 1.0))
    with pytest.raises(ValueError, match=r"Jitter\.contrast .*; Jitter\.probability must be"):
        Jitter(contrast=1.5, probability=2.0)
    with pytest.raises(ValueError, match=r"gray must be from 0 to 1, got -0\.1"):
        Augment(gray=-0.1)


def test_opencv_is_asked_for_by_name_where_it_is_missing(photo, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ModuleNotFoundError, match="pip install opencv-python-headless"):
        Augment(interpolation="opencv")(photo, 24, generator())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"flip": True},
        {"flip": True, "color_jitter": 0.3},
        {"jitter": Jitter(probability=1.0)},
        {"gray": 1.0, "flip": True},
        {"crop": AreaCrop(area=(0.2, 1.0)), "interpolation": "bilinear"},
        {"min_crop": 1.0},
        {"flip": True, "interpolation": "opencv"},
    ],
)
@pytest.mark.parametrize("size", [24, 43])  # 43: whole crops of the square are only copied.
def test_a_view_into_a_given_array_is_the_same_view(photo, encode, changes, size):
    if changes.get("interpolation") == "opencv":
        pytest.importorskip("cv2", reason="it is optional")
    augment = Augment(**changes)
    rows = np.full((3, size, size, 3), 77, np.uint8)
    for image in (photo, np.ascontiguousarray(photo[:, :43]), encode(photo, "JPEG")):
        before = image if isinstance(image, bytes) else image.copy()
        for seed in range(6):
            out = rows[1]
            assert augment(image, size, generator(seed), out) is out
            np.testing.assert_array_equal(out, augment(image, size, generator(seed)))
        assert (rows[0] == 77).all() and (rows[2] == 77).all()
        np.testing.assert_array_equal(image, before)
