import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from clip_jax import tree
from clip_jax.optim.build import Adafactor, AdamW, Lion, OptimConfig, build
from clip_jax.optim.schedule import Constant, Cosine

FLAT = Constant(warmup=0)
METHODS = [AdamW(), Lion(), Adafactor(), Adafactor(b1=None), AdamW(moment_dtype="bfloat16")]


def random(seed, params):
    keys = jax.random.split(jax.random.key(seed), len(jax.tree.leaves(params)))
    keys = jax.tree.unflatten(jax.tree.structure(params), list(keys))
    return jax.tree.map(lambda key, x: jax.random.normal(key, x.shape, x.dtype), keys, params)


@pytest.fixture(scope="module")
def params():
    zeros = {
        "image": {
            "blocks": {"up": {"kernel": jnp.zeros((2, 40, 48)), "bias": jnp.zeros((2, 48))}},
            "norm": {"scale": jnp.zeros(40)},
        },
        "text": {"head": {"kernel": jnp.zeros((48, 40)), "bias": jnp.zeros(40)}},
        "logit_scale": jnp.zeros(()),
    }
    return random(0, zeros)


def run(config, params, steps=5, total=5, seed=1):
    """Parameters after each update, with gradients drawn anew each time; and the last state."""
    optimizer, _ = build(config, params, total)
    state, seen = optimizer.init(params), [params]
    step = jax.jit(optimizer.update)
    for t in range(steps):
        updates, state = step(random(seed + t, params), state, seen[-1])
        seen.append(optax.apply_updates(seen[-1], updates))
    return seen, state


def leaf(params, path):
    for name in path.split("/"):
        params = params[name]
    return np.asarray(params)


def adamw_by_hand(x, grads, rates, decay, *, b1=0.9, b2=0.98, eps=1e-6):
    """PyTorch's documentation of AdamW, line by line, in float64."""
    x, m, v = x.astype(np.float64), 0.0, 0.0
    for t, (g, rate) in enumerate(zip(grads, rates, strict=True), start=1):
        g = g.astype(np.float64)
        x = x - rate * decay * x
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g * g
        x = x - rate * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
    return x


@pytest.mark.parametrize(
    ("path", "decay"),
    [
        ("image/blocks/up/kernel", 0.2),
        ("text/head/kernel", 0.2),
        ("image/blocks/up/bias", 0.0),
        ("image/norm/scale", 0.0),
        ("logit_scale", 0.0),
    ],
)
def test_adamw_equals_a_hand_written_one_with_decay_on_matrices_only(params, path, decay):
    config = OptimConfig(learning_rate=0.1, schedule=Cosine(warmup=2), clip_norm=None)
    seen, _ = run(config, params)
    rates = [0.0, 0.05, 0.1, 0.1 * 0.75, 0.1 * 0.25]
    grads = [leaf(random(1 + t, params), path) for t in range(5)]
    expected = adamw_by_hand(leaf(params, path), grads, rates, decay)
    np.testing.assert_allclose(leaf(seen[-1], path), expected, rtol=2e-5, atol=1e-6)


def test_adamw_equals_optax(params):
    config = OptimConfig(learning_rate=3e-3, schedule=FLAT, clip_norm=0.5)
    ours = run(config, params)[0][-1]
    mask = jax.tree.map(lambda x: x.ndim > 1 and x.shape != (2, 48), params)
    theirs = optax.chain(
        optax.clip_by_global_norm(0.5),
        optax.adamw(3e-3, 0.9, 0.98, 1e-6, weight_decay=0.2, mask=mask),
    )
    state, expected = theirs.init(params), params
    for t in range(5):
        updates, state = theirs.update(random(1 + t, params), state, expected)
        expected = optax.apply_updates(expected, updates)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), ours, expected
    )


def test_lion_moves_every_parameter_by_the_rate_in_the_direction_of_the_mean(params):
    method = Lion(weight_decay=0.0)
    config = OptimConfig(method=method, learning_rate=0.25, schedule=FLAT, clip_norm=None)
    seen, _ = run(config, params, steps=3)
    path, mean = "text/head/kernel", 0.0
    for t in range(3):
        grad = leaf(random(1 + t, params), path)
        expected = leaf(seen[t], path) - 0.25 * np.sign(0.9 * mean + 0.1 * grad)
        np.testing.assert_allclose(leaf(seen[t + 1], path), expected, rtol=1e-6, atol=1e-6)
        mean = 0.99 * mean + 0.01 * grad


