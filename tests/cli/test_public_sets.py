"""Public data sets in a run: on its parameters where they lie, and again by the commands."""

import dataclasses
import json
import pathlib
import pickle
import runpy
import shutil
import types

import jax
import pytest
from rich.console import Console

from clip_jax.api import load
from clip_jax.checkpoint.store import CheckpointConfig
from clip_jax.cli import eval as eval_command
from clip_jax.cli import train as train_command
from clip_jax.config import read_json
from clip_jax.eval.public_sets import PublicSets
from clip_jax.models.axes import logical_axes
from clip_jax.sharding.mesh import MeshConfig, build_mesh
from clip_jax.sharding.place import param_shardings
from clip_jax.sharding.rules import DATA_PARALLEL, FSDP
from clip_jax.train.assemble import assemble_run
from clip_jax.train.experiment import evaluator, train

TESTS = pathlib.Path(__file__).parents[1]
sets = types.SimpleNamespace(**runpy.run_path(str(TESTS / "eval" / "standins.py")))
KEYS = ("mnist", "flickr8k", "wilds/fmow")
BEST = "public/all/mnist/calibration_error"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("root")
    sets.wds(root / "wds_mnist", sets.labelled(21, 5), classes=sets.CLASSES[:5])
    sets.wds(root / "flickr8k", sets.captioned(11), kind="retrieval")
    samples = sets.labelled(19, 5, seed=1, npy=lambda row: sets.npy([row % 3, row % 2, 0]))
    samples[4]["png"] = b"no picture"
    sets.wds(root / "wds_wilds-fmow_test", samples, classes=sets.CLASSES[:5])
    return root


@pytest.fixture(scope="module")
def run(experiment, root, tmp_path_factory):
    """A config, and what was printed while it was trained: sharded, with an average."""
    folder = tmp_path_factory.mktemp("public")
    config = experiment(
        folder / "run",
        steps=4,
        ema=0.7,
        rules=FSDP,
        eval_batch=16,
        checkpoint=CheckpointConfig(every_steps=2, keep=1, best=BEST, best_is="min"),
        evals={
            "all": PublicSets(sets=KEYS, root=str(root), every_steps=2),
            "last": PublicSets(sets=("mnist",), root=str(root)),
        },
    )
    (folder / "config").write_bytes(pickle.dumps(config))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PICKLED", str(folder / "config"))
        patch.setenv("HOME", str(folder))
        assert train_command.main([str(TESTS / "train" / "pickled.py")]) == 0
    return config


@pytest.fixture
def command(tmp_path, monkeypatch):
    """`command(*args)`: exit status of eval.py."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))

    def call(*args):
        try:
            return eval_command.main([str(arg) for arg in args])
        except SystemExit as stop:
            return stop.code

    return call


def test_they_run_every_so_many_steps_and_give_the_figures_of_the_suite(
    run, root, command, tmp_path, capsys
):
    folder = pathlib.Path(run.run)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if BEST in line] == [2, 4]
    assert [line["step"] for line in lines if "public/last/acc1" in line] == [4]
    figures = read_json(folder / "eval.json")
    args = ("--suite", ",".join(KEYS), "--root", root, "--out", tmp_path / "suite", "--batch", 16)
    assert command(run.run, *args) == 0
    assert "wilds/fmow" not in capsys.readouterr().err
    flat = read_json(tmp_path / "suite" / "eval.json")
    expected = {f"public/all/{name.partition('/')[2]}": value for name, value in flat.items()}
    expected |= {
        name.replace("zero_shot/mnist/", "public/last/"): value
        for name, value in flat.items()
        if name.startswith("zero_shot/mnist/")
    }
    assert figures == pytest.approx(expected, abs=1e-6)
    assert figures["public/all/wilds-fmow/skipped"] == 1


def test_the_best_checkpoint_by_one_of_their_figures_stays(run):
    lines = (pathlib.Path(run.run) / "metrics.jsonl").read_text().splitlines()
    found = {one["step"]: one[BEST] for line in lines if BEST in (one := json.loads(line))}
    steps = {int(path.name) for path in (pathlib.Path(run.run) / "checkpoints").iterdir()}
    assert found[2] != found[4]
    assert steps == {4, min(found, key=found.__getitem__)}


@pytest.mark.parametrize("devices, rules", [(1, DATA_PARALLEL), (8, FSDP)])
def test_figures_do_not_depend_on_the_mesh(run, devices, rules):
    config = dataclasses.replace(run, rules=rules)
    mesh = build_mesh(MeshConfig(), jax.devices()[:devices])
    params, said = load(run.run).params, []
    where = param_shardings(params, logical_axes(params), rules, mesh)
    evaluate = evaluator(config, assemble_run(config, mesh), said.append)
    (found,) = evaluate(jax.device_put(params, where), ["all"])
    figures = read_json(pathlib.Path(run.run) / "eval.json")
    wanted = {name: value for name, value in figures.items() if name.startswith("public/all/")}
    assert found == pytest.approx(wanted, abs=1e-6)
    assert any(line.startswith("wilds/fmow: 1 left out: sample '0/s0000004'") for line in said)


def test_the_runs_own_evaluations_again(run, root, command, tmp_path, capsys):
    assert command(run.run, "--out", tmp_path / "again") == 0
    figures = read_json(pathlib.Path(run.run) / "eval.json")
    assert read_json(tmp_path / "again" / "eval.json") == pytest.approx(figures, abs=1e-6)
    shown = capsys.readouterr().out
    assert "public/all/wilds-fmow" in shown and "acc_worst_region" in shown
    hidden = root / "hidden"
    shutil.move(root / "flickr8k", hidden)
    try:
        assert command(run.run, "--out", tmp_path / "less", "--evals", "all") == 3
    finally:
        shutil.move(hidden, root / "flickr8k")
    assert f"flickr8k: left out: flickr8k is not in {root}" in capsys.readouterr().out
    less = read_json(tmp_path / "less" / "eval.json")
    assert less["public/all/left_out"] == 1
    assert not any("flickr8k" in name or "Average" in name for name in less)


def test_a_name_that_is_wrong_shows_before_the_first_step(experiment, root, tmp_path):
    def fault(**fields):
        evals = {"all": PublicSets(**{"sets": KEYS, "root": str(root), **fields})}
        with pytest.raises((ValueError, FileNotFoundError)) as error:
            train(experiment(tmp_path / "run", evals=evals), Console(quiet=True))
        assert not (tmp_path / "run").exists()
        return str(error.value)

    wrong = fault(sets=("winogruond", "mnist", "cars"))
    assert "is called 'winogruond' (nearest: 'winoground'); cars is not in " in wrong
    none = tmp_path / "none"
    assert fault(root=str(none)).startswith(f"evals.all: {none} is no folder")
