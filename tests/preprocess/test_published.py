import itertools
import json
import re

import pytest

from clip_jax.config import from_data, to_data
from clip_jax.preprocess.naflex import NaflexRecipe
from clip_jax.preprocess.published import (
    from_huggingface,
    from_open_clip,
    to_huggingface,
    to_open_clip,
)
from clip_jax.preprocess.recipe import OPENAI_MEAN, OPENAI_STD, Recipe, RecipeConfig

HALF = (0.5, 0.5, 0.5)
CLIP = {"image_processor_type": "CLIPImageProcessor"}
SIGLIP = {"image_processor_type": "SiglipImageProcessor"}
SIGLIP2 = {"image_processor_type": "Siglip2ImageProcessor"}


def recipes(*ways):
    for resize, interpolation, std in itertools.product(
        ways, ("bicubic", "bilinear"), (OPENAI_STD, (0.1, 1.0, 3e-5))
    ):
        fill = 7 if resize == "longest" else 0
        yield Recipe(size=37, resize=resize, interpolation=interpolation, std=std, fill=fill)


def through_json(data):
    return json.loads(json.dumps(data, allow_nan=False))


@pytest.mark.parametrize("recipe", [*recipes("shortest", "squash", "longest")], ids=str)
def test_what_is_written_for_open_clip_is_read_back(recipe):
    assert from_open_clip(through_json(to_open_clip(recipe)), 37) == recipe


@pytest.mark.parametrize(
    "recipe",
    [*recipes("shortest", "squash"), NaflexRecipe(patch_size=14, max_patches=99, mean=OPENAI_MEAN)],
    ids=str,
)
def test_what_is_written_for_transformers_is_read_back(recipe):
    written = through_json(to_huggingface(recipe))
    assert from_huggingface(written) == recipe
    assert from_huggingface({"image_processor": written, "processor_class": "XProcessor"}) == recipe


def test_what_open_clip_leaves_out_or_sets_to_null_is_openais():
    assert from_open_clip({}, 224) == Recipe()
    assert from_open_clip(dict.fromkeys(("size", "mean", "std", "resize_mode")), 336) == Recipe(
        size=336, mean=OPENAI_MEAN, std=OPENAI_STD
    )


