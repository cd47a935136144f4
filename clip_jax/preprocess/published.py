"""Recipes from the files that published models come with, and such files from recipes."""

import difflib
import math
import re
import warnings
from collections.abc import Mapping
from typing import Any

from clip_jax.preprocess.naflex import NaflexRecipe
from clip_jax.preprocess.recipe import OPENAI_MEAN, OPENAI_STD, Recipe, RecipeConfig

_OPEN_CLIP = {
    "size": None,
    "mode": "RGB",
    "mean": OPENAI_MEAN,
    "std": OPENAI_STD,
    "interpolation": "bicubic",
    "resize_mode": "shortest",
    "fill_color": 0,
}
"""What a file that leaves a key out, or has null there, means."""

_STEPS = {"do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True}
_HALF = {"image_mean": (0.5,) * 3, "image_std": (0.5,) * 3}
_HUGGINGFACE = {
    "CLIP": _STEPS
    | {
        "do_center_crop": True,
        "size": {"shortest_edge": 224},
        "crop_size": 224,
        "resample": 3,
        "image_mean": OPENAI_MEAN,
        "image_std": OPENAI_STD,
    },
    "Siglip": _STEPS | _HALF | {"size": {"height": 224, "width": 224}, "resample": 3},
    "Siglip2": _STEPS | _HALF | {"patch_size": 16, "max_num_patches": 256, "resample": 2},
}
"""The same for each kind of image processor."""

_RESAMPLE: dict[int, Any] = {2: "bilinear", 3: "bicubic"}
"""Numbers of Pillow's filters."""

_HARMLESS = {"do_convert_rgb"}
"""A recipe always converts, and to RGB pictures it makes no difference."""


class _Fields:
    """The fields of one file, and all that is wrong with them."""

    def __init__(self, file: str, given: Mapping[str, Any], defaults: Mapping[str, Any]):
        self.file, self.faults = file, []
        self.values = dict(defaults) | {k: v for k, v in given.items() if v is not None}

    def refuse(self, key: str, why: str) -> None:
        self.faults.append(f"{key} {self.values.get(key)!r}: {why}")

    def exactly(self, key: str, *choices: Any) -> Any:
        """The value, which must be one of `choices`."""
        value = self.values.get(key)
        if value not in choices:
            self.refuse(key, f"only {' or '.join(map(repr, choices))} can be expressed")
        return value

    def whole(self, key: str, least: int) -> int:
        value = self.values[key]
        if type(value) is int and value >= least:
            return value
        self.refuse(key, f"not a whole number from {least}")
        return least

    def triple(self, key: str) -> tuple[float, float, float]:
        """Red, green and blue, or one number for all."""
        value = self.values[key]
        value = value if isinstance(value, (list, tuple)) else [value] * 3
        if len(value) == 3 and all(type(v) in (int, float) and math.isfinite(v) for v in value):
            return float(value[0]), float(value[1]), float(value[2])
        self.refuse(key, "neither a number nor three")
        return 1.0, 1.0, 1.0

    def deviations(self, key: str) -> tuple[float, float, float]:
        value = self.triple(key)
        if min(value) <= 0:
            self.refuse(key, "must be above 0")
        return value

    def check(self) -> None:
        if self.faults:
            raise ValueError(
                f"{self.file} has what no recipe can express: {'; '.join(self.faults)}"
            )


def from_open_clip(preprocess_cfg: Mapping[str, Any], image_size: int) -> Recipe:
    """The recipe of a model published for open_clip.

    Args:
      preprocess_cfg: that part of `open_clip_config.json`, or one of open_clip's own entries;
        what is missing or null is as in OpenAI's models.
      image_size: side of the pictures that the image tower takes; as in open_clip it decides,
        and a `size` in the file does not.

    Raises:
      ValueError: lists all unknown keys and all values that a recipe cannot express.
    """
    fields = _Fields("preprocess_cfg", preprocess_cfg, _OPEN_CLIP)
    for key in sorted(fields.values.keys() - _OPEN_CLIP.keys()):
        near = difflib.get_close_matches(key, _OPEN_CLIP, 1, 0.0)
        fields.refuse(key, f"no such key (nearest: {near[0]!r}); there are {', '.join(_OPEN_CLIP)}")
    fields.exactly("mode", "RGB")
    resize = fields.exactly("resize_mode", "shortest", "squash", "longest")
    # "random" is for training: open_clip evaluates such models with bicubic.
    interpolation = fields.exactly("interpolation", "bicubic", "bilinear", "random")
    fill = fields.whole("fill_color", 0)
    mean, std = fields.triple("mean"), fields.deviations("std")
    fields.check()
    return Recipe(
        size=image_size,
        resize=resize,
        mean=mean,
        std=std,
        interpolation="bilinear" if interpolation == "bilinear" else "bicubic",
        fill=fill,
    )


def to_open_clip(recipe: RecipeConfig) -> dict[str, Any]:
    """The `preprocess_cfg` with which open_clip does the same.

    Raises:
      ValueError: for NaFlex, which open_clip does not have.
    """
    if isinstance(recipe, NaflexRecipe):
        raise ValueError("open_clip has no preprocessing for NaFlex; use format 'huggingface'")
    return {
        "size": recipe.size,
        "mode": "RGB",
        "mean": list(recipe.mean),
        "std": list(recipe.std),
        "interpolation": _ported(recipe.interpolation),
        "resize_mode": recipe.resize,
        "fill_color": recipe.fill,
    }


def _ported(interpolation: str) -> str:
    """The filter that the ports of a model use, which antialias always."""
    if interpolation != "bilinear_plain":
        return interpolation
    warnings.warn(
        "PyTorch's libraries have no resize without antialiasing, which big_vision does: bicubic "
        "is written, as in their own ports of SigLIP",
        stacklevel=6,
    )
    return "bicubic"


def from_huggingface(
    preprocessor_config: Mapping[str, Any], model_type: str | None = None
) -> RecipeConfig:
    """The recipe of a model published for transformers.

    Two details are those of OpenAI and open_clip, with which the published CLIP models were made,
    and not transformers': where half a pixel is left of a crop's corner it is rounded to even,
    not down, so the picture may lie one pixel further left or up; and transparency is dropped,
    where transformers 5 lays the picture on white.

    Args:
      preprocessor_config: `preprocessor_config.json` of CLIP, SigLIP or SigLIP 2, however old,
        or `processor_config.json` with its `image_processor`. Missing or null means the
        processor's default. Keys that name no step (`do_...`) and belong to none are ignored.
      model_type: of the model's `config.json`; it tells the processor where the file does not.

    Raises:
      ValueError: lists all values that a recipe cannot express.
    """
    inner = preprocessor_config.get("image_processor") or preprocessor_config
    family = _family(inner, model_type)
    fields = _Fields(f"the {family} image processor", inner, _HUGGINGFACE[family])
    _check_steps(fields)
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if fields.values["do_normalize"]:
        mean, std = fields.triple("image_mean"), fields.deviations("image_std")
    if family == "Siglip2":
        fields.exactly("resample", 2)
        patch, patches = fields.whole("patch_size", 1), fields.whole("max_num_patches", 1)
        fields.check()
        return NaflexRecipe(patch_size=patch, max_patches=patches, mean=mean, std=std)
    interpolation = _RESAMPLE.get(fields.exactly("resample", *_RESAMPLE), "bicubic")
    size, resize = _target(fields)
    fields.check()
    return Recipe(size=size, resize=resize, mean=mean, std=std, interpolation=interpolation)


def _check_steps(fields: _Fields) -> None:
    """Refuse what a recipe neither does nor leaves out."""
    known = {*_HUGGINGFACE["CLIP"], *_HARMLESS}
    for key in sorted(fields.values):
        if key.startswith("do_") and key not in known and fields.values[key]:
            fields.refuse(key, "no such step")
    fields.exactly("do_resize", True)
    fields.exactly("do_rescale", True)
    factor = fields.values["rescale_factor"]
    if type(factor) is not float or not math.isclose(factor, 1 / 255, rel_tol=1e-6):
        fields.refuse("rescale_factor", "only 1/255 can be expressed")


def _family(config: Mapping[str, Any], model_type: str | None) -> str:
    """CLIP, Siglip or Siglip2, by the class that the file names, or else by the model."""
    name = config.get("image_processor_type") or config.get("feature_extractor_type")
    match = re.fullmatch(r"(CLIP|Siglip2?)(ImageProcessor|FeatureExtractor)(Fast|Pil)?", str(name))
    families = {"clip": "CLIP", "metaclip_2": "CLIP", "siglip": "Siglip", "siglip2": "Siglip2"}
    if match is None and model_type in families:
        return families[model_type]
    if match is None:
        known = ", ".join(f"{family}ImageProcessor" for family in _HUGGINGFACE)
        raise ValueError(
            f"image_processor_type of the preprocessor config is {name!r}, not {known}"
        )
    return match[1]


def _target(fields: _Fields) -> tuple[int, Any]:
    """Size and resize of a recipe, from `size` and `crop_size` in all their forms."""
    given = fields.values
    crop = _sides(given.get("crop_size"), square=True) if given.get("do_center_crop") else None
    size = _sides(given["size"], square=bool(given.get("default_to_square")))
    match size:
        case {"shortest_edge": int(edge), **rest} if not rest and edge > 0:
            if crop == {"height": edge, "width": edge}:
                return edge, "shortest"
            fields.refuse("size", f"needs a center crop of {edge} x {edge}, not {crop}")
        case {"height": int(height), "width": int(width), **rest} if not rest and height > 0:
            if height == width and crop in (None, size):
                return height, "squash"
            fields.refuse("size", f"only a square can be expressed, cropped to {crop or size}")
        case _:
            fields.refuse("size", "needs 'shortest_edge', or 'height' and 'width'")
    return 1, "squash"


def _sides(size: Any, *, square: bool) -> Any:
    """One number, or [height, width], as the dict that it stands for."""
    if type(size) is int:
        return {"height": size, "width": size} if square else {"shortest_edge": size}
    if isinstance(size, (list, tuple)) and len(size) == 2:
        return {"height": size[0], "width": size[1]}
    if isinstance(size, Mapping):
        return {key: value for key, value in size.items() if value is not None}
    return size


def to_huggingface(recipe: RecipeConfig) -> dict[str, Any]:
    """The `preprocessor_config.json` with which transformers does the same.

    Raises:
      ValueError: for resize "longest", which no image processor of CLIP or SigLIP does.
    """
    steps = _STEPS | {
        "do_convert_rgb": True,
        "image_mean": list(recipe.mean),
        "image_std": list(recipe.std),
    }
    if isinstance(recipe, NaflexRecipe):
        return steps | {
            "image_processor_type": "Siglip2ImageProcessor",
            "resample": 2,
            "patch_size": recipe.patch_size,
            "max_num_patches": recipe.max_patches,
        }
    if recipe.resize == "longest":
        raise ValueError(
            "transformers' image processors of CLIP and SigLIP cannot resize the longest side and "
            "pad; use format 'open_clip'"
        )
    crops, square = recipe.resize == "shortest", {"height": recipe.size, "width": recipe.size}
    return steps | {
        "image_processor_type": "CLIPImageProcessor" if crops else "SiglipImageProcessor",
        "resample": {name: number for number, name in _RESAMPLE.items()}[
            _ported(recipe.interpolation)
        ],
        "size": {"shortest_edge": recipe.size} if crops else square,
        # Also where nothing is cropped: CLIP's processor would otherwise crop to its default.
        "do_center_crop": crops,
        "crop_size": square,
    }
