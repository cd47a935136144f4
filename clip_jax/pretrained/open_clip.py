"""open_clip: `open_clip_config.json` beside a state dict, and its two ways to name towers.

Its own towers carry OpenAI's names. SigLIP's image tower is timm's, below `visual.trunk`, and the
text tower then lies below `text`.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from clip_jax.models.clip import ClipConfig
from clip_jax.models.resnet import ResNetConfig
from clip_jax.models.text import TextConfig
from clip_jax.models.transformer import Activation, StackConfig
from clip_jax.models.vit import ViTConfig
from clip_jax.pretrained import openai, timm
from clip_jax.pretrained import rules as r
from clip_jax.pretrained.arrays import StoredArray
from clip_jax.pretrained.huggingface import side, temperature

IGNORED = (*openai.IGNORED, "text.transformer.embeddings.position_ids")

_DEFAULT_IMAGE = {
    "layers": 12,
    "width": 768,
    "head_width": 64,
    "mlp_ratio": 4.0,
    "ls_init_value": None,
    "patch_size": 16,
    "image_size": 224,
    "no_ln_pre": False,
    "final_ln_after_pool": False,
    "pool_type": "tok",
}
_DEFAULT_TEXT = {
    "context_length": 77,
    "vocab_size": 49408,
    "width": 512,
    "heads": 8,
    "layers": 12,
    "mlp_ratio": 4.0,
    "ls_init_value": None,
    "no_causal_mask": False,
    "pool_type": "argmax",
    "eos_id": 2,
    "proj_bias": False,
    "proj_type": "linear",
}
_HARMLESS = {  # What changes training only, or is read elsewhere.
    *("patch_dropout", "output_tokens", "hf_tokenizer_name", "tokenizer_kwargs", "tokenizer_mode"),
    *("timm_model_name", "timm_model_pretrained", "timm_drop", "timm_drop_path", "timm_proj_bias"),
    *("timm_pool", "timm_proj", "act_kwargs", "norm_kwargs", "pad_id"),
    *("attn_pooler_queries", "attn_pooler_heads"),
}
_OFF = (None, False, "default", "learnable")
"""Values that switch a field off that is not supported."""


def rules(cfg: ClipConfig, *, text: str = "") -> list[r.Rule]:
    """The table of a model; `text` stands before the text tower's names."""
    if isinstance(cfg.image, ResNetConfig) or cfg.image.pool != "map":
        return openai.rules(cfg, text=text)
    image = timm.rules(cfg.image)
    return [*image, *openai.text_rules(cfg.text, text), *openai.scalar_rules(cfg)]


def text_prefix(cfg: ClipConfig) -> str:
    """What open_clip itself writes before the text tower's names of such a model."""
    return "text." if isinstance(cfg.image, ViTConfig) and cfg.image.pool == "map" else ""


def from_config(data: Mapping[str, Any]) -> ClipConfig:
    """The architecture of a `model_cfg`, computed as open_clip computes it.

    Raises:
      ValueError: lists all fields that describe something not supported here.
    """
    image, text = (
        {key: value for key, value in data[name].items() if value is not None}
        for name in ("vision_cfg", "text_cfg")
    )
    faults = [f"model_cfg.{name}" for name in data if name.startswith("multimodal")]
    faults += _unsupported(image, {*_DEFAULT_IMAGE, *_HARMLESS}, "vision_cfg")
    faults += _unsupported(text, {*_DEFAULT_TEXT, *_HARMLESS}, "text_cfg")
    tower = image.get("timm_model_name")
    if tower and tower not in timm.models():
        faults.append(f"vision_cfg.timm_model_name {tower!r} (known: {', '.join(timm.models())})")
    if image.get("pool_type", "tok") not in ("tok", "avg"):
        faults.append(f"vision_cfg.pool_type {image['pool_type']!r}")
    if text.get("pool_type", "argmax") not in ("argmax", "last", "eos"):
        faults.append(f"text_cfg.pool_type {text['pool_type']!r}")
    if faults:
        raise ValueError(f"open_clip config with what clip_jax has not: {'; '.join(faults)}")
    quick = bool(data.get("quick_gelu", False))
    bias = data.get("init_logit_bias")
    scale, max_scale = data.get("init_logit_scale"), 100.0 if bias is None else 10_000.0
    return ClipConfig(
        image=timm.models()[tower] if tower else _image(_DEFAULT_IMAGE | image, quick),
        text=_text(_DEFAULT_TEXT | text, quick),
        embed_dim=data["embed_dim"],
        temperature=0.07 if scale is None else temperature(scale, max_scale),
        bias=None if bias is None else float(bias),
        max_scale=max_scale,
    )


