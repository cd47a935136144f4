import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from clip_jax.train.loop import DivergedError, fit
from clip_jax.train.state import State

OPT = optax.adam(0.1)


@jax.jit
def step(state, batch):
    def loss(params):
        return (params - batch["target"]) ** 2

    value, grads = jax.value_and_grad(loss)(state.params)
    updates, opt = OPT.update(grads, state.opt, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics = {"loss": value, "grad_norm": jnp.abs(grads), "update_norm": jnp.abs(updates)}
    return State(state.step + 1, params, opt), metrics


def start():
    params = jnp.float32(0.0)
    return State(jnp.int32(0), params, OPT.init(params))


def targets(*values):
    return ({"target": jnp.float32(v)} for v in itertools.chain(values, itertools.repeat(1.0)))


class Record:
    def __init__(self, every):
        self.every, self.seen = every, []

    def due(self, done):
        return self.every > 0 and done % self.every == 0

    def __call__(self, done, state, metrics):
        assert int(state.step) == done
        self.seen.append(done)


def test_hooks_see_their_steps_and_the_last_in_the_order_given():
    order = []

    class Named(Record):
        def __call__(self, done, state, metrics):
            order.append((done, self.every))

    fit(start(), targets(), step, steps=10, hooks=[Named(4), Named(5), Named(0)])
    assert order == [(4, 4), (5, 5), (8, 4), (10, 4), (10, 5), (10, 0)]


def test_two_halves_equal_the_whole():
    whole = fit(start(), targets(), step, steps=10)
    half = fit(start(), targets(), step, steps=5)
    both = fit(half, targets(), step, steps=10)
    np.testing.assert_array_equal(whole.params, both.params)
    assert int(both.step) == 10


def test_a_finished_run_takes_no_step_and_no_batch():
    done = fit(start(), targets(), step, steps=3)

    def no_batches():
        raise AssertionError("asked for a batch")
        yield

    assert fit(done, no_batches(), step, steps=3, hooks=[Record(1)]) is done


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("at", [1, 4, 6])
def test_a_loss_that_is_not_finite_stops_with_its_step_before_any_hook_sees_it(bad, at):
    hook = Record(2)
    values = [1.0] * (at - 1) + [bad]
    with pytest.raises(DivergedError, match=f"step {at}: loss is (nan|inf)"):
        fit(start(), targets(*values), step, steps=6, hooks=[hook])
    assert hook.seen == [done for done in (2, 4, 6) if done < at]


def test_a_value_that_moves_to_the_device_unasked_is_refused_in_the_loop():
    def careless(state, batch):
        return step(state, {"target": np.asarray(batch["target"])})

    with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device transfer"):
        fit(start(), targets(), careless, steps=2)
    fit(start(), targets(), lambda *given: step(*jax.device_put(given)), steps=2)


def test_hooks_and_batches_may_move_what_they_like():
    class Careless(Record):
        def __call__(self, done, state, metrics):
            super().__call__(done, state, step(state, {"target": np.float32(1)})[1])

    fit(start(), targets(), step, steps=2, hooks=[Careless(1)])
