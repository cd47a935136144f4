"""OpenAI's names, which open_clip's own towers share."""

from collections.abc import Mapping

from clip_jax.models.clip import ClipConfig
from clip_jax.models.resnet import ResNetConfig
from clip_jax.models.text import TextConfig
from clip_jax.models.transformer import StackConfig
from clip_jax.models.vit import ViTConfig
from clip_jax.pretrained import rules as r
from clip_jax.pretrained.arrays import StoredArray

IGNORED = ("input_resolution", "context_length", "vocab_size", "*.num_batches_tracked", "attn_mask")
"""Arrays that hold no weights."""


def rules(cfg: ClipConfig, *, text: str = "") -> list[r.Rule]:
    """The table of a model; `text` stands before the text tower's names (open_clip: `text.`)."""
    words = [*text_rules(cfg.text, text), *scalar_rules(cfg)]
    if isinstance(cfg.image, ResNetConfig):
        return [*resnet_rules(cfg.image), *words]
    return [*vit_rules(cfg.image), *words]


def scalar_rules(cfg: ClipConfig) -> list[r.Rule]:
    """Temperature, and bias if there is one."""
    scalars = ["logit_scale"] if cfg.bias is None else ["logit_scale", "logit_bias"]
    return [r.rule(name, "->", name) for name in scalars]


def stack_rules(theirs: str, ours: str, cfg: StackConfig) -> list[r.Rule]:
    """All blocks of one tower."""
    theirs, ours, heads = f"{theirs}.{r.LAYER}", f"{ours}/stack/blocks", cfg.heads
    fused = {"s": 3, "n": heads}
    pairs = (("ls_1", "scale_attend"), ("ls_2", "scale_mlp")) if cfg.layer_scale else ()
    scales = [r.rule(f"{theirs}.{a}.gamma", "w -> w", f"{ours}/{b}") for a, b in pairs]
    return [
        *r.norm(f"{theirs}.ln_1", f"{ours}/norm_attend"),
        r.rule(
            f"{theirs}.attn.in_proj_weight",
            "(s n h) w -> w s n h",
            f"{ours}/attend/qkv/kernel",
            **fused,
        ),
        r.rule(
            f"{theirs}.attn.in_proj_bias", "(s n h) -> s n h", f"{ours}/attend/qkv/bias", **fused
        ),
        *r.output(f"{theirs}.attn.out_proj", f"{ours}/attend/out", heads),
        *r.norm(f"{theirs}.ln_2", f"{ours}/norm_mlp"),
        *r.linear(f"{theirs}.mlp.c_fc", f"{ours}/mlp/up"),
        *r.linear(f"{theirs}.mlp.c_proj", f"{ours}/mlp/down"),
        *scales,
    ]


def vit_rules(cfg: ViTConfig) -> list[r.Rule]:
    """A vision transformer with a class token."""
    patch = {"p": cfg.patch_size, "q": cfg.patch_size}
    table = [
        r.rule("visual.conv1.weight", "w c p q -> (p q c) w", "image/patch/kernel", **patch),
        r.rule("visual.class_embedding", "w -> w", "image/class_embedding"),
        r.rule("visual.positional_embedding", "l w -> l w", "image/positions/embedding"),
        *stack_rules("visual.transformer.resblocks", "image", cfg.stack),
        *r.norm("visual.ln_post", "image/norm"),
        r.rule("visual.proj", "w d -> w d", "image/head/kernel"),
    ]
    return [*table, *r.norm("visual.ln_pre", "image/norm_pre")] if cfg.pre_norm else table


def text_rules(cfg: TextConfig, prefix: str) -> list[r.Rule]:
    """The text tower; a projection with a bias is a Linear of PyTorch, without one a matrix."""
    table = [
        r.rule(f"{prefix}token_embedding.weight", "v w -> v w", "text/tokens/embedding"),
        r.rule(f"{prefix}positional_embedding", "l w -> l w", "text/positions/embedding"),
        *stack_rules(f"{prefix}transformer.resblocks", "text", cfg.stack),
        *r.norm(f"{prefix}ln_final", "text/norm"),
    ]
    if not cfg.project:
        return table
    if cfg.head_bias:
        return [*table, *r.linear(f"{prefix}text_projection", "text/head")]
    return [*table, r.rule(f"{prefix}text_projection", "w d -> w d", "text/head/kernel")]