@pytest.mark.parametrize(
    "preprocess_cfg, recipe",
    [
        (
            {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"}
            | {"resize_mode": "squash"},
            Recipe(resize="squash", mean=HALF, std=HALF),
        ),
        ({"mean": 0.5, "std": 1}, Recipe(mean=HALF, std=(1.0, 1.0, 1.0))),
        ({"interpolation": "random", "size": [224, 224], "mode": "RGB"}, Recipe()),
        ({"resize_mode": "longest", "fill_color": 127}, Recipe(resize="longest", fill=127)),
        ({"interpolation": "bilinear", "size": 999}, Recipe(interpolation="bilinear")),
    ],
)
def test_open_clip_configs_of_every_kind(preprocess_cfg, recipe):
    assert from_open_clip(preprocess_cfg, 224) == recipe


def test_all_faults_of_an_open_clip_config_are_listed():
    wrong = {
        "resize_mod": "squash",
        "mode": "L",
        "resize_mode": "stretch",
        "interpolation": "lanczos",
        "fill_color": [0, 0, 0],
        "mean": [0.5, 0.5],
        "std": 0,
    }
    message = (
        "preprocess_cfg has what no recipe can express: "
        "resize_mod 'squash': no such key (nearest: 'resize_mode'); there are size, mode, mean, "
        "std, interpolation, resize_mode, fill_color; "
        "mode 'L': only 'RGB' can be expressed; "
        "resize_mode 'stretch': only 'shortest' or 'squash' or 'longest' can be expressed; "
        "interpolation 'lanczos': only 'bicubic' or 'bilinear' or 'random' can be expressed; "
        "fill_color [0, 0, 0]: not a whole number from 0; "
        "mean [0.5, 0.5]: neither a number nor three; std 0: must be above 0"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        from_open_clip(wrong, 224)


@pytest.mark.parametrize(
    "config, recipe",
    [
        (CLIP, Recipe()),
        ({"feature_extractor_type": "CLIPFeatureExtractor"}, Recipe()),
        ({"image_processor_type": "CLIPImageProcessorFast", "size": 224}, Recipe()),
        # An extractor's type does not outweigh a processor's.
        (SIGLIP | {"feature_extractor_type": "CLIPFeatureExtractor"}, None),
        (CLIP | {"size": 336, "crop_size": 336}, Recipe(size=336)),
        (CLIP | {"size": 336, "crop_size": [336, 336]}, Recipe(size=336)),
        (
            CLIP | {"size": {"shortest_edge": 9}, "crop_size": {"height": 9, "width": 9}},
            Recipe(size=9),
        ),
        (
            CLIP | {"size": {"height": 9, "width": 9}, "do_center_crop": False},
            Recipe(size=9, resize="squash"),
        ),
        (CLIP | {"size": [9, 9], "crop_size": 9}, Recipe(size=9, resize="squash")),
        (
            CLIP | {"size": 9, "default_to_square": True, "do_center_crop": False},
            Recipe(size=9, resize="squash"),
        ),
        (CLIP | {"resample": 2, "do_convert_rgb": None}, Recipe(interpolation="bilinear")),
        (CLIP | {"rescale_factor": 0.00392156862745098, "do_pad": False}, Recipe()),
        (CLIP | {"do_normalize": False}, Recipe(mean=(0.0,) * 3, std=(1.0,) * 3)),
        (CLIP | {"image_mean": 0.5, "image_std": 0.5}, Recipe(mean=HALF, std=HALF)),
        (SIGLIP, None),
        (SIGLIP | {"size": {"height": 224, "width": 224}, "do_convert_rgb": None}, None),
        (
            SIGLIP | {"resample": 2, "size": {"height": 512, "width": 512, "shortest_edge": None}},
            Recipe(size=512, resize="squash", interpolation="bilinear", mean=HALF, std=HALF),
        ),
        (SIGLIP2, NaflexRecipe()),
        (
            SIGLIP2 | {"patch_size": 32, "max_num_patches": 64, "resample": 2, "do_pad": None},
            NaflexRecipe(patch_size=32, max_patches=64),
        ),
    ],
)
def test_huggingface_configs_of_every_age(config, recipe):
    expected = recipe or Recipe(resize="squash", mean=HALF, std=HALF)
    assert from_huggingface(config) == expected
    more = {"processor_class": "CLIPProcessor", "_valid_processor_keys": ["size"], "device": None}
    assert from_huggingface(through_json(config) | more) == expected


def test_all_faults_of_a_huggingface_config_are_listed():
    wrong = {
        "do_resize": False,
        "do_rescale": False,
        "rescale_factor": 1 / 127.5,
        "do_pad": True,
        "resample": 1,
        "size": {"shortest_edge": 256},
        "crop_size": {"height": 224, "width": 200},
        "image_mean": "grey",
        "image_std": [1, 1, -1],
    }
    message = (
        "the CLIP image processor has what no recipe can express: do_pad True: no such step; "
        "do_resize False: only True can be expressed; do_rescale False: only True can be expressed;"
        " rescale_factor 0.00784313725490196: only 1/255 can be expressed; "
        "image_mean 'grey': neither a number nor three; image_std [1, 1, -1]: must be above 0; "
        "resample 1: only 2 or 3 can be expressed; size {'shortest_edge': 256}: "
        "needs a center crop of 256 x 256, not {'height': 224, 'width': 200}"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        from_huggingface(CLIP | wrong)
    message = (
        "the Siglip2 image processor has what no recipe can express: resample 3: only 2 can be "
        "expressed; patch_size 0: not a whole number from 1; "
        "max_num_patches '256': not a whole number from 1"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        from_huggingface(SIGLIP2 | {"resample": 3, "patch_size": 0, "max_num_patches": "256"})


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"size": {"height": 8, "width": 9}, "crop_size": 8}, "only a square can be expressed"),
        ({"size": {"height": 9, "width": 9}, "crop_size": 8}, "cropped to {'height': 8"),
        ({"size": 224, "do_center_crop": False}, "needs a center crop of 224 x 224, not None"),
        ({"size": {"shortest_edge": 224, "longest_edge": 300}}, "needs 'shortest_edge', or"),
        ({"size": {"longest_edge": 224}}, "needs 'shortest_edge', or 'height' and 'width'"),
        ({"size": "224"}, "'224': needs 'shortest_edge', or 'height' and 'width'"),
        ({"size": {"height": 0, "width": 0}, "do_center_crop": False}, "needs 'shortest_edge', or"),
        ({"size": {"shortest_edge": -1}}, "needs 'shortest_edge', or 'height' and 'width'"),
    ],
)
def test_sizes_that_are_no_square_of_the_resized_picture_are_refused(fields, message):
    with pytest.raises(ValueError, match=f"size .*{re.escape(message)}"):
        from_huggingface(CLIP | fields)


@pytest.mark.parametrize(
    "config, name",
    [
        ({}, "None"),
        ({"processor_class": "CLIPProcessor"}, "None"),
        ({"image_processor_type": "ViTImageProcessor"}, "'ViTImageProcessor'"),
        ({"image_processor_type": "ChineseCLIPImageProcessor"}, "'ChineseCLIPImageProcessor'"),
    ],
)
def test_other_processors_are_refused_by_name(config, name):
    message = (
        f"image_processor_type of the preprocessor config is {name}, not CLIPImageProcessor, "
        "SiglipImageProcessor, Siglip2ImageProcessor"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        from_huggingface(config)


def test_what_a_format_cannot_express_is_refused_with_the_one_that_can():
    with pytest.raises(ValueError, match="no preprocessing for NaFlex; use format 'huggingface'"):
        to_open_clip(NaflexRecipe())
    with pytest.raises(ValueError, match=r"cannot resize the longest side.*format 'open_clip'"):
        to_huggingface(Recipe(resize="longest"))


@pytest.mark.parametrize("recipe", [Recipe(resize="longest", fill=3), NaflexRecipe()], ids=str)
def test_a_recipe_of_either_kind_survives_in_a_runs_config(recipe):
    assert from_data(RecipeConfig, through_json(to_data(recipe))) == recipe


def test_recipes_saved_before_they_had_all_fields_are_still_read():
    old = {"type": "Recipe", "size": 8, "resize": "squash", "mean": [0, 0, 0], "std": [1, 1, 1]}
    recipe = Recipe(size=8, resize="squash", mean=(0.0,) * 3, std=(1.0,) * 3)
    assert from_data(RecipeConfig, old) == recipe
