"""Every file of configs/ is a whole experiment that can be written down and read again."""

import pathlib

import pytest

from clip_jax.config import from_data, load_config, override, to_data
from clip_jax.train.experiment import TrainConfig

CONFIGS = sorted((pathlib.Path(__file__).parents[1] / "configs").glob("*.py"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_survives_json_and_the_command_line(path):
    config = load_config(str(path))
    assert from_data(TrainConfig, to_data(config)) == config
    changed = override(config, ["--steps", "7", "--run", "elsewhere"], prog="test")
    assert (changed.steps, changed.run) == (7, "elsewhere")
    assert changed.model == config.model
    command = f"python train.py configs/{path.name}"
    assert command in path.read_text(), "its docstring tells the command"


def test_datacomp_small_is_the_published_recipe():
    config = load_config(str(next(p for p in CONFIGS if p.stem == "datacomp_small")))
    assert config.steps * config.batch == pytest.approx(12_800_000, rel=1e-3)
    assert (config.batch, config.optim.learning_rate) == (4096, 5e-4)
    assert (config.optim.method.b2, config.optim.method.weight_decay) == (0.98, 0.2)
    assert config.optim.schedule.warmup == 500
