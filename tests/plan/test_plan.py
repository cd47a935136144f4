import dataclasses
import inspect
import io
import json

import pytest
from rich.console import Console

from clip_jax.losses import Sigmoid
from clip_jax.models.flops import flops
from clip_jax.plan.advice import bytes_needed, smaller, with_remat
from clip_jax.plan.compile import DoesNotFitError, _no_room, on_accelerator, on_slices
from clip_jax.plan.report import Plan, show, to_json
from clip_jax.plan.roofline import estimate, repeated, step_flops
from clip_jax.plan.run import TABLES, rehearse, sweep, variants
from clip_jax.plan.topology import parse
from clip_jax.sharding.rules import DATA_PARALLEL
from clip_jax.train.assemble import assemble
from clip_jax.train.cost import step_cost

BATCH, LOCAL = 1024, 128


def matrices(model):
    """Numbers in matrices of both towers."""
    import jax
    import numpy as np

    from clip_jax import tree
    from clip_jax.models.axes import logical_axes
    from clip_jax.models.clip import init_params
    from clip_jax.sharding.place import is_matrix

    shapes = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    sizes = tree.map_with_path(
        lambda _, leaf, axes: int(np.prod(leaf.shape)) if is_matrix(axes) else 0,
        shapes,
        logical_axes(shapes),
    )
    return sum(jax.tree.leaves(sizes))


def test_only_parameters_are_gathered_and_the_loss_walks_a_ring(rehearsed):
    """No activation, embedding or logit is: their first dimensions would be the batch's.

    Of captions those are rows that hold several, or the tokens of all rows.
    """
    sent, packing = rehearsed.compiled.collectives, rehearsed.config.packing
    rows = packing.rows(LOCAL)
    tokens = rows * packing.row
    batch = {BATCH, LOCAL * 17, LOCAL * 16, rows, tokens, 8 * rows, 8 * tokens}
    gathered = [one for one in sent if one.kind == "all-gather"]
    assert gathered and all(
        "fetched" in k.source or "shard_map/all_g" in k.source for k in gathered
    )
    for one in sent:
        if one.kind == "collective-permute":
            assert one.bytes == LOCAL * 128 * 4 and one.times == 8  # One share of embeddings a hop.
            continue
        sizes = [int(n) for shape in one.shapes for n in _sizes(shape)]
        assert not batch & set(sizes), one
    weights = matrices(rehearsed.config.model)
    whole = sum(one.total for one in gathered)
    # bfloat16, twice where remat asks, and what the first of two links sends.
    assert 2 * weights < whole < 2 * 2 * weights * 1.3


def _sizes(shape):
    return [n for n in shape.partition("[")[2].rstrip("]").split(",") if n]


def test_gradients_of_matrices_are_reduce_scattered(rehearsed):
    """What is all-reduced are gains, biases and scalars."""
    sent = rehearsed.compiled.collectives
    reduced = sum(one.total for one in sent if one.kind == "all-reduce")
    scattered = [one for one in sent if one.kind == "reduce-scatter"]
    assert reduced < 4 * 20_000 and not [
        one for one in sent if one.kind == "all-reduce" and one.times > 1
    ]
    assert {one.axes for one in scattered} == {("data",)}
    assert sum(one.bytes * one.times * one.group for one in scattered) > 2 * matrices(
        rehearsed.config.model
    )


def test_memory_by_kind(rehearsed):
    memory = rehearsed.compiled.memory
    numbers = matrices(rehearsed.config.model) / 8
    assert 4 * numbers < memory.parameters < 4 * numbers + 4 * 25_000
    assert 6 * numbers < memory.optimizer < 6 * numbers + 6 * 25_000
    packing = rehearsed.config.packing
    room = LOCAL * packing.tokens_per_caption  # Ids, places and captions; and where each ends.
    assert memory.batch == LOCAL * (32 * 32 * 3 + 4) + 3 * 4 * room
    assert memory.total == (
        memory.arguments + memory.outputs - memory.aliased + memory.temporaries + memory.code
    )
    assert memory.aliased >= memory.parameters + memory.optimizer
    state = memory.parameters + memory.optimizer + memory.batch
    assert state <= memory.arguments < 1.5 * state and state < memory.peak <= memory.total


