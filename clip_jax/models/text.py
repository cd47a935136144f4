"""The text tower: token ids to one vector per caption."""

import dataclasses
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from clip_jax.models.attention import Dense
from clip_jax.models.posemb import LearnedPositions
from clip_jax.models.transformer import Stack, StackConfig, layer_norm


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextConfig:
    """A text transformer; the defaults are OpenAI's choices."""

    context_length: int = 77
    """Tokens per caption (L), padding included."""
    vocab_size: int = 49408
    stack: StackConfig
    pool: Literal["eot", "last"] = "eot"
    """The end-of-text token, as CLIP's, or the last position, as SigLIP's."""
    eot_id: int | None = None
    """Pool 'eot' takes the first token with this id; None: the first with the highest id, which
    is the end of text in CLIP's own vocabulary."""
    causal: bool = True
    """A token sees only those before it, so padding after the end changes nothing."""
    head_bias: bool = False
    project: bool = True
    """A last matrix to the embedding size; without it the width must equal that size."""

    def __post_init__(self) -> None:
        if self.pool == "eot" and not self.causal:
            raise ValueError("pool 'eot' needs causal attention: padding has no mask otherwise")
        if self.eot_id is not None and self.pool != "eot":
            raise ValueError(f"eot_id is for pool 'eot', not {self.pool!r}")


class PackedTokens(NamedTuple):
    """Captions of any length laid end to end in rows, so that hardly any padding is computed.

    Exact for causal towers: a token sees its own caption up to itself and nothing else,
    in a row of its own or not. `data/packing` makes them; G is the number of groups that
    are packed by themselves, one or more on each device.
    """

    tokens: Int[Array | np.ndarray, "G R S"]
    """Ids; S, the length of a row, need not be the context length."""
    positions: Int[Array | np.ndarray, "G R S"]
    """Place of each token within its caption."""
    captions: Int[Array | np.ndarray, "G R S"]
    """Which caption of its row a token belongs to."""
    ends: Int[Array | np.ndarray, "G b"]
    """Of each caption the index of its last token, in the group's R * S tokens."""


class TextTower(nn.Module):
    """Token ids to one vector each, not yet normalised.

    Source: Radford et al. 2021, arXiv:2103.00020, section 2.4; initial scales as
    openai/CLIP, clip/model.py.
    """

    cfg: TextConfig
    embed_dim: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, tokens: Int[Array, "B L"] | PackedTokens) -> Float[Array, "B D"]:
        """Ids outside the vocabulary give NaN, so that they cannot pass unnoticed.

        Raises:
          ValueError: `tokens` are not of the configured context length, or packed
            for a tower that is not causal.
        """
        cfg, width = self.cfg, self.cfg.stack.width
        if isinstance(tokens, PackedTokens):
            ids, positions, mask, ends = _packed(tokens, cfg)
        else:
            ids, positions, mask, ends = _unpacked(tokens, cfg)
        init = nn.initializers.normal(0.02)
        embed = nn.Embed(
            cfg.vocab_size, width, jnp.dtype(self.dtype), embedding_init=init, name="tokens"
        )
        x = LearnedPositions(cfg.context_length, 0.01, name="positions")(embed(ids), positions)
        pooled = Stack(cfg.stack, self.dtype, name="stack")(x, mask, ends)
        pooled = layer_norm(cfg.stack.norm_eps, self.dtype, "norm")(pooled)
        if not cfg.project:
            return pooled
        init = nn.initializers.normal(width**-0.5)
        head = Dense(
            self.embed_dim, self.dtype, use_bias=cfg.head_bias, kernel_init=init, name="head"
        )
        return head(pooled)


def _unpacked(tokens: Int[Array, "B L"], cfg: TextConfig) -> tuple[Array, None, Any, Array]:
    """Ids, positions (None: in order), mask and pooled tokens of one caption a row."""
    batch, length = tokens.shape
    if length != cfg.context_length:
        raise ValueError(f"{length} tokens a text, the tower takes {cfg.context_length}")
    last = jnp.full(batch, length - 1)
    ends = last
    if cfg.pool == "eot":
        ends = jnp.argmax(tokens if cfg.eot_id is None else tokens == cfg.eot_id, axis=1)
    return tokens, None, _causal(length) if cfg.causal else None, ends[:, None]


def _packed(packed: PackedTokens, cfg: TextConfig) -> tuple[Array, Array, Array, Array]:
    """Ids, positions, mask and pooled tokens of rows that hold several captions."""
    if not cfg.causal or cfg.pool != "eot" or cfg.eot_id is not None:
        raise ValueError("only a causal tower with pool 'eot', no eot_id, takes packed captions")
    ids, positions, captions = (jnp.asarray(a).reshape(-1, a.shape[-1]) for a in packed[:3])
    same = captions[:, None, :, None] == captions[:, None, None, :]
    mask = jnp.logical_and(same, _causal(ids.shape[1]))
    return ids, positions, mask, jnp.asarray(packed.ends)


def _causal(length: int) -> Bool[Array, "1 1 L L"]:
    return jnp.tril(jnp.ones((1, 1, length, length), bool))
