"""Train, evaluate and use CLIP-family models in JAX.

`load(path)` gives a trained model with its tokenizer and preprocessing; the rooms
below (`models`, `losses`, `data`, `train`, `eval`, ...) are importable on their own.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clip_jax.api import Clip, load
    from clip_jax.models.presets import preset

__all__ = ["Clip", "load", "preset"]

_HOMES = {"Clip": "clip_jax.api", "load": "clip_jax.api", "preset": "clip_jax.models.presets"}


def __getattr__(name: str) -> Any:
    """Public names are imported when first used, so that `import clip_jax` stays light."""
    import importlib

    if name not in _HOMES:
        raise AttributeError(f"module 'clip_jax' has no attribute {name!r}; it has {__all__}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
