"""CLIP: two towers whose unit embeddings are compared at a learned temperature."""

import dataclasses
import functools
import math
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from clip_jax.models.resnet import ResNet, ResNetConfig
from clip_jax.models.text import PackedTokens, TextConfig, TextTower
from clip_jax.models.transformer import Fetch
from clip_jax.models.vit import Patches, ViT, ViTConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """Both towers and the temperature."""

    image: ViTConfig | ResNetConfig
    text: TextConfig
    embed_dim: int
    """Size of the shared embedding (D)."""
    temperature: float = 0.07
    """Before training; logits are similarities divided by it."""
    max_scale: float = 100.0
    """The temperature never falls below one over this (Radford et al. 2021, section 2.5)."""
    bias: float | None = None
    """Added to all logits, learned from this value; None for no bias (SigLIP: -10)."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of activations; 'auto' is bfloat16 on TPU and GPU and float32 on CPU."""

    def __post_init__(self) -> None:
        if self.max_scale <= 0 or 1 / self.max_scale > self.temperature:
            raise ValueError(
                f"temperature {self.temperature} must be at least 1 / max_scale ({self.max_scale})"
            )
        for what, tower in (("image", self.image), ("text", self.text)):
            if isinstance(tower, ResNetConfig) or tower.project:
                continue
            if tower.stack.width != self.embed_dim:
                raise ValueError(
                    f"the {what} tower without projection has width {tower.stack.width}, "
                    f"but embed_dim is {self.embed_dim}"
                )

    @property
    def projects_images(self) -> bool:
        """Whether a matrix of its own stands between the image tower's vector and the embedding.

        In a ResNet that matrix is part of the attention pooling, in SigLIP there is none.
        """
        return isinstance(self.image, ViTConfig) and self.image.project


class Output(NamedTuple):
    """What a contrastive loss needs to know of one batch."""

    image: Float[Array, "B D"]
    """Unit-norm image embeddings, float32."""
    text: Float[Array, "B D"]
    """Unit-norm text embeddings, float32; row i describes image i."""
    scale: Float[Array, ""]
    """One over the temperature."""
    bias: Float[Array, ""] | None
    """Added to all logits, if the model has one."""


def unit_norm(x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
    """Rows of length 1, in float32."""
    x = x.astype(jnp.float32)
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(square, 1e-24))


class CLIP(nn.Module):
    """A pure function of parameters, images and token ids.

    `model.apply({"params": params}, images, tokens)` returns an `Output`;
    with `method="encode_image"` or `method="encode_text"` one tower runs alone.
    """

    cfg: ClipConfig
    image_fetch: Fetch | None = None
    """Of the image tower's layers, if each device holds a share of their parameters."""
    text_fetch: Fetch | None = None
    axes: tuple[str, ...] = ()
    """Mesh axes over which a batch is split, where each device runs the model on its own part."""

    def setup(self) -> None:
        """Name the towers and the scalars."""
        cfg, dtype = self.cfg, activation_dtype(self.cfg.dtype)
        if isinstance(cfg.image, ResNetConfig):
            self.image: Any = ResNet(cfg.image, cfg.embed_dim, dtype, self.axes)
        else:
            self.image = ViT(cfg.image, cfg.embed_dim, dtype, self.image_fetch)
        self.text = TextTower(cfg.text, cfg.embed_dim, dtype, self.text_fetch)
        scale_init = nn.initializers.constant(-math.log(cfg.temperature))
        self.logit_scale = self.param("logit_scale", scale_init, (), jnp.float32)
        if cfg.bias is not None:
            bias_init = nn.initializers.constant(cfg.bias)
            self.logit_bias = self.param("logit_bias", bias_init, (), jnp.float32)

    def encode_image(
        self,
        images: Float[Array, "B height width 3"] | Patches,
        rows: Int[Array, "B"] | None = None,
    ) -> Float[Array, "B D"]:
        """Unit-norm float32 embeddings of normalised images; `rows` as in `__call__`.

        Raises:
          ValueError: not what the tower takes: `Patches` for positions "naflex", else images of
            its size.
        """
        if not isinstance(self.cfg.image, ResNetConfig):
            return unit_norm(self.image(images, rows))
        if isinstance(images, Patches):
            raise ValueError("a ResNet tower takes images, not Patches")
        return unit_norm(self.image(images))

    def image_features(
        self, images: Float[Array, "B height width 3"] | Patches
    ) -> Float[Array, "B W"]:
        """Float32 vectors of the image tower before its projection to embeddings, of any length.

        A tower that has none (`ClipConfig.projects_images`) gives its embeddings, not scaled.

        Raises:
          ValueError: as `encode_image`.
        """
        if not isinstance(self.cfg.image, ResNetConfig):
            return self.image(images, project=False).astype(jnp.float32)
        return self.image(images).astype(jnp.float32)

    def encode_text(
        self, tokens: Int[Array, "B L"] | PackedTokens, rows: Int[Array, "B"] | None = None
    ) -> Float[Array, "B D"]:
        """Unit-norm float32 embeddings of token ids; `rows` as in `__call__`."""
        return unit_norm(self.text(tokens, rows))

    def __call__(
        self,
        images: Float[Array, "B height width 3"] | Patches,
        tokens: Int[Array, "B L"] | PackedTokens,
        rows: Int[Array, "B"] | None = None,
    ) -> Output:
        """Embeddings of matching images and texts, with the scale and bias of their logits.

        Args:
          images, tokens: row i of one describes row i of the other.
          rows: number of each pair in the global batch; None: 0, 1, ... Whatever training draws
            at random (with `rngs={"dropout": key}`, else nothing is) is a function of the key and
            of this number, so that it depends neither on how a batch is divided nor on how its
            captions are packed.
        """
        bias = None if self.cfg.bias is None else self.logit_bias
        scale = jnp.exp(self.logit_scale)
        image, text = self.encode_image(images, rows), self.encode_text(tokens, rows)
        return Output(image, text, scale, bias)


def activation_dtype(choice: str) -> str:
    """'auto' made concrete for the backend of this process."""
    if choice != "auto":
        return choice
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def init_params(cfg: ClipConfig, key: Any) -> Any:
    """Fresh float32 parameters; under `jax.eval_shape` only their shapes, at no memory cost."""
    size, length = cfg.image.image_size, cfg.text.context_length
    images: Any = jnp.zeros((1, size, size, 3), jnp.float32)
    if isinstance(cfg.image, ViTConfig) and cfg.image.positions == "naflex":
        pixels = jnp.zeros((1, 1, 3 * cfg.image.patch_size**2), jnp.float32)
        images = Patches(pixels, jnp.ones((1, 2), jnp.int32))
    tokens = jnp.zeros((1, length), jnp.int32)
    return CLIP(cfg).init(key, images, tokens)["params"]


def param_shapes(cfg: ClipConfig) -> Any:
    """Shape and type of every parameter that `init_params` makes; traced once a configuration."""
    return _fresh.eval_shape(cfg)


@functools.partial(jax.jit, static_argnums=0)
def _fresh(cfg: ClipConfig) -> Any:
    return init_params(cfg, jax.random.key(0))


def cap_scale(params: Any, max_scale: float) -> Any:
    """Parameters whose scale does not exceed `max_scale`.

    Applied after each update, as OpenAI does: a cap inside the model would stop the
    gradient, and the temperature would stay there for ever.
    """
    capped = jnp.minimum(params["logit_scale"], math.log(max_scale))
    return {**params, "logit_scale": capped}