def _unsupported(data: Mapping[str, Any], known: set[str], where: str) -> list[str]:
    return [
        f"{where}.{name} {value!r}"
        for name, value in data.items()
        if name not in known and not any(value is off or value == off for off in _OFF)
    ]


def _activation(data: Mapping[str, Any], quick: bool) -> Activation:
    if quick:
        return "quick_gelu"
    tanh = (data.get("act_kwargs") or {}).get("approximate") == "tanh"
    return "gelu_tanh" if tanh else "gelu"


def _stack(data: Mapping[str, Any], heads: int, quick: bool) -> StackConfig:
    width = data["width"]
    hidden = int(width * data["mlp_ratio"])
    return StackConfig(
        width=width,
        layers=data["layers"],
        heads=heads,
        mlp_width=None if hidden == 4 * width else hidden,
        activation=_activation(data, quick),
        norm_eps=float((data.get("norm_kwargs") or {}).get("eps", 1e-5)),
        layer_scale=data["ls_init_value"],
    )


def _image(data: Mapping[str, Any], quick: bool) -> ViTConfig | ResNetConfig:
    width, size = data["width"], side(data["image_size"])
    if isinstance(data["layers"], list):
        return ResNetConfig(
            image_size=size,
            layers=tuple(data["layers"]),
            width=width,
            heads=width * 32 // data["head_width"],
        )
    return ViTConfig(
        image_size=size,
        patch_size=side(data["patch_size"]),
        trim=size % side(data["patch_size"]) > 0,
        stack=_stack(data, width // data["head_width"], quick),
        pool="mean" if data["pool_type"] == "avg" else "class",
        class_token=True if data["pool_type"] == "avg" else None,
        norm_after_pool=data["pool_type"] == "avg" and data["final_ln_after_pool"],
        pre_norm=not data["no_ln_pre"],
    )


def _text(data: Mapping[str, Any], quick: bool) -> TextConfig:
    pool = "last" if data["pool_type"] == "last" else "eot"
    return TextConfig(
        context_length=data["context_length"],
        vocab_size=data["vocab_size"],
        stack=_stack(data, data["heads"], quick),
        pool=pool,
        eot_id=data["eos_id"] if data["pool_type"] == "eos" else None,
        causal=not data["no_causal_mask"],
        head_bias=data["proj_bias"] and data["proj_type"] != "none",
        project=data["proj_type"] != "none",
    )


def to_config(cfg: ClipConfig) -> dict[str, Any]:
    """The `model_cfg` of a model.

    Raises:
      ValueError: lists all that open_clip cannot express.
    """
    image, text = cfg.image, cfg.text
    faults: list[str] = []
    data: dict[str, Any] = {"embed_dim": cfg.embed_dim}
    data["init_logit_scale"] = -math.log(cfg.temperature)
    quick = text.stack.activation == "quick_gelu"
    if isinstance(image, ViTConfig) and image.pool == "map":
        vision = {
            "image_size": image.image_size,
            "timm_model_name": _timm_name(image, faults),
            "timm_model_pretrained": False,
            "timm_pool": "map",
            "timm_proj": "none",
        }
        data["custom_text"] = True
    elif isinstance(image, ViTConfig):
        vision = _from_vit(image, quick, faults)
    else:
        vision = {
            "image_size": image.image_size,
            "layers": list(image.layers),
            "width": image.width,
            "head_width": image.width * 32 // image.heads,
            "patch_size": None,
        }
    if cfg.bias is not None:
        data["init_logit_bias"] = cfg.bias
    if quick:
        data["quick_gelu"] = True
    data |= {"vision_cfg": vision, "text_cfg": _from_text(text)}
    if faults:
        raise ValueError(f"open_clip has no {'; no '.join(faults)}")
    return data


def _timm_name(image: ViTConfig, faults: list[str]) -> str:
    if (found := timm.name(image)) is None:
        faults.append(
            f"timm model for an image tower with attention pooling of width {image.stack.width}, "
            f"{image.stack.layers} layers, patches of {image.patch_size} and {image.image_size} "
            "pixels"
        )
    return found or ""


def _from_vit(image: ViTConfig, quick: bool, faults: list[str]) -> dict[str, Any]:
    if not image.has_class_token:
        faults.append("image tower without class token, other than SigLIP's")
    if image.positions != "learned":
        faults.append(f"positions {image.positions!r}")
    if image.patch_bias:
        faults.append("bias of patches")
    if not image.project:
        faults.append("class-token tower without projection")
    if quick != (image.stack.activation == "quick_gelu"):
        faults.append("QuickGELU in one tower only")
    pooled = {"pool_type": "avg", "final_ln_after_pool": image.norm_after_pool}
    return {
        "image_size": image.image_size,
        "patch_size": image.patch_size,
        "head_width": image.stack.width // image.stack.heads,
        **({"no_ln_pre": True} if not image.pre_norm else {}),
        **(pooled if image.pool == "mean" else {}),
        **_from_stack(image.stack),
    }


def _from_text(text: TextConfig) -> dict[str, Any]:
    pooled: dict[str, Any] = {"pool_type": "last"} if text.pool == "last" else {}
    if text.eot_id is not None:
        pooled = {"pool_type": "eos", "eos_id": text.eot_id}
    return {
        "context_length": text.context_length,
        "vocab_size": text.vocab_size,
        "heads": text.stack.heads,
        **pooled,
        **({} if text.causal else {"no_causal_mask": True}),
        **({"proj_bias": True} if text.head_bias else {}),
        **({} if text.project else {"proj_type": "none"}),
        **_from_stack(text.stack),
    }


def _from_stack(stack: StackConfig) -> dict[str, Any]:
    data: dict[str, Any] = {"width": stack.width, "layers": stack.layers}
    if stack.mlp_width is not None:
        ratio = stack.mlp_width / stack.width
        if int(stack.width * ratio) != stack.mlp_width:  # open_clip rounds down.
            ratio = math.nextafter(ratio, math.inf)
        data["mlp_ratio"] = ratio
    if stack.activation == "gelu_tanh":
        data["act_kwargs"] = {"approximate": "tanh"}
    if stack.norm_eps != 1e-5:
        data["norm_kwargs"] = {"eps": stack.norm_eps}
    if stack.layer_scale is not None:
        data["ls_init_value"] = stack.layer_scale
    return data


def infer(stored: Mapping[str, StoredArray]) -> ClipConfig:
    """The architecture that these shapes tell, with open_clip's defaults for what they do not.

    Raises:
      WeightsError: arrays that every such model has are missing; no known image tower.
    """
    text = "text." if "text.token_embedding.weight" in stored else ""
    patch = stored.get("visual.trunk.patch_embed.proj.weight")
    if patch is None:
        cfg = openai.infer(stored, text=text)
        return _with_activation(cfg, "gelu")
    words = openai.infer_text(stored, text=text)
    cells = stored["visual.trunk.pos_embed"].shape[1]
    shape = (patch.shape[0], patch.shape[2], cells)
    towers = timm.models().items()
    fits = {n: t for n, t in towers if (t.stack.width, t.patch_size, t.grid**2) == shape}
    if not fits:
        raise r.WeightsError(
            f"an image tower of timm with width, patch size and patches {shape}; known are "
            f"{', '.join(timm.models())}"
        )
    image = next(iter(fits.values()))
    # SigLIP 2, which has the vocabulary of Gemma, is computed with the approximate GELU.
    activation: Activation = "gelu_tanh" if words.vocab_size == 256000 else "gelu"
    heads = max(1, words.stack.width // (72 if words.stack.width == 1152 else 64))
    stack = dataclasses.replace(words.stack, heads=heads, activation=activation, norm_eps=1e-6)
    return ClipConfig(
        image=image,
        text=dataclasses.replace(words, stack=stack, pool="last", causal=False),
        embed_dim=image.stack.width,
        temperature=0.1,
        bias=-10.0,
        max_scale=10_000.0,
    )


def _with_activation(cfg: ClipConfig, activation: Activation) -> ClipConfig:
    def changed(tower: Any) -> Any:
        if isinstance(tower, ResNetConfig):
            return tower
        stack = dataclasses.replace(tower.stack, activation=activation)
        return dataclasses.replace(tower, stack=stack)

    return dataclasses.replace(cfg, image=changed(cfg.image), text=changed(cfg.text))
