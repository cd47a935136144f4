"""The text tower: token ids to one vector per caption."""

import dataclasses
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from clip_jax.models.attention import Dense
from clip_jax.models.draws import Draws, key_words, row_words
from clip_jax.models.posemb import LearnedPositions
from clip_jax.models.transformer import Fetch, Stack, StackConfig, layer_norm


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
    train_length: int | None = None
    """Tokens per caption in training; of a longer one only the special tokens at its ends and a
    run of words at a random place between, each at its own position. None: all. This is the block
    masking of Li et al. 2023, arXiv:2305.07017 (CLIPA); their truncation is a smaller
    `context_length`, and their random and syntax masking are not here."""

    def __post_init__(self) -> None:
        if self.train_length is not None and not 3 <= self.train_length <= self.context_length:
            raise ValueError(
                f"train_length {self.train_length} must be from 3 to context_length "
                f"{self.context_length}"
            )
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
    """Which caption of its group a token belongs to, counted from 1; 0 is padding."""
    ends: Int[Array | np.ndarray, "G b"]
    """Of each caption the index of its last token, in the group's R * S tokens."""


class Embed(nn.Module):
    """One learned vector per token id; an id outside the vocabulary gives NaN."""

    vocab_size: int
    width: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, ids: Int[Array, "B L"]) -> Float[Array, "B L W"]:
        init, shape = nn.initializers.normal(0.02), (self.vocab_size, self.width)
        table = self.param("embedding", init, shape, jnp.float32)
        # Rows are chosen before they are rounded: gradients of a frequent token, such as padding,
        # add up in float32.
        return jnp.take(table, ids, axis=0).astype(self.dtype)


class TextTower(nn.Module):
    """Token ids to one vector each, not yet normalised.

    Source: Radford et al. 2021, arXiv:2103.00020, section 2.4; initial scales as
    openai/CLIP, clip/model.py.
    """

    cfg: TextConfig
    embed_dim: int
    dtype: str = "float32"
    fetch: Fetch | None = None
    """Of the stack's layers."""

    @nn.compact
    def __call__(
        self, tokens: Int[Array, "B L"] | PackedTokens, rows: Int[Array, "B"] | None = None
    ) -> Float[Array, "B D"]:
        """Ids outside the vocabulary give NaN, so that they cannot pass unnoticed.

        `rows` are as in `CLIP.__call__`.

        Raises:
          ValueError: `tokens` are not of the configured context length, or packed
            for a tower that is not causal, or, in training, for one with a `train_length`.
        """
        cfg, width, draws = self.cfg, self.cfg.stack.width, None
        if rows is None:
            rows = jnp.arange(tokens.ends.size if isinstance(tokens, PackedTokens) else len(tokens))
        if isinstance(tokens, PackedTokens):
            if cfg.train_length is not None and self.has_rng("dropout"):
                raise ValueError("train_length shortens captions of a row each, not packed ones")
            ids, positions, mask, ends = _packed(tokens, cfg)
        elif cfg.train_length is not None and self.has_rng("dropout"):
            words = row_words(self.make_rng("dropout"), rows, 1)[:, 0]
            ids, positions, mask, ends = _shortened(tokens, words, cfg.train_length, cfg)
        else:
            ids, positions, mask, ends = _unpacked(tokens, cfg)
        if cfg.stack.dropout and self.has_rng("dropout"):
            packed = isinstance(tokens, PackedTokens)
            owners = _owners(tokens, rows) if packed else rows[:, None]
            places = jnp.arange(ids.shape[1])[None] if positions is None else positions
            draws = Draws(key_words(self.make_rng("dropout")), owners, places)
        embed = Embed(cfg.vocab_size, width, self.dtype, name="tokens")
        x = LearnedPositions(cfg.context_length, 0.01, name="positions")(embed(ids), positions)
        stack = Stack(cfg.stack, self.dtype, self.fetch, name="stack")
        pooled = stack(x, mask, ends, draws)
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
    ends = _eot(tokens, cfg) if cfg.pool == "eot" else jnp.full(batch, length - 1)
    return tokens, None, _causal(length) if cfg.causal else None, ends[:, None]


def _eot(tokens: Int[Array, "B L"], cfg: TextConfig) -> Int[Array, "B"]:
    """Place of the end-of-text token."""
    return jnp.argmax(tokens if cfg.eot_id is None else tokens == cfg.eot_id, axis=1)


def _shortened(
    tokens: Int[Array, "B L"], words: UInt32[Array, "B"], length: int, cfg: TextConfig
) -> tuple[Array, Array, Any, Array]:
    """As `_unpacked`, of a part of each caption; `words` are random."""
    _unpacked(tokens, cfg)  # Raises if they are not of the configured length.
    last = tokens.shape[1] - 1
    if cfg.pool == "eot":  # Start of text, a run of words, end of text; or all, and padding.
        first, stop = 1, _eot(tokens, cfg)
        final = jnp.maximum(stop, length - 1)
        ends = jnp.minimum(stop, length - 1)
    else:  # A run of words, and the last token, whose like fills up short captions.
        padding = jnp.cumprod(tokens[:, ::-1] == tokens[:, -1:], axis=1).sum(axis=1)
        first, stop = 0, last + 1 - padding
        final, ends = jnp.full(len(tokens), last), jnp.full(len(tokens), length - 1)
    run = length - 1 - first
    choices = jnp.maximum(stop - first - run, 0) + 1
    start = first + (words % choices.astype(jnp.uint32)).astype(jnp.int32)
    inner = start[:, None] + jnp.arange(run)[None]
    kept = jnp.concatenate([inner, final[:, None]], axis=1)
    kept = jnp.pad(kept, ((0, 0), (first, 0)))
    ids = jnp.take_along_axis(tokens, kept, axis=1)
    return ids, kept, _causal(length) if cfg.causal else None, ends[:, None]


def _packed(packed: PackedTokens, cfg: TextConfig) -> tuple[Array, Array, Array, Array]:
    """Ids, positions, mask and pooled tokens of rows that hold several captions."""
    if not cfg.causal or cfg.pool != "eot" or cfg.eot_id is not None:
        raise ValueError("only a causal tower with pool 'eot', no eot_id, takes packed captions")
    ids, positions, captions = (jnp.asarray(a).reshape(-1, a.shape[-1]) for a in packed[:3])
    same = captions[:, None, :, None] == captions[:, None, None, :]
    mask = jnp.logical_and(same, _causal(ids.shape[1]))
    return ids, positions, mask, jnp.asarray(packed.ends)


def _owners(packed: PackedTokens, rows: Int[Array, "B"]) -> Int[Array, "R S"]:
    """Number of the caption of each packed token."""
    captions = jnp.asarray(packed.captions)
    numbers = jax.vmap(lambda rows, captions: rows[captions - 1])
    return numbers(rows.reshape(len(captions), -1), captions).reshape(-1, captions.shape[2])


def _causal(length: int) -> Bool[Array, "1 1 L L"]:
    return jnp.tril(jnp.ones((1, 1, length, length), bool))
