import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from clip_jax.preprocess.naflex import FlatPatches, NaflexRecipe
from clip_jax.preprocess.recipe import Recipe, normalize

GOLDEN = pathlib.Path(__file__).parents[2].parent / "shared" / "data" / "preprocess"


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="the shared preprocessing golden is absent")
def test_a_photograph_gives_the_pixels_of_the_original_pipeline():
    expected = np.load(GOLDEN / "portrait_openai_224.npy")  # (1, C, H, W)
    recipe = Recipe()
    images = jnp.asarray(recipe((GOLDEN / "portrait.jpg").read_bytes()))[None]
    ours = normalize(images, recipe).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("resize", ["shortest", "squash", "longest"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_pixels_are_those_of_open_clip(golden, pictures, resize, interpolation):
    fill = 114 if (resize, interpolation) == ("longest", "bilinear") else 0
    recipe = Recipe(size=16, resize=resize, interpolation=interpolation, fill=fill)
    ours = [recipe(picture) for picture in pictures.values()]
    np.testing.assert_array_equal(ours, golden[f"open_clip/{resize}/{interpolation}/{fill}"])


def test_numbers_are_those_of_open_clip(golden, pictures):
    recipe = Recipe(size=16)
    ours = normalize(jnp.asarray(recipe(pictures["wide"])), recipe)
    np.testing.assert_allclose(ours, golden["normalized"], rtol=0, atol=1e-6)


def test_bytes_pillow_images_and_arrays_give_the_same(photo, encode):
    recipe = Recipe(size=20)
    expected = recipe(photo)
    np.testing.assert_array_equal(recipe(encode(photo, "PNG")), expected)
    np.testing.assert_array_equal(recipe(Image.fromarray(photo)), expected)
    np.testing.assert_array_equal(recipe(Image.fromarray(photo).convert("RGBA")), expected)
    assert expected.shape == (20, 20, 3) and expected.dtype == np.uint8


def test_grey_arrays_have_three_equal_channels(photo):
    grey = photo[..., 0]
    pixels = Recipe(size=20)(grey)
    np.testing.assert_array_equal(pixels, Recipe(size=20)(Image.fromarray(grey)))
    np.testing.assert_array_equal(pixels[..., 0], pixels[..., 2])


def test_squash_shows_the_corners_that_the_crop_loses():
    image = np.zeros((20, 60, 3), np.uint8)
    image[:, :12] = 255
    assert Recipe(size=10)(image).max() == 0
    squashed = Recipe(size=10, resize="squash")(image)
    assert squashed[:, 0].min() == 255 and squashed[:, 5:].max() == 0


def test_the_result_is_a_copy_even_where_nothing_changes(photo):
    square = photo[:43, :43].copy()
    result = Recipe(size=43)(square)
    np.testing.assert_array_equal(result, square)
    result[:] = 0
    assert square.any()


@pytest.mark.parametrize("lead", [(), (2,), (2, 3)])
def test_normalize_is_mean_and_deviation_a_channel(lead):
    recipe = Recipe(mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0))
    images = np.random.default_rng(0).integers(0, 256, (*lead, 4, 5, 3), np.uint8)
    ours = jax.jit(normalize, static_argnums=1)(jnp.asarray(images), recipe)
    assert ours.dtype == jnp.float32
    for c in range(3):
        exact = (images[..., c] / 255.0 - recipe.mean[c]) / recipe.std[c]
        np.testing.assert_allclose(ours[..., c], exact, rtol=1e-5, atol=1e-6)


def test_patches_are_normalised_like_the_picture_that_they_were():
    recipe = NaflexRecipe(patch_size=2, max_patches=6, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0))
    image = np.random.default_rng(3).integers(0, 256, (6, 4, 3), np.uint8)
    flat = jax.tree.map(lambda array: jnp.asarray(array)[None], recipe(image))
    ours = jax.jit(normalize, static_argnums=1)(flat, recipe)
    assert isinstance(ours, FlatPatches) and ours.pixels.dtype == jnp.float32
    np.testing.assert_array_equal(ours.grid, [[3, 2]])
    back = ours.pixels.reshape(3, 2, 2, 2, 3).swapaxes(1, 2).reshape(6, 4, 3)
    np.testing.assert_allclose(back, normalize(jnp.asarray(image), recipe), rtol=1e-6, atol=1e-7)


def test_a_named_tuple_of_another_room_keeps_its_kind():
    from clip_jax.models.vit import Patches

    assert Patches._fields == FlatPatches._fields
    patches = Patches(jnp.zeros((1, 2, 12), jnp.uint8), jnp.ones((1, 2), jnp.int32))
    ours = normalize(patches, NaflexRecipe())
    assert isinstance(ours, Patches) and float(ours.pixels.max()) == -1


def test_a_recipe_without_size_or_deviation_is_refused():
    with pytest.raises(ValueError, match=r"^Recipe.size must be at least 1 pixel, got 0$"):
        Recipe(size=0)
    with pytest.raises(ValueError, match=r"^Recipe.std must be above 0"):
        Recipe(std=(1.0, 0.0, 1.0))
    with pytest.raises(ValueError, match=r"^Recipe.fill must be from 0 to 255, got 256$"):
        Recipe(fill=256)
    message = "Recipe.size must be at least 1 pixel, got 0; Recipe.fill must be from 0 to 255"
    with pytest.raises(ValueError, match=message):
        Recipe(size=0, fill=-1)
