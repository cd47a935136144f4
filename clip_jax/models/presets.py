"""Published architectures by name, one row each."""

import difflib

from clip_jax.models.clip import ClipConfig
from clip_jax.models.text import TextConfig
from clip_jax.models.transformer import StackConfig
from clip_jax.models.vit import ViTConfig


def _vit(
    patch: int, image: tuple[int, int, int], text: tuple[int, int, int], embed: int
) -> ClipConfig:
    """OpenAI's design from (width, layers, heads) of each tower; open_clip's exact GELU."""
    towers = [StackConfig(width=w, layers=e, heads=n) for w, e, n in (image, text)]
    return ClipConfig(
        image=ViTConfig(patch_size=patch, stack=towers[0]),
        text=TextConfig(stack=towers[1]),
        embed_dim=embed,
    )


PRESETS: dict[str, ClipConfig] = {
    "ViT-B-32": _vit(32, (768, 12, 12), (512, 12, 8), 512),
    "ViT-B-16": _vit(16, (768, 12, 12), (512, 12, 8), 512),
    "ViT-L-14": _vit(14, (1024, 24, 16), (768, 12, 12), 768),
    "ViT-H-14": _vit(14, (1280, 32, 16), (1024, 24, 16), 1024),
}


def preset(name: str) -> ClipConfig:
    """The configuration of a published architecture.

    Raises:
      ValueError: no such name; gives the nearest and all that exist.
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=1, cutoff=0.0)[0]
        raise ValueError(f"no preset {name!r}; nearest {near!r} of {sorted(PRESETS)}")
    return PRESETS[name]
