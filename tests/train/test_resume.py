import json
import os
import pathlib
import pickle
import signal
import subprocess
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from rich.console import Console

from clip_jax.config import read_json
from clip_jax.train.experiment import train

KILLED = pathlib.Path(__file__).with_name("killed.py")


def run(config, path):
    with path.open("w") as file:
        train(config, Console(file=file))
    return path.read_text()


def lines(config):
    """Metrics without those that are measured by a clock."""
    text = (pathlib.Path(config.run) / "metrics.jsonl").read_text()
    clocked = {"pairs_per_s", "tflops_per_s", "data_wait"}
    return [
        {name: value for name, value in json.loads(line).items() if name not in clocked}
        for line in text.splitlines()
    ]


def arrays(config, step):
    with ocp.StandardCheckpointer() as reader:
        folder = pathlib.Path(config.run).absolute() / "checkpoints" / str(step)
        both = {part: reader.restore(folder / part) for part in ("params", "progress")}
    position = read_json(folder / "position" / "metadata")
    return jax.tree.map(np.asarray, both), position


@pytest.mark.parametrize("step, when", [(5, "writing"), (7, "written")])
def test_a_run_killed_and_started_again_equals_one_without_a_break(
    experiment, finished, tmp_path, step, when
):
    config = experiment(tmp_path / "run")
    (tmp_path / "config").write_bytes(pickle.dumps(config))
    killed = subprocess.run(
        [sys.executable, str(KILLED), str(tmp_path / "config"), str(step), when],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(KILLED.parents[2])},
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    said = run(config, tmp_path / "log")
    if when == "written":
        assert "going on from step 5" in said
    ours, theirs = arrays(config, 10), arrays(finished, 10)
    jax.tree.map(np.testing.assert_array_equal, ours[0], theirs[0])
    assert ours[1] == theirs[1]
    assert lines(config) == lines(finished)


def test_a_finished_run_says_so_and_changes_nothing(finished, tmp_path):
    folder = pathlib.Path(finished.run)
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.name != "config.json"}
    assert "is finished: 10 of 10 steps" in run(finished, tmp_path / "log")
    after = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.name != "config.json"}
    assert {p for p in before if p.is_file()} == {p for p in after if p.is_file()}
    assert all(after[p] == before[p] for p in before if p.is_file())


def test_a_run_may_go_on_longer(experiment, finished, tmp_path):
    import shutil

    shutil.copytree(finished.run, tmp_path / "run")
    config = experiment(tmp_path / "run", steps=12)
    assert "going on from step 10" in run(config, tmp_path / "log")
    # What was logged, and then all evaluations together.
    assert [line["step"] for line in lines(config)][-3:] == [10, 12, 12]


def test_another_config_is_refused_with_all_fields_that_differ(experiment, finished, tmp_path):
    config = experiment(finished.run, seed=1, batch=32, log_every=3)
    with pytest.raises(ValueError) as error:
        run(config, tmp_path / "log")
    assert "seed: 0 -> 1" in str(error.value) and "batch: 16 -> 32" in str(error.value)
    assert "log_every" not in str(error.value)
    assert read_json(pathlib.Path(finished.run) / "config.json")["seed"] == 0


def test_what_a_run_folder_holds(finished):
    folder = pathlib.Path(finished.run)
    assert {p.name for p in folder.iterdir()} == {
        "config.json", "metrics.jsonl", "checkpoints", "eval.json", "tensorboard",
        "tokenizer.model",
    }  # fmt: skip
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["10", "5"]
    seen = lines(finished)
    logged = [line for line in seen if "loss" in line]
    assert [line["step"] for line in logged] == [2, 4, 6, 8, 10]
    assert logged[0].keys() >= {
        "accuracy", "learning_rate", "temperature", "grad_norm", "skipped", "captions_cut",
    }  # fmt: skip
    evals = [line["step"] for line in seen if "zero_shot/unseen_images/acc1" in line]
    assert evals == [5, 10]
    rank = "retrieval/test/image_to_text_median_rank"
    assert [line["step"] for line in seen if rank in line] == [10]
    figures = read_json(folder / "eval.json")
    assert {"zero_shot/unseen_images/acc1", "retrieval/test/image_to_text_recall@1"} <= set(figures)
    at_end = {k: v for line in seen if line["step"] == 10 for k, v in line.items()}
    assert all(at_end[name] == value for name, value in figures.items())
