"""Write a model in another library's format: a whole folder, or nothing."""

import contextlib
import dataclasses
import shutil
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np

from clip_jax.config import write_json
from clip_jax.models.clip import ClipConfig
from clip_jax.models.resnet import ResNetConfig
from clip_jax.models.vit import ViTConfig
from clip_jax.preprocess import published
from clip_jax.preprocess.recipe import Recipe, RecipeConfig
from clip_jax.pretrained import arrays, big_vision, formats, huggingface, open_clip, openai
from clip_jax.pretrained import rules as r
from clip_jax.tokenizers import ClipBpe, TokenizerConfig, files

KINDS = get_args(TokenizerConfig)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """What a saved folder is made of."""

    config: ClipConfig
    params: Mapping[str, Any]
    recipe: RecipeConfig
    tokenizer: Any


def save(model: Model, folder: Path, format: formats.Format) -> list[Path]:
    """Write a folder that the format's own library loads; returns its files.

    Raises:
      ValueError: the format cannot express the model (all reasons), or is unknown.
      FileExistsError: the folder exists and is not empty.
    """
    writers: dict[str, Callable[[Model, Path], None]] = {
        "openai": _openai,
        "open_clip": _open_clip,
        "huggingface": _huggingface,
        "big_vision": _big_vision,
    }
    if format not in writers:
        raise ValueError(f"no format {format!r}: there are {', '.join(writers)}")
    with whole_folder(folder) as draft:
        writers[format](model, draft)
    return sorted(folder.iterdir())


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into, which takes its name only when all went well.

    Raises:
      FileExistsError: the folder exists and is not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists and is not empty: choose another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = folder.parent / f".{folder.name}.{uuid.uuid4().hex}"
    draft.mkdir()
    try:
        yield draft
        if folder.exists():
            folder.rmdir()
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _float32(rules: list[r.Rule], params: Any) -> dict[str, np.ndarray]:
    """All arrays; bfloat16 as float32, which every library reads and which loses nothing."""
    return {name: a.astype(np.float32, copy=False) for name, a in r.write(rules, params)}


def _open_clip(model: Model, draft: Path) -> None:
    config = open_clip.to_config(model.config)
    prefix = open_clip.text_prefix(model.config)
    notes: dict[str, Any] = {}
    if isinstance(model.config.image, ViTConfig) and prefix:
        _warn_of_activation(model.config, open_clip.from_config(config))
        notes[formats.OWN_NOTES] = {"image_activation": model.config.image.stack.activation}
    if isinstance(model.tokenizer, KINDS):
        config["text_cfg"] |= files.open_clip_fields(model.tokenizer)
    data = {"model_cfg": config, "preprocess_cfg": published.to_open_clip(_squared(model))} | notes
    weights = _float32(open_clip.rules(model.config, text=prefix), model.params)
    arrays.write_safetensors(draft / formats.OPEN_CLIP_WEIGHTS[0], weights, {"format": "pt"})
    _write_tokenizer(model, draft)
    write_json(draft / formats.OPEN_CLIP_CONFIG, data)


def _warn_of_activation(ours: ClipConfig, theirs: ClipConfig) -> None:
    assert not isinstance(ours.image, ResNetConfig) and not isinstance(theirs.image, ResNetConfig)
    mine, timm = ours.image.stack.activation, theirs.image.stack.activation
    if mine != timm:
        warnings.warn(
            f"open_clip computes this image tower with {timm}, clip_jax with {mine}: image "
            "embeddings differ by about 0.1% there, as those of its own SigLIP models do from "
            "their authors'",
            stacklevel=5,
        )


def _huggingface(model: Model, draft: Path) -> None:
    config = huggingface.to_config(model.config)
    processor = published.to_huggingface(model.recipe)
    weights = _float32(huggingface.rules(model.config), model.params)
    arrays.write_safetensors(draft / formats.HUGGINGFACE_WEIGHTS[0], weights, {"format": "pt"})
    _write_tokenizer(model, draft)
    write_json(draft / "preprocessor_config.json", processor)
    write_json(draft / "config.json", config)


def _openai(model: Model, draft: Path) -> None:
    openai.require_expressible(model.config)
    default = Recipe(size=model.config.image.image_size)
    usual = ClipBpe(context_length=model.config.text.context_length)
    own = model.tokenizer
    if isinstance(own, ClipBpe):  # How a text may spell the special tokens is no part of a model.
        own = dataclasses.replace(own, spelling="openai")
    if model.recipe != default or (isinstance(own, KINDS) and own != usual):
        raise ValueError(
            "OpenAI's format has no place for a tokenizer or preprocessing of its own; this model "
            f"has {model.recipe} and {model.tokenizer}"
        )
    weights = _float32(openai.rules(model.config), model.params)
    sizes = {
        "input_resolution": model.config.image.image_size,
        "context_length": model.config.text.context_length,
        "vocab_size": model.config.text.vocab_size,
    }
    numbers = {name: np.array(size, np.int64) for name, size in sizes.items()}
    arrays.write_torch(draft / "model.pt", {**weights, **numbers})


def _big_vision(model: Model, draft: Path) -> None:
    big_vision.require_expressible(model.config)
    weights = _float32(big_vision.rules(model.config), model.params)
    named = {big_vision.PREFIX + name: array for name, array in weights.items()}
    arrays.write_npz(draft / "model.npz", named)
    if getattr(model.recipe, "interpolation", None) != "bilinear_plain":
        # Its own pictures are resized so; this file tells clip_jax of other ways.
        write_json(draft / "preprocessor_config.json", published.to_huggingface(model.recipe))
    _write_tokenizer(model, draft)


def _write_tokenizer(model: Model, draft: Path) -> None:
    if isinstance(model.tokenizer, KINDS):
        files.write(model.tokenizer, draft)
    else:
        why = getattr(model.tokenizer, "reason", f"{model.tokenizer!r} is no TokenizerConfig")
        warnings.warn(f"no tokenizer is written: {why}", stacklevel=5)


def _squared(model: Model) -> Recipe:
    if not isinstance(model.recipe, Recipe):
        raise ValueError("open_clip has no NaFlex preprocessing")
    return model.recipe
