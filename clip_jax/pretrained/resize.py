"""Other image sizes and context lengths for trained position tables."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from clip_jax.models import posemb
from clip_jax.models.clip import ClipConfig
from clip_jax.models.resnet import ResNetConfig


def resized(
    cfg: ClipConfig, *, image_size: int | None = None, context_length: int | None = None
) -> ClipConfig:
    """The same model for other sizes; None leaves a size as it is.

    Raises:
      ValueError: patches do not divide the image size; a NaFlex model takes any already.
    """
    image, text = cfg.image, cfg.text
    if image_size is not None and image_size != image.image_size:
        if not isinstance(image, ResNetConfig):
            if image.positions == "naflex":
                raise ValueError("a NaFlex model takes images of any size already")
            image = dataclasses.replace(image, trim=False)
        image = dataclasses.replace(image, image_size=image_size)
    for name, size in (("image_size", image_size), ("context_length", context_length)):
        if size is not None and size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
    if context_length is not None:
        text = dataclasses.replace(text, context_length=context_length)
    return dataclasses.replace(cfg, image=image, text=text)


def resize_positions(params: Mapping[str, Any], old: ClipConfig, new: ClipConfig) -> dict[str, Any]:
    """Parameters of `old` whose position tables fit `new`.

    The grid is resampled as open_clip does it (bicubic with antialiasing; class token kept),
    and the text's positions linearly.
    """
    image, text = params["image"], params["text"]
    if old.image.grid != new.image.grid:
        where = "attend_pool" if isinstance(old.image, ResNetConfig) else None
        holder = image[where] if where else image
        prefix = 1 if isinstance(old.image, ResNetConfig) or old.image.has_class_token else 0
        if "positions" in holder:  # Fixed sines have no table.
            table = posemb.resample(
                holder["positions"]["embedding"],
                (old.image.grid, old.image.grid),
                (new.image.grid, new.image.grid),
                prefix=prefix,
                method="bicubic",
            )
            holder = {**holder, "positions": {"embedding": table}}
        image = {**image, where: holder} if where else holder
    if old.text.context_length != new.text.context_length:
        table = posemb.resample_length(text["positions"]["embedding"], new.text.context_length)
        text = {**text, "positions": {"embedding": table}}
    return {**params, "image": image, "text": text}
