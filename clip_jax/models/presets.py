"""Published architectures by name, one row each.

The names are OpenCLIP's. Sources: Radford et al. 2021, arXiv:2103.00020 (RN and ViT); Cherti et al.
2022, arXiv:2212.07143 (H, g, bigG); Li et al. 2023, arXiv:2305.07017 (CLIPA); Zhai et al. 2023,
arXiv:2303.15343 (SigLIP); Tschannen et al. 2025, arXiv:2502.14786 (SigLIP 2, NaFlex);
Chuang et al. 2025, arXiv:2507.22062 (MetaCLIP 2, "worldwide").
"""

import dataclasses
import difflib
from typing import Any, Literal, NamedTuple

from clip_jax.models.clip import ClipConfig
from clip_jax.models.resnet import ResNetConfig
from clip_jax.models.text import TextConfig
from clip_jax.models.transformer import Activation, StackConfig
from clip_jax.models.vit import ViTConfig


class _Shape(NamedTuple):
    """What differs between stacks of transformer blocks."""

    width: int
    layers: int
    heads: int
    mlp_width: int | None = None
    layer_scale: float | None = None


_S = _Shape(384, 12, 6)
_M = _Shape(512, 12, 8)
_B = _Shape(768, 12, 12)
_B_PLUS = _Shape(896, 12, 14)
_L = _Shape(1024, 24, 16)
_SO400M = _Shape(1152, 27, 16, 4304)
_H = _Shape(1280, 32, 16)
_G = _Shape(1408, 40, 16, 6144)
_G_OPT = _Shape(1536, 40, 16)
_BIG_G = _Shape(1664, 48, 16, 8192)
_E = _Shape(1792, 56, 16, 15360)

_T256 = _Shape(256, 10, 4)
_T384 = _Shape(384, 12, 6)
_T512 = _Shape(512, 12, 8)
_T640 = _Shape(640, 12, 10)
_T768 = _Shape(768, 12, 12)
_T1024 = _Shape(1024, 24, 16)
_T1024_HALF = _Shape(1024, 12, 16)
_T1280 = _Shape(1280, 32, 20)
_T1280_E = _Shape(1280, 36, 20)

_XLM_V: dict[str, Any] = {"vocab_size": 901_629, "eot_id": 2}
_MT5: dict[str, Any] = {"vocab_size": 250_100, "eot_id": 1}
_C4 = 32_000
_MC4 = 250_000
_GEMMA = 256_000


def _stack(shape: _Shape, activation: Activation = "gelu", norm_eps: float = 1e-5) -> StackConfig:
    return StackConfig(**shape._asdict(), activation=activation, norm_eps=norm_eps)


