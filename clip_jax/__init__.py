"""Train, evaluate and use CLIP-family models in JAX.

`load(X)` gives a trained model with its tokenizer and preprocessing, from a run, a file, a folder,
a hub repository or a catalogued name; `save` writes it in another library's format. The rooms below
(`models`, `losses`, `data`, `train`, `eval`, ...) are importable on their own.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clip_jax.api import Clip, interpolate, load, save
    from clip_jax.models.presets import preset
    from clip_jax.pretrained.catalog import list_models

__all__ = ["Clip", "interpolate", "list_models", "load", "preset", "save"]

_HOMES = {
    **dict.fromkeys(("Clip", "interpolate", "load", "save"), "clip_jax.api"),
    "list_models": "clip_jax.pretrained.catalog",
    "preset": "clip_jax.models.presets",
}


def __getattr__(name: str) -> Any:
    """Public names are imported when first used, so that `import clip_jax` stays light."""
    import importlib

    if name not in _HOMES:
        raise AttributeError(f"module 'clip_jax' has no attribute {name!r}; it has {__all__}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
