import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from clip_jax.checkpoint.start import checkpoint_folder, open_run, saved_config
from clip_jax.checkpoint.store import CheckpointConfig, CheckpointError, Store, load_params
from clip_jax.sharding.mesh import MeshConfig, build_mesh

PARAMS = {"a": {"kernel": jnp.arange(16.0).reshape(8, 2)}, "b": jnp.float32(3.0)}
PROGRESS = {"step": jnp.int32(7), "opt": (jnp.ones(3), {"mu": jnp.zeros((8, 2))})}


def save(store, step, figures=None, params=PARAMS):
    store.save(
        step,
        params=params,
        progress=PROGRESS,
        position={"source": {"visits": step}},
        config={"seed": 1},
        figures=figures,
    )


def abstract(tree, sharding=None):
    sharding = sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


@pytest.fixture
def store(tmp_path):
    made = Store(tmp_path / "checkpoints", CheckpointConfig(keep=2))
    yield made
    made.close()


def test_what_is_saved_is_restored(store):
    save(store, 7)
    store.wait()
    params, progress, position, ema = store.restore(
        7, params=abstract(PARAMS), progress=abstract(PROGRESS)
    )
    assert ema is None
    jax.tree.map(np.testing.assert_array_equal, params, PARAMS)
    jax.tree.map(np.testing.assert_array_equal, progress, PROGRESS)
    assert position == {"source": {"visits": 7}}


def test_arrays_that_are_donated_right_after_are_saved_as_they_were(store):
    @jax.jit
    def many(x):
        return x * 1.0

    step = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    state = {"a": {"kernel": many(jnp.zeros((2000, 2000)))}, "b": many(jnp.float32(0.0))}
    save(store, 1, params=state)
    for _ in range(20):
        state = step(state)
    store.wait()
    want = abstract(state)
    params = store.restore(1, params=want, progress=abstract(PROGRESS))[0]
    assert not np.any(params["a"]["kernel"]) and float(params["b"]) == 0


def test_a_checkpoint_is_restored_onto_another_mesh(store):
    save(store, 1)
    store.wait()
    mesh = build_mesh(MeshConfig())
    want = abstract(PARAMS, NamedSharding(mesh, P()))
    want["a"]["kernel"] = abstract(PARAMS["a"]["kernel"], NamedSharding(mesh, P("data")))
    params = store.restore(1, params=want, progress=abstract(PROGRESS))[0]
    assert len(params["a"]["kernel"].addressable_shards) == 8
    assert params["a"]["kernel"].addressable_shards[0].data.shape == (1, 2)
    np.testing.assert_array_equal(params["a"]["kernel"], PARAMS["a"]["kernel"])


def test_the_newest_and_the_best_are_kept(tmp_path):
    store = Store(tmp_path, CheckpointConfig(keep=2, best="zero_shot/x/acc1"))
    for step, value in enumerate([0.1, 0.9, 0.5, None, 0.2], start=1):
        save(store, step, None if value is None else {"zero_shot/x/acc1": value, "other": 1.0})
    store.wait()
    assert store.steps() == [2, 4, 5]
    assert store.latest() == 5
    store.close()
    store = Store(tmp_path, CheckpointConfig(keep=1, best="zero_shot/x/acc1"))
    save(store, 6, {"zero_shot/x/acc1": 0.3})
    store.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["2", "6"]


def test_the_best_may_be_the_lowest(tmp_path):
    store = Store(tmp_path, CheckpointConfig(keep=1, best="rank", best_is="min"))
    for step, value in enumerate([5.0, 2.0, 3.0], start=1):
        save(store, step, {"rank": value})
    store.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["2", "3"]


def test_another_architecture_is_refused_with_every_difference(store):
    save(store, 1)
    store.wait()
    other = {"a": {"kernal": jnp.zeros((8, 2))}, "b": jnp.zeros(2)}
    with pytest.raises(CheckpointError) as error:
        store.restore(1, params=abstract(other), progress=abstract(PROGRESS))
    message = str(error.value)
    assert "b: () in the checkpoint, (2,) in this model" in message
    assert "a/kernal: missing (nearest: a/kernel)" in message
    assert "a/kernel: not in this model" in message
    with pytest.raises(CheckpointError, match=r"b: \(\) in the checkpoint"):
        load_params(store.folder / "1", abstract({**PARAMS, "b": jnp.zeros(2)}))


def test_parameters_alone_are_read_from_one_checkpoint_folder(store):
    save(store, 3)
    store.wait()
    params = load_params(store.folder / "3", abstract(PARAMS))
    jax.tree.map(np.testing.assert_array_equal, params, PARAMS)
    assert saved_config(checkpoint_folder(store.folder / "3")) == {"seed": 1}


FULL_DISK = """
import resource, sys
import jax.numpy as jnp
from clip_jax.checkpoint.store import CheckpointError, Store

def save(step, size):
    store.save(step, params={"a": jnp.arange(float(size))}, progress={"step": jnp.int32(0)},
               position={}, config={})

store = Store(sys.argv[1])
save(1, 10)
store.wait()
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    save(2, 3_000_000)
    store.wait()
except CheckpointError as error:
    print("CheckpointError", error)
print("kept", store.steps())
"""


def test_a_write_that_fails_names_the_folder_and_keeps_the_last_good_checkpoint(tmp_path):
    ran = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path / "c")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "CheckpointError" in ran.stdout, ran.stdout + ran.stderr
    assert str(tmp_path / "c") in ran.stdout
    assert "the newest complete checkpoint is step 1" in ran.stdout
    assert "kept [1]" in ran.stdout


def test_leftovers_of_a_killed_write_are_no_checkpoint(tmp_path):
    store = Store(tmp_path)
    save(store, 1)
    store.close()
    (tmp_path / "2.orbax-checkpoint-tmp").mkdir()
    (tmp_path / "2.orbax-checkpoint-tmp" / "params").mkdir()
    store = Store(tmp_path)
    assert store.steps() == [1]
    save(store, 2)
    store.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "2"]


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match=r"keep \(0\) and every_steps \(500\) start at 1"):
        CheckpointConfig(keep=0)


def test_a_folder_without_checkpoints_takes_a_new_config(tmp_path):
    open_run(tmp_path / "run", {"seed": 1}, ())
    open_run(tmp_path / "run", {"seed": 2}, ())
    (tmp_path / "run" / "checkpoints" / "3").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"holds a run of another config.*seed: 2 -> 3"):
        open_run(tmp_path / "run", {"seed": 3}, ())
    open_run(tmp_path / "run", {"seed": 3}, ("seed",))


def test_checkpoints_without_a_config_are_refused(tmp_path):
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"has checkpoints but no config\.json"):
        open_run(tmp_path, {}, ())


def test_what_is_no_run_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist: give a run folder"):
        checkpoint_folder(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="holds no complete checkpoint"):
        checkpoint_folder(tmp_path)
    for name in ("9", "10", "11.orbax-checkpoint-tmp"):
        (tmp_path / "checkpoints" / name / "params").mkdir(parents=True)
    assert pathlib.Path(checkpoint_folder(tmp_path)).name == "10"
    assert pathlib.Path(checkpoint_folder(tmp_path / "checkpoints" / "9")).name == "9"