def _resnet(
    layers: tuple[int, int, int, int], width: int, size: int, text: _Shape, embed: int
) -> ClipConfig:
    """OpenAI's ModifiedResNets; pooling heads have 64 channels."""
    image = ResNetConfig(image_size=size, layers=layers, width=width, heads=width // 2)
    return ClipConfig(image=image, text=TextConfig(stack=_stack(text)), embed_dim=embed)


def _vit(
    image: _Shape, patch: int, text: _Shape, embed: int, size: int = 224, **vocabulary: Any
) -> ClipConfig:
    """OpenAI's design with OpenCLIP's exact GELU; `vocabulary` is what MetaCLIP 2 changed."""
    return ClipConfig(
        image=ViTConfig(image_size=size, patch_size=patch, stack=_stack(image)),
        text=TextConfig(stack=_stack(text), **vocabulary),
        embed_dim=embed,
    )


def _clipa(image: _Shape, text: _Shape, embed: int, size: int = 224) -> ClipConfig:
    """Mean-pooled patches beside an idle class token; 32 tokens of BERT's vocabulary."""
    return ClipConfig(
        image=ViTConfig(
            image_size=size,
            patch_size=14,
            stack=_stack(image),
            pool="mean",
            class_token=True,
            pre_norm=False,
            norm_after_pool=True,
        ),
        text=TextConfig(
            context_length=32, vocab_size=32_000, stack=_stack(text), pool="last", causal=False
        ),
        embed_dim=embed,
    )


def _siglip(
    image: _Shape,
    patch: int,
    size: int = 224,
    vocab: int = _C4,
    *,
    text: _Shape | None = None,
    context: int = 64,
    positions: Literal["learned", "naflex"] = "learned",
    project_text: bool = True,
) -> ClipConfig:
    """Sigmoid models: attention pooling, full attention in the text, a bias on the logits.

    GELU is the tanh approximation, with which big_vision trained all of them and which
    transformers computes. OpenCLIP computes the exact one in both towers of the first SigLIP, and
    in the image towers of those of SigLIP 2 that share an architecture with it; embeddings then
    differ in the fourth digit. Their scale was never capped: it ended above 100.
    """
    stacks = [_stack(shape, "gelu_tanh", 1e-6) for shape in (image, text or image)]
    return ClipConfig(
        image=ViTConfig(
            image_size=size,
            patch_size=patch,
            trim=size % patch > 0,
            stack=stacks[0],
            pool="map",
            positions=positions,
            pre_norm=False,
            patch_bias=True,
            project=False,
        ),
        text=TextConfig(
            context_length=context,
            vocab_size=vocab,
            stack=stacks[1],
            pool="last",
            causal=False,
            head_bias=project_text,
            project=project_text,
        ),
        embed_dim=image.width,
        temperature=0.1,
        max_scale=10_000.0,
        bias=-10.0,
    )


_ROWS: dict[str, ClipConfig] = {
    "RN50": _resnet((3, 4, 6, 3), 64, 224, _T512, 1024),
    "RN101": _resnet((3, 4, 23, 3), 64, 224, _T512, 512),
    "RN50x4": _resnet((4, 6, 10, 6), 80, 288, _T640, 640),
    "RN50x16": _resnet((6, 8, 18, 8), 96, 384, _T768, 768),
    "RN50x64": _resnet((3, 15, 36, 10), 128, 448, _T1024_HALF, 1024),
    "ViT-S-32": _vit(_S, 32, _T384, 384),
    "ViT-S-32-alt": _vit(_S, 32, _T256, 256),
    "ViT-S-16": _vit(_S, 16, _T384, 384),
    "ViT-S-16-alt": _vit(_S, 16, _T256, 256),
    "ViT-M-32": _vit(_M, 32, _T512, 512),
    "ViT-M-32-alt": _vit(_M, 32, _T384, 384),
    "ViT-M-16-alt": _vit(_M._replace(layer_scale=1e-4), 16, _T384, 384),
    "ViT-M-16": _vit(_M, 16, _T512, 512),
    "ViT-B-32": _vit(_B, 32, _T512, 512),
    "ViT-B-32-256": _vit(_B, 32, _T512, 512, 256),
    "ViT-B-32-plus-256": _vit(_B_PLUS, 32, _T640, 640, 256),
    "ViT-B-16": _vit(_B, 16, _T512, 512),
    "ViT-B-16-plus": _vit(_B_PLUS, 16, _T640, 640),
    "ViT-B-16-plus-240": _vit(_B_PLUS, 16, _T640, 640, 240),
    "ViT-L-16": _vit(_L, 16, _T768, 768),
    "ViT-L-16-320": _vit(_L, 16, _T768, 768, 320),
    "ViT-L-14": _vit(_L, 14, _T768, 768),
    "ViT-L-14-280": _vit(_L, 14, _T768, 768, 280),
    "ViT-L-14-336": _vit(_L, 14, _T768, 768, 336),
    "ViT-H-16": _vit(_H, 16, _T1024, 1024),
    "ViT-H-14": _vit(_H, 14, _T1024, 1024),
    "ViT-H-14-378": _vit(_H, 14, _T1024, 1024, 378),
    "ViT-g-14": _vit(_G, 14, _T1024, 1024),
    "ViT-bigG-14": _vit(_BIG_G, 14, _T1280, 1280),
    "ViT-e-14": _vit(_E, 14, _T1280_E, 1280),
    "ViT-L-14-worldwide": _vit(_L, 14, _T768, 768, **_MT5),
    "ViT-H-14-worldwide": _vit(_H, 14, _T1024, 1024, **_XLM_V),
    "ViT-H-14-worldwide-378": _vit(_H, 14, _T1024, 1024, 378, **_XLM_V),
    "ViT-bigG-14-worldwide": _vit(_BIG_G, 14, _T1280, 1280, **_XLM_V),
    "ViT-bigG-14-worldwide-378": _vit(_BIG_G, 14, _T1280, 1280, 378, **_XLM_V),
    "ViT-L-14-CLIPA": _clipa(_L, _T768, 768),
    "ViT-L-14-CLIPA-336": _clipa(_L, _T768, 768, 336),
    "ViT-H-14-CLIPA": _clipa(_H, _T1024, 1024),
    "ViT-H-14-CLIPA-336": _clipa(_H, _T1024, 1024, 336),
    "ViT-bigG-14-CLIPA": _clipa(_BIG_G, _T1280, 1280),
    "ViT-bigG-14-CLIPA-336": _clipa(_BIG_G, _T1280, 1280, 336),
    "ViT-B-16-SigLIP": _siglip(_B, 16),
    "ViT-B-16-SigLIP-256": _siglip(_B, 16, 256),
    "ViT-B-16-SigLIP-i18n-256": _siglip(_B, 16, 256, _MC4),
    "ViT-B-16-SigLIP-384": _siglip(_B, 16, 384),
    "ViT-B-16-SigLIP-512": _siglip(_B, 16, 512),
    "ViT-L-16-SigLIP-256": _siglip(_L, 16, 256),
    "ViT-L-16-SigLIP-384": _siglip(_L, 16, 384),
    "ViT-SO400M-14-SigLIP": _siglip(_SO400M, 14, context=16),
    "ViT-SO400M-14-SigLIP-378": _siglip(_SO400M, 14, 378),
    "ViT-SO400M-14-SigLIP-384": _siglip(_SO400M, 14, 384),
    "ViT-SO400M-16-SigLIP-i18n-256": _siglip(_SO400M, 16, 256, _MC4, project_text=False),
    "ViT-B-32-SigLIP2-256": _siglip(_B, 32, 256, _GEMMA),
    "ViT-B-16-SigLIP2": _siglip(_B, 16, 224, _GEMMA),
    "ViT-B-16-SigLIP2-256": _siglip(_B, 16, 256, _GEMMA),
    "ViT-B-16-SigLIP2-384": _siglip(_B, 16, 384, _GEMMA),
    "ViT-B-16-SigLIP2-512": _siglip(_B, 16, 512, _GEMMA),
    "ViT-L-16-SigLIP2-256": _siglip(_L, 16, 256, _GEMMA),
    "ViT-L-16-SigLIP2-384": _siglip(_L, 16, 384, _GEMMA),
    "ViT-L-16-SigLIP2-512": _siglip(_L, 16, 512, _GEMMA),
    "ViT-SO400M-14-SigLIP2": _siglip(_SO400M, 14, 224, _GEMMA),
    "ViT-SO400M-14-SigLIP2-378": _siglip(_SO400M, 14, 378, _GEMMA),
    "ViT-SO400M-16-SigLIP2-256": _siglip(_SO400M, 16, 256, _GEMMA),
    "ViT-SO400M-16-SigLIP2-384": _siglip(_SO400M, 16, 384, _GEMMA),
    "ViT-SO400M-16-SigLIP2-512": _siglip(_SO400M, 16, 512, _GEMMA),
    "ViT-gopt-16-SigLIP2-256": _siglip(_G_OPT, 16, 256, _GEMMA, text=_SO400M),
    "ViT-gopt-16-SigLIP2-384": _siglip(_G_OPT, 16, 384, _GEMMA, text=_SO400M),
    "ViT-B-16-SigLIP2-NaFlex": _siglip(_B, 16, 256, _GEMMA, positions="naflex"),
    "ViT-SO400M-16-SigLIP2-NaFlex": _siglip(_SO400M, 16, 256, _GEMMA, positions="naflex"),
}

_QUICKGELU = (
    "RN50",
    "RN101",
    "RN50x4",
    "RN50x16",
    "RN50x64",
    "ViT-B-32",
    "ViT-B-16",
    "ViT-L-14",
    "ViT-L-14-336",
    "ViT-H-14",
    "ViT-H-14-378",
    "ViT-bigG-14",
    "ViT-L-14-worldwide",
    "ViT-H-14-worldwide",
)


def _quick_gelu(config: ClipConfig) -> ClipConfig:
    """OpenAI's activation in both towers; a ResNet tower has ReLU either way."""
    image, text = config.image, config.text
    stack = dataclasses.replace(text.stack, activation="quick_gelu")
    text = dataclasses.replace(text, stack=stack)
    if not isinstance(image, ResNetConfig):
        stack = dataclasses.replace(image.stack, activation="quick_gelu")
        image = dataclasses.replace(image, stack=stack)
    return dataclasses.replace(config, image=image, text=text)


PRESETS: dict[str, ClipConfig] = {}
for _name, _config in _ROWS.items():
    PRESETS[_name] = _config
    if _name in _QUICKGELU:
        PRESETS[f"{_name}-quickgelu"] = _quick_gelu(_config)


def preset(name: str) -> ClipConfig:
    """The configuration of a published architecture.

    Raises:
      ValueError: no such name; gives the nearest and all that exist.
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=5, cutoff=0.0)
        raise ValueError(
            f"no preset {name!r}; nearest {', '.join(near)} (`clip-jax models` lists all "
            f"{len(PRESETS)})"
        )
    return PRESETS[name]
