"""SigLIP's image towers under the names of timm, which open_clip builds them with."""

import dataclasses

from clip_jax.models.transformer import Activation, StackConfig
from clip_jax.models.vit import ViTConfig
from clip_jax.pretrained import rules as r

_SIGLIP = {  # timm's names: width, layers, heads, MLP width
    "base": (768, 12, 12, 3072),
    "large": (1024, 24, 16, 4096),
    "so400m": (1152, 27, 16, 4304),
    "giantopt": (1536, 40, 16, 6144),
}
_SIGLIP_SIZES: tuple[tuple[str, int, Activation, tuple[int, ...]], ...] = (
    # family, patch, activation in timm, image sizes
    ("base", 32, "gelu_tanh", (256,)),
    ("base", 16, "gelu", (224, 256, 384, 512)),
    ("large", 16, "gelu", (256, 384)),
    ("large", 16, "gelu_tanh", (512,)),
    ("so400m", 14, "gelu", (224, 384, 378)),  # 384 first: its weights are older and better known
    ("so400m", 16, "gelu_tanh", (256, 384, 512)),
    ("giantopt", 16, "gelu_tanh", (256, 384)),
)


def models() -> dict[str, ViTConfig]:
    """SigLIP's image towers under timm's names, as timm computes them."""
    return {
        f"vit_{family}_patch{patch}_siglip_{size}": ViTConfig(
            image_size=size,
            patch_size=patch,
            trim=size % patch > 0,
            stack=_stack(*_SIGLIP[family], activation),
            pool="map",
            pre_norm=False,
            patch_bias=True,
            project=False,
        )
        for family, patch, activation, sizes in _SIGLIP_SIZES
        for size in sizes
    }


def _stack(width: int, layers: int, heads: int, mlp: int, act: Activation) -> StackConfig:
    hidden = None if mlp == 4 * width else mlp
    return StackConfig(
        width=width, layers=layers, heads=heads, mlp_width=hidden, activation=act, norm_eps=1e-6
    )


def rules(cfg: ViTConfig) -> list[r.Rule]:
    """SigLIP's image tower."""
    heads, theirs, ours = cfg.stack.heads, "visual.trunk", "image"
    block, stack = f"{theirs}.blocks.{r.LAYER}", f"{ours}/stack/blocks"
    pool, head = f"{theirs}.attn_pool", f"{ours}/pool"
    qkv, fused = f"{stack}/attend/qkv", {"s": 3, "n": heads}
    key_value, pair = f"{head}/key_value", {"s": 2, "n": heads}
    embed, patch = f"{theirs}.patch_embed.proj", {"p": cfg.patch_size, "q": cfg.patch_size}
    return [
        r.rule(f"{embed}.weight", "w c p q -> (p q c) w", "image/patch/kernel", **patch),
        r.rule(f"{embed}.bias", "w -> w", "image/patch/bias"),
        r.rule(f"{theirs}.pos_embed", "1 l w -> l w", "image/positions/embedding"),
        *r.norm(f"{block}.norm1", f"{stack}/norm_attend"),
        r.rule(f"{block}.attn.qkv.weight", "(s n h) w -> w s n h", f"{qkv}/kernel", **fused),
        r.rule(f"{block}.attn.qkv.bias", "(s n h) -> s n h", f"{qkv}/bias", **fused),
        *r.output(f"{block}.attn.proj", f"{stack}/attend/out", heads),
        *r.norm(f"{block}.norm2", f"{stack}/norm_mlp"),
        *r.linear(f"{block}.mlp.fc1", f"{stack}/mlp/up"),
        *r.linear(f"{block}.mlp.fc2", f"{stack}/mlp/down"),
        *r.norm(f"{theirs}.norm", "image/norm"),
        r.rule(f"{pool}.latent", "1 p w -> p w", f"{head}/probe"),
        *r.projection(f"{pool}.q", f"{head}/query", heads),
        r.rule(f"{pool}.kv.weight", "(s n h) w -> w s n h", f"{key_value}/kernel", **pair),
        r.rule(f"{pool}.kv.bias", "(s n h) -> s n h", f"{key_value}/bias", **pair),
        *r.output(f"{pool}.proj", f"{head}/out", heads),
        *r.norm(f"{pool}.norm", f"{head}/norm"),
        *r.linear(f"{pool}.mlp.fc1", f"{head}/mlp/up"),
        *r.linear(f"{pool}.mlp.fc2", f"{head}/mlp/down"),
    ]


def name(image: ViTConfig) -> str | None:
    """Timm's name of a tower, or None.

    Activations are not compared: timm gives some sizes another one than their authors.
    """

    def plain(config: ViTConfig) -> ViTConfig:
        stack = dataclasses.replace(
            config.stack, activation="gelu", dropout=0.0, unroll=1, remat=None, offload=False
        )
        return dataclasses.replace(config, stack=stack, patch_dropout=0.0)

    known = models().items()
    return next((known_as for known_as, config in known if plain(config) == plain(image)), None)
