"""Two real processes, of which one meets long captions on the way, in each stage of a run."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from clip_jax.data.order import locate
from clip_jax.data.packing import Packing
from clip_jax.data.table import Table
from clip_jax.optim.build import OptimConfig
from clip_jax.optim.schedule import Constant
from clip_jax.tokenizers import ClipBpe
from clip_jax.train.experiment import train
from clip_jax.train.stage import Stage

BATCH, STEPS, LENGTH = 8, 5, 12
BORDER = 3
"""The last step of the first stage."""
LONG_AT = (2, 4)
"""The steps in whose batches all captions of the second process are long."""


def losses(config):
    lines = (pathlib.Path(config.run) / "metrics.jsonl").read_text().splitlines()
    return [line["loss"] for line in map(json.loads, lines) if "loss" in line]


def write(path, long=()):
    """One picture, over and over, whose captions are short but for some."""
    titles = [f"{n} {'dogs ' * 20 if n in long else 'cat'}" for n in range(BATCH * STEPS)]
    path.write_text("filepath,title\n" + "".join(f"picture.png,{title}\n" for title in titles))
    return Table(path=str(path))


@pytest.fixture
def config(experiment, variant, tmp_path):
    """Captions packed in room for short ones."""
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    base = experiment(tmp_path / "run")
    source = write(tmp_path / "table.csv").open("train")
    visits = [v for s in LONG_AT for v in range(BATCH * s - BATCH // 2, BATCH * s)]
    data = write(tmp_path / "table.csv", {locate(source, base.seed, v)[1] for v in visits})
    packing = Packing(row=LENGTH, tokens_per_caption=4.0)
    optim = OptimConfig(learning_rate=1e-3, schedule=Constant(warmup=0.0))
    changes = {
        "image.stack.layers": 1,
        "text.stack.layers": 1,
        "text.context_length": LENGTH,
        "text.vocab_size": ClipBpe().vocab_size,
        "text.causal": True,
        "text.pool": "eot",
    }
    return dataclasses.replace(
        base,
        data=data,
        batch=BATCH,
        steps=STEPS,
        model=variant(base.model, **changes),
        tokenizer=ClipBpe(context_length=LENGTH),
        packing=packing,
        last=Stage(steps=STEPS - BORDER, optim=optim, packing=packing),
        log_every=1,
        evals={},
    )


def test_long_captions_of_one_process_get_room_in_all(config, launch, ended, tmp_path):
    codes, said = ended(launch(config, [], []))
    assert codes == [0, 0], said
    for step in LONG_AT:
        told = f"step {step}: {BATCH // 2} captions need 4 rows of {LENGTH} tokens, and packing has"
        assert told in said[0]
    assert [text.count("compiled once more") for text in said] == [len(LONG_AT), 0]
    last = dataclasses.replace(config.last, packing=None)
    alone = dataclasses.replace(config, run=str(tmp_path / "alone"), packing=None, last=last)
    with (tmp_path / "log").open("w") as log:
        train(alone, Console(file=log))
    assert len(losses(alone)) == STEPS
    np.testing.assert_allclose(losses(config), losses(alone), rtol=1e-5)
