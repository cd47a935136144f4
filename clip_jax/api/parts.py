"""What belongs to weights: preprocessing and tokenizer, from wherever they are told."""

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clip_jax.config import read_json
from clip_jax.models.resnet import ResNetConfig
from clip_jax.preprocess import published
from clip_jax.preprocess.naflex import NaflexRecipe
from clip_jax.preprocess.recipe import Recipe, RecipeConfig
from clip_jax.pretrained import formats, hub
from clip_jax.pretrained.catalog import Published
from clip_jax.tokenizers import Tokenizer, files


def choose_recipe(stored: formats.Stored, row: Published | None) -> RecipeConfig:
    """What the files say of preprocessing; else the catalogue; else what the authors do."""
    size = stored.config.image.image_size
    if "preprocess_cfg" in stored.metadata:
        recipe = published.from_open_clip(stored.metadata["preprocess_cfg"], size)
    elif (found := _processor(stored)) is not None:
        recipe = published.from_huggingface(found)
    elif row is not None:
        recipe = row.recipe
    else:
        recipe = _usual_recipe(stored)
    if isinstance(recipe, Recipe):
        return dataclasses.replace(recipe, size=size)
    return recipe


def _processor(stored: formats.Stored) -> Any:
    if stored.format != "huggingface":
        return None
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (file := stored.file.parent / name).is_file():
            return read_json(file)
    return None


def _usual_recipe(stored: formats.Stored) -> RecipeConfig:
    image = stored.config.image
    if isinstance(image, ResNetConfig) or image.pool != "map":
        return Recipe(size=image.image_size)
    if image.positions == "naflex":
        return NaflexRecipe(patch_size=image.patch_size)
    half = (0.5, 0.5, 0.5)
    # big_vision resizes with TensorFlow's bilinear filter; the ports of its models are bicubic.
    how = "bilinear" if stored.format == "big_vision" else "bicubic"
    return Recipe(size=image.image_size, resize="squash", mean=half, std=half, interpolation=how)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoTokenizer:
    """Stands where a model came without its vocabulary: images can be encoded, texts cannot."""

    reason: str
    context_length: int
    vocab_size: int

    def tokenize(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Raises ValueError with the reason."""
        raise ValueError(self.reason)

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Raises ValueError with the reason."""
        return self.tokenize(texts)[0]


def choose_tokenizer(stored: formats.Stored, row: Published | None) -> Tokenizer:
    """The vocabulary beside the weights, or that of the repository which they name.

    Where there is none, it warns, and returns a `NoTokenizer`: images can be embedded all the same.
    """
    text = stored.config.text
    words = dict(stored.metadata.get("model_cfg", {}).get("text_cfg", {}))
    if row is not None and row.tokenizer is not None and "hf_tokenizer_name" not in words:
        kwargs: dict[str, Any] = {"clean": row.tokenizer.clean}
        if row.tokenizer.strip_separator:
            kwargs["strip_sep_token"] = True
        words |= {"hf_tokenizer_name": row.tokenizer.hub, "tokenizer_kwargs": kwargs}

    def find(folder: Path) -> Tokenizer:
        sizes = {"context_length": text.context_length, "vocab_size": text.vocab_size}
        return files.find(folder, **sizes, open_clip=words)

    try:
        try:
            return find(stored.file.parent)
        except FileNotFoundError:
            if not (named := words.get("hf_tokenizer_name")) or "/" not in named:
                named = _BARE_NAMES.get(str(named))
            if named is None:
                raise
            return find(hub.fetch(named, weights=False))
    except (ValueError, OSError) as fault:
        reason = f"{stored.file} has no tokenizer: {fault}"
        warnings.warn(reason, stacklevel=5)
        return NoTokenizer(
            reason=reason, context_length=text.context_length, vocab_size=text.vocab_size
        )


_BARE_NAMES: Mapping[str, str] = {"bert-base-uncased": "google-bert/bert-base-uncased"}
"""Repositories whose names had no organisation when configs were written."""
