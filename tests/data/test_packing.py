import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.data.packing import Packing, pack
from clip_jax.losses import Softmax
from clip_jax.models.clip import CLIP


def captions(batch, length=8, seed=0, end=63):
    """Rows of random ids, each ended by `end` somewhere, zeros after it."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, end, (batch, length)).astype(np.int32)
    ends = rng.integers(0, length, batch)
    tokens[np.arange(batch), ends] = end
    tokens[np.arange(length) > ends[:, None]] = 0
    return tokens


@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("row", [8, 13, 32])
def test_every_token_lies_in_one_place_in_order(groups, row):
    tokens = captions(24)
    packed = pack(tokens, groups, Packing(row=row, tokens_per_caption=4.0))
    assert packed.tokens.shape[0] == groups and packed.tokens.shape[2] == row
    each = 24 // groups
    for i, caption in enumerate(tokens):
        group, length = i // each, caption.argmax() + 1
        end = packed.ends[group, i % each]
        start = end - length + 1
        assert start // row == end // row  # in one row
        ids, places, names = (a[group].reshape(-1)[start : end + 1] for a in packed[:3])
        np.testing.assert_array_equal(ids, caption[:length])
        np.testing.assert_array_equal(places, np.arange(length))
        assert len(set(names)) == 1 and names[0] > 0
    assert (packed.captions > 0).sum() == (tokens.argmax(axis=1) + 1).sum()  # and no other


def test_the_model_gives_the_same_value_and_gradients_packed_or_not(tiny, tiny_params, variant):
    config = variant(tiny, **{"image.stack.dropout": 0.0, "text.stack.dropout": 0.0})
    tokens = captions(6)
    images = jax.random.normal(jax.random.key(0), (6, 8, 8, 3))

    def loss(params, tokens):
        return Softmax()(*CLIP(config).apply({"params": params}, images, tokens))

    value_and_grad = jax.jit(jax.value_and_grad(loss))
    plain = value_and_grad(tiny_params, tokens)
    for groups in (1, 2):
        packed = pack(tokens, groups, Packing(row=11, tokens_per_caption=6.0))
        other = value_and_grad(tiny_params, packed)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-4, 1e-5), plain, other)


def filled(captions, length):
    """Captions that fill their rows of eight."""
    tokens = np.ones((captions, length), np.int32)
    tokens[:, -1] = 63
    return tokens


def test_a_batch_gets_the_first_room_that_holds_it():
    packing = Packing(row=8, tokens_per_caption=2.0)
    rooms = sorted({packing.rows(64, needed) for needed in range(1, 65)})
    assert rooms[0] == packing.rows(64) == 64 * 2 / 8 and rooms[-1] == 64  # A row for each.
    assert all(small < large <= 1.25 * small + 1 for small, large in itertools.pairwise(rooms))
    for captions in (16, 17, 20, 21, 63, 64):
        tokens = np.concatenate([filled(captions, 8), np.full((64 - captions, 8), 0, np.int32)])
        tokens[captions:, 0] = 63  # One token: these lie in rows of their own.
        needed = captions + -(-(64 - captions) // 8)
        got = pack(tokens, 1, packing).tokens.shape[1]
        assert got == min(room for room in rooms if room >= needed)
    assert pack(filled(3, 8), 1, packing).tokens.shape == (1, 3, 8)
    assert pack(filled(4, 2), 1, packing).tokens.shape == (1, 1, 8)


def test_more_rows_than_captions_are_never_needed():
    assert Packing(row=8, tokens_per_caption=2.0).rows(4, needed=9) == 4
    assert Packing(row=8, tokens_per_caption=24.0).rows(4, needed=20) == 12


def test_all_groups_and_whoever_else_is_asked_have_one_room():
    tokens = np.concatenate([filled(4, 8), np.pad(filled(4, 2), ((0, 0), (0, 6)))])
    packing, asked = Packing(row=8, tokens_per_caption=2.0), []

    def agree(rows):
        asked.append(rows)
        return rows + 3

    packed = pack(tokens, 2, packing, agree)
    assert asked == [4] and packed.tokens.shape == (2, 7, 8)
    alone = pack(tokens, 2, packing)
    for ours, theirs in zip(packed[:3], alone[:3], strict=True):
        np.testing.assert_array_equal(ours[:, :4], theirs)
        assert not ours[:, 4:].any()
    np.testing.assert_array_equal(packed.ends, alone.ends)


def test_impossible_packings_are_refused(tiny, tiny_params, variant):
    with pytest.raises(ValueError, match="6 captions do not split into 4 groups"):
        pack(captions(6), 4, Packing())
    with pytest.raises(ValueError, match="a caption of 8 tokens does not fit rows of 5"):
        pack(np.array([[1, 2, 3, 4, 5, 6, 7, 63]], np.int32), 1, Packing(row=5))
    with pytest.raises(ValueError, match=r"packing needs room: row 0, 16\.0"):
        Packing(row=0)
    config = variant(tiny, **{"text.pool": "last", "text.causal": False})
    with pytest.raises(ValueError, match="only a causal tower with pool 'eot'"):
        packed = jax.tree.map(jnp.asarray, pack(captions(2), 1, Packing()))
        CLIP(config).apply({"params": tiny_params}, packed, method="encode_text")
