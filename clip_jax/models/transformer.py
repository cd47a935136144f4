"""The pre-norm transformer that both towers share, with its blocks stacked on one axis."""

import dataclasses
import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from clip_jax.models.attention import Attention, Dense, take_tokens
from clip_jax.models.draws import Draws, dropout
from clip_jax.models.remat import Kept, policy

Activation = Literal["gelu", "gelu_tanh", "quick_gelu"]


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Each x times Phi(x), the normal distribution (Hendrycks and Gimpel 2016, arXiv:1606.08415).

    By erf as in PyTorch: 1e-6 less exact than by erfc as in JAX, in 0.4 of its time on CPU.
    """
    return x * (0.5 + 0.5 * jax.lax.erf(x * math.sqrt(0.5)))


def quick_gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """OpenAI's cheap GELU, x * sigmoid(1.702 x) (openai/CLIP, clip/model.py)."""
    return x * jax.nn.sigmoid(1.702 * x)


def _keeping_input(function: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """`function` computed in float32, of which the backward pass keeps the input alone.

    Factors of its slope are cheap to compute again, but each is as large as an MLP's hidden layer.
    """

    def plain(x: Array) -> Array:
        return function(x.astype(jnp.float32)).astype(x.dtype)

    def pull(x: Array, slope: Array) -> tuple[Array]:
        # Or the compiler would find that the forward pass has made the factors, and keep them.
        again = jax.lax.optimization_barrier(x)
        return jax.vjp(plain, again)[1](slope)

    kept = jax.custom_vjp(plain)
    kept.defvjp(lambda x: (plain(x), x), pull)
    return kept


ACTIVATIONS = {
    "gelu": _keeping_input(gelu),
    "gelu_tanh": _keeping_input(partial(jax.nn.gelu, approximate=True)),
    "quick_gelu": _keeping_input(quick_gelu),
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
    """Blocks compiled side by side, longer to compile; the result is the same but for rounding."""
    remat: Kept | None = None
    """What of each block is kept for its backward pass, beside its input; the rest is computed
    again. See `models.remat`; None keeps all."""
    offload: bool = False
    """Whether that, input included, waits in the host's memory meanwhile; needs `remat`."""

    def __post_init__(self) -> None:
        if self.heads < 1 or self.width % self.heads:
            raise ValueError(f"width {self.width} does not split into {self.heads} heads")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout}")
        if self.layers < 1 or self.unroll < 1:
            raise ValueError(f"layers ({self.layers}) and unroll ({self.unroll}) start at 1")
        if self.offload and self.remat is None:
            raise ValueError("offload moves what remat keeps: choose a remat, such as 'products'")


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
        x = checkpoint_name(
            Dense(self.width, self.dtype, kernel_init=up_init, name="up")(x), "hidden"
        )
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
        draws: Draws | None = None,
    ) -> Float[Array, "B L W"] | Float[Array, "Q W"]:
        """All tokens, or only those that `ends` chooses.

        `mask` is True where a query may look at a key; None lets all see all. `draws` are those
        of all tokens, for dropout; None: there is none.
        """
        cfg, x = self.cfg, checkpoint_name(x, "input")
        # OpenAI's scale: the residual stream keeps its variance whatever the depth.
        out_std = cfg.width**-0.5 * (2 * cfg.layers) ** -0.5
        norm = partial(layer_norm, cfg.norm_eps, self.dtype)
        attend = Attention(cfg.heads, self.dtype, out_std, name="attend")
        mlp = Mlp(cfg.mlp_width or 4 * cfg.width, cfg.activation, self.dtype, out_std, name="mlp")
        if draws is not None and ends is not None:
            draws = draws.take(ends)

        def drop(branch: Array, site: int) -> Array:
            return branch if draws is None else dropout(branch, cfg.dropout, draws.fold(site))

        mixed = self._scaled("scale_attend", attend(norm(name="norm_attend")(x), mask, ends))
        x = (x if ends is None else take_tokens(x, ends)) + drop(mixed, 0)
        return x + drop(self._scaled("scale_mlp", mlp(norm(name="norm_mlp")(x))), 1)

    def _scaled(self, name: str, branch: Float[Array, "... W"]) -> Float[Array, "... W"]:
        """LayerScale (Touvron et al. 2021, arXiv:2103.17239, section 2.2), if configured."""
        if self.cfg.layer_scale is None:
            return branch
        init = nn.initializers.constant(self.cfg.layer_scale)
        scale = self.param(name, init, (self.cfg.width,), jnp.float32)
        return branch * scale.astype(branch.dtype).reshape((1,) * (branch.ndim - 1) + (-1,))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fetch:
    """How parameters of which each device holds a share become whole."""

    layer: Callable[[Any], Any]
    """From the shares of one layer."""
    again: bool = True
    """Called again in the backward pass under `remat`; else what it made is kept."""


