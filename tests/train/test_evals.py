"""Evaluations that learn, in a run: on the parameters where they lie, whatever the mesh."""

import dataclasses
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from clip_jax.api import load
from clip_jax.data import Folder
from clip_jax.eval.learned import LinearProbe, NearestNeighbours
from clip_jax.eval.suite import run_evals
from clip_jax.models.axes import logical_axes
from clip_jax.sharding.mesh import MeshConfig, build_mesh
from clip_jax.sharding.place import param_shardings
from clip_jax.sharding.rules import DATA_PARALLEL, FSDP
from clip_jax.train import experiment as experiment_module
from clip_jax.train.assemble import assemble_run
from clip_jax.train.experiment import evaluator, train
from clip_jax.train.loop import fit

EVALS = {
    "probe": LinearProbe(split="unseen_images", at_most=60),
    "near": NearestNeighbours(split="unseen_images", at_most=60),
}


@pytest.fixture(scope="module")
def expected(finished):
    """Figures of the run's last parameters as anyone else would get them."""
    embedder = load(finished.run, batch=16).embedder
    return run_evals(EVALS, finished.data, embedder)


@pytest.mark.parametrize("devices, rules", [(1, DATA_PARALLEL), (8, FSDP)])
def test_figures_do_not_depend_on_the_mesh(finished, expected, devices, rules):
    config = dataclasses.replace(finished, evals=EVALS, rules=rules, eval_batch=16)
    mesh = build_mesh(MeshConfig(), jax.devices()[:devices])
    params = load(finished.run).params
    where = param_shardings(params, logical_axes(params), rules, mesh)
    evaluate = evaluator(config, assemble_run(config, mesh), pytest.fail)
    placed = jax.device_put(params, where)
    found = {n: v for one in evaluate(placed, list(EVALS)) for n, v in one.items()}
    assert found == pytest.approx(expected, abs=1e-6)
    assert found["linear_probe/probe/acc1"] > 0.1


def classes(root):
    """A data set of two pictures, each of a class of its own."""
    for grey in (0, 99):
        (root / "test" / f"{grey}").mkdir(parents=True)
        Image.new("L", (16, 16), grey).save(root / "test" / f"{grey}" / "a.png")
    return Folder(root=str(root), class_folders=True)


def test_they_run_every_so_many_steps_of_a_run(finished, tmp_path, monkeypatch):
    """Also where the data of one of them is gone on the way."""

    class Vanish:
        def due(self, done):
            return done == 7

        def __call__(self, done, state, metrics):
            shutil.rmtree(tmp_path / "data", ignore_errors=True)

    def losing(*args, hooks, **rest):
        return fit(*args, hooks=[Vanish(), *hooks], **rest)

    monkeypatch.setattr(experiment_module, "fit", losing)
    shutil.copytree(finished.run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "10")  # So it goes on from step 5.
    gone = NearestNeighbours(split="test", learn_from="test", data=classes(tmp_path / "data"))
    evals = {"gone": gone, **EVALS}
    evals = {name: dataclasses.replace(e, every_steps=3) for name, e in evals.items()}
    config = dataclasses.replace(finished, run=str(tmp_path / "run"), evals=evals, eval_batch=16)
    with (tmp_path / "log").open("w") as log:
        train(config, Console(file=log))
    lines = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    names = {"linear_probe/probe/acc1", "knn/near/acc1"}
    assert [line["step"] for line in lines if names <= set(line)] == [6, 9, 10]
    assert [line["step"] for line in lines if "knn/gone/acc1" in line] == [6]
    assert [line["step"] for line in lines if "knn/gone/left_out" in line] == [9, 10]
    told = f"evals.gone: left out: {tmp_path / 'data'} is not a folder"
    assert (tmp_path / "log").read_text().count(told) == 2
    assert (tmp_path / "run" / "checkpoints" / "10").is_dir()
    figures = json.loads((pathlib.Path(config.run) / "eval.json").read_text())
    assert names < set(figures) and figures.pop("knn/gone/left_out") == 1
    embedder = load(config.run, batch=16).embedder
    assert figures == pytest.approx(run_evals(EVALS, config.data, embedder), abs=1e-6)
    assert all(np.isfinite(list(figures.values())))


def test_a_split_to_learn_from_that_is_missing_shows_before_the_first_step(experiment, tmp_path):
    evals = {"probe": LinearProbe(split="unseen_images", learn_from="trian")}
    with pytest.raises(ValueError, match=r"^evals\.probe: .*trian"):
        train(experiment(tmp_path / "run", evals=evals), Console(quiet=True))
    assert not (tmp_path / "run").exists()
