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


def test_a_batch_that_needs_more_room_gets_twice_the_rows():
    tokens = np.full((4, 8), 1, np.int32)
    tokens[:, -1] = 63
    packing = Packing(row=8, tokens_per_caption=2.0)
    assert pack(tokens, 1, packing).tokens.shape == (1, 4, 8)
    assert pack(tokens[:1].repeat(3, 0), 1, packing).tokens.shape == (1, 4, 8)
    tokens[:, 1], tokens[:, 2:] = 63, 0
    assert pack(tokens, 1, packing).tokens.shape == (1, 1, 8)


def test_where_shapes_may_not_change_the_room_that_is_needed_is_told():
    tokens = np.full((8, 4), 9, np.int32)
    tokens[:, :3] = 1  # Four tokens each, two captions a row.
    packing = Packing(row=8, tokens_per_caption=3.0)
    with pytest.raises(ValueError, match=r"8 captions need 4 rows .* has room for 3, .* of 4\.0"):
        pack(tokens, 1, packing, grow=False)
    told = Packing(row=8, tokens_per_caption=4.0)
    assert pack(tokens, 1, told, grow=False).tokens.shape == (1, 4, 8)


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