def test_what_is_compiled_is_the_step_that_training_runs(small_run, monkeypatch):
    given = {}

    def stop(**fields):
        given.update(fields)
        raise ValueError("enough")

    monkeypatch.setattr("clip_jax.train.assemble.assemble", stop)
    with pytest.raises(ValueError, match="enough"):
        rehearse(dataclasses.replace(small_run, accumulate=2, ema=0.9), parse("v5e:2x4"))
    assert set(given) == set(inspect.signature(assemble).parameters)
    assert given["begin"] == 0
    for name in set(given) - {"mesh", "model", "begin"}:
        assert given[name] == {"accumulate": 2, "ema": 0.9}.get(name, getattr(small_run, name))
    assert given["model"] == dataclasses.replace(small_run.model, dtype="bfloat16")
    assert on_accelerator(on_accelerator(small_run)) == on_accelerator(small_run)


def test_flops_and_times_of_the_estimate(rehearsed):
    config, found = rehearsed.config, rehearsed.estimate
    image = BATCH * flops(config.model, train=True).image
    towers, loss = image + step_cost(config).text, 6 * BATCH**2 * 128
    assert found.flops == pytest.approx(3 * towers + loss)
    assert found.executed == pytest.approx(4 * towers + loss, rel=0.02)
    assert found.step_s == max(found.compute_s, found.memory_s, found.links_s)
    assert found.images_per_s == pytest.approx(BATCH / found.step_s)
    assert found.images_per_s_per_host == pytest.approx(found.images_per_s / 2)
    assert found.samples == 1000 * BATCH
    assert found.chip_hours == pytest.approx(1000 * found.step_s / 3600 * 8)
    assert found.cost == pytest.approx(2.0 * found.chip_hours)
    assert found.compute_s == pytest.approx(found.executed / (8 * 197e12))


def test_a_report_is_printed_and_is_json(rehearsed):
    out = io.StringIO()
    show(rehearsed, Console(file=out, width=100))
    text = out.getvalue()
    for word in ("v5e:2x4, 8 chips", "parameters", "of", "15.750", "all-gather", "Assumed:"):
        assert word in text
    data = json.loads(json.dumps(to_json(rehearsed)))
    assert data["fits"] and data["memory"]["total"] == rehearsed.compiled.memory.total
    assert sum(one["total"] for one in data["collectives"]) == sum(
        data["collectives_total"].values()
    )
    assert data["settings"]["image_remat"] == "nothing" and data["estimate"]["assumptions"]


def test_what_each_remat_computes_again(small_run):
    stack = small_run.model.text.stack
    shares = {}
    for kept in (None, "products", "attention", "nothing"):
        shares[kept] = repeated(dataclasses.replace(stack, remat=kept), 16)
    assert shares[None] == 0 and shares["nothing"] == 1
    assert 0 < shares["products"] < shares["attention"] < 1
    twice = dataclasses.replace(small_run, accumulate=2)
    towers = step_cost(small_run)
    more = step_flops(twice)[1] - step_flops(small_run)[1]
    assert more == pytest.approx(towers.image + towers.text)


def test_the_compiler_s_complaint_becomes_figures():
    said = (
        "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory "
        "required for HLO temporaries (40.50G) exceeds available HBM (15.75G)."
    )
    fault = _no_room(said)
    assert (fault.needed, fault.available) == (40.5 * 2**30, 15.75 * 2**30)
    assert _no_room("Used 1.5M of 512K hbm.").needed == 1.5 * 2**20
    assert _no_room("something else") is None


