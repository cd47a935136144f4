"""Two real processes, killed and stopped on their way through the stages of one run."""

import dataclasses
import json
import pathlib
import signal

import numpy as np
import pytest
from rich.console import Console

from clip_jax.checkpoint.store import CheckpointConfig
from clip_jax.config import read_json
from clip_jax.data import Synthetic
from clip_jax.eval.retrieval import Retrieval
from clip_jax.optim.build import OptimConfig
from clip_jax.optim.schedule import Constant
from clip_jax.sharding.line import LOST
from clip_jax.sharding.processes import STOPPED
from clip_jax.sharding.rules import FSDP
from clip_jax.train.experiment import train
from clip_jax.train.stage import Stage

BORDER, END = 4, 7
KILLED = {-signal.SIGKILL, LOST, -signal.SIGABRT}
"""Before a process kills itself, the other's end may reach it, through us or through jax."""


@pytest.fixture(scope="module")
def alone(experiment, tmp_path_factory):
    """The config of a run of one process, without a break."""
    folder = tmp_path_factory.mktemp("alone")
    base = experiment(folder / "run")
    stack = dataclasses.replace(base.model.image.stack, layers=1)
    towers = {
        name: dataclasses.replace(getattr(base.model, name), stack=stack)
        for name in ("image", "text")
    }
    towers["text"] = dataclasses.replace(towers["text"], train_length=4)
    config = dataclasses.replace(
        base,
        data=Synthetic(samples=50, width=16, height=16, encoded=False),
        model=dataclasses.replace(base.model, **towers),
        steps=END,
        last=Stage(
            steps=END - BORDER,
            optim=OptimConfig(learning_rate=3e-3, schedule=Constant(warmup=0.0)),
            image_size=24,
            context_length=12,
            batch=24,
        ),
        ema=0.5,
        rules=FSDP,
        log_every=1,
        checkpoint=CheckpointConfig(every_steps=2, keep=9),
        evals={"test": Retrieval(split="test", ks=(1,), every_steps=3)},
    )
    with (folder / "log").open("w") as log:
        train(config, Console(file=log))
    return config


def lines(config):
    """Metrics by step and name, without those that are measured by a clock."""
    found = {}
    for line in (pathlib.Path(config.run) / "metrics.jsonl").read_text().splitlines():
        values = json.loads(line)
        step = values.pop("step")
        for name in values.keys() - {"pairs_per_s", "tflops_per_s", "data_wait"}:
            assert (step, name) not in found
            found[step, name] = values[name]
    return found


def newest(config):
    folder = pathlib.Path(config.run) / "checkpoints"
    return max((int(p.name) for p in folder.iterdir() if p.name.isdigit()), default=0)


def test_stages_of_two_processes_killed_and_stopped_are_those_of_one(
    alone, launch, ended, tmp_path
):
    config = dataclasses.replace(alone, run=str(tmp_path / "run"))
    # The checkpoint at the end of the first stage is still being written.
    codes, said = ended(launch(config, [], [], STRIKE=f"{BORDER} {signal.SIGKILL:d}"))
    assert KILLED.issuperset(codes), said
    start = newest(config)
    assert start in (0, 2, BORDER)

    codes, said = ended(launch(config, [], [], STRIKE=f"{BORDER + 1} {signal.SIGTERM:d}"))
    assert codes == [STOPPED, STOPPED], said
    assert not start or f"going on from step {start}\n" in said[0]
    stop = newest(config)
    assert BORDER < stop < END
    assert all(f"stopped after step {stop} of {END}; the same command" in text for text in said)

    with (tmp_path / "log").open("w") as log:
        train(config, Console(file=log))
    assert f"going on from step {stop}\n" in (tmp_path / "log").read_text()
    ours, theirs = lines(config), lines(alone)
    assert ours.keys() == theirs.keys()
    for step, name in theirs:
        assert ours[step, name] == pytest.approx(theirs[step, name], rel=1e-4), (step, name)
    of_loss = [key for key in theirs if key[1] == "loss"]
    assert len(of_loss) == END
    np.testing.assert_allclose(
        [ours[key] for key in of_loss], [theirs[key] for key in of_loss], rtol=1e-5
    )
    folders = [pathlib.Path(c.run) / "checkpoints" / str(END) for c in (config, alone)]
    at = [read_json(folder / "position/metadata")["source"] for folder in folders]
    reached = [position["origin"] + sum(position["visits"]) for position in at]
    assert reached == [BORDER * 16 + (END - BORDER) * 24] * 2
