"""What belongs to weights: preprocessing and tokenizer, from wherever they are told."""

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from clip_jax.config import read_json
from clip_jax.models.presets import PRESETS
from clip_jax.models.resnet import ResNetConfig
from clip_jax.preprocess import published
from clip_jax.preprocess.naflex import NaflexRecipe
from clip_jax.preprocess.recipe import Recipe, RecipeConfig
from clip_jax.pretrained import catalog, formats, hub
from clip_jax.pretrained.catalog import Published
from clip_jax.tokenizers import HubTokenizer, Tokenizer, files


def choose_recipe(stored: formats.Stored, row: Published | None) -> RecipeConfig:
    """What the catalogue says of preprocessing; else the files; else what the authors do.

    A config beside weights that the catalogue knows may tell mean and deviation alone.
    """
    size = stored.config.image.image_size
    row = row or _only_row(stored)
    if row is not None:
        recipe = row.recipe
    elif "preprocess_cfg" in stored.metadata:
        recipe = published.from_open_clip(stored.metadata["preprocess_cfg"], size)
    elif (found := _processor(stored)) is not None:
        recipe = published.from_huggingface(found, stored.metadata.get("model_type"))
    else:
        recipe = _usual_recipe(stored)
    return dataclasses.replace(recipe, size=size) if isinstance(recipe, Recipe) else recipe


def _only_row(stored: formats.Stored) -> Published | None:
    """Of weights that come without any config: what all published ones of their preset share."""
    if stored.metadata or stored.format != "open_clip":
        return None
    rows = [r for r in catalog.published().values() if PRESETS[r.preset] == stored.wanted]
    told = {(row.recipe, row.tokenizer) for row in rows}
    return rows[0] if len(told) == 1 else None


def _processor(stored: formats.Stored) -> Any:
    if stored.format not in ("huggingface", "big_vision"):
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
    # big_vision's own resize does not antialias; the ports of its models are bicubic.
    how = "bilinear_plain" if stored.format == "big_vision" else "bicubic"
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
    row = row or _only_row(stored)
    source = row.tokenizer if row is not None else None
    if stored.format == "open_clip" and source and "hf_tokenizer_name" not in words:
        kwargs: dict[str, Any] = {"clean": source.clean}
        if source.strip_separator:
            kwargs["strip_sep_token"] = True
        words |= {"hf_tokenizer_name": source.hub, "tokenizer_kwargs": kwargs}

    def find(folder: Path) -> Tokenizer:
        sizes = {"context_length": text.context_length, "vocab_size": text.vocab_size}
        return files.find(folder, **sizes, open_clip=words)

    try:
        try:
            return find(stored.file.parent)
        except FileNotFoundError:
            named = words.get("hf_tokenizer_name") or ""
            named = _BARE_NAMES.get(named, named)
            if stored.format == "big_vision":
                named = _GOOGLE.get(text.vocab_size)
            if not named or "/" not in named:
                raise
            folder = hub.fetch(named, weights=False)
            if stored.format != "big_vision":
                return find(folder)
            found = files.find(
                folder, context_length=text.context_length, vocab_size=text.vocab_size
            )
            # As in training: only A to Z are made lower case.
            plain = {"lower": False} if isinstance(found, HubTokenizer) else {}
            return dataclasses.replace(cast(Any, found), clean="lower_ascii", **plain)
    except (ValueError, OSError) as fault:
        reason = f"{stored.file} has no tokenizer: {fault}"
        warnings.warn(reason, stacklevel=5)
        return NoTokenizer(
            reason=reason, context_length=text.context_length, vocab_size=text.vocab_size
        )


_BARE_NAMES: Mapping[str, str] = {"bert-base-uncased": "google-bert/bert-base-uncased"}
"""Repositories whose names had no organisation when configs were written."""
_GOOGLE: Mapping[int, str] = {
    32_000: "google/siglip-base-patch16-224",
    250_000: "google/siglip-base-patch16-256-multilingual",
    256_000: "google/siglip2-base-patch16-224",
}
"""Repositories with the vocabularies that big_vision's SigLIP was trained with, by their size."""
