"""What blocks keep for the backward pass changes memory alone."""

import dataclasses
import types

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.models import remat
from clip_jax.models.draws import Draws, key_words
from clip_jax.models.remat import KEPT, policy
from clip_jax.models.transformer import Stack, StackConfig

CFG = StackConfig(width=32, layers=6, heads=2, dropout=0.1)
X = jax.random.normal(jax.random.key(0), (8, 32, 32))


@pytest.fixture(scope="module")
def compiled():
    """`compiled(config)`: value and gradients of a stack; its temporaries and its operations."""
    params = jax.jit(lambda: Stack(CFG).init(jax.random.key(1), X))()
    draws = Draws(key_words(jax.random.key(2)), jnp.arange(8)[:, None], jnp.arange(32)[None])

    def run(config):
        def value(params, x):
            out = Stack(config).apply(params, x, draws=draws)
            return jnp.sum(out * jnp.cos(jnp.arange(out.size)).reshape(out.shape))

        program = jax.jit(jax.value_and_grad(value, (0, 1))).lower(params, X).compile()
        memory, work = program.memory_analysis(), program.cost_analysis()
        return program(params, X), memory.temp_size_in_bytes, work["flops"]

    return run


def test_the_less_is_kept_the_more_is_computed_and_the_result_stays(compiled):
    all_kept, *costs = compiled(CFG)
    costs = [costs]
    for kept in ("products", "attention", "nothing"):
        found, *cost = compiled(dataclasses.replace(CFG, remat=kept))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-4, 1e-4), found, all_kept)
        costs.append(cost)
    assert list(reversed(KEPT)) == ["products", "attention", "nothing"]
    batch, length, width = X.shape
    token, product = X.nbytes * CFG.layers, 2 * batch * length * width**2
    # By steps: what is no longer kept, in numbers a token and widths (at least the MLP's width
    # after the non-linearity; attended and hidden; qkv and mixed), and what is computed again, in
    # products (none; the projections out and up; those to qkv, and weights by values: L is W).
    for i, (widths, products) in enumerate(((4, 0), (5, 5), (4, 4))):
        (more, less), (before, after) = zip(costs[i], costs[i + 1], strict=True)
        assert more - less > 0.8 * widths * token, costs
        assert after - before > 0.9 * products * product, costs
    assert costs[1][1] - costs[0][1] < 4 * product, "no MLP is computed twice"


def test_what_is_kept_can_wait_on_the_host(compiled):
    plain, *_ = compiled(dataclasses.replace(CFG, remat="attention"))
    moved, *_ = compiled(dataclasses.replace(CFG, remat="attention", offload=True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-4, 1e-4), moved, plain)


def moves(jaxpr):
    """Shapes that a traced program moves, by where to."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "device_put":
            yield equation.params["devices"][0].name, equation.invars[0].aval.shape
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from moves(inner)


def test_offload_moves_the_input_and_what_is_kept_and_nothing_else():
    config = dataclasses.replace(CFG, remat="attention", offload=True)
    params = jax.eval_shape(lambda: Stack(CFG).init(jax.random.key(1), X))
    grad = jax.grad(lambda params: Stack(config).apply(params, X).sum())
    found = list(moves(jax.make_jaxpr(grad)(params).jaxpr))
    kept = [(8, 32, 32), (3, 8, 2, 32, 16), (8, 2, 32, 16)]  # Input, qkv, mixed.
    for place in ("Host", "Device"):
        assert sorted(shape for where, shape in found if where == place) == sorted(kept)


def test_devices_without_a_way_to_the_hosts_memory_are_refused(monkeypatch):
    memory = types.SimpleNamespace(kind="device")
    device = types.SimpleNamespace(device_kind="toy", addressable_memories=lambda: [memory])
    monkeypatch.setattr(remat.jax, "local_devices", lambda: [device])
    with pytest.raises(ValueError, match=r"'pinned_host'; toy has \['device'\]: set offload=False"):
        policy("nothing", True)
    assert callable(policy("nothing", False))


def test_offload_alone_is_refused():
    with pytest.raises(ValueError, match="offload moves what remat keeps: choose a remat"):
        dataclasses.replace(CFG, offload=True)
