import json
import pathlib

from rich.console import Console

from clip_jax.data import Digits
from clip_jax.data.mixture import Mixture
from clip_jax.train.experiment import train


def test_the_metrics_tell_how_many_samples_came_from_each_source(experiment, tmp_path):
    sources = {
        "one": (Digits(colourings=1), 3.0),
        "two": (Digits(colourings=2), 1.0),
    }
    config = experiment(tmp_path / "run", data=Mixture(sources=sources), steps=4, evals={})
    with (tmp_path / "log").open("w") as log:
        train(config, Console(file=log))
    lines = (pathlib.Path(config.run) / "metrics.jsonl").read_text().splitlines()
    seen = [json.loads(line) for line in lines]
    seen = [line for line in seen if "samples/one" in line]
    assert [line["step"] for line in seen] == [2, 4]
    for line in seen:
        assert line["samples/one"] + line["samples/two"] == 32
        assert line["samples/one"] == 24
