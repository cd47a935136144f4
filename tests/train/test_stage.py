"""A run whose last updates are made under other settings."""

import dataclasses
import json
import pathlib
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath
from rich.console import Console

import clip_jax
from clip_jax.checkpoint.start import saved_config
from clip_jax.checkpoint.store import CheckpointConfig
from clip_jax.config import from_data, read_json, to_data
from clip_jax.data.packing import Packing
from clip_jax.eval.retrieval import Retrieval
from clip_jax.models.resnet import ResNetConfig
from clip_jax.optim.build import Adafactor, OptimConfig
from clip_jax.optim.schedule import Constant
from clip_jax.pretrained.resize import resize_positions
from clip_jax.sharding.processes import StoppedError
from clip_jax.sharding.rules import FSDP
from clip_jax.train import experiment as course
from clip_jax.train.config import TrainConfig
from clip_jax.train.experiment import train
from clip_jax.train.stage import Stage

BORDER, END = 3, 5
RATE = 3e-3
LAST = Stage(
    steps=END - BORDER,
    optim=OptimConfig(
        method=Adafactor(factor_from=8), learning_rate=RATE, schedule=Constant(warmup=0.0)
    ),
    image_size=24,
    context_length=12,
    batch=24,
)


def go(config, log):
    with log.open("w") as file:
        train(config, Console(file=file))
    return log.read_text()


@pytest.fixture(scope="module")
def config(experiment, variant, tmp_path_factory):
    """Small images and short texts; then larger ones, in larger batches."""
    plain = experiment(tmp_path_factory.mktemp("stages") / "run")
    model = variant(plain.model, **{"text.train_length": 4, "image.patch_dropout": 0.25})
    for tower in ("image", "text"):
        model = variant(model, **{f"{tower}.stack.layers": 1, f"{tower}.stack.unroll": 1})
    return dataclasses.replace(
        plain,
        steps=END,
        model=model,
        last=LAST,
        ema=0.5,
        checkpoint=CheckpointConfig(every_steps=1, keep=9),
        evals={"test": Retrieval(split="test", ks=(1,), every_steps=2)},
        log_every=1,
    )


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    go(config, tmp_path_factory.mktemp("log") / "log")
    return config


@pytest.fixture(scope="module")
def variant():
    def change(value, **fields):
        for path, new in fields.items():
            head, _, rest = path.partition(".")
            if rest:
                new = change(getattr(value, head), **{rest: new})
            value = dataclasses.replace(value, **{head: new})
        return value

    return change


def checkpoint(config, step):
    return pathlib.Path(config.run).absolute() / "checkpoints" / str(step)


def saved(config, step):
    with ocp.StandardCheckpointer() as reader:
        items = ("params", "ema", "progress")
        found = {item: reader.restore(checkpoint(config, step) / item) for item in items}
    return jax.tree.map(np.asarray, found), read_json(
        checkpoint(config, step) / "position/metadata"
    )


def lines(config):
    text = (pathlib.Path(config.run) / "metrics.jsonl").read_text()
    clocked = {"pairs_per_s", "tflops_per_s", "data_wait"}
    return [
        {name: value for name, value in json.loads(line).items() if name not in clocked}
        for line in text.splitlines()
    ]


def killed_after(step, whole, folder):
    """A copy of the run as the disk looks if its process is killed then."""
    shutil.copytree(whole.run, folder / "run")
    config = dataclasses.replace(whole, run=str(folder / "run"))
    for later in range(step + 1, END + 1):
        shutil.rmtree(checkpoint(config, later))
    return config


def equal(ours, theirs):
    a, b = saved(ours, END), saved(theirs, END)
    jax.tree.map(np.testing.assert_array_equal, a[0], b[0])
    return a[1] == b[1] and lines(ours) == lines(theirs)


def test_a_run_killed_in_the_last_stage_goes_on_exactly(whole, tmp_path):
    config = killed_after(BORDER + 1, whole, tmp_path)
    assert f"going on from step {BORDER + 1}" in go(config, tmp_path / "log")
    assert equal(config, whole)


class StopAtTheBorder:
    def __enter__(self):
        return lambda done: done == BORDER

    def __exit__(self, *_):
        return None


