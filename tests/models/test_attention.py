import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.models.attention import Attention, Dense, attend, take_tokens
from clip_jax.models.pooling import MapPool
from clip_jax.models.posemb import sincos_2d
from clip_jax.models.transformer import ACTIVATIONS, Block, Stack, StackConfig
from clip_jax.models.vit import patches

CFG = StackConfig(width=12, layers=3, heads=2)


def normal(key, *shape):
    return jax.random.normal(jax.random.key(key), shape)


def slow_attend(query, key, value, mask=None):
    out = np.zeros_like(query)
    for b, n, i in np.ndindex(query.shape[:3]):
        scores = np.array([query[b, n, i] @ k for k in key[b, n]]) / np.sqrt(query.shape[-1])
        if mask is not None:
            scores = np.where(mask[0, 0, i], scores, -np.inf)
        weights = np.exp(scores - scores.max())
        out[b, n, i] = weights @ value[b, n] / weights.sum()
    return out


@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_a_weighted_mean_of_values(masked):
    query, key, value = (normal(k, 2, 3, 5, 4) for k in range(3))
    mask = jnp.tril(jnp.ones((1, 1, 5, 5), bool)) if masked else None
    expected = slow_attend(*map(np.asarray, (query, key, value)), mask)
    np.testing.assert_allclose(attend(query, key, value, mask), expected, atol=1e-5)


def test_dense_equals_a_contraction_of_the_trailing_dimensions():
    x = normal(0, 2, 3, 4, 5)
    dense = Dense((6, 7), inputs=2, bias_init=jax.nn.initializers.normal(1.0))
    variables = dense.init(jax.random.key(1), x)
    kernel, bias = variables["params"]["kernel"], variables["params"]["bias"]
    assert kernel.shape == (4, 5, 6, 7)
    expected = jnp.tensordot(x, kernel, axes=2) + bias[None, None]
    np.testing.assert_allclose(dense.apply(variables, x), expected, atol=1e-5)


def test_heads_read_their_own_slice_of_the_fused_projection():
    x = normal(0, 2, 5, 12)
    module = Attention(heads=2)
    variables = module.init(jax.random.key(1), x)
    params = variables["params"]
    q, k, v = (
        np.moveaxis(np.tensordot(x, params["qkv"]["kernel"][:, i], axes=1), 1, 2) for i in range(3)
    )
    mixed = np.moveaxis(slow_attend(q, k, v), 1, 2)
    expected = np.tensordot(mixed, params["out"]["kernel"], axes=2)
    np.testing.assert_allclose(module.apply(variables, x), expected, atol=1e-5)


def test_a_causal_block_cannot_see_the_future():
    x = normal(0, 2, 6, 12)
    mask = jnp.tril(jnp.ones((1, 1, 6, 6), bool))
    block = Block(CFG)
    variables = block.init(jax.random.key(1), x, mask)
    changed = x.at[:, 4:].set(0.0)
    before, after = block.apply(variables, x, mask), block.apply(variables, changed, mask)
    np.testing.assert_array_equal(before[:, :4], after[:, :4])
    assert not np.allclose(before[:, 4:], after[:, 4:])


def test_a_stack_is_its_blocks_one_after_the_other():
    x = normal(0, 2, 6, 12)
    stack = Stack(CFG)
    variables = stack.init(jax.random.key(1), x)
    y = x
    for layer in range(CFG.layers):
        params = jax.tree.map(lambda leaf, layer=layer: leaf[layer], variables["params"]["blocks"])
        y = Block(CFG).apply({"params": params}, y)
    np.testing.assert_allclose(stack.apply(variables, x), y, atol=1e-5)


def test_attention_pooling_ignores_the_order_of_tokens():
    x = normal(0, 2, 6, 12)
    pool = MapPool(CFG)
    variables = pool.init(jax.random.key(1), x)
    np.testing.assert_allclose(
        pool.apply(variables, x), pool.apply(variables, x[:, ::-1]), atol=1e-5
    )
    assert not np.allclose(pool.apply(variables, x), pool.apply(variables, x.at[:, 0].set(9.0)))


