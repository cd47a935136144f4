import re

import numpy as np
import pytest
from PIL import Image

from clip_jax.preprocess.naflex import NaflexRecipe, fitted_grid


def test_patches_and_grids_are_those_of_transformers(golden, pictures):
    recipe = NaflexRecipe(patch_size=4, max_patches=12)
    ours = [recipe(picture) for picture in pictures.values()]
    np.testing.assert_array_equal([o.grid for o in ours], golden["naflex/grid"])
    np.testing.assert_array_equal([o.pixels for o in ours], golden["naflex/pixels"])


def test_sizes_are_those_of_transformers(golden):
    patch = golden["sizes/asked"][:, 2:3]
    ours = [fitted_grid(*row) for row in golden["sizes/asked"].tolist()]
    np.testing.assert_array_equal(ours * patch, golden["sizes/given"])


@pytest.mark.parametrize("limit", [1, 5, 256])
@pytest.mark.parametrize("shape", [(1, 1), (1, 10**7), (10**7, 1), (480, 640), (9000, 9000)])
def test_the_grid_keeps_to_the_limit_and_to_the_proportions(shape, limit):
    rows, columns = fitted_grid(*shape, 16, limit)
    assert rows >= 1 and columns >= 1 and rows * columns <= limit
    assert (columns, rows) == fitted_grid(*shape[::-1], 16, limit)
    # One step larger on both sides would be too much, so no room was wasted.
    assert (rows + 1) * (columns + 1) > min(limit, (100 * shape[0] // 16) * (100 * shape[1] // 16))


def test_a_picture_that_fits_exactly_is_cut_into_its_patches():
    image = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
    flat = NaflexRecipe(patch_size=3, max_patches=6)(image)
    np.testing.assert_array_equal(flat.grid, [2, 3])
    assert flat.grid.dtype == np.int32 and flat.pixels.dtype == np.uint8
    for patch in range(6):
        row, column = divmod(patch, 3)
        part = image[3 * row : 3 * row + 3, 3 * column : 3 * column + 3]
        np.testing.assert_array_equal(flat.pixels[patch], part.reshape(-1))


def test_padding_is_zero_and_shapes_do_not_depend_on_the_picture(photo):
    recipe = NaflexRecipe(patch_size=4, max_patches=11)
    for picture in (photo, photo.swapaxes(0, 1), photo[:1], photo[:, :1]):
        flat = recipe(picture)
        assert flat.pixels.shape == (11, 48) and flat.grid.shape == (2,)
        assert not flat.pixels[flat.grid.prod() :].any()
        assert flat.pixels[: flat.grid.prod()].any(axis=1).all()


def test_bytes_pillow_images_and_arrays_give_the_same(photo, encode):
    recipe = NaflexRecipe(patch_size=4, max_patches=11)
    expected = recipe(photo)
    for picture in (encode(photo, "PNG"), Image.fromarray(photo)):
        np.testing.assert_array_equal(recipe(picture).pixels, expected.pixels)
    grey = recipe(photo[..., 0]).pixels.reshape(11, 16, 3)
    np.testing.assert_array_equal(grey[..., 0], grey[..., 2])
    with pytest.raises(ValueError, match="cannot decode the image"):
        recipe(b"no picture")


def test_all_faults_are_reported_at_once():
    message = (
        "NaflexRecipe.patch_size must be at least 1 pixel, got 0; "
        "NaflexRecipe.max_patches must be at least 1, got -2; "
        "NaflexRecipe.std must be above 0, got (0.5, 0.0, 0.5)"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        NaflexRecipe(patch_size=0, max_patches=-2, std=(0.5, 0.0, 0.5))
