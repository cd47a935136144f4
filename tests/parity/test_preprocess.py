import functools
import json

import jax
import numpy as np
import pytest
from PIL import Image

from clip_jax.preprocess import geometry
from clip_jax.preprocess.naflex import NaflexRecipe, fitted_grid
from clip_jax.preprocess.published import (
    from_huggingface,
    from_open_clip,
    to_huggingface,
    to_open_clip,
)
from clip_jax.preprocess.recipe import Recipe, normalize
from tests.parity import peers

torch = pytest.importorskip("torch", reason="make parity installs it")
open_clip = peers.open_clip()  # First: it makes torchvision usable, which transformers imports.
transformers = pytest.importorskip("transformers")
siglip2 = pytest.importorskip("transformers.models.siglip2.image_processing_pil_siglip2")

SHAPES = [(333, 500), (500, 333), (64, 64), (224, 224), (7, 5), (1, 40), (40, 1), (65, 96)]
WAYS = [("shortest", 0), ("squash", 0), ("longest", 0), ("longest", 200)]
jitted = jax.jit(normalize, static_argnums=1)


@functools.cache
def picture(shape, mode="RGB"):
    noise = np.random.default_rng(sum(shape)).integers(0, 256, (*shape, 3), np.uint8)
    return Image.fromarray(noise).convert(mode)


def normalized(recipe, image):
    """Channels first, as the originals."""
    return np.moveaxis(np.asarray(jitted(jax.numpy.asarray(recipe(image)), recipe)), -1, 0)


def equal_to_rounding(ours, theirs):
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("resize, fill", WAYS)
def test_open_clip_does_the_same_with_what_is_written_for_it(resize, fill, interpolation):
    transform = open_clip.transform
    for size, shape, mode in [(64, s, "RGB") for s in SHAPES] + [
        (224, (333, 500), "RGB"),
        (64, (65, 96), "L"),
    ]:
        recipe = Recipe(size=size, resize=resize, interpolation=interpolation, fill=fill)
        written = json.loads(json.dumps(to_open_clip(recipe)))
        theirs = transform.image_transform_v2(transform.PreprocessCfg(**written), False)
        image, pixels = picture(shape, mode), picture(shape, mode)
        for step in theirs.transforms[:-2]:
            pixels = step(pixels)
        np.testing.assert_array_equal(recipe(image), pixels)
        equal_to_rounding(normalized(recipe, image), theirs(image).numpy())
        assert from_open_clip(written, size) == recipe


@pytest.fixture
def load(tmp_path):
    """transformers' processor, on Pillow, from the file that we write."""

    def load(recipe):
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(to_huggingface(recipe)))
        return transformers.AutoImageProcessor.from_pretrained(tmp_path, backend="pil")

    return load


def pixels(processor, image):
    (made,) = processor(image, return_tensors="np")["pixel_values"]
    return made


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_siglip_squashes_alike(load, interpolation):
    half = (0.5, 0.5, 0.5)
    recipe = Recipe(size=64, resize="squash", interpolation=interpolation, mean=half, std=half)
    processor = load(recipe)
    assert type(processor).__name__ == "SiglipImageProcessorPil"
    for image in [*map(picture, SHAPES), picture((65, 96), "L")]:
        equal_to_rounding(normalized(recipe, image), pixels(processor, image))
    assert from_huggingface(json.loads(processor.to_json_string())) == recipe


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_clip_crops_alike_but_for_the_half_pixel_that_it_rounds_down(load, interpolation):
    recipe = Recipe(size=64, interpolation=interpolation)
    processor = load(recipe)
    assert type(processor).__name__ == "CLIPImageProcessorPil"
    moved = 0
    shapes = [*SHAPES, (64, 67), (71, 64), (64, 66), (64, 65), (69, 64)]
    for image in [*map(picture, shapes), picture((65, 96), "L")]:
        over = int(64 * max(image.size) / min(image.size)) - 64
        theirs = pixels(processor, image)
        if over % 4 != 3:
            equal_to_rounding(normalized(recipe, image), theirs)
            continue
        # (over / 2) is a half above an odd number; open_clip rounds it up, transformers down.
        axis, moved = (2 if image.width > image.height else 1), moved + 1
        ours = normalized(recipe, image)
        kept, before = np.split(ours, [63], axis)[0], np.split(theirs, [1], axis)[1]
        equal_to_rounding(kept, before)
        assert not np.array_equal(ours, theirs)
    assert moved == 2  # 64 x 67 and 71 x 64.
    assert from_huggingface(json.loads(processor.to_json_string())) == recipe


def test_clip_with_a_squared_size_is_squash(load):
    processor = transformers.CLIPImageProcessorPil(
        size={"height": 64, "width": 64}, do_center_crop=False
    )
    recipe = from_huggingface(json.loads(processor.to_json_string()))
    assert recipe == Recipe(size=64, resize="squash")
    image = picture((65, 96))
    equal_to_rounding(normalized(recipe, image), pixels(processor, image))


@pytest.mark.parametrize("patch_size, max_patches", [(16, 256), (16, 64), (14, 100), (32, 1)])
def test_naflex_has_the_same_patches_and_grids(load, patch_size, max_patches):
    recipe = NaflexRecipe(patch_size=patch_size, max_patches=max_patches)
    processor = load(recipe)
    assert type(processor).__name__ == "Siglip2ImageProcessorPil"
    assert from_huggingface(json.loads(processor.to_json_string())) == recipe
    for image in [*map(picture, SHAPES), picture((65, 96), "L")]:
        ours, theirs = recipe(image), processor(image, return_tensors="np")
        used = ours.grid.prod()
        np.testing.assert_array_equal(ours.grid, theirs["spatial_shapes"][0])
        assert theirs["pixel_attention_mask"].sum() == used
        floats = jitted(jax.tree.map(jax.numpy.asarray, ours), recipe)
        equal_to_rounding(floats.pixels[:used], theirs["pixel_values"][0, :used])


def test_grids_of_many_sizes_are_the_same():
    rng = np.random.default_rng(7)
    for height, width in np.exp(rng.uniform(0, np.log(20_000), (1500, 2))).astype(int).tolist():
        patch, limit = int(rng.choice([14, 16, 32])), int(rng.integers(1, 1100))
        theirs = siglip2.get_image_size_for_max_num_patches(height, width, patch, limit)
        ours = fitted_grid(height, width, patch, limit)
        assert tuple(side * patch for side in ours) == theirs, (height, width, patch, limit)


def test_a_published_config_without_processing_steps_is_read_as_transformers_reads_it(tmp_path):
    old = {"feature_extractor_type": "CLIPFeatureExtractor", "size": 64, "crop_size": 64}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(old))
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    recipe, image = from_huggingface(old), picture((333, 500))
    assert recipe == Recipe(size=64)
    equal_to_rounding(normalized(recipe, image), pixels(processor, image))


def test_transparency_is_dropped_as_by_open_clip_where_transformers_lays_it_on_white(load):
    clear = picture((64, 64)).copy()
    clear.putalpha(0)
    recipe = Recipe(size=64)
    np.testing.assert_array_equal(recipe(clear), geometry.as_rgb(picture((64, 64))))
    white = Image.new("RGB", (64, 64), "white")
    equal_to_rounding(normalized(recipe, white), pixels(load(recipe), clear))
