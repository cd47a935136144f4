"""The average of the parameters, and narrow types, through a run and its checkpoints."""

import dataclasses
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from rich.console import Console

import clip_jax
from clip_jax.checkpoint.store import CheckpointConfig
from clip_jax.losses import Softmax
from clip_jax.optim.build import Adafactor, OptimConfig
from clip_jax.optim.schedule import Constant
from clip_jax.preprocess.recipe import Recipe
from clip_jax.sharding.mesh import MeshConfig, build_mesh
from clip_jax.sharding.rules import FSDP
from clip_jax.train.assemble import assemble
from clip_jax.train.begin import begin_params
from clip_jax.train.experiment import train
from clip_jax.train.step import averaged

DECAY = 0.15  # Above (1 + step) / (10 + step) at first, then below.


def run(config, log):
    with log.open("w") as file:
        train(config, Console(file=file))


@pytest.fixture(scope="module")
def narrow(experiment, tmp_path_factory):
    """A run without a break, with all that may be saved in another type or besides."""
    folder = tmp_path_factory.mktemp("narrow")
    optim = OptimConfig(
        method=Adafactor(factor_from=8, moment_dtype="bfloat16"),
        learning_rate=1e-2,
        schedule=Constant(warmup=0.0),
    )
    config = experiment(
        folder / "run",
        steps=4,
        optim=optim,
        rules=FSDP,
        accumulate=2,
        ema=DECAY,
        param_dtype="bfloat16",
        checkpoint=CheckpointConfig(every_steps=1, keep=4),
        evals={},
    )
    run(config, folder / "log")
    return config


def saved(config, step, *items):
    folder = pathlib.Path(config.run).absolute() / "checkpoints" / str(step)
    with ocp.StandardCheckpointer() as reader:
        return [jax.tree.map(np.asarray, reader.restore(folder / item)) for item in items]


def test_what_is_saved_is_the_average_of_all_updates(narrow):
    average = jax.jit(averaged, static_argnums=2)
    for step in (2, 3, 4):
        before = saved(narrow, step - 1, "ema")[0]
        after, params = saved(narrow, step, "ema", "params")
        wanted = average(before, params, DECAY, jnp.int32(step - 1))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), after, wanted
        )
        assert {leaf.dtype for leaf in jax.tree.leaves((after, params))} == {np.dtype("float32")}
        assert not np.array_equal(after["text"]["head"]["kernel"], params["text"]["head"]["kernel"])


def test_a_run_with_a_break_equals_one_without(narrow, tmp_path):
    first = dataclasses.replace(narrow, run=str(tmp_path / "run"), steps=2)
    run(first, tmp_path / "log")
    second = dataclasses.replace(first, steps=4)
    run(second, tmp_path / "log")
    assert "going on from step 2" in (tmp_path / "log").read_text()
    items = ("params", "ema", "progress")
    jax.tree.map(np.testing.assert_array_equal, saved(second, 4, *items), saved(narrow, 4, *items))
    kinds = {leaf.dtype.name for leaf in jax.tree.leaves(saved(narrow, 4, "progress"))}
    assert kinds == {"int32", "float32", "bfloat16"}


def test_whoever_loads_the_run_gets_the_average(narrow):
    (average,) = saved(narrow, 4, "ema")
    jax.tree.map(np.testing.assert_array_equal, clip_jax.load(narrow.run).params, average)
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    want = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=one), average)
    begun = begin_params(narrow.run, narrow.model, want)
    jax.tree.map(np.testing.assert_array_equal, begun, average)


def test_a_run_with_an_average_and_one_without_do_not_mix(narrow, experiment, finished, tmp_path):
    without = dataclasses.replace(narrow, ema=None)
    with pytest.raises(ValueError, match=r"another config.*ema: 0.15 -> None"):
        run(without, tmp_path / "log")
    shutil.copytree(finished.run, tmp_path / "run")
    with pytest.raises(ValueError, match=r"another config.*ema: None -> 0.15"):
        run(experiment(tmp_path / "run", ema=DECAY), tmp_path / "log")


def test_the_average_of_known_numbers():
    values = np.random.default_rng(0).normal(size=(30, 3))
    decay, wanted, found = 0.5, values[0], jnp.float32(values[0])
    update = jax.jit(averaged, static_argnums=2)
    for step, value in enumerate(values[1:]):
        share = min(decay, (1 + step) / (10 + step))
        wanted = share * wanted + (1 - share) * value
        found = update(found, jnp.float32(value), decay, jnp.int32(step))
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_the_average_lies_where_the_parameters_lie(tiny):
    abstract = assemble(
        model=tiny,
        loss=Softmax(),
        optim=OptimConfig(learning_rate=1e-3),
        recipe=Recipe(size=8),
        rules=FSDP,
        mesh=build_mesh(MeshConfig()),
        seed=0,
        steps=10,
        ema=0.9,
    ).abstract
    assert jax.tree.leaves(abstract.ema) == jax.tree.leaves(abstract.params)
    assert len({leaf.sharding.spec for leaf in jax.tree.leaves(abstract.ema)}) > 1


@pytest.mark.parametrize("ema", [0.0, 1.0, -0.5])
def test_a_decay_out_of_range_is_refused(experiment, ema):
    with pytest.raises(ValueError, match="ema must be above 0 and below 1, or None, got"):
        experiment("run", ema=ema)
