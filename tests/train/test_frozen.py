import jax
import numpy as np
import pytest

from clip_jax import tree
from clip_jax.losses import Softmax
from clip_jax.models.flops import flops
from clip_jax.optim import masks
from clip_jax.optim.build import AdamW, OptimConfig
from clip_jax.optim.schedule import Constant
from clip_jax.preprocess.recipe import Recipe
from clip_jax.sharding.mesh import MeshConfig, build_mesh
from clip_jax.sharding.place import place_batch
from clip_jax.sharding.rules import DATA_PARALLEL, FSDP
from clip_jax.train.assemble import assemble

BATCH, STEPS = 8, 3
LAYOUTS = {
    "one device": (1, DATA_PARALLEL, 1, {"image/*": 0.0}),
    "FSDP in parts, text locked": (2, FSDP, 2, {"text/*": 0.0, "logit_scale": 0.0}),
}


def build(model, devices, rules, accumulate, rates):
    return assemble(
        model=model,
        loss=Softmax(),
        optim=OptimConfig(
            method=AdamW(weight_decay=0.5),
            learning_rate=1e-2,
            schedule=Constant(warmup=0.0),
            rates=rates,
        ),
        recipe=Recipe(size=8),
        rules=rules,
        mesh=build_mesh(MeshConfig(), jax.devices()[:devices]),
        seed=0,
        steps=STEPS,
        accumulate=accumulate,
    )


def run(parts):
    """State before and after some steps, the metrics of each, and FLOPs of the compiled step."""
    rng = np.random.default_rng(0)
    batches = [
        {
            "images": rng.integers(0, 256, (BATCH, 8, 8, 3), np.uint8),
            "tokens": rng.integers(1, 64, (BATCH, 8)).astype(np.int32),
        }
        for _ in range(STEPS)
    ]
    placed = [place_batch(batch, parts.batch_sharding) for batch in batches]
    step = parts.step.lower(parts.abstract, placed[0]).compile()
    state, seen = parts.init(), []
    before = jax.tree.map(np.array, state.params)
    for batch in placed:
        state, metrics = step(state, batch)
        seen.append({name: float(value) for name, value in metrics.items()})
    return before, state, seen, step.cost_analysis()["flops"]


@pytest.fixture(scope="module", params=LAYOUTS)
def both(request, tiny):
    """The layout's frozen patterns, its run, and that of a step that differentiates everything."""
    layout = LAYOUTS[request.param]
    ours = run(build(tiny, *layout))
    with pytest.MonkeyPatch.context() as patch:
        nothing = lambda params, rates: jax.tree.map(lambda _: False, params)  # noqa: E731
        patch.setattr(masks, "frozen", nothing)
        theirs = run(build(tiny, *layout))
    return layout, ours, theirs


def test_the_run_is_the_one_that_differentiates_everything(both):
    _, ours, theirs = both
    for mine, other in zip(ours[2], theirs[2], strict=True):
        for name in mine.keys() - {"grad_norm"}:
            assert mine[name] == pytest.approx(other[name], rel=1e-5), name
    jax.tree.map(  # Adam magnifies rounding where gradients are near zero.
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), ours[1].params, theirs[1].params
    )


def test_frozen_parameters_stay_to_the_bit_under_weight_decay_and_all_others_move(both):
    layout, (before, state, _, _), _ = both
    held = masks.frozen(before, layout[-1])
    assert set(jax.tree.leaves(held)) == {True, False}
    after = jax.tree.map(np.array, state.params)
    for path, still, old, new in zip(
        tree.paths(before), *map(jax.tree.leaves, (held, before, after)), strict=True
    ):
        assert (old.tobytes() == new.tobytes()) == still, path


def test_the_gradient_s_norm_is_that_of_trained_parameters(both):
    _, ours, theirs = both
    assert all(0 < a["grad_norm"] < b["grad_norm"] for a, b in zip(ours[2], theirs[2], strict=True))


def test_a_locked_tower_has_no_backward_pass(both, tiny, variant):
    """The compiler counts the body of a loop once, and one device's share."""
    (devices, _, accumulate, rates), ours, theirs = both
    once = flops(variant(tiny, **{"image.stack.layers": 1, "text.stack.layers": 1}))
    locked = once.image if "image/*" in rates else once.text
    assert theirs[3] - ours[3] > 2 * locked * BATCH / devices / accumulate
