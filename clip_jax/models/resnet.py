"""OpenAI's ModifiedResNet: three-convolution stem, antialiased strides, attention pooling."""

import dataclasses
import math
from typing import Any

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from clip_jax import tree
from clip_jax.models.attention import Dense, attend
from clip_jax.models.posemb import LearnedPositions


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResNetConfig:
    """A ModifiedResNet tower; the defaults are RN50's."""

    image_size: int = 224
    """Height and width of its input, in pixels; a multiple of 32."""
    layers: tuple[int, int, int, int] = (3, 4, 6, 3)
    """Bottleneck blocks of each stage."""
    width: int = 64
    """Channels of the first stage's bottlenecks; the tower ends with 32 times as many."""
    heads: int = 32
    """Of the attention pooling."""
    batch_statistics: bool = False
    """Train batch norms by the mean and variance of each global batch, on any mesh the same, and
    keep a running average of both for use, as training from scratch needs it. False: the running
    statistics, which come with published weights, are taken and stay as they are."""

    def __post_init__(self) -> None:
        if self.image_size < 32 or self.image_size % 32:
            raise ValueError(f"image_size {self.image_size} is no multiple of 32")
        if len(self.layers) != 4 or min(self.layers) < 1:
            raise ValueError(f"layers {self.layers} must be four counts from 1 on")
        if self.heads < 1 or self.width * 32 % self.heads:
            raise ValueError(f"width {self.width} * 32 does not split into {self.heads} heads")

    @property
    def grid(self) -> int:
        """Cells along each side of what the attention pooling sees."""
        return self.image_size // 32


NORM_EPS = 1e-5
STATISTICS = "statistics"
"""Collection to which a training forward pass hands each batch's statistics, under the paths of
the parameters that hold their running averages."""
MOMENTUM = 0.1
"""Share of a new batch in the running statistics: PyTorch's, and so OpenAI's."""


def convolve(
    x: Float[Array, "B height width C"], kernel: Float[Array, "_ _ C O"], stride: int = 1
) -> Float[Array, "B _ _ O"]:
    """Convolution that keeps the size, but for the stride: PyTorch's padding of 1 for a 3x3."""
    pad = kernel.shape[0] // 2
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), [(pad, pad)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def average_pool(x: Float[Array, "B height width C"], size: int) -> Float[Array, "B _ _ C"]:
    """Mean over squares that do not overlap."""
    return einops.reduce(x, "b (h p) (w q) c -> b h w c", "mean", p=size, q=size)


def conv_init(key, shape, dtype):
    """PyTorch's default for a convolution: uniform within fan_in ** -0.5."""
    bound = math.prod(shape[:-1]) ** -0.5
    return nn.initializers.uniform(2 * bound)(key, shape, dtype) - bound


class Conv(nn.Module):
    """A convolution without bias."""

    features: int
    size: int
    stride: int = 1
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "B height width C"]) -> Float[Array, "B _ _ O"]:
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", conv_init, shape, jnp.float32)
        return convolve(x.astype(self.dtype), kernel.astype(self.dtype), self.stride)


@dataclasses.dataclass(frozen=True)
class Norms:
    """What all batch norms of a tower have in common."""

    batch: bool = False
    """As `ResNetConfig.batch_statistics`."""
    axes: tuple[str, ...] = ()
    """Mesh axes over which a batch is split, where this device's part alone is seen."""


class BatchNorm(nn.Module):
    """Normalisation by running statistics, which are parameters that no gradient reaches.

    With `norms.batch`, in training (where there are random numbers for "dropout"), by those of
    the batch, which go to the collection `STATISTICS`.

    Source: Ioffe and Szegedy 2015, arXiv:1502.03167, algorithms 1 and 2.
    """

    dtype: str = "float32"
    scale: float = 1.0
    """Start of the learned factor."""
    norms: Norms = Norms()

    @nn.compact
    def __call__(self, x: Float[Array, "B height width C"]) -> Float[Array, "B height width C"]:
        starts = {"scale": self.scale, "bias": 0.0, "mean": 0.0, "var": 1.0}
        scale, bias, mean, var = (
            self.param(name, nn.initializers.constant(start), (x.shape[-1],), jnp.float32)
            for name, start in starts.items()
        )
        mean, var = jax.lax.stop_gradient((mean, var))
        if self.norms.batch and self.has_rng("dropout"):
            mean, var = self._of_batch(x)
        scale, bias, mean, var = (v.reshape(1, 1, 1, -1) for v in (scale, bias, mean, var))
        x = (x.astype(jnp.float32) - mean) * jax.lax.rsqrt(var + NORM_EPS) * scale + bias
        return x.astype(self.dtype)

    def _of_batch(self, x: Float[Array, "B height width C"]) -> tuple[Array, Array]:
        """Mean and variance over the global batch, in float32; hands both out."""
        x, axes = x.astype(jnp.float32), self.norms.axes
        count = x[..., 0].size * (jax.lax.psum(1, axes) if axes else 1)

        def average(values: Array) -> Array:
            mean = values.mean(axis=(0, 1, 2))
            return jax.lax.pmean(mean, axes) if axes else mean

        mean = average(x)
        var = average(jnp.square(x - mean.reshape(1, 1, 1, -1)))
        for name, value in (("mean", mean), ("var", var * (count / max(count - 1, 1)))):
            self.sow(STATISTICS, name, jax.lax.stop_gradient(value), reduce_fn=_newest)
        return mean, var


def _newest(_: Any, value: Any) -> Any:
    return value