def test_a_run_killed_before_the_border_and_stopped_at_it_goes_on_exactly(whole, tmp_path):
    config = killed_after(1, whole, tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(course, "stop_asked", StopAtTheBorder)
        with pytest.raises(StoppedError, match=f"^stopped after step {BORDER} of {END}$"):
            go(config, tmp_path / "log")
    assert sorted(p.name for p in checkpoint(config, 0).parent.iterdir()) == ["1", "2", "3"]
    assert f"going on from step {BORDER}" in go(config, tmp_path / "log")
    assert equal(config, whole)


def test_a_checkpoint_knows_the_config_of_its_stage(whole):
    first, last = whole.stages()
    assert (first.steps, last.steps) == (BORDER, END - BORDER)
    for step, stage in ((BORDER, first), (BORDER + 1, last)):
        kept = saved_config(epath.Path(checkpoint(whole, step)))
        assert from_data(TrainConfig, kept) == stage


def test_counts_go_on_and_the_rate_has_a_schedule_of_its_own(whole):
    seen = [line for line in lines(whole) if "loss" in line]
    assert [line["step"] for line in seen] == list(range(1, END + 1))
    rates = [line["learning_rate"] for line in seen]
    assert rates[BORDER:] == pytest.approx([RATE] * (END - BORDER))
    schedule = whole.optim.schedule.build(whole.optim.learning_rate, BORDER)
    assert rates[:BORDER] == pytest.approx([float(schedule(t)) for t in range(BORDER)])
    evals = {line["step"] for line in lines(whole) if len(line) > 1 and "loss" not in line}
    assert evals == {2, BORDER, 4, END}
    at_end = [line for line in lines(whole) if line["step"] == END and "loss" not in line]
    figures = read_json(pathlib.Path(whole.run) / "eval.json")
    assert figures.items() <= at_end[0].items() and figures


def test_no_sample_is_lost_or_seen_twice_at_the_border(whole):
    position = saved(whole, END)[1]["source"]
    assert (position["batch"], position["origin"]) == (24, BORDER * 16)
    assert position["visits"] == [(END - BORDER) * 24] and position["before"] == []


def test_the_run_is_loaded_at_its_last_size(whole):
    first, last = whole.stages()
    loaded = clip_jax.load(whole.run)
    assert loaded.model.cfg == last.model
    assert (loaded.model.cfg.image.image_size, loaded.preprocess.size) == (24, 24)
    assert loaded.tokenizer.context_length == 12
    arrays = saved(whole, END)[0]
    jax.tree.map(np.testing.assert_array_equal, loaded.params, arrays["ema"])
    earlier = clip_jax.load(checkpoint(whole, BORDER))
    assert earlier.model.cfg == first.model and earlier.tokenizer.context_length == 8


def test_parameters_and_average_go_on_resampled_and_the_optimizer_begins_anew(whole):
    whole = dataclasses.replace(whole, rules=FSDP)
    first, last = whole.stages()
    [before, after] = course._stages(whole, course.build_mesh(whole.mesh))
    arrays = saved(whole, BORDER)[0]
    state, _ = course._start(first, before.parts, store(whole), BORDER)
    entered = course.enter_stage(state, first, last, after.parts.abstract)
    assert int(entered.step) == BORDER
    for ours, theirs in ((entered.params, arrays["params"]), (entered.ema, arrays["ema"])):
        wanted = jax.jit(lambda p: resize_positions(p, first.model, last.model))(theirs)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), ours, wanted)
        table = ours["text"]["positions"]["embedding"]
        assert table.shape[0] == 12 and len(table.sharding.device_set) == 8
    assert not any(np.any(np.asarray(leaf) > 1) for leaf in jax.tree.leaves(entered.opt))
    for ours, theirs in zip(
        jax.tree.leaves(entered), jax.tree.leaves(after.parts.abstract), strict=True
    ):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        assert ours.sharding.is_equivalent_to(theirs.sharding, ours.ndim)


def store(config):
    return course.Store(pathlib.Path(config.run) / "checkpoints", config.checkpoint)


def test_where_the_border_lies_is_settled_when_the_run_begins(whole, tmp_path):
    longer = dataclasses.replace(whole, steps=END + 1)
    with pytest.raises(ValueError, match=r"another config.*steps: 5 -> 6"):
        go(longer, tmp_path / "log")
    without = dataclasses.replace(whole, last=None)
    with pytest.raises(ValueError, match=r"another config.*last: .* -> None"):
        go(without, tmp_path / "log")
    in_parts = dataclasses.replace(whole, last=dataclasses.replace(LAST, accumulate=3))
    assert "is finished" in go(in_parts, tmp_path / "log")


def test_what_is_not_named_stays_and_what_was_left_out_comes_back(config):
    first, last = dataclasses.replace(
        config, last=Stage(steps=1, optim=OptimConfig(learning_rate=1.0)), accumulate=2
    ).stages()
    assert first == dataclasses.replace(config, last=None, steps=END - 1, accumulate=2)
    model = last.model
    assert (model.text.train_length, model.image.patch_dropout) == (None, 0.0)
    assert (last.batch, last.accumulate, last.recipe, last.tokenizer) == (
        first.batch, 2, first.recipe, first.tokenizer,
    )  # fmt: skip
    assert from_data(TrainConfig, to_data(config)) == config


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"steps": END}, f"last.steps {END} must be below steps {END}"),
        ({"image_size": 20}, "last: image_size 20 is no multiple of patch_size 8"),
        ({"train_length": 13}, "last: train_length 13 must be from 3 to context_length 12"),
        ({"packing": Packing()}, "last: packing needs a causal text tower"),
        ({"patch_dropout": 1.0}, r"last: patch_dropout must lie in \[0, 1\), got 1.0"),
        ({"batch": 0}, "batch must be at least 1, got 0"),
    ],
)
def test_stages_that_cannot_be_are_refused_before_the_run(config, changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(config, last=dataclasses.replace(LAST, **changes))


def test_patches_of_a_resnet_cannot_be_left_out(config):
    resnet = dataclasses.replace(config.model, image=ResNetConfig(image_size=32))
    stage = dataclasses.replace(LAST, image_size=64, patch_dropout=0.5)
    with pytest.raises(ValueError, match="patch_dropout is not for a ResNet"):
        stage.model(resnet)
    assert dataclasses.replace(stage, patch_dropout=0.0).model(resnet).image.image_size == 64


def test_a_batch_that_the_mesh_does_not_divide_is_refused_at_the_start(config, tmp_path):
    wrong = dataclasses.replace(config, run=str(tmp_path / "run"))
    wrong = dataclasses.replace(wrong, last=dataclasses.replace(LAST, batch=20))
    with pytest.raises(ValueError, match="batch 20"):
        go(wrong, tmp_path / "log")
    assert not (tmp_path / "run").exists()
