"""transformers' CLIPModel, SiglipModel and Siglip2Model: `config.json` beside a state dict."""

import math
from collections.abc import Mapping
from typing import Any

from clip_jax.models.clip import ClipConfig
from clip_jax.models.resnet import ResNetConfig
from clip_jax.models.text import TextConfig
from clip_jax.models.transformer import Activation, StackConfig
from clip_jax.models.vit import ViTConfig
from clip_jax.pretrained import rules as r

IGNORED = ("*.position_ids",)
ACTIVATIONS: dict[str, Activation] = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}
_SHARED = {"num_hidden_layers": 12, "layer_norm_eps": 1e-6, "hidden_act": "gelu_pytorch_tanh"}
_SIGLIP = _SHARED | {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
_SIGLIP_IMAGE = _SIGLIP | {"patch_size": 16, "vision_use_head": True}
_SIGLIP_TEXT = _SIGLIP | {"vocab_size": 32000, "max_position_embeddings": 64}
_CLIP = {"num_hidden_layers": 12, "layer_norm_eps": 1e-5, "hidden_act": "quick_gelu"}
# Fields that equal a class's default may be absent from a file.
DEFAULTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "clip": (
        _CLIP
        | {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
        | {"image_size": 224, "patch_size": 32},
        _CLIP
        | {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8}
        | {"vocab_size": 49408, "max_position_embeddings": 77, "eos_token_id": 49407},
    ),
    "metaclip_2": ({}, {}),
    "siglip": (_SIGLIP_IMAGE | {"image_size": 224}, _SIGLIP_TEXT),
    "siglip2": (_SIGLIP_IMAGE | {"num_patches": 256}, _SIGLIP_TEXT),
}
"""Image and text fields of each `model_type`."""
DEFAULTS["metaclip_2"] = DEFAULTS["clip"]  # The same but for the meaning of eos_token_id 2.


def rules(cfg: ClipConfig) -> list[r.Rule]:
    """The table of a model."""
    image, text = cfg.image, cfg.text
    if isinstance(image, ResNetConfig):
        raise ValueError("transformers has no ModifiedResNet")
    siglip = image.pool == "map"
    tables = [
        r.rule(
            "text_model.embeddings.token_embedding.weight", "v w -> v w", "text/tokens/embedding"
        ),
        r.rule(
            "text_model.embeddings.position_embedding.weight",
            "l w -> l w",
            "text/positions/embedding",
        ),
        *_blocks("text_model", "text", text.stack.heads),
        *r.norm("text_model.final_layer_norm", "text/norm"),
        *_image_rules(image),
    ]
    if siglip:
        scalars = [r.rule(name, "1 ->", name) for name in ("logit_scale", "logit_bias")]
        head = r.linear("text_model.head", "text/head")
        return [*tables, *head, *_map_head(image.stack.heads), *scalars]
    projections = [("visual_projection", "image/head"), ("text_projection", "text/head")]
    heads = [one for theirs, ours in projections for one in r.linear(theirs, ours, bias=False)]
    return [*tables, *heads, r.rule("logit_scale", "->", "logit_scale")]


def _image_rules(cfg: ViTConfig) -> list[r.Rule]:
    name, patch = "vision_model.embeddings", {"p": cfg.patch_size, "q": cfg.patch_size}
    table = [
        r.rule(f"{name}.position_embedding.weight", "l w -> l w", "image/positions/embedding"),
        *_blocks("vision_model", "image", cfg.stack.heads),
        *r.norm("vision_model.post_layernorm", "image/norm"),
    ]
    if cfg.positions == "naflex":
        return [*table, *r.linear(f"{name}.patch_embedding", "image/patch")]
    kernel = f"{name}.patch_embedding.weight"
    table.append(r.rule(kernel, "w c p q -> (p q c) w", "image/patch/kernel", **patch))
    if cfg.patch_bias:
        table.append(r.rule(f"{name}.patch_embedding.bias", "w -> w", "image/patch/bias"))
    if cfg.has_class_token:
        table.append(r.rule(f"{name}.class_embedding", "w -> w", "image/class_embedding"))
    if cfg.pre_norm:  # The misspelling is theirs.
        table.extend(r.norm("vision_model.pre_layrnorm", "image/norm_pre"))
    return table


def _blocks(theirs: str, ours: str, heads: int) -> list[r.Rule]:
    theirs, ours = f"{theirs}.encoder.layers.{r.LAYER}", f"{ours}/stack/blocks"
    names = [f"{theirs}.self_attn.{name}_proj" for name in "qkv"]
    qkv = f"{ours}/attend/qkv"
    kernels, biases = (tuple(f"{name}.{leaf}" for name in names) for leaf in ("weight", "bias"))
    return [
        *r.norm(f"{theirs}.layer_norm1", f"{ours}/norm_attend"),
        r.rule(kernels, "s (n h) w -> w s n h", f"{qkv}/kernel", n=heads),
        r.rule(biases, "s (n h) -> s n h", f"{qkv}/bias", n=heads),
        *r.output(f"{theirs}.self_attn.out_proj", f"{ours}/attend/out", heads),
        *r.norm(f"{theirs}.layer_norm2", f"{ours}/norm_mlp"),
        *r.linear(f"{theirs}.mlp.fc1", f"{ours}/mlp/up"),
        *r.linear(f"{theirs}.mlp.fc2", f"{ours}/mlp/down"),
    ]


def _map_head(heads: int) -> list[r.Rule]:
    theirs, ours = "vision_model.head", "image/pool"
    return [
        r.rule(f"{theirs}.probe", "1 p w -> p w", f"{ours}/probe"),
        *r.fused_pool(f"{theirs}.attention", ours, heads),
        *r.output(f"{theirs}.attention.out_proj", f"{ours}/out", heads),
        *r.norm(f"{theirs}.layernorm", f"{ours}/norm"),
        *r.linear(f"{theirs}.mlp.fc1", f"{ours}/mlp/up"),
        *r.linear(f"{theirs}.mlp.fc2", f"{ours}/mlp/down"),
    ]


def from_config(data: Mapping[str, Any]) -> ClipConfig:
    """The architecture of a `config.json`.

    Raises:
      ValueError: another kind of model, or one that computes what clip_jax has not (all named).
    """
    kind = data.get("model_type")
    if kind not in DEFAULTS:
        raise ValueError(f"config.json is of a {kind!r} model; supported are {', '.join(DEFAULTS)}")
    image, text = (
        _tower(data, name, defaults)
        for name, defaults in zip(("vision_config", "text_config"), DEFAULTS[kind], strict=True)
    )
    faults = [
        f"{tower}.hidden_act {config['hidden_act']!r} (known: {', '.join(ACTIVATIONS)})"
        for tower, config in (("vision_config", image), ("text_config", text))
        if config["hidden_act"] not in ACTIVATIONS
    ]
    if image.get("num_channels", 3) != 3:
        faults.append(f"vision_config.num_channels {image['num_channels']}")
    if image.get("vision_use_head") is False:
        faults.append("vision_config.vision_use_head false")
    siglip = kind.startswith("siglip")
    if not siglip and type(text["eos_token_id"]) is not int:
        faults.append(f"text_config.eos_token_id {text['eos_token_id']!r}")
    if faults:
        raise ValueError(f"config.json with what clip_jax has not: {'; '.join(faults)}")
    embed = text.get("projection_size") or text["hidden_size"]
    scale = data.get("logit_scale_init_value")
    scale = 2.6592 if scale is None else scale
    return ClipConfig(
        image=_image(image, kind),
        text=TextConfig(
            context_length=text["max_position_embeddings"],
            vocab_size=text["vocab_size"],
            stack=_stack(text),
            pool="last" if siglip else "eot",
            eot_id=None if siglip else _eot(text["eos_token_id"], text["vocab_size"], kind),
            causal=not siglip,
            head_bias=siglip,
        ),
        embed_dim=embed if siglip else data.get("projection_dim") or 512,
        temperature=0.1 if siglip else temperature(scale),
        bias=-10.0 if siglip else None,
        max_scale=10_000.0 if siglip else 100.0,
    )


def _tower(data: Mapping[str, Any], name: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """One tower's fields. CLIP's old files hold it twice; transformers lets the `_dict` win."""
    parts = (data.get(name) or {}, data.get(f"{name}_dict") or {})
    given = {key: value for part in parts for key, value in part.items() if value is not None}
    return {**defaults, **given}


def temperature(log_scale: float, max_scale: float = 100.0) -> float:
    """The initial temperature of an initial `logit_scale`, without the noise of its rounding."""
    return float(f"{max(math.exp(-log_scale), 1 / max_scale):.9g}")


def side(size: Any) -> int:
    """One number for height and width, which some files give as a pair.

    Raises:
      ValueError: they differ.
    """
    if isinstance(size, list):
        if len(set(size)) != 1:
            raise ValueError(f"only squares are supported, not {size}")
        return size[0]
    return size


def _eot(eos_id: int, vocab_size: int, kind: str) -> int | None:
    """2 stood in OpenAI's files by mistake: CLIPModel, unlike its heirs, takes the highest id."""
    return None if eos_id == vocab_size - 1 or (eos_id == 2 and kind == "clip") else eos_id


def _image(data: Mapping[str, Any], kind: str) -> ViTConfig:
    patch, siglip = side(data["patch_size"]), kind.startswith("siglip")
    naflex = kind == "siglip2"
    size = math.isqrt(data["num_patches"]) * patch if naflex else side(data["image_size"])
    return ViTConfig(
        image_size=size,
        patch_size=patch,
        trim=size % patch > 0,
        stack=_stack(data),
        pool="map" if siglip else "class",
        positions="naflex" if naflex else "learned",
        pre_norm=not siglip,
        patch_bias=siglip,
        project=not siglip,
    )


def _stack(data: Mapping[str, Any]) -> StackConfig:
    width, hidden = data["hidden_size"], data["intermediate_size"]
    return StackConfig(
        width=width,
        layers=data["num_hidden_layers"],
        heads=data["num_attention_heads"],
        mlp_width=None if hidden == 4 * width else hidden,
        activation=ACTIVATIONS[data["hidden_act"]],
        norm_eps=float(data["layer_norm_eps"]),
    )


def to_config(cfg: ClipConfig) -> dict[str, Any]:
    """The `config.json` of a model.

    Raises:
      ValueError: lists all that none of the three classes can express.
    """
    image, text = cfg.image, cfg.text
    if faults := _faults(cfg):
        raise ValueError(f"transformers has no {'; no '.join(faults)}")
    assert isinstance(image, ViTConfig)
    size = {"image_size": image.image_size}
    if image.positions == "naflex":
        kind, name, size = "siglip2", "Siglip2Model", {"num_patches": image.grid**2}
    elif image.pool == "map":
        kind, name = "siglip", "SiglipModel"
    elif text.eot_id == 2:
        kind, name = "metaclip_2", "MetaClip2Model"
    else:
        kind, name = "clip", "CLIPModel"
    vision = {"model_type": f"{kind}_vision_model", **size, "patch_size": image.patch_size}
    words = {
        "model_type": f"{kind}_text_model",
        "vocab_size": text.vocab_size,
        "max_position_embeddings": text.context_length,
    }
    data: dict[str, Any] = {"architectures": [name], "model_type": kind, "dtype": "float32"}
    if not kind.startswith("siglip"):
        data |= {
            "projection_dim": cfg.embed_dim,
            "logit_scale_init_value": -math.log(cfg.temperature),
        }
        vision["projection_dim"] = words["projection_dim"] = cfg.embed_dim
        last = text.vocab_size - 1
        # In CLIP's own vocabulary the highest id is the end token; elsewhere 2 means "the highest".
        highest = last if text.vocab_size == 49408 else 2
        words["eos_token_id"] = highest if text.eot_id is None else text.eot_id
        words["bos_token_id"] = min(49406, last)
    else:
        words["projection_size"] = cfg.embed_dim
    data["vision_config"] = vision | _from_stack(image.stack)
    data["text_config"] = words | _from_stack(text.stack)
    return data


def _faults(cfg: ClipConfig) -> list[str]:
    image, text = cfg.image, cfg.text
    if isinstance(image, ResNetConfig):
        return ["ModifiedResNet"]
    siglip = image.pool == "map"
    kind = "SiglipModel" if siglip else "CLIPModel"
    has, lacks = ("without", "with") if siglip else ("with", "without")
    wrong = [
        (f"image pool {image.pool!r}", image.pool == "mean"),
        (f"positions {image.positions!r}", image.positions == "sincos"),
        (f"{kind} {lacks} pre_norm", image.pre_norm == siglip),
        (f"{kind} {has} patch_bias", image.patch_bias != siglip),
        (f"{kind} {lacks} image projection", image.project == siglip),
        (f"{kind} with text pool {text.pool!r}", (text.pool == "last") != siglip),
        (f"{kind} {lacks} causal mask", text.causal == siglip),
        ("text tower without projection", not text.project),
        ("layer_scale", (image.stack.layer_scale or text.stack.layer_scale) is not None),
        (f"{kind} {has} text head_bias", text.head_bias != siglip),
        (f"{kind} {has} logit_bias", (cfg.bias is None) == siglip),
    ]
    return [what for what, is_wrong in wrong if is_wrong]


def _from_stack(stack: StackConfig) -> dict[str, Any]:
    activation = {"gelu_tanh": "gelu_pytorch_tanh"}.get(stack.activation, stack.activation)
    return {
        "hidden_size": stack.width,
        "intermediate_size": stack.mlp_width or 4 * stack.width,
        "num_hidden_layers": stack.layers,
        "num_attention_heads": stack.heads,
        "hidden_act": activation,
        "layer_norm_eps": stack.norm_eps,
    }
