"""Random draws that belong to a row of the batch, however the batch is divided."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.random import threefry2x32_p
from jaxtyping import Array, Float, Int, Key, UInt32

from clip_jax.models.attention import take_tokens

Words = UInt32[Array, "2"]
"""A key as its two words."""


def key_words(key: Key[Array, ""]) -> Words:
    """The words of a key of any implementation."""
    return jax.random.bits(key, (2,), jnp.uint32)


def hashed(
    words: Words, high: Int[Array, "..."], low: Int[Array, "..."]
) -> tuple[UInt32[Array, "..."], UInt32[Array, "..."]]:
    """64 random bits for each pair of numbers; the two broadcast.

    Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", Threefry-2x32.
    """
    pair = jnp.broadcast_arrays(high.astype(jnp.uint32), low.astype(jnp.uint32))
    first, second = threefry2x32_p.bind(words[0], words[1], *pair)
    return first, second


class Draws(NamedTuple):
    """What the draws of some tokens are a function of: a key, and for each its row and place.

    A row has the same draws in any batch, at any place of it, on any mesh.
    """

    words: Words
    rows: Int[Array, "..."]
    """Global number of the row of each token; broadcasts with `places`."""
    places: Int[Array, "..."]
    """Of each token in its row."""

    def fold(self, number: Int[Array, ""] | int) -> "Draws":
        """Other draws, for one layer of many, or for one site of a layer."""
        return self._replace(words=jnp.stack(hashed(self.words, jnp.int32(0), jnp.int32(number))))

    def take(self, ends: Int[Array, "G b"]) -> "Draws":
        """Those of the tokens that `ends` chooses (see `take_tokens`), as they are among all."""
        rows, places = jnp.broadcast_arrays(self.rows, self.places)
        return self._replace(rows=take_tokens(rows, ends), places=take_tokens(places, ends))


def row_words(key: Key[Array, ""], rows: Int[Array, "B"], count: int) -> UInt32[Array, "B {count}"]:
    """So many random words for each row."""
    return hashed(key_words(key), rows[:, None], jnp.arange(count)[None])[0]


def dropout(x: Float[Array, "*T W"], rate: float, draws: Draws) -> Float[Array, "*T W"]:
    """Each number of x is zero with probability `rate`, and scaled to the same mean otherwise.

    Of `rate` 16 bits count: one hash serves four numbers, and hashing is what dropout costs.

    Source: Srivastava et al. 2014, JMLR 15, section 4.
    """
    width = x.shape[-1]
    count = -(-width // 4)
    low = draws.places[..., None] * count + jnp.arange(count).reshape(*(1,) * draws.places.ndim, -1)
    words = hashed(draws.words, draws.rows[..., None], low)
    halves = [half for word in words for half in (word & 0xFFFF, word >> 16)]
    threshold = round(rate * 0x10000)
    kept = jnp.concatenate([half >= threshold for half in halves], axis=-1)[..., :width]
    return jnp.where(kept, x / (1 - threshold / 0x10000), jnp.zeros((), x.dtype))