@pytest.fixture(scope="module")
def large(small_run):
    """One that does not fit on eight chips: everything is kept, and all logits at once."""
    from clip_jax.models.presets import preset

    config = dataclasses.replace(
        small_run, loss=Sigmoid(), rules=DATA_PARALLEL, batch=32_768, packing=None
    )
    model = preset("ViT-B-16-SigLIP")
    return with_remat(
        dataclasses.replace(
            config,
            model=model,
            recipe=dataclasses.replace(config.recipe, size=224),
            tokenizer=dataclasses.replace(config.tokenizer, context_length=64),
        ),
        None,
    )


def test_what_does_not_fit_is_told_what_would_make_it_fit(large):
    topology = parse("v5e:4x8")
    changes = smaller(large, topology)
    flags = " ".join(change.flag for change in changes)
    assert "--loss.tile 1024" in flags and "stack.remat" in flags
    fault = DoesNotFitError(40 * 2**30, topology.chip.memory)
    plan = Plan(config=large, topology=topology, fault=fault, changes=changes)
    out = io.StringIO()
    show(plan, Console(file=out, width=200))
    assert "does not fit: 40.00 GiB needed, 15.75 there" in out.getvalue()
    assert all(change.flag in out.getvalue() for change in changes)
    assert to_json(plan)["would_fit_with"] == [change.flag for change in changes]


def test_advice_can_be_taken_from_the_command_line(large):
    from clip_jax.overrides import override

    topology = parse("v5e:4x8")
    words = [word for change in smaller(large, topology) for word in change.flag.split()]
    made = override(large, words, prog="plan")
    assert bytes_needed(made, topology) < 0.8 * topology.chip.memory < bytes_needed(large, topology)


def test_gpus_are_planned_by_analysis_alone(large):
    made = rehearse(large, parse("h100:64"), price=3.0)
    assert made.compiled is None and made.estimate.memory_s is None and made.estimate.cost > 0
    assert "nothing was compiled" in made.estimate.assumptions[0]
    assert made.needed == bytes_needed(made.config, made.topology)
    with pytest.raises(ValueError, match="batch 32768 does not split over 24 devices"):
        rehearse(large, parse("h100:24"))
    mesh = dataclasses.replace(large.mesh, data=5)
    with pytest.raises(ValueError, match="does not fit 64 chips"):
        rehearse(dataclasses.replace(large, mesh=mesh), parse("h100:64"))


def test_a_batch_that_the_chips_do_not_divide_is_refused_before_anything_is_compiled(small_run):
    with pytest.raises(ValueError, match="batch 1025 does not split over 8 devices"):
        rehearse(dataclasses.replace(small_run, batch=1025), parse("v5e:2x4"))


def test_each_slice_holds_a_replica(small_run):
    two = on_slices(small_run, parse("v5e:2x4", 2))
    assert two.mesh.replica == 2
    assert on_slices(small_run, parse("v5e:2x4")) is small_run


def test_exchanges_between_slices_go_through_the_hosts(rehearsed):
    one = dataclasses.replace(rehearsed.compiled.collectives[0], axes=("replica",))
    moved = (0, [one])
    inside = estimate(rehearsed.config, parse("v5e:2x4"), moved).links_s
    across = estimate(rehearsed.config, parse("v5e:2x4", 2), moved).links_s
    assert across > 10 * inside


def test_a_sweep_tries_every_table_and_skips_what_only_computes_more(
    small_run, tmp_path, monkeypatch
):
    tried = list(variants(small_run))
    assert len(tried) == len(TABLES) * 2 * 4 == len({name for name, _ in tried})
    out = io.StringIO()
    plans = sweep(
        small_run, parse("h100:8"), console=Console(file=out, width=200), path=tmp_path / "s.json"
    )
    assert len(plans) == len(TABLES)  # All of them fit with nothing computed again.
    times = [plan.estimate.step_s for _, plan in plans]
    assert times == sorted(times)
    assert len(json.loads((tmp_path / "s.json").read_text())) == len(plans)
    assert out.getvalue().count("ms a step") == len(plans)
