"""What can be done with a loaded model: other sizes, and other libraries' formats."""

import dataclasses
import os
from pathlib import Path
from typing import Any, cast

from clip_jax.api.clip import Clip
from clip_jax.models.clip import CLIP
from clip_jax.preprocess.recipe import Recipe
from clip_jax.pretrained import formats
from clip_jax.pretrained import save as pretrained
from clip_jax.pretrained.resize import resize_positions, resized


def interpolate(
    clip: Clip, *, image_size: int | None = None, context_length: int | None = None
) -> Clip:
    """The same model for another image size or context length: position tables are resampled.

    Args:
      image_size: side of the square that the new model sees, in pixels; None: as it is.
      context_length: tokens a text; None: as it is.

    Raises:
      ValueError: patches do not divide the image size; a NaFlex model takes any size already.
    """
    old = clip.model.cfg
    new = resized(old, image_size=image_size, context_length=context_length)
    recipe, tokenizer = clip.preprocess, clip.tokenizer
    if new == old and tokenizer.context_length == new.text.context_length:
        return clip
    if isinstance(recipe, Recipe):
        recipe = dataclasses.replace(recipe, size=new.image.image_size)
    length = new.text.context_length
    if tokenizer.context_length != length:
        if not dataclasses.is_dataclass(tokenizer):
            raise ValueError(
                f"the tokenizer makes {tokenizer.context_length} tokens a text, the model takes "
                f"{length}"
            )
        tokenizer = dataclasses.replace(cast(Any, tokenizer), context_length=length)
    return dataclasses.replace(
        clip,
        model=CLIP(new),
        params=resize_positions(clip.params, old, new),
        tokenizer=tokenizer,
        preprocess=recipe,
    )


def save(clip: Clip, folder: str | os.PathLike[str], *, format: formats.Format) -> list[Path]:
    """Write a model so that another library loads it; returns the files written.

    Args:
      folder: must not exist, or be empty; it appears whole or not at all.
      format: "open_clip", "huggingface" (transformers), "openai" or "big_vision".

    Raises:
      ValueError: the format cannot express the model; lists all reasons.
      FileExistsError: the folder is not empty.
    """
    model = pretrained.Model(
        config=clip.model.cfg, params=clip.params, recipe=clip.preprocess, tokenizer=clip.tokenizer
    )
    return pretrained.save(model, Path(folder).expanduser(), format)
