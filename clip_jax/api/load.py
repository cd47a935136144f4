"""One way in for every checkpoint: runs, files, folders, hub repositories, catalogued names."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import jax

from clip_jax import tree
from clip_jax.api.clip import Clip
from clip_jax.api.parts import choose_recipe, choose_tokenizer
from clip_jax.api.save import interpolate
from clip_jax.checkpoint.start import checkpoint_folder, is_run, saved_config
from clip_jax.checkpoint.store import load_params
from clip_jax.config import from_data
from clip_jax.models.axes import logical_axes
from clip_jax.models.clip import CLIP, ClipConfig, param_shapes
from clip_jax.preprocess.recipe import RecipeConfig
from clip_jax.pretrained import formats
from clip_jax.pretrained.catalog import Published
from clip_jax.pretrained.start import open_named, read_params
from clip_jax.sharding.place import param_shardings
from clip_jax.sharding.rules import AxisRules
from clip_jax.tokenizers import Tokenizer, TokenizerConfig, storage

Dtype = Literal["float32", "bfloat16"]
EXACT = ("logit_scale", "logit_bias", "mean", "var")
"""Parameters that stay float32: rounding the temperature to 8 bits would change it by 1%."""
Sharding = jax.sharding.Sharding | tuple[jax.sharding.Mesh, AxisRules]


def load(
    path: str | os.PathLike[str],
    *,
    batch: int | None = None,
    dtype: Dtype | None = None,
    sharding: Sharding | None = None,
    image_size: int | None = None,
    context_length: int | None = None,
    model: str | None = None,
    tokenizer: Tokenizer | None = None,
    revision: str | None = None,
) -> Clip:
    """A trained model with the tokenizer and the preprocessing that belong to it.

    Args:
      path: a clip_jax run or checkpoint folder (of a run with `ema`, the average); a file or
        folder of weights in OpenAI's, open_clip's, transformers' or big_vision's format (recognised
        from its content); a Hugging Face repository, `hf-hub:organisation/name`; or a catalogued
        name, `ViT-B-32/openai`.
      batch: images, or texts, per call of the model; None: 16 on CPU, else 64.
      dtype: of parameters and activations; None: parameters float32, activations as the
        accelerator likes them.
      sharding: where parameters are placed: one Sharding for all, or a mesh and its axis rules;
        None: the first device. Host memory holds one parameter at a time.
      image_size, context_length: other sizes than the model's; positions are resampled.
      model: name of an architecture (`clip-jax models`), for files that do not tell it.
      tokenizer: in place of what the files say; needed where weights come without a vocabulary.
      revision: of a hub repository: a branch, tag or commit.

    Raises:
      FileNotFoundError, ValueError, CheckpointError: no such file or name (the nearest are given),
        a damaged or refused file, arrays missing, unexpected or of another shape (all are listed).
    """
    place = _placer(sharding)
    if not isinstance(path, os.PathLike) and path.startswith("~"):
        path = Path(path).expanduser()
    if is_run(path):
        if model is not None or revision is not None:
            raise ValueError(f"{path} is a run, which tells its own model: no model=, no revision=")
        clip = _from_run(path, tokenizer, dtype, place)
        wanted = clip.model.cfg
    else:
        stored, row = open_named(path, model, revision)
        clip = _from_published(stored, row, tokenizer, dtype, place)
        wanted = stored.wanted
    clip = clip if batch is None else dataclasses.replace(clip, batch=batch)
    if image_size is None and wanted.image != clip.model.cfg.image:
        image_size = wanted.image.image_size
    length = wanted.text.context_length if context_length is None else context_length
    return interpolate(clip, image_size=image_size, context_length=length)


Place = Callable[[Any], Any]
"""From a tree of shapes to a tree of shardings."""


def _placer(sharding: Sharding | None) -> Place:
    if isinstance(sharding, tuple):
        mesh, table = sharding
        return lambda shapes: param_shardings(shapes, logical_axes(shapes), table, mesh)
    one = sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return lambda shapes: jax.tree.map(lambda _: one, shapes)


def abstract_params(model: ClipConfig, dtype: Dtype | None, place: Place) -> Any:
    """Shape, type and sharding of every parameter.

    Raises:
      ValueError: another type than those of `Dtype`; a mesh that does not divide the model.
    """
    if dtype not in (None, *get_args(Dtype)):
        raise ValueError(f"dtype must be None or one of {get_args(Dtype)}, got {dtype!r}")
    shapes = param_shapes(model)

    def leaf(path: str, shape: Any, where: Any) -> jax.ShapeDtypeStruct:
        exact = path.rpartition("/")[2] in EXACT
        kind = shape.dtype if exact or dtype is None else dtype
        return jax.ShapeDtypeStruct(shape.shape, kind, sharding=where)

    return tree.map_with_path(leaf, shapes, place(shapes))


def _from_run(
    path: str | os.PathLike[str], tokenizer: Tokenizer | None, dtype: Dtype | None, place: Place
) -> Clip:
    folder = checkpoint_folder(path)
    config = saved_config(folder)
    model = _computing_in(from_data(ClipConfig, config["model"], "model"), dtype)
    own = from_data(TokenizerConfig, config["tokenizer"], "tokenizer")
    own = storage.found_again(own, folder.parent.parent)
    recipe = from_data(RecipeConfig, config["recipe"], "recipe")
    params = load_params(folder, abstract_params(model, dtype, place))
    return Clip(model=CLIP(model), params=params, tokenizer=tokenizer or own, preprocess=recipe)


def _computing_in(model: ClipConfig, dtype: Dtype | None) -> ClipConfig:
    return model if dtype is None else dataclasses.replace(model, dtype=dtype)


def _from_published(
    stored: formats.Stored,
    row: Published | None,
    tokenizer: Tokenizer | None,
    dtype: Dtype | None,
    place: Place,
) -> Clip:
    config = _computing_in(stored.config, dtype)
    return Clip(
        model=CLIP(config),
        params=read_params(stored, abstract_params(config, dtype, place)),
        tokenizer=tokenizer or choose_tokenizer(stored, row),
        preprocess=choose_recipe(stored, row),
    )