def adafactor_by_hand(x, grads, rate, b2):
    """Section 4 of arXiv:1804.04235 for one matrix, with momentum of the steps."""
    row, column, mean = 0.0, 0.0, 0.0
    for t, g in enumerate(grads, start=1):
        b2_t = min(b2, 1 - t**-0.8)
        row = b2_t * row + (1 - b2_t) * (g * g).mean(axis=1)
        column = b2_t * column + (1 - b2_t) * (g * g).mean(axis=0)
        step = g / np.sqrt(np.outer(row, column) / row.mean())
        mean = 0.9 * mean + 0.1 * step
        x = x - rate * mean
    return x


def test_adafactor_treats_stacked_layers_as_separate_matrices(params):
    method = Adafactor(weight_decay=0.0, b2=0.6)
    config = OptimConfig(method=method, learning_rate=0.1, schedule=FLAT, clip_norm=None)
    seen, _ = run(config, params)
    path = "image/blocks/up/kernel"
    grads = [leaf(random(1 + t, params), path) for t in range(5)]
    for layer in range(2):
        expected = adafactor_by_hand(leaf(params, path)[layer], [g[layer] for g in grads], 0.1, 0.6)
        np.testing.assert_allclose(leaf(seen[-1], path)[layer], expected, rtol=1e-4, atol=1e-5)


def test_adafactor_never_mixes_the_biases_of_many_layers():
    params = {"blocks": {"bias": jnp.ones((64, 64)), "kernel": jnp.ones((64, 64))}}
    config = OptimConfig(method=Adafactor(b1=None), learning_rate=1.0)
    state = build(config, params, 5)[0].init(params)
    shapes = {"bias": set(), "kernel": set()}
    for path, moment in zip(tree.paths(state), jax.tree.leaves(state), strict=True):
        if not path.endswith("/count"):
            shapes[path.rpartition("/")[2]].add(moment.shape)
    assert shapes == {"bias": {(64, 64), (1,)}, "kernel": {(64,), (1,)}}


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_frozen_parts_never_move_hold_no_moments_and_do_not_clip(params, method):
    rates = {"image/*": 0.0}
    config = OptimConfig(method=method, learning_rate=0.1, schedule=FLAT, rates=rates)
    optimizer, _ = build(config, params, 5)
    state = optimizer.init(params)
    grads = random(1, params)
    wild = {**grads, "image": jax.tree.map(lambda x: x * jnp.nan, grads["image"])}
    calm_updates, _ = jax.jit(optimizer.update)(grads, state, params)
    wild_updates, _ = jax.jit(optimizer.update)(wild, state, params)
    for update in jax.tree.leaves(wild_updates["image"]):
        np.testing.assert_array_equal(update, 0.0)
    jax.tree.map(np.testing.assert_array_equal, calm_updates, wild_updates)
    assert not [path for path in tree.paths(state) if "image/" in path]
    assert all(np.any(x != 0) for x in jax.tree.leaves(wild_updates["text"]))


def test_a_frozen_tower_costs_no_memory(params):
    def size(rates):
        config = OptimConfig(learning_rate=0.1, rates=rates)
        return tree.count(build(config, params, 5)[0].init(params))

    counters = 2
    assert size({}) == 2 * tree.count(params) + counters
    assert size({"image/*": 0.0}) == 2 * (48 * 40 + 40 + 1) + counters


def test_a_multiplier_scales_step_and_decay_alike(params):
    def moved(rates, learning_rate):
        config = OptimConfig(
            learning_rate=learning_rate, schedule=FLAT, clip_norm=None, rates=rates
        )
        return run(config, params, steps=1)[0][-1]

    slow, slower = moved({"text/*": 0.125}, 0.4), moved({}, 0.05)
    np.testing.assert_allclose(
        slow["text"]["head"]["kernel"], slower["text"]["head"]["kernel"], rtol=1e-6
    )
    np.testing.assert_array_equal(slow["logit_scale"], moved({}, 0.4)["logit_scale"])


