"""Dense layers that flatten before they multiply, and multi-head self-attention."""

import math
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

Init = Callable[..., Array]


class Dense(nn.Module):
    """Affine map of the trailing `inputs` dimensions to `features`.

    All leading dimensions are flattened first: one large matrix product, whose
    backward pass is up to 1.6 times faster on CPU than the batched one.
    """

    features: int | Sequence[int]
    dtype: str = "float32"
    """Of the product; parameters stay float32."""
    inputs: int = 1
    use_bias: bool = True
    kernel_init: Init = nn.initializers.lecun_normal()
    bias_init: Init = nn.initializers.zeros_init()

    @nn.compact
    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        features = (self.features,) if isinstance(self.features, int) else tuple(self.features)
        lead, contracted = x.shape[: x.ndim - self.inputs], x.shape[x.ndim - self.inputs :]
        rows, fan_in, fan_out = math.prod(lead), math.prod(contracted), math.prod(features)
        kernel = self.param("kernel", self.kernel_init, (*contracted, *features), jnp.float32)
        matrix = kernel.astype(self.dtype).reshape(fan_in, fan_out)
        y = x.astype(self.dtype).reshape(rows, fan_in) @ matrix
        if self.use_bias:
            bias = self.param("bias", self.bias_init, features, jnp.float32)
            y = y + bias.astype(self.dtype).reshape(1, fan_out)
        return y.reshape(*lead, *features)


def attend(
    query: Float[Array, "B N L H"],
    key: Float[Array, "B N M H"],
    value: Float[Array, "B N M H"],
    mask: Bool[Array, "#B #N L M"] | None = None,
) -> Float[Array, "B N L H"]:
    """Scaled dot-product attention; the softmax is taken in float32.

    Args:
      query, key, value: one vector of size H per head and token.
      mask: True where a query may look at a key; None lets all see all.

    Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.2.1.
    """
    scale = query.shape[-1] ** -0.5
    logits = jnp.matmul(query * scale, jnp.swapaxes(key, -1, -2)).astype(jnp.float32)
    if mask is not None:
        logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
    return jnp.matmul(jax.nn.softmax(logits, axis=-1).astype(value.dtype), value)


def heads_first(x: Float[Array, "B L S N H"]) -> Float[Array, "S B N L H"]:
    """Projections fused on axis S, each laid out for `attend`."""
    return jnp.moveaxis(x, (2, 3), (0, 2))


class Attention(nn.Module):
    """Multi-head self-attention with one fused projection for query, key and value."""

    heads: int
    dtype: str = "float32"
    out_std: float = 0.02
    """Standard deviation of the output projection's initial kernel."""

    @nn.compact
    def __call__(
        self, x: Float[Array, "B L W"], mask: Bool[Array, "#B 1 L L"] | None = None
    ) -> Float[Array, "B L W"]:
        width = x.shape[-1]
        fused = (3, self.heads, width // self.heads)
        in_init = nn.initializers.normal(width**-0.5)
        qkv = Dense(fused, self.dtype, kernel_init=in_init, name="qkv")(x)
        query, key, value = heads_first(qkv)
        mixed = jnp.swapaxes(attend(query, key, value, mask), 1, 2)
        out_init = nn.initializers.normal(self.out_std)
        return Dense(width, self.dtype, inputs=2, kernel_init=out_init, name="out")(mixed)
