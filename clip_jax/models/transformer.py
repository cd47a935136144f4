"""The pre-norm transformer that both towers share, with its blocks stacked on one axis."""

import dataclasses
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from clip_jax.models.attention import Attention, Dense, take_tokens

Activation = Literal["gelu", "gelu_tanh", "quick_gelu"]


def quick_gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """OpenAI's cheap GELU, x * sigmoid(1.702 x) (openai/CLIP, clip/model.py)."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS = {
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
    "quick_gelu": quick_gelu,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class StackConfig:
    """Shape of a stack of identical transformer blocks, and how it is executed."""

    width: int
    """Channels of the residual stream (W)."""
    layers: int
    """Blocks (E)."""
    heads: int
    """Attention heads (N); each has width / heads channels."""
    mlp_width: int | None = None
    """Hidden channels of the MLP; 4 * width when not given."""
    activation: Activation = "gelu"
    norm_eps: float = 1e-5
    layer_scale: float | None = None
    """Start of a learned factor for each channel of every branch; None: no such factors."""
    dropout: float = 0.0
    """Share of each branch's output set to zero while training."""
    unroll: int = 1
    """Blocks compiled side by side, longer to compile. With as many as there are layers, the
    last block computes only the token that is pooled: less work by 1 / (1.2 * layers). The
    result is the same but for rounding and which channels dropout hits."""
    remat: Literal["nothing_saved", "dots_saved"] | None = None
    """What the backward pass recomputes: all but block inputs, all but matrix products, or none."""

    def __post_init__(self) -> None:
        if self.heads < 1 or self.width % self.heads:
            raise ValueError(f"width {self.width} does not split into {self.heads} heads")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout}")
        if self.layers < 1 or self.unroll < 1:
            raise ValueError(f"layers ({self.layers}) and unroll ({self.unroll}) start at 1")


REMAT = {
    "nothing_saved": jax.checkpoint_policies.nothing_saveable,
    "dots_saved": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def layer_norm(eps: float, dtype: str, name: str) -> nn.LayerNorm:
    """Normalisation over the last dimension: computed in float32, the result in `dtype`."""
    return nn.LayerNorm(epsilon=eps, dtype=jnp.dtype(dtype), use_fast_variance=False, name=name)


class Mlp(nn.Module):
    """Two dense layers with a non-linearity between."""

    width: int
    activation: Activation
    dtype: str
    out_std: float

    @nn.compact
    def __call__(self, x: Float[Array, "... W"]) -> Float[Array, "... W"]:
        features = x.shape[-1]
        up_init = nn.initializers.normal((2 * features) ** -0.5)
        down_init = nn.initializers.normal(self.out_std)
        x = Dense(self.width, self.dtype, kernel_init=up_init, name="up")(x)
        x = ACTIVATIONS[self.activation](x)
        return Dense(features, self.dtype, kernel_init=down_init, name="down")(x)


class Block(nn.Module):
    """Attention, then an MLP, each behind a LayerNorm and beside a residual path."""

    cfg: StackConfig
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B L W"],
        mask: Bool[Array, "#B 1 L L"] | None = None,
        ends: Int[Array, "G b"] | None = None,
    ) -> Float[Array, "B L W"] | Float[Array, "Q W"]:
        """All tokens, or only those that `ends` chooses.

        `mask` is True where a query may look at a key; None lets all see all.
        """
        cfg = self.cfg
        # OpenAI's scale: the residual stream keeps its variance whatever the depth.
        out_std = cfg.width**-0.5 * (2 * cfg.layers) ** -0.5
        norm = partial(layer_norm, cfg.norm_eps, self.dtype)
        drop = nn.Dropout(cfg.dropout, deterministic=not self.has_rng("dropout"))
        attend = Attention(cfg.heads, self.dtype, out_std, name="attend")
        mlp = Mlp(cfg.mlp_width or 4 * cfg.width, cfg.activation, self.dtype, out_std, name="mlp")
        mixed = self._scaled("scale_attend", attend(norm(name="norm_attend")(x), mask, ends))
        x = (x if ends is None else take_tokens(x, ends)) + drop(mixed)
        return x + drop(self._scaled("scale_mlp", mlp(norm(name="norm_mlp")(x))))

    def _scaled(self, name: str, branch: Float[Array, "... W"]) -> Float[Array, "... W"]:
        """LayerScale (Touvron et al. 2021, arXiv:2103.17239, section 2.2), if configured."""
        if self.cfg.layer_scale is None:
            return branch
        init = nn.initializers.constant(self.cfg.layer_scale)
        scale = self.param(name, init, (self.cfg.width,), jnp.float32)
        return branch * scale.astype(branch.dtype).reshape((1,) * (branch.ndim - 1) + (-1,))


class Stack(nn.Module):
    """`layers` blocks whose parameters share arrays with a leading axis of that length.

    Returns the tokens that `ends` chooses (see `take_tokens`), or all. Dropout is on exactly
    when the caller hands in `rngs={"dropout": key}`.
    """

    cfg: StackConfig
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B L W"],
        mask: Bool[Array, "#B 1 L L"] | None = None,
        ends: Int[Array, "G b"] | None = None,
    ) -> Float[Array, "B L W"] | Float[Array, "Q W"]:
        if self.cfg.unroll >= self.cfg.layers and not self.is_initializing():
            return self._unrolled(x, mask, ends)
        block = Block
        if self.cfg.remat is not None:
            block = nn.remat(block, prevent_cse=False, policy=REMAT[self.cfg.remat])
        scan = nn.scan(
            lambda module, x, _: (module(x, mask), None),
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            length=self.cfg.layers,
            unroll=self.cfg.unroll,
        )
        x = scan(block(self.cfg, self.dtype, name="blocks"), x, None)[0]
        return x if ends is None else take_tokens(x, ends)

    def _unrolled(
        self, x: Array, mask: Array | None, ends: Array | None
    ) -> Float[Array, "B L W"] | Float[Array, "Q W"]:
        """The same with a block of code for each layer: the last one computes only `ends`."""

        def run(params: Any, x: Array, key: Any, ends: Array | None) -> Any:
            rngs = {} if key is None else {"dropout": key}
            return Block(self.cfg, self.dtype).apply({"params": params}, x, mask, ends, rngs=rngs)

        if self.cfg.remat is not None:
            run = jax.checkpoint(run, policy=REMAT[self.cfg.remat])
        stacked = jax.tree.map(jnp.unstack, self.variables["params"]["blocks"])
        keys: Any = [None] * self.cfg.layers
        if self.cfg.dropout and self.has_rng("dropout"):
            keys = jax.random.split(self.make_rng("dropout"), self.cfg.layers)
        for layer, key in enumerate(keys):
            params = jax.tree.map(lambda u: u[layer], stacked, is_leaf=lambda u: type(u) is tuple)  # noqa: B023
            x = run(params, x, key, ends if layer == self.cfg.layers - 1 else None)
        return x
