"""big_vision's SigLIP checkpoints: flat npz files, with or without a leading `params/`."""

from collections.abc import Mapping

from clip_jax.models.clip import ClipConfig
from clip_jax.models.resnet import ResNetConfig
from clip_jax.models.text import TextConfig
from clip_jax.models.transformer import StackConfig
from clip_jax.models.vit import ViTConfig
from clip_jax.pretrained import rules as r
from clip_jax.pretrained.arrays import StoredArray

IGNORED = ("opt/*", "*/opt/*", "rng")
PREFIX = "params/"
_IMAGE_SIZES = {(27, 14): 384}
"""Image sizes that are not the grid's times the patch's: SO400M/14 at 384 leaves out 6 pixels."""


def is_scanned(stored: Mapping[str, object], tower: str) -> bool:
    """Whether blocks of a tower are kept in one array each, with a leading axis."""
    return any(name.startswith(f"{tower}/encoderblock/") for name in stored)


def rules(cfg: ClipConfig, *, scanned: tuple[bool, bool] = (False, False)) -> list[r.Rule]:
    """The table of a model; `scanned` says it of the image and the text tower."""
    image, text = cfg.image, cfg.text
    if isinstance(image, ResNetConfig):
        raise ValueError("big_vision has no ModifiedResNet")
    patch, grid = {"p": image.patch_size, "q": image.patch_size}, {"g": image.grid, "k": image.grid}
    naflex = image.positions == "naflex"
    embed = "p w -> p w" if naflex else "p q c w -> (p q c) w"
    table = [
        r.rule("img/embedding/kernel", embed, "image/patch/kernel", **({} if naflex else patch)),
        r.rule("img/embedding/bias", "w -> w", "image/patch/bias"),
        r.rule(
            "img/pos_embedding",
            "g k w -> (g k) w" if naflex else "1 l w -> l w",
            "image/positions/embedding",
            **(grid if naflex else {}),
        ),
        *_blocks("img/Transformer", "image/stack/blocks", scanned[0]),
        *_norm("img/Transformer/encoder_norm", "image/norm"),
        *_map_head("img/MAPHead_0", "image/pool"),
        r.rule("txt/Embed_0/embedding", "v w -> v w", "text/tokens/embedding"),
        r.rule("txt/pos_embedding", "1 l w -> l w", "text/positions/embedding"),
        *_blocks("txt/Encoder_0", "text/stack/blocks", scanned[1]),
        *_norm("txt/Encoder_0/encoder_norm", "text/norm"),
        r.rule("t", "1 ->", "logit_scale"),
        r.rule("b", "1 ->", "logit_bias"),
    ]
    if text.project:
        table.append(r.rule("txt/head/kernel", "w d -> w d", "text/head/kernel"))
    if text.head_bias:
        table.append(r.rule("txt/head/bias", "d -> d", "text/head/bias"))
    return table


def _norm(theirs: str, ours: str, lead: str = "") -> list[r.Rule]:
    pattern = f"{lead}w -> {lead}w"
    return [r.rule(f"{theirs}/{leaf}", pattern, f"{ours}/{leaf}") for leaf in ("scale", "bias")]


def _dense(theirs: str, ours: str, lead: str = "") -> list[r.Rule]:
    return [
        r.rule(f"{theirs}/kernel", f"{lead}i o -> {lead}i o", f"{ours}/kernel"),
        r.rule(f"{theirs}/bias", f"{lead}o -> {lead}o", f"{ours}/bias"),
    ]


def _heads(names: tuple[str, ...], ours: str, lead: str = "") -> list[r.Rule]:
    """Projections that we keep as one array."""
    return [
        r.rule(
            tuple(f"{name}/kernel" for name in names),
            f"s {lead}w n h -> {lead}w s n h",
            f"{ours}/kernel",
        ),
        r.rule(tuple(f"{n}/bias" for n in names), f"s {lead}n h -> {lead}s n h", f"{ours}/bias"),
    ]


def _out(theirs: str, ours: str, lead: str = "") -> list[r.Rule]:
    return [
        r.rule(f"{theirs}/kernel", f"{lead}n h w -> {lead}n h w", f"{ours}/kernel"),
        r.rule(f"{theirs}/bias", f"{lead}w -> {lead}w", f"{ours}/bias"),
    ]


def _blocks(theirs: str, ours: str, scanned: bool) -> list[r.Rule]:
    block, lead = (f"{theirs}/encoderblock", "e ")
    if not scanned:
        block, lead = f"{theirs}/encoderblock_{r.LAYER}", ""
    attend = f"{block}/MultiHeadDotProductAttention_0"
    names = tuple(f"{attend}/{name}" for name in ("query", "key", "value"))
    return [
        *_norm(f"{block}/LayerNorm_0", f"{ours}/norm_attend", lead),
        *_heads(names, f"{ours}/attend/qkv", lead),
        *_out(f"{attend}/out", f"{ours}/attend/out", lead),
        *_norm(f"{block}/LayerNorm_1", f"{ours}/norm_mlp", lead),
        *_dense(f"{block}/MlpBlock_0/Dense_0", f"{ours}/mlp/up", lead),
        *_dense(f"{block}/MlpBlock_0/Dense_1", f"{ours}/mlp/down", lead),
    ]