def test_gradients_are_clipped_to_the_global_norm(params):
    # With eps far above the gradients, Adam's first step is the clipped gradient over eps.
    method = AdamW(eps=1e6, weight_decay=0.0)
    config = OptimConfig(method=method, learning_rate=1.0, schedule=FLAT, clip_norm=0.5)
    optimizer, _ = build(config, params, 5)
    grads = random(3, params)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    assert optax.tree.norm(updates) * 1e6 == pytest.approx(0.5, rel=1e-4)
    short = jax.tree.map(lambda x: x * 1e-3, grads)
    updates, _ = optimizer.update(short, optimizer.init(params), params)
    assert optax.tree.norm(updates) * 1e6 == pytest.approx(float(optax.tree.norm(short)), rel=1e-4)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_every_moment_has_the_path_of_its_parameter(params, method):
    state = build(OptimConfig(method=method, learning_rate=1.0), params, 5)[0].init(params)
    shapes = dict(zip(tree.paths(params), [x.shape for x in jax.tree.leaves(params)], strict=True))
    followed = set()
    for path, moment in zip(tree.paths(state), jax.tree.leaves(state), strict=True):
        owner = [p for p in shapes if path.endswith("/" + p)]
        assert owner or (moment.shape == () and path.endswith("/count")), path
        followed |= {p for p in owner if moment.shape == shapes[p]}
    if method != Adafactor(b1=None):
        assert followed == set(shapes)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_the_state_of_shapes_is_the_state_of_arrays(params, method):
    config = OptimConfig(method=method, learning_rate=1.0, rates={"text/*": 0.5})
    shapes = jax.eval_shape(lambda: params)
    planned = jax.eval_shape(build(config, shapes, 5)[0].init, shapes)
    made = build(config, params, 5)[0].init(params)
    assert jax.tree.structure(planned) == jax.tree.structure(made)
    assert [(x.shape, x.dtype) for x in jax.tree.leaves(planned)] == [
        (x.shape, x.dtype) for x in jax.tree.leaves(made)
    ]


@pytest.mark.parametrize("method", [Lion, Adafactor, AdamW])
def test_moments_can_be_halved(params, method):
    def widths(dtype):
        config = OptimConfig(method=method(moment_dtype=dtype), learning_rate=1.0)
        state = run(config, params, steps=1)[1]
        return sum(x.nbytes for x in jax.tree.leaves(state))

    assert widths("float32") - widths("bfloat16") == 2 * tree.count(params)


def test_two_halves_of_a_run_equal_the_whole(params):
    config = OptimConfig(learning_rate=0.1, schedule=Cosine(warmup=2))
    again, _ = build(config, params, 6)
    whole, _ = run(config, params, steps=6, total=6)
    half, state = run(config, params, steps=3, total=6)
    resumed = half[-1]
    assert jax.tree.structure(state) == jax.tree.structure(again.init(params))
    for t in range(3, 6):
        updates, state = jax.jit(again.update)(random(1 + t, params), state, resumed)
        resumed = optax.apply_updates(resumed, updates)
    jax.tree.map(np.testing.assert_array_equal, resumed, whole[-1])


def test_the_schedule_returned_is_the_one_followed(params):
    method = Lion(weight_decay=0.0)
    config = OptimConfig(method=method, learning_rate=0.5, schedule=Cosine(warmup=2))
    seen, _ = run(config, params)
    _, schedule = build(config, params, 5)
    scales = [float(np.asarray(p["logit_scale"])) for p in seen]
    np.testing.assert_allclose(np.abs(np.diff(scales)), [schedule(t) for t in range(5)], rtol=1e-5)


def test_freezing_everything_is_refused(params):
    config = OptimConfig(learning_rate=1.0, rates={"*": 0.0})
    with pytest.raises(ValueError, match=r"rates \{'\*': 0.0\} freeze every parameter"):
        build(config, params, 5)


def test_faults_of_the_parts_come_through(params):
    with pytest.raises(ValueError, match=r"pattern 'imge/\*' matches no parameter"):
        build(OptimConfig(learning_rate=1.0, rates={"imge/*": 0.1}), params, 5)
    with pytest.raises(ValueError, match="no rule for 1 parameters: gamma"):
        build(OptimConfig(learning_rate=1.0), {"gamma": jnp.ones(2)}, 5)
    with pytest.raises(ValueError, match="do not fit into a run of 5 steps"):
        build(OptimConfig(learning_rate=1.0, schedule=Cosine(warmup=9)), params, 5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: AdamW(b1=1.0, b2=-0.1, eps=0.0, weight_decay=-1.0),
            "AdamW.b1 must be in [0, 1), got 1.0; AdamW.b2 must be in [0, 1), got -0.1; "
            "AdamW.weight_decay must be finite and not below 0, got -1.0; "
            "AdamW.eps must be above 0, got 0.0",
        ),
        (lambda: Lion(b2=float("nan")), "Lion.b2 must be in [0, 1), got nan"),
        (lambda: Adafactor(factor_from=0), "Adafactor.factor_from must be above 0, got 0"),
        (
            lambda: OptimConfig(learning_rate=0.0, clip_norm=0.0),
            "OptimConfig.learning_rate must be above 0 and finite, got 0.0; "
            "OptimConfig.clip_norm must be above 0, or None, got 0.0",
        ),
    ],
)
def test_wrong_values_are_all_named(make, message):
    with pytest.raises(ValueError) as error:
        make()
    assert str(error.value) == message
