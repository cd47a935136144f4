import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax import tree
from clip_jax.data.packing import Packing
from clip_jax.losses import Sigmoid, Softmax
from clip_jax.optim.build import AdamW, OptimConfig
from clip_jax.optim.schedule import Constant
from clip_jax.preprocess.recipe import Recipe
from clip_jax.sharding.mesh import MeshConfig, build_mesh
from clip_jax.sharding.place import batch_parts, place_batch
from clip_jax.sharding.rules import DATA_PARALLEL, FSDP, TENSOR_PARALLEL
from clip_jax.train.assemble import assemble

STEPS, BATCH = 5, 16
LAYOUTS = {
    "data-parallel": (MeshConfig(), DATA_PARALLEL),
    "FSDP": (MeshConfig(), FSDP),
    "FSDP in two replicas": (MeshConfig(replica=2), FSDP),
}


def build(model, loss=None, optim=None, mesh=None, rules=DATA_PARALLEL, seed=0):
    return assemble(
        model=model,
        loss=loss or Softmax(),
        optim=optim or OptimConfig(learning_rate=1e-2, schedule=Constant(warmup=0.4)),
        recipe=Recipe(size=8),
        rules=rules,
        mesh=mesh or build_mesh(MeshConfig(), jax.devices()[:1]),
        seed=seed,
        steps=STEPS,
    )


def batch(number):
    rng = np.random.default_rng(number)
    tokens = rng.integers(1, 63, (BATCH, 8)).astype(np.int32)
    ends = rng.integers(1, 8, BATCH)
    tokens[np.arange(BATCH), ends] = 63
    tokens[np.arange(8) > ends[:, None]] = 0
    return {"images": rng.integers(0, 256, (BATCH, 8, 8, 3), np.uint8), "tokens": tokens}


def run(parts, arrange=dict):
    state, seen = parts.init(), []
    for number in range(STEPS):
        placed = place_batch(arrange(batch(number)), parts.batch_sharding)
        state, metrics = parts.step(state, placed)
        seen.append({name: float(value) for name, value in metrics.items()})
    return state, seen


@pytest.fixture(scope="module")
def parts_alone(tiny):
    return build(tiny)


@pytest.fixture(scope="module")
def alone(parts_alone):
    """Five steps on one device, dropout and all."""
    return run(parts_alone)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_eight_devices_give_the_losses_and_parameters_of_one(tiny, alone, layout):
    mesh, rules = LAYOUTS[layout]
    parts = build(tiny, mesh=build_mesh(mesh), rules=rules)
    state, seen = run(parts)
    for ours, theirs in zip(seen, alone[1], strict=True):
        assert ours.keys() == theirs.keys()
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        for name in ours:  # Adam magnifies rounding where gradients are near zero.
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3), name
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), state.params, alone[0].params
    )
    kernel = state.params["image"]["stack"]["blocks"]["mlp"]["up"]["kernel"]
    moment = next(
        leaf
        for path, leaf in zip(tree.paths(state.opt), jax.tree.leaves(state.opt), strict=True)
        if path.endswith("mu/image/stack/blocks/mlp/up/kernel")
    )
    parts_of_kernel = kernel.size // kernel.addressable_shards[0].data.size
    assert parts_of_kernel == (1 if rules == DATA_PARALLEL else parts.mesh.shape["data"])
    assert moment.sharding == kernel.sharding


def test_the_sigmoid_loss_is_global_over_the_mesh_too(tiny, variant):
    without = {"image.stack.dropout": 0.0, "text.stack.dropout": 0.0}
    model = variant(tiny, bias=-5.0, **without)
    one = [s["loss"] for s in run(build(model, Sigmoid()))[1]]
    eight = run(build(model, Sigmoid(tile=1), mesh=build_mesh(MeshConfig()), rules=FSDP))[1]
    assert [s["loss"] for s in eight] == pytest.approx(one, rel=1e-5)


def test_a_loss_in_tiles_gives_the_same_run(tiny, alone):
    mesh = build_mesh(MeshConfig(replica=2, model=2))
    seen = run(build(tiny, Softmax(tile=3), mesh=mesh))[1]
    for ours, theirs in zip(seen, alone[1], strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert ours["accuracy"] == theirs["accuracy"]
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)


def test_packed_captions_give_the_same_run_on_any_mesh(tiny, variant):
    model = variant(tiny, **{"image.stack.dropout": 0.0, "text.stack.dropout": 0.0})
    plain = [s["loss"] for s in run(build(model))[1]]
    for mesh in (build_mesh(MeshConfig(), jax.devices()[:1]), build_mesh(MeshConfig())):
        parts = build(model, mesh=mesh)
        groups = batch_parts(DATA_PARALLEL, mesh)
        packing = Packing(row=12, tokens_per_caption=8.0)
        packed = run(parts, lambda b, g=groups, p=packing: p(b, g))[1]
        assert [s["loss"] for s in packed] == pytest.approx(plain, rel=1e-5)


def test_the_seed_alone_decides_the_run(tiny, alone):
    again = run(build(tiny))
    assert again[1] == alone[1]
    jax.tree.map(np.testing.assert_array_equal, again[0].params, alone[0].params)
    assert run(build(tiny, seed=1))[1] != alone[1]


def test_metrics_are_those_before_the_update(tiny, alone):
    first, last = alone[1][0], alone[1][-1]
    assert first["temperature"] == pytest.approx(tiny.temperature, rel=1e-5)
    assert first["learning_rate"] == 0.0 and last["learning_rate"] == pytest.approx(1e-2)
    assert 0 <= first["accuracy"] <= 1 and first["grad_norm"] > 0
    assert int(alone[0].step) == STEPS


def test_the_temperature_never_falls_below_its_bound(tiny, variant):
    model = variant(tiny, temperature=0.0101)
    optim = OptimConfig(
        method=AdamW(weight_decay=0.0), learning_rate=1.0, schedule=Constant(warmup=0.0)
    )
    parts = build(model, optim=optim)
    state = parts.init()
    for number in range(STEPS):
        state, _ = parts.step(state, place_batch(batch(number), parts.batch_sharding))
        assert float(jnp.exp(state.params["logit_scale"])) <= 100.001


def test_the_state_given_to_a_step_is_used_up(parts_alone):
    parts = parts_alone
    state = parts.init()
    parts.step(state, place_batch(batch(0), parts.batch_sharding))
    with pytest.raises((RuntimeError, ValueError), match="deleted"):
        np.asarray(state.params["logit_scale"])


def test_patterns_and_sizes_that_fit_nothing_are_refused(tiny):
    with pytest.raises(ValueError, match=r"pattern 'imgae/\*' matches no parameter"):
        build(tiny, optim=OptimConfig(learning_rate=1e-3, rates={"imgae/*": 0.0}))
    mesh = build_mesh(MeshConfig(data=2, model=4))
    with pytest.raises(ValueError, match=r"the mesh does not divide .*heads of size 2 over 4"):
        build(tiny, mesh=mesh, rules=TENSOR_PARALLEL)
