"""A stack without gradients: the same tokens, no second copy of its parameters."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.models.draws import Draws, key_words
from clip_jax.models.transformer import Stack, StackConfig

CFG = StackConfig(width=64, layers=8, heads=2, dropout=0.1)
X = jax.random.normal(jax.random.key(0), (2, 3, 64))
MASK = jnp.tril(jnp.ones((1, 1, 3, 3), bool))
DRAWS = Draws(key_words(jax.random.key(2)), jnp.arange(2)[:, None], jnp.arange(3)[None])


@pytest.fixture(scope="module")
def params():
    return jax.jit(lambda: Stack(CFG).init(jax.random.key(1), X))()


@pytest.mark.parametrize("unroll", [1, 3])
@pytest.mark.parametrize("ends", [None, jnp.zeros((2, 1), jnp.int32)], ids=["all", "pooled"])
def test_tokens_are_those_of_the_pass_that_gradients_are_taken_of(params, unroll, ends):
    stack = Stack(dataclasses.replace(CFG, unroll=unroll))

    @jax.jit
    def both(params, x, mask, draws):
        def run(params):
            return stack.apply(params, x, mask, ends, draws)

        return run(params), jax.vjp(run, params)[0]

    alone, with_gradients = both(params, X, MASK, DRAWS)
    np.testing.assert_allclose(alone, with_gradients, 1e-5, 1e-6)


@pytest.mark.parametrize("ends", [None, jnp.zeros((2, 1), jnp.int32)], ids=["all", "pooled"])
def test_no_more_than_some_layers_are_copied(params, ends):
    run = jax.jit(lambda params, x: Stack(CFG).apply(params, x, None, ends))
    held = run.lower(params, X).compile().memory_analysis()
    layer = sum(leaf.nbytes for leaf in jax.tree.leaves(params)) / CFG.layers
    assert X.nbytes < layer / 10
    assert held.temp_size_in_bytes < 3 * layer
