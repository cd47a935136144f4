"""What training draws at random belongs to a row, not to its place in a batch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.data.packing import Packing, pack
from clip_jax.models.attention import take_tokens
from clip_jax.models.clip import CLIP
from clip_jax.models.draws import Draws, dropout, key_words, row_words

KEY = jax.random.key(3)
LENGTH, WIDTH = 6, 10


def token_draws(key, rows):
    return Draws(key_words(key), rows[:, None], jnp.arange(LENGTH)[None])


@jax.jit
def masks(rows):
    """Which numbers of (B, L, W) ones are kept at a rate of a quarter, and their values."""
    dropped = dropout(jnp.ones((len(rows), LENGTH, WIDTH)), 0.25, token_draws(KEY, rows))
    return dropped > 0, dropped


def test_dropout_zeroes_the_share_asked_for_and_keeps_the_mean():
    kept, values = masks(jnp.arange(4000))
    for axes in ((0, 1), (0, 2), (1, 2)):  # Of each channel, place and row.
        count = np.prod([kept.shape[axis] for axis in axes])
        worst = np.abs(kept.mean(axis=axes) - 0.75).max()
        assert worst < 5.5 * np.sqrt(0.25 * 0.75 / count)
    np.testing.assert_allclose(np.unique(values), [0, 1 / 0.75], rtol=1e-6)


def test_no_two_channels_places_or_rows_share_their_draws():
    kept = np.asarray(masks(jnp.arange(400))[0], float) - 0.75
    flat = kept.reshape(400, -1)
    among_numbers = np.corrcoef(flat.T) - np.eye(flat.shape[1])
    among_rows = np.corrcoef(flat) - np.eye(400)
    assert np.abs(among_numbers).max() < 5.5 / np.sqrt(400)
    assert np.abs(among_rows).max() < 5.5 / np.sqrt(flat.shape[1])


def test_draws_follow_the_number_of_a_row_and_the_key_alone():
    whole = masks(jnp.arange(400))[1]
    some = jnp.array([399, 7, 0, 7])
    np.testing.assert_array_equal(masks(some)[1], whole[some])
    draws = token_draws(KEY, some)
    other = token_draws(jax.random.key(4), some)
    x = jnp.ones((4, LENGTH, WIDTH))
    seen = [dropout(x, 0.25, d) for d in (draws, other, draws.fold(0), draws.fold(1))]
    seen.append(dropout(x, 0.25, draws.fold(1).fold(0)))
    for i in range(len(seen)):
        for one in seen[:i]:
            assert not np.array_equal(seen[i], one)


@pytest.mark.parametrize("ends", [[[5], [0], [3]], [[17, 0, 6, 6]]])
def test_chosen_tokens_keep_the_draws_that_they_have_among_all(ends):
    ends = jnp.array(ends)
    draws = token_draws(KEY, jnp.arange(3))
    x = jax.random.normal(KEY, (3, LENGTH, WIDTH))
    first = take_tokens(dropout(x, 0.5, draws), ends)
    np.testing.assert_array_equal(first, dropout(take_tokens(x, ends), 0.5, draws.take(ends)))


def test_a_key_of_any_kind_will_do():
    rows = jnp.arange(5)
    for kind in ("threefry2x32", "rbg"):
        words = row_words(jax.random.key(1, impl=kind), rows, 9)
        some = row_words(jax.random.key(1, impl=kind), rows[3:], 9)
        np.testing.assert_array_equal(some, words[3:])
        assert len(np.unique(words)) == words.size


@pytest.fixture(scope="module")
def trained(tiny, tiny_params):
    """`trained(images, tokens, rows)`: both embeddings with all that training draws."""
    image = dataclasses.replace(tiny.image, patch_dropout=0.5)
    config = dataclasses.replace(tiny, image=image)

    @jax.jit
    def call(images, tokens, rows):
        rngs = {"dropout": KEY}
        out = CLIP(config).apply({"params": tiny_params}, images, tokens, rows, rngs=rngs)
        return out.image, out.text

    return call


def pairs(count):
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 62, (count, 8)).astype(np.int32)
    ends = rng.integers(2, 8, count)
    tokens[np.arange(count), ends] = 63
    tokens[np.arange(8) > ends[:, None]] = 0
    return rng.normal(size=(count, 8, 8, 3)).astype(np.float32), tokens


def test_a_batch_in_two_parts_gives_what_it_gives_undivided(trained):
    images, tokens = pairs(4)
    whole = trained(images, tokens, jnp.arange(4))
    for part in ([0, 1], [3, 2]):
        part = jnp.array(part)
        found = trained(images[part], tokens[part], part)
        for ours, theirs in zip(found, whole, strict=True):
            np.testing.assert_allclose(ours, theirs[part], atol=1e-6)
    moved = trained(images[:2], tokens[:2], jnp.array([1, 0]))
    for ours, theirs in zip(moved, whole, strict=True):
        assert not np.allclose(ours, theirs[:2], atol=1e-3)


def test_packed_captions_have_the_draws_of_captions_a_row_each(trained):
    images, tokens = pairs(8)
    rows = jnp.arange(8) * 5
    packed = pack(tokens, 2, Packing(row=16, tokens_per_caption=8.0))
    assert packed.tokens.shape[1] < 4, "some captions share a row"
    unpacked, found = (trained(images, t, rows) for t in (tokens, packed))
    np.testing.assert_allclose(found[1], unpacked[1], atol=1e-5)


def test_without_a_key_nothing_depends_on_the_rows(tiny, tiny_params):
    images, tokens = pairs(2)
    call = jax.jit(lambda *args: CLIP(tiny).apply({"params": tiny_params}, *args))
    found = [call(images, tokens, rows) for rows in (None, jnp.array([5, 9]))]
    jax.tree.map(np.testing.assert_array_equal, *found)