def test_patches_are_squares_read_row_by_row():
    images = normal(0, 2, 6, 9, 3)
    cut = patches(images, 3)
    assert cut.shape == (2, 6, 27)
    for index in range(6):
        row, column = divmod(index, 3)
        square = images[:, 3 * row : 3 * row + 3, 3 * column : 3 * column + 3]
        np.testing.assert_array_equal(cut[:, index], square.reshape(2, -1))


def test_tokens_are_taken_group_by_group():
    x = normal(0, 6, 5, 2)
    one_each = jnp.array([[4], [0], [2], [1], [1], [3]])
    np.testing.assert_array_equal(take_tokens(x, one_each), x[jnp.arange(6), one_each[:, 0]])
    two_groups = jnp.array([[14, 0, 7, 7], [3, 5, 9, 10]])
    expected = np.concatenate(
        [x[:3].reshape(15, 2)[two_groups[0]], x[3:].reshape(15, 2)[two_groups[1]]]
    )
    np.testing.assert_array_equal(take_tokens(x, two_groups), expected)


@pytest.fixture(scope="module")
def stack_variables():
    return jax.jit(Stack(CFG).init)(jax.random.key(1), normal(0, 4, 5, 12))


@pytest.mark.parametrize(
    ("ends", "masked"),
    [
        ([[4], [0], [2], [3]], False),
        ([[9, 0, 7], [3, 5, 1]], True),
        ([[19, 0, 0]], True),
    ],
)
def test_a_stack_told_which_tokens_count_gives_those_of_the_whole(ends, masked, stack_variables):
    x = normal(0, 4, 5, 12)
    mask = jnp.tril(jnp.ones((1, 1, 5, 5), bool)) if masked else None
    ends = jnp.array(ends)

    def whole(variables):
        return take_tokens(Stack(CFG).apply(variables, x, mask), ends)

    def told(cfg):
        return lambda variables: Stack(cfg).apply(variables, x, mask, ends)

    def weighed(encode, variables):
        out = encode(variables)
        return jnp.sum(out * jnp.arange(out.size).reshape(out.shape)), out

    @jax.jit  # One program: most of the time goes into starting to compile.
    def all_ways(variables):
        ways = [(1, None), (1, "nothing"), (3, None), (3, "nothing")]
        configs = [dataclasses.replace(CFG, unroll=n, remat=kept) for n, kept in ways]
        return [
            jax.value_and_grad(partial(weighed, encode), has_aux=True)(variables)
            for encode in (whole, *map(told, configs))
        ]

    plain, *fast = all_ways(stack_variables)
    for found in fast:
        np.testing.assert_allclose(found[0][1], plain[0][1], atol=1e-5)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-4, 1e-3), plain, found)


def test_sine_positions_differ_everywhere_and_know_rows_from_columns():
    table = sincos_2d((3, 4), 16)
    assert table.shape == (12, 16)
    assert len(np.unique(table.round(6), axis=0)) == 12
    grid = table.reshape(3, 4, 16)
    np.testing.assert_array_equal(grid[0, :, :8], grid[2, :, :8])  # first half: the column
    np.testing.assert_array_equal(grid[:, 0, 8:], grid[:, 3, 8:])  # second half: the row
    np.testing.assert_allclose((table**2).sum(1), 8, rtol=1e-5)
    with pytest.raises(ValueError, match="a width that 4 divides, got 6"):
        sincos_2d((2, 2), 6)


def test_activations_are_the_published_ones():
    x = jnp.array([-3.0, -1.0, 0.0, 0.5, 2.0])
    np.testing.assert_allclose(
        ACTIVATIONS["quick_gelu"](x), x / (1 + np.exp(-1.702 * x)), rtol=1e-5
    )
    exact = x * 0.5 * (1 + jax.scipy.special.erf(x / np.sqrt(2)))
    np.testing.assert_allclose(ACTIVATIONS["gelu"](x), exact, atol=1e-6)
    tanh = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    np.testing.assert_allclose(ACTIVATIONS["gelu_tanh"](x), tanh, atol=1e-6)
    assert not np.allclose(ACTIVATIONS["gelu"](x), ACTIVATIONS["quick_gelu"](x), atol=1e-3)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\), got 1.0"),
        ({"layers": 0}, r"layers \(0\) and unroll \(1\) start at 1"),
    ],
)
def test_impossible_stacks_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        StackConfig(**{"width": 12, "layers": 3, "heads": 2} | fields)