def _map_head(theirs: str, ours: str) -> list[r.Rule]:
    attend = f"{theirs}/MultiHeadDotProductAttention_0"
    return [
        r.rule(f"{theirs}/probe", "1 p w -> p w", f"{ours}/probe"),
        r.rule(f"{attend}/query/kernel", "w n h -> w n h", f"{ours}/query/kernel"),
        r.rule(f"{attend}/query/bias", "n h -> n h", f"{ours}/query/bias"),
        *_heads((f"{attend}/key", f"{attend}/value"), f"{ours}/key_value"),
        *_out(f"{attend}/out", f"{ours}/out"),
        *_norm(f"{theirs}/LayerNorm_0", f"{ours}/norm"),
        *_dense(f"{theirs}/MlpBlock_0/Dense_0", f"{ours}/mlp/up"),
        *_dense(f"{theirs}/MlpBlock_0/Dense_1", f"{ours}/mlp/down"),
    ]


def infer(stored: Mapping[str, StoredArray]) -> ClipConfig:
    """The architecture that these shapes tell; big_vision's shapes tell all of a SigLIP model.

    Raises:
      WeightsError: arrays that a SigLIP checkpoint always has are missing; lists them.
    """
    needed = ["img/embedding/kernel", "img/pos_embedding", "img/MAPHead_0/probe", "t", "b"]
    needed += ["txt/Embed_0/embedding", "txt/pos_embedding"]
    if missing := [name for name in needed if name not in stored]:
        raise r.WeightsError(
            f"not big_vision's SigLIP layout: {', '.join(missing)} missing; the file has "
            f"{', '.join(sorted(stored)[:5])}, ..."
        )
    kernel = stored["img/embedding/kernel"].shape
    naflex = len(kernel) == 2
    patch = round((kernel[0] / 3) ** 0.5) if naflex else kernel[0]
    positions = stored["img/pos_embedding"].shape
    grid = positions[0] if naflex else round(positions[1] ** 0.5)
    vocab = stored["txt/Embed_0/embedding"].shape[0]
    return ClipConfig(
        image=ViTConfig(
            image_size=_IMAGE_SIZES.get((grid, patch), grid * patch),
            patch_size=patch,
            trim=(grid, patch) in _IMAGE_SIZES,
            stack=_stack(stored, "img/Transformer"),
            pool="map",
            positions="naflex" if naflex else "learned",
            pre_norm=False,
            patch_bias=True,
            project=False,
        ),
        text=TextConfig(
            context_length=stored["txt/pos_embedding"].shape[1],
            vocab_size=vocab,
            stack=_stack(stored, "txt/Encoder_0"),
            pool="last",
            causal=False,
            head_bias="txt/head/bias" in stored,
            project="txt/head/kernel" in stored,
        ),
        embed_dim=kernel[-1],
        temperature=0.1,
        bias=-10.0,
        max_scale=10_000.0,
    )


def _stack(stored: Mapping[str, StoredArray], tower: str) -> StackConfig:
    scanned = is_scanned(stored, tower)
    block = f"{tower}/encoderblock" if scanned else f"{tower}/encoderblock_0"
    query = f"{block}/MultiHeadDotProductAttention_0/query/kernel"
    up = f"{block}/MlpBlock_0/Dense_0/kernel"
    if missing := [name for name in (query, up) if name not in stored]:
        raise r.WeightsError(f"not big_vision's SigLIP layout: {', '.join(missing)} missing")
    width, heads, _ = stored[query].shape[-3:]
    name = f"{tower}/encoderblock_{r.LAYER}/LayerNorm_0/scale"
    hidden = stored[up].shape[-1]
    return StackConfig(
        width=width,
        layers=stored[query].shape[0] if scanned else r.layers(stored, name),
        heads=heads,
        mlp_width=None if hidden == 4 * width else hidden,
        activation="gelu_tanh",
        norm_eps=1e-6,
    )


def require_expressible(cfg: ClipConfig) -> None:
    """Raises ValueError listing all that big_vision's SigLIP model cannot express."""
    image, text = cfg.image, cfg.text
    if isinstance(image, ResNetConfig):
        raise ValueError("big_vision has no ModifiedResNet")
    faults = [
        what
        for what, wrong in (
            (f"image pool {image.pool!r}", image.pool != "map"),
            ("norm before the first block", image.pre_norm),
            (f"positions {image.positions!r}", image.positions == "sincos"),
            ("patches without bias", not image.patch_bias),
            (
                f"image_size {image.image_size} with patches of {image.patch_size}",
                image.image_size
                != _IMAGE_SIZES.get((image.grid, image.patch_size), image.grid * image.patch_size),
            ),
            ("image projection", image.project),
            (f"text pool {text.pool!r}", text.pool != "last"),
            ("causal mask", text.causal),
            ("text projection without bias", text.project and not text.head_bias),
            ("model without logit_bias", cfg.bias is None),
            ("layer_scale", (image.stack.layer_scale or text.stack.layer_scale) is not None),
        )
        if wrong
    ]
    for tower in (image, text):
        if (act := tower.stack.activation) != "gelu_tanh":
            faults.append(f"activation {act!r}")
        if (eps := tower.stack.norm_eps) != 1e-6:
            faults.append(f"norm_eps {eps}")
    if faults:
        raise ValueError(f"big_vision's SigLIP has no {'; no '.join(dict.fromkeys(faults))}")