def resnet_rules(cfg: ResNetConfig) -> list[r.Rule]:
    """A ModifiedResNet with attention pooling; running statistics included."""
    table: list[r.Rule] = []
    for k in (1, 2, 3):
        table += _conv_norm(f"conv{k}", f"bn{k}", f"stem/conv{k}", f"stem/norm{k}")
    for stage, blocks in enumerate(cfg.layers, 1):
        for block in range(blocks):
            theirs, ours = f"layer{stage}.{block}.", f"stage{stage}/block{block}/"
            for k in (1, 2, 3):
                conv, norm = f"{theirs}conv{k}", f"{theirs}bn{k}"
                table += _conv_norm(conv, norm, f"{ours}conv{k}", f"{ours}norm{k}")
            if block == 0:
                short, into = f"{theirs}downsample", f"{ours}shortcut"
                table += _conv_norm(f"{short}.0", f"{short}.1", f"{into}/conv", f"{into}/norm")
    pool, ours = "visual.attnpool", "image/attend_pool"
    positions = f"{ours}/positions/embedding"
    table.append(r.rule(f"{pool}.positional_embedding", "l w -> l w", positions))
    for theirs, part in (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value")):
        table += r.projection(f"{pool}.{theirs}", f"{ours}/{part}", cfg.heads)
    return [*table, *r.output(f"{pool}.c_proj", f"{ours}/out", cfg.heads)]


def _conv_norm(conv: str, norm: str, our_conv: str, our_norm: str) -> list[r.Rule]:
    """A convolution and the batch norm after it."""
    norm, our_norm = f"visual.{norm}", f"image/{our_norm}"
    kernel = f"image/{our_conv}/kernel"
    return [
        r.rule(f"visual.{conv}.weight", "o i h w -> h w i o", kernel),
        *r.norm(norm, our_norm),
        r.rule(f"{norm}.running_mean", "w -> w", f"{our_norm}/mean"),
        r.rule(f"{norm}.running_var", "w -> w", f"{our_norm}/var"),
    ]


def infer(stored: Mapping[str, StoredArray], *, text: str = "") -> ClipConfig:
    """The architecture that these shapes tell, with OpenAI's rules for what they do not.

    Shapes do not tell the number of heads (width / 64 here), the activation (QuickGELU here), the
    pooling, nor the epsilon of norms.

    Raises:
      WeightsError: arrays that OpenAI's layout always has are missing; lists them.
    """
    _require(stored, ["visual.conv1.weight", f"{text}ln_final.weight"])
    words = infer_text(stored, text=text)
    image = _resnet(stored) if "visual.layer1.0.conv1.weight" in stored else _vit(stored)
    embed = stored.get(text + "text_projection", stored[text + "ln_final.weight"]).shape[-1]
    if text + "text_projection.weight" in stored:
        embed = stored[text + "text_projection.weight"].shape[0]
    bias = -10.0 if "logit_bias" in stored else None
    return ClipConfig(image=image, text=words, embed_dim=embed, bias=bias)


def infer_text(stored: Mapping[str, StoredArray], *, text: str = "") -> TextConfig:
    """The text tower that these shapes tell; as `infer`."""
    _require(stored, [f"{text}token_embedding.weight", f"{text}positional_embedding"])
    vocab, width = stored[f"{text}token_embedding.weight"].shape
    return TextConfig(
        context_length=stored[f"{text}positional_embedding"].shape[0],
        vocab_size=vocab,
        stack=_stack(stored, f"{text}transformer.resblocks.{r.LAYER}", width),
        head_bias=f"{text}text_projection.bias" in stored,
        project=any(name.startswith(f"{text}text_projection") for name in stored),
    )


def _require(stored: Mapping[str, StoredArray], names: list[str]) -> None:
    if missing := [name for name in names if name not in stored]:
        raise r.WeightsError(f"not OpenAI's layout: {', '.join(missing)} missing")


def _stack(stored: Mapping[str, StoredArray], name: str, width: int) -> StackConfig:
    first = f"{name.replace(r.LAYER, '0')}.mlp.c_fc.weight"
    hidden = stored[first].shape[0] if first in stored else 4 * width
    return StackConfig(
        width=width,
        layers=max(1, r.layers(stored, f"{name}.ln_1.weight")),
        heads=max(1, width // 64),
        mlp_width=None if hidden == 4 * width else hidden,
        activation="quick_gelu",
        layer_scale=1e-4 if f"{name.replace(r.LAYER, '0')}.ls_1.gamma" in stored else None,
    )


def _vit(stored: Mapping[str, StoredArray]) -> ViTConfig:
    width, _, patch, _ = stored["visual.conv1.weight"].shape
    cells = stored["visual.positional_embedding"].shape[0] - 1
    return ViTConfig(
        image_size=round(cells**0.5) * patch,
        patch_size=patch,
        stack=_stack(stored, f"visual.transformer.resblocks.{r.LAYER}", width),
        pre_norm="visual.ln_pre.weight" in stored,
    )


def _resnet(stored: Mapping[str, StoredArray]) -> ResNetConfig:
    cells, width = stored["visual.attnpool.positional_embedding"].shape
    blocks = [r.layers(stored, f"visual.layer{k}.{r.LAYER}.conv1.weight") for k in (1, 2, 3, 4)]
    return ResNetConfig(
        image_size=round((cells - 1) ** 0.5) * 32,
        layers=(blocks[0], blocks[1], blocks[2], blocks[3]),
        width=width // 32,
        heads=max(1, width // 64),
    )


def require_expressible(cfg: ClipConfig) -> None:
    """Raises ValueError listing all that OpenAI's code, which reads shapes alone, has not."""
    image, text = cfg.image, cfg.text
    stacks = [text.stack]
    wrong = [
        (f"text pool {text.pool!r}", text.pool != "eot" or text.eot_id is not None),
        ("text tower without projection", not text.project),
        ("text head_bias", text.head_bias),
        ("text tower without causal mask", not text.causal),
        ("logit_bias", cfg.bias is not None),
    ]
    if isinstance(image, ResNetConfig):
        wrong.append((f"{image.heads} heads of attention pooling", image.heads * 2 != image.width))
    else:
        stacks.append(image.stack)
        wrong += [
            (f"image pool {image.pool!r}", image.pool != "class"),
            (f"positions {image.positions!r}", image.positions != "learned"),
            ("image tower without pre_norm", not image.pre_norm),
            ("bias of patches", image.patch_bias),
            ("image tower without projection", not image.project),
        ]
    for stack in stacks:
        wrong += [
            (f"activation {stack.activation!r}", stack.activation != "quick_gelu"),
            (f"heads of {stack.width / stack.heads:g} channels", stack.width != 64 * stack.heads),
            (f"mlp_width {stack.mlp_width}", stack.mlp_width not in (None, 4 * stack.width)),
            (f"norm_eps {stack.norm_eps}", stack.norm_eps != 1e-5),
            ("layer_scale", stack.layer_scale is not None),
        ]
    if faults := dict.fromkeys(what for what, is_wrong in wrong if is_wrong):
        raise ValueError(f"OpenAI's CLIP has no {'; no '.join(faults)}")
