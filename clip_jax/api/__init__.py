"""A model ready for use: loaded from anywhere, resized, written back."""

from clip_jax.api.clip import Clip
from clip_jax.api.load import load
from clip_jax.api.save import interpolate, save

__all__ = ["Clip", "interpolate", "load", "save"]