class Stack(nn.Module):
    """`layers` blocks whose parameters share arrays with a leading axis of that length.

    It takes them as a tuple, too, with a tree for each block (`eval.encoders.apart`).
    Returns the tokens that `ends` chooses (see `take_tokens`), or all. Of what is not chosen the
    last block computes no more than keys and values: less work by 1 / (1.2 * layers). Dropout is
    on exactly when the caller hands in `draws`, which are of all tokens.
    """

    cfg: StackConfig
    dtype: str = "float32"
    fetch: Fetch | None = None
    """Where a layer is used; None: its parameters are whole."""

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B L W"],
        mask: Bool[Array, "#B 1 L L"] | None = None,
        ends: Int[Array, "G b"] | None = None,
        draws: Draws | None = None,
    ) -> Float[Array, "B L W"] | Float[Array, "Q W"]:
        draws = draws if self.cfg.dropout else None
        if not self.is_initializing():
            return self._applied(x, mask, ends, draws)
        scan = nn.scan(
            lambda block, x, _: (block(x, mask), None),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=self.cfg.layers,
        )
        x = scan(Block(self.cfg, self.dtype, name="blocks"), x, None)[0]
        return x if ends is None else take_tokens(x, ends)

    def _applied(
        self, x: Array, mask: Array | None, ends: Array | None, draws: Draws | None
    ) -> Float[Array, "B L W"] | Float[Array, "Q W"]:
        """All blocks in a loop or side by side; the last one by itself if it computes `ends`."""
        layers, unroll = self.cfg.layers, self.cfg.unroll
        run, stacked = self._block(), self.variables["params"]["blocks"]
        apart = None
        if isinstance(stacked, tuple):
            run, apart = jax.jit(run), stacked  # Traced once for all blocks but the last.
        elif unroll >= layers:
            apart = unstacked(stacked, jnp.unstack)
        if apart is not None:
            for layer, params in enumerate(apart):
                chosen = ends if layer == layers - 1 else None
                x = run(params, x, mask, draws and draws.fold(layer), chosen)
            return x
        looped = layers if ends is None else layers - 1
        x = _looped(run, looped, unroll)(stacked, x, mask, draws)
        if ends is None:
            return x
        last = jax.tree.map(lambda p: p[-1], stacked)
        return run(last, x, mask, draws and draws.fold(layers - 1), ends)

    def _block(self) -> Callable[..., Array]:
        """A block as a function of its parameters, fetched and kept as configured."""
        cfg, fetch = self.cfg, self.fetch or Fetch(layer=lambda params: params)
        fetched = jax.named_call(fetch.layer, name="fetched")

        def run(params: Any, x: Array, mask: Any, draws: Draws | None, ends: Array | None) -> Any:
            params = fetched(params) if fetch.again else params
            return Block(cfg, self.dtype).apply({"params": params}, x, mask, ends, draws)

        kept = run
        if cfg.remat is not None:
            keep = policy(cfg.remat, cfg.offload)
            kept = jax.checkpoint(run, policy=keep, prevent_cse=cfg.unroll >= cfg.layers)
        if fetch.again:
            return kept
        return lambda params, *rest: kept(fetched(params), *rest)


def unstacked(blocks: Any, unstack: Callable[[Any], Iterable[Any]]) -> tuple[Any, ...]:
    """The parameters of each block, of those of all on a leading axis, which `unstack` cuts."""
    leaves, tree = jax.tree.flatten(blocks)
    return tuple(map(tree.unflatten, zip(*map(unstack, leaves), strict=True)))


def _looped(run: Callable[..., Array], count: int, unroll: int) -> Callable[..., Array]:
    """The first `count` blocks, as a function of all stacked parameters, tokens, mask and draws.

    Gradients want the parameters sliced before the loop. Where none are taken, a slice would be a
    copy of almost the whole tower for nothing: there each block reads its own in the loop.
    """

    def sliced(stacked: Any, x: Array, mask: Array | None, draws: Draws | None) -> Array:
        def one(x: Array, given: Any) -> tuple[Array, None]:
            params, layer = given
            return run(params, x, mask, draws and draws.fold(layer), None), None

        first = jax.tree.map(lambda p: p[:count], stacked)
        return jax.lax.scan(one, x, (first, jnp.arange(count)), unroll=unroll)[0]

    @jax.custom_vjp
    def read(stacked: Any, x: Array, mask: Array | None, draws: Draws | None) -> Array:
        def one(x: Array, layer: Array) -> tuple[Array, None]:
            params = jax.tree.map(lambda p: p[layer], stacked)
            return run(params, x, mask, draws and draws.fold(layer), None), None

        return jax.lax.scan(one, x, jnp.arange(count), unroll=unroll)[0]

    read.defvjp(lambda *given: jax.vjp(sliced, *given), lambda pull, change: pull(change))
    return read
