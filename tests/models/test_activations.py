import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.models.transformer import ACTIVATIONS

X = np.concatenate([np.linspace(-9, 9, 1001), [0.0, -1e-30, 1e4, -1e4]])


def normal(x):
    return 0.5 * math.erfc(-x * math.sqrt(0.5))


def bell(x):
    return math.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def sigmoid(x):
    return 0.5 + 0.5 * math.tanh(x / 2)


def tanh_slope(x):
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    inside = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x * x)
    t = math.tanh(inner)
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * inside


EXACT = {
    "gelu": (lambda x: x * normal(x), lambda x: normal(x) + x * bell(x)),
    "gelu_tanh": (
        lambda x: 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
        tanh_slope,
    ),
    "quick_gelu": (
        lambda x: x * sigmoid(1.702 * x),
        lambda x: sigmoid(1.702 * x) * (1 + 1.702 * x * (1 - sigmoid(1.702 * x))),
    ),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_values_and_slopes_are_those_of_the_formula_in_double_precision(name):
    value, slope = (np.vectorize(f)(X) for f in EXACT[name])
    x = jnp.asarray(X, jnp.float32)
    found, pull = jax.vjp(ACTIVATIONS[name], x)
    np.testing.assert_allclose(found, value, 1e-6, 2e-6)
    np.testing.assert_allclose(pull(jnp.ones_like(x))[0], slope, 1e-5, 1e-5)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_in_bfloat16_only_the_result_is_rounded(name):
    x = jnp.asarray(X, jnp.bfloat16)
    found, pull = jax.vjp(ACTIVATIONS[name], x)
    (slope,) = pull(jnp.ones_like(x))
    exact = [np.vectorize(f)(np.asarray(x, np.float64)) for f in EXACT[name]]
    assert found.dtype == slope.dtype == jnp.bfloat16
    for rounded, whole in zip((found, slope), exact, strict=True):
        np.testing.assert_allclose(np.asarray(rounded, np.float64), whole, 2**-8, 1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_nothing_but_the_input_is_kept_for_the_backward_pass(name, dtype):
    x = jax.ShapeDtypeStruct((5, 7), dtype)
    kept = jax.eval_shape(lambda x: jax.vjp(ACTIVATIONS[name], x)[1], x)
    assert [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(kept)] == [(x.shape, x.dtype)]


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_nor_does_the_compiler_keep_more_of_layers_side_by_side(name):
    layers, tokens, width = 6, 64, 256

    def loss(params, x):
        for up, down in params:
            x = ACTIVATIONS[name](x @ up) @ down
        return x.sum()

    up, down = (
        jax.ShapeDtypeStruct((8, width), "float32"),
        jax.ShapeDtypeStruct((width, 8), "float32"),
    )
    x = jax.ShapeDtypeStruct((tokens, 8), "float32")
    compiled = jax.jit(jax.grad(loss)).lower([(up, down)] * layers, x).compile()
    hidden = layers * tokens * width * 4
    # What goes into an activation, what comes out, and some in passing.
    assert 2 * hidden <= compiled.memory_analysis().temp_size_in_bytes < 2.6 * hidden
