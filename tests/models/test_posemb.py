import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.models.posemb import NaflexPositions, resample, resample_length

GOLDEN = dict(np.load(pathlib.Path(__file__).parents[1] / "golden" / "positions.npz"))
"""What PyTorch makes of small tables; see golden/make_modules.py."""


def size(text):
    return tuple(int(side) for side in text.split("x"))


def resampled(table, grid, new, **options):
    """`resample`, compiled: here faster than one operation at a time."""
    return jax.jit(lambda table: resample(table, grid, new, **options))(table)


def normal(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("key", [key for key in GOLDEN if key.count("/") == 2])
def test_grids_are_resampled_as_by_pytorch(key):
    grid, method, new = key.split("/")
    made = resampled(GOLDEN[grid], size(grid), size(new), prefix=0, method=method)
    np.testing.assert_allclose(made, GOLDEN[key], rtol=0, atol=2e-6)


@pytest.mark.parametrize("key", [key for key in GOLDEN if key.startswith("text/")])
def test_lengths_are_resampled_as_by_pytorch(key):
    made = resample_length(GOLDEN["text"], int(key.removeprefix("text/")))
    np.testing.assert_allclose(made, GOLDEN[key], rtol=0, atol=2e-6)


@pytest.mark.parametrize("method", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("grid", "new"), [((14, 14), (24, 24)), ((3, 8), (2, 16))])
def test_class_tokens_stay_and_a_constant_stays_constant(grid, new, method):
    table = np.full((2 + grid[0] * grid[1], 3), 0.7, np.float32)
    table[:2] = normal(2, 3)
    made = resampled(table, grid, new, prefix=2, method=method)
    assert made.shape == (2 + new[0] * new[1], 3)
    np.testing.assert_array_equal(made[:2], table[:2])
    np.testing.assert_allclose(made[2:], 0.7, rtol=1e-6)


@pytest.mark.parametrize("method", ["bicubic", "bilinear"])
def test_the_same_grid_gives_the_same_table(method):
    table = normal(1 + 6 * 5, 4)
    made = resampled(table, (6, 5), (6, 5), prefix=1, method=method)
    np.testing.assert_allclose(made, table, atol=1e-6)
    np.testing.assert_allclose(
        jax.jit(resample_length, static_argnums=1)(table, 31), table, atol=1e-6
    )


def test_rows_and_columns_are_resampled_alike_but_not_confused():
    table = normal(4, 6, 2)
    turned = table.swapaxes(0, 1).reshape(24, 2)
    made = resampled(table.reshape(24, 2), (4, 6), (9, 5), prefix=0, method="bicubic")
    again = resampled(turned, (6, 4), (5, 9), prefix=0, method="bicubic")
    expected = np.asarray(again).reshape(5, 9, 2).swapaxes(0, 1)
    np.testing.assert_allclose(np.reshape(made, (9, 5, 2)), expected, atol=1e-6)


def test_finer_grids_keep_a_slope_and_coarser_ones_average_it():
    ramp = np.repeat(np.arange(8.0, dtype=np.float32)[:, None], 8, axis=1).reshape(64, 1)
    finer = np.reshape(resampled(ramp, (8, 8), (16, 8), prefix=0, method="bicubic"), (16, 8))
    np.testing.assert_allclose(finer[4:12, 3], np.arange(4, 12) / 2 - 0.25, atol=1e-5)
    # Two cells become one: it looks at all within two of its middle, weighted 1, 3, 3, 1.
    spike = np.zeros((8, 1), np.float32)
    spike[3] = 8.0
    coarse = resampled(spike, (8, 1), (4, 1), prefix=0, method="bilinear")
    np.testing.assert_allclose(coarse[:, 0], [0, 3, 1, 0], atol=1e-6)


@pytest.mark.parametrize("kind", [jnp.bfloat16, np.float32, np.float16])
def test_tables_of_numpy_and_jax_keep_their_type(kind):
    table = normal(10, 4)
    given = jnp.asarray(table, kind) if kind is jnp.bfloat16 else table.astype(kind)
    made = resample(given, (3, 3), (5, 5), prefix=1, method="bicubic")
    length = resample_length(given, 7)
    assert isinstance(made, jax.Array) and made.dtype == length.dtype == kind
    full = resample(np.float32(given), (3, 3), (5, 5), prefix=1, method="bicubic")
    np.testing.assert_allclose(np.float32(made), full, atol=0.02)


def test_tables_and_grids_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"50 positions are not 1 and a grid of \(8, 8\)"):
        resample(normal(50, 2), (8, 8), (4, 4), prefix=1, method="bicubic")
    with pytest.raises(ValueError, match=r"a grid of \(4, 0\) has no cell"):
        resample(normal(64, 2), (8, 8), (4, 0), prefix=0, method="bilinear")


def test_naflex_positions_are_the_table_resampled_to_the_grid_of_each_image():
    grids = [(4, 4), (2, 9), (9, 2), (1, 1), (1, 20), (20, 1), (3, 6), (6, 3)]
    tokens = normal(len(grids), 20, 5)
    table = normal(16, 5)
    module = NaflexPositions(4, 0.1)
    add = jax.jit(lambda x, grid: module.apply({"params": {"embedding": table}}, x, grid))
    added = np.asarray(add(tokens, np.array(grids, np.int32))) - tokens
    for (rows, columns), one in zip(grids, added, strict=True):
        expected = resampled(table, (4, 4), (rows, columns), prefix=0, method="bilinear")
        np.testing.assert_allclose(one[: rows * columns], expected, atol=2e-6)
    assert np.isfinite(added).all()


def test_gradients_of_the_naflex_table_are_those_of_resampling():
    grids, cotangent = [(3, 5), (7, 2)], normal(2, 15, 5)
    module, tokens = NaflexPositions(4, 0.1), jnp.zeros((2, 15, 5))

    def fast(table):
        moved = module.apply({"params": {"embedding": table}}, tokens, jnp.array(grids))
        return sum(
            (moved[b, : r * c] * cotangent[b, : r * c]).sum() for b, (r, c) in enumerate(grids)
        )

    def slow(table):
        made = (resample(table, (4, 4), g, prefix=0, method="bilinear") for g in grids)
        return sum((m * cotangent[b, : len(m)]).sum() for b, m in enumerate(made))

    table = jnp.asarray(normal(16, 5))
    np.testing.assert_allclose(
        jax.jit(jax.grad(fast))(table), jax.jit(jax.grad(slow))(table), atol=1e-5
    )