def with_statistics(params: Any, found: Any, frozen: Any = None) -> Any:
    """Parameters whose running statistics have moved towards those of a batch.

    Variances are the unbiased ones, as in PyTorch.

    Args:
      found: the collection `STATISTICS` of a forward pass; empty if there is none.
      frozen: a tree like the parameters of bool: which of them stay; None for none.
    """
    new = dict(zip(tree.paths(found), jax.tree.leaves(found), strict=True))
    if not new:
        return params

    def move(path: str, old: Any, still: bool = False) -> Any:
        return old if still or path not in new else old + MOMENTUM * (new[path] - old)

    return tree.map_with_path(move, params, *(() if frozen is None else (frozen,)))


class Shortcut(nn.Module):
    """What stands in for the identity where a block changes the shape."""

    features: int
    stride: int
    dtype: str = "float32"
    norms: Norms = Norms()

    @nn.compact
    def __call__(self, x: Float[Array, "B height width C"]) -> Float[Array, "B _ _ O"]:
        x = Conv(self.features, 1, dtype=self.dtype, name="conv")(average_pool(x, self.stride))
        return BatchNorm(self.dtype, norms=self.norms, name="norm")(x)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1; a stride is taken by averaging after the second, not by skipping pixels."""

    width: int
    """Of the 3x3; the block's result has four times as many channels."""
    stride: int = 1
    dtype: str = "float32"
    norms: Norms = Norms()

    @nn.compact
    def __call__(self, x: Float[Array, "B height width C"]) -> Float[Array, "B _ _ O"]:
        features = 4 * self.width
        y = x
        for number, (width, size) in enumerate(((self.width, 1), (self.width, 3)), 1):
            y = Conv(width, size, dtype=self.dtype, name=f"conv{number}")(y)
            y = jax.nn.relu(BatchNorm(self.dtype, norms=self.norms, name=f"norm{number}")(y))
        y = Conv(features, 1, dtype=self.dtype, name="conv3")(average_pool(y, self.stride))
        y = BatchNorm(self.dtype, 0.0, self.norms, name="norm3")(y)
        if self.stride > 1 or x.shape[-1] != features:
            x = Shortcut(features, self.stride, self.dtype, self.norms, name="shortcut")(x)
        return jax.nn.relu(x + y)


class Stem(nn.Module):
    """Three 3x3 convolutions, the first with stride 2, and an average over 2x2."""

    width: int
    dtype: str = "float32"
    norms: Norms = Norms()

    @nn.compact
    def __call__(self, x: Float[Array, "B height width C"]) -> Float[Array, "B _ _ O"]:
        half = self.width // 2
        for number, (width, stride) in enumerate(((half, 2), (half, 1), (self.width, 1)), 1):
            x = Conv(width, 3, stride, self.dtype, name=f"conv{number}")(x)
            x = jax.nn.relu(BatchNorm(self.dtype, norms=self.norms, name=f"norm{number}")(x))
        return average_pool(x, 2)


class Stage(nn.Module):
    """Blocks of one width; the first may halve the picture."""

    blocks: int
    width: int
    stride: int
    dtype: str = "float32"
    norms: Norms = Norms()

    @nn.compact
    def __call__(self, x: Float[Array, "B height width C"]) -> Float[Array, "B _ _ O"]:
        for number in range(self.blocks):
            stride = self.stride if number == 0 else 1
            name = f"block{number}"
            x = Bottleneck(self.width, stride, self.dtype, self.norms, name=name)(x)
        return x


class AttentionPool(nn.Module):
    """The mean over all cells, as a token before them, looks at itself and at them."""

    heads: int
    embed_dim: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "B height width W"]) -> Float[Array, "B D"]:
        width = x.shape[-1]
        x = einops.rearrange(x, "b h w c -> b (h w) c")
        x = jnp.concatenate([x.mean(axis=1, keepdims=True), x], axis=1)
        x = LearnedPositions(x.shape[1], width**-0.5, name="positions")(x)
        init = nn.initializers.normal(width**-0.5)
        per_head = (self.heads, width // self.heads)

        def project(name: str, tokens: Array) -> Array:
            dense = Dense(per_head, self.dtype, kernel_init=init, name=name)
            return einops.rearrange(dense(tokens), "b l n h -> b n l h")

        mixed = attend(project("query", x[:, :1]), project("key", x), project("value", x))
        out = Dense(self.embed_dim, self.dtype, inputs=2, kernel_init=init, name="out")
        return out(mixed[:, :, 0])


class ResNet(nn.Module):
    """Images to one vector each, not yet normalised.

    Source: Radford et al. 2021, arXiv:2103.00020, section 2.4; openai/CLIP, clip/model.py.
    """

    cfg: ResNetConfig
    embed_dim: int
    dtype: str = "float32"
    axes: tuple[str, ...] = ()
    """As `Norms.axes`."""

    @nn.compact
    def __call__(self, images: Float[Array, "B height width 3"]) -> Float[Array, "B D"]:
        """`images` are normalised by the mean and standard deviation of the recipe.

        Raises:
          ValueError: images are not of the configured size.
        """
        cfg = self.cfg
        if images.shape[1:3] != (cfg.image_size, cfg.image_size):
            raise ValueError(f"images are {images.shape[1:3]}, the tower takes {cfg.image_size}")
        norms = Norms(cfg.batch_statistics, self.axes)
        x = Stem(cfg.width, self.dtype, norms, name="stem")(images)
        for number, blocks in enumerate(cfg.layers):
            stride = 1 if number == 0 else 2
            width, name = cfg.width * 2**number, f"stage{number + 1}"
            x = Stage(blocks, width, stride, self.dtype, norms, name=name)(x)
        return AttentionPool(cfg.heads, self.embed_dim, self.dtype, name="attend_pool")(x)
