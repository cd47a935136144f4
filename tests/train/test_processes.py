"""Real processes on this machine, each with its own devices, train one run together."""

import dataclasses
import json
import os
import pathlib
import pickle
import shutil
import signal
import time

import numpy as np
import pytest
from rich.console import Console

from clip_jax.checkpoint.store import CheckpointConfig
from clip_jax.cli import train as train_command
from clip_jax.config import read_json
from clip_jax.data import Synthetic
from clip_jax.eval.retrieval import Retrieval
from clip_jax.sharding.line import LOST
from clip_jax.sharding.processes import STOPPED, StoppedError
from clip_jax.sharding.rules import FSDP
from clip_jax.train import experiment as experiment_module
from clip_jax.train.experiment import train
from clip_jax.train.loop import fit

CONFIG = pathlib.Path(__file__).with_name("pickled.py")


def losses(config):
    return {
        line["step"]: line["loss"]
        for text in (pathlib.Path(config.run) / "metrics.jsonl").read_text().splitlines()
        if "loss" in (line := json.loads(text))
    }


def saved(config):
    folder = pathlib.Path(config.run) / "checkpoints"
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit())


def trained_to(config, step, processes):
    """Wait until a running launch has logged a step."""
    metrics, end = pathlib.Path(config.run) / "metrics.jsonl", time.monotonic() + 400
    while not metrics.exists() or step not in losses(config):
        running = [process.poll() is None for process in processes]
        assert all(running) and time.monotonic() < end, [
            process.output.read_text() for process in processes
        ]
        time.sleep(0.02)


def same(config, reference, to=None):
    """Losses of every step and the figures at the end are those of the reference."""
    ours, theirs = losses(config), losses(reference)
    assert list(ours) == list(theirs)[:to]
    np.testing.assert_allclose(list(ours.values()), list(theirs.values())[:to], rtol=1e-5)
    if to is None:
        figures = [read_json(pathlib.Path(c.run) / "eval.json") for c in (config, reference)]
        assert figures[0] == pytest.approx(figures[1], rel=1e-5)


@pytest.fixture(scope="module")
def alone(experiment, tmp_path_factory):
    """The config of a run of one process, without a break; it compiles in little time."""
    folder = tmp_path_factory.mktemp("alone")
    base = experiment(folder / "run")
    stack = dataclasses.replace(base.model.image.stack, layers=1)
    towers = {
        name: dataclasses.replace(getattr(base.model, name), stack=stack)
        for name in ("image", "text")
    }
    config = dataclasses.replace(
        base,
        data=Synthetic(samples=90, width=16, height=16, encoded=False),
        model=dataclasses.replace(base.model, **towers),
        steps=16,
        rules=FSDP,
        log_every=1,
        checkpoint=CheckpointConfig(every_steps=6, keep=9),
        evals={"test": Retrieval(split="test")},
    )
    with (folder / "log").open("w") as log:
        train(config, Console(file=log))
    return config


def at(config, run):
    return dataclasses.replace(config, run=str(run))


@pytest.fixture(scope="module")
def stopped(alone, launch, ended, tmp_path_factory):
    """A run of two processes, one of which got SIGTERM; how they ended, and what they said."""
    config = at(alone, tmp_path_factory.mktemp("stopped") / "run")
    pair = launch(config, [], [], PAUSE_S="0.4")
    trained_to(config, 2, pair)
    pair[1].send_signal(signal.SIGTERM)
    return config, *ended(pair)


def test_after_sigterm_to_one_all_save_the_same_step_and_say_so(stopped, alone):
    config, codes, said = stopped
    assert codes == [STOPPED, STOPPED], said
    step = saved(config)[-1]
    assert 2 <= step < alone.steps
    assert all(f"stopped after step {step} of 16; the same command goes on" in s for s in said)
    same(config, alone, to=step)


def test_only_the_first_process_prints_progress(stopped):
    first, second = stopped[2]
    assert "step 1/16" in first and "step 1/16" not in second


@pytest.mark.parametrize("count, devices", [(2, 2), (4, 1)])
def test_a_stopped_run_goes_on_as_if_nothing_had_been(
    stopped, alone, launch, ended, tmp_path, count, devices
):
    config = at(alone, tmp_path / "run")
    shutil.copytree(stopped[0].run, config.run)
    codes, said = ended(launch(config, *[[]] * count, devices=devices))
    assert codes == [0] * count, said
    assert f"going on from step {saved(stopped[0])[-1]}" in said[0]
    same(config, alone)


def test_one_process_goes_on_with_what_two_have_saved(stopped, alone, tmp_path):
    config = at(alone, tmp_path / "run")
    shutil.copytree(stopped[0].run, config.run)
    with (tmp_path / "log").open("w") as log:
        train(config, Console(file=log))
    same(config, alone)


def test_a_process_killed_ends_the_other_with_a_message(alone, launch, ended, tmp_path):
    config = at(alone, tmp_path / "run")
    pair = launch(config, [], [], PAUSE_S="0.4")
    trained_to(config, 1, pair)
    pair[1].kill()
    codes, said = ended(pair, within_s=30)  # Below the silence after which jax steps in.
    assert codes == [LOST, -signal.SIGKILL]
    assert "error: process 1 is gone" in said[0]


def test_processes_that_disagree_say_in_what_before_anything_is_written(
    alone, launch, ended, tmp_path
):
    config = at(alone, tmp_path / "run")
    other = ["--seed", "3", "--optim.learning-rate", "0.5", "--data.samples", "91"]
    codes, said = ended(launch(config, [], other))
    assert codes == [1, 1], said
    for words in (
        "seed: 0 on process 0, 3 on process 1",
        "optim.learning_rate: 0.01 on process 0, 0.5 on process 1",
        "data.samples: 90 on process 0, 91 on process 1",
        "data: 90 samples (",
    ):
        assert all(words in s for s in said), (words, said)
    assert not (tmp_path / "run").exists()


def test_a_process_that_never_comes_is_named(alone, ports, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("PICKLED", str(tmp_path / "config"))
    monkeypatch.setenv("CLIP_JAX_START_S", "0.2")
    (tmp_path / "config").write_bytes(pickle.dumps(at(alone, tmp_path / "run")))
    place = ["--coordinator", f"127.0.0.1:{ports()}", "--processes=3", "--process"]
    assert train_command.main([str(CONFIG), *place, "0"]) == LOST
    said = capsys.readouterr().err
    assert "2 of 3 processes did not come" in said and "processes 1, 2" in said
    assert train_command.main([str(CONFIG), *place, "1"]) == LOST
    assert "process 1 waited 0.2 s for process 0" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_one_process_alone_stops_and_goes_on_too(alone, tmp_path, monkeypatch):
    config = at(alone, tmp_path / "run")

    class Signal:
        def due(self, done):
            return True

        def __call__(self, done, state, metrics):
            if done == 7:
                os.kill(os.getpid(), signal.SIGTERM)

    def signalled(*args, hooks, **rest):
        return fit(*args, hooks=[*hooks, Signal()], **rest)

    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch, (tmp_path / "log").open("w") as log:
        patch.setattr(experiment_module, "fit", signalled)
        with pytest.raises(StoppedError, match=r"^stopped after step 7 of 16$"):
            train(config, Console(file=log))
    assert saved(config) == [6, 7]
    assert signal.getsignal(signal.SIGTERM) is before
    with (tmp_path / "log").open("w") as log:
        train(config, Console(file=log))
    assert losses(config) == losses(alone)
    same(config, alone)
