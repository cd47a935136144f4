"""A locked image tower whose embeddings were computed before."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import orbax.checkpoint as ocp
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console

import clip_jax
from clip_jax import tree
from clip_jax.checkpoint.store import CheckpointConfig
from clip_jax.cli import embed
from clip_jax.data import Folder
from clip_jax.eval.retrieval import Retrieval
from clip_jax.optim.build import OptimConfig
from clip_jax.optim.schedule import Constant
from clip_jax.preprocess.augment import Augment
from clip_jax.sharding.rules import FSDP
from clip_jax.train.experiment import train
from clip_jax.train.stage import Stage


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Square pictures of the model's size: nothing is cut from them."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("photos")
    (folder / "train").mkdir()
    for number in range(40):
        pixels = rng.integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "train" / f"{number}.png")
        text = f"a digit {rng.integers(10)}\nthe number {number}\n"
        (folder / "train" / f"{number}.txt").write_text(text)
    return folder


@pytest.fixture(scope="module")
def locked(experiment, finished, photos, tmp_path_factory):
    """Images are seen by the image tower, which is locked."""
    plain = experiment(tmp_path_factory.mktemp("locked") / "run")
    image = plain.model.image
    image = dataclasses.replace(image, stack=dataclasses.replace(image.stack, dropout=0.0))
    return dataclasses.replace(
        plain,
        steps=3,
        data=Folder(root=str(photos)),
        augment=Augment(min_crop=1.0),
        model=dataclasses.replace(plain.model, image=image),
        start_from=finished.run,
        optim=OptimConfig(
            learning_rate=1e-2, schedule=Constant(warmup=0.0), rates={"image/*": 0.0}
        ),
        checkpoint=CheckpointConfig(every_steps=1, keep=3),
        evals={"all": Retrieval(split="train", ks=(1, 5))},
        log_every=1,
    )


@pytest.fixture(scope="module")
def table(finished, photos):
    out = photos / "train.parquet"
    assert not embed.main([str(photos / "train"), str(out), "--model", finished.run])
    return out


def embedded(config, table, run):
    return dataclasses.replace(config, run=str(run), augment=Augment(), embeddings=str(table))


def go(config, log):
    with log.open("w") as file:
        train(config, Console(file=file))
    text = (pathlib.Path(config.run) / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()], log.read_text()


@pytest.fixture(scope="module")
def seen(locked, tmp_path_factory):
    return go(locked, tmp_path_factory.mktemp("log") / "log")[0]


def first_gradients(config):
    """Times one minus b1, and clipped: Adam's first moments after one step."""
    folder = pathlib.Path(config.run).absolute() / "checkpoints" / "1" / "progress"
    with ocp.StandardCheckpointer() as reader:
        moments = reader.restore(folder)
    pairs = zip(tree.paths(moments), jax.tree.leaves(moments), strict=True)
    return {path: np.asarray(leaf) for path, leaf in pairs if "/mu/" in path}


def test_precomputed_embeddings_give_the_run_of_the_locked_tower(
    locked, seen, table, finished, tmp_path
):
    config = dataclasses.replace(embedded(locked, table, tmp_path / "run"), rules=FSDP)
    found, _ = go(dataclasses.replace(config, steps=2), tmp_path / "log")
    found, said = go(config, tmp_path / "log")
    assert "going on from step 2" in said
    wanted = {line["step"]: line for line in seen if "loss" in line}
    losses = [line for line in found if "loss" in line]
    assert [line["step"] for line in losses] == [1, 2, 3]
    for line in losses:
        assert line["skipped"] == 0
        for name in ("loss", "grad_norm", "update_norm", "temperature"):
            assert line[name] == pytest.approx(wanted[line["step"]][name], rel=1e-4), name
    assert losses[0]["loss"] == pytest.approx(wanted[1]["loss"], rel=1e-5)
    ours, theirs = first_gradients(config), first_gradients(locked)
    assert ours.keys() == theirs.keys() and any("text/tokens" in path for path in ours)
    for path, slope in ours.items():
        largest = np.abs(theirs[path]).max()
        np.testing.assert_allclose(slope, theirs[path], atol=1e-5 * largest, err_msg=path)
    rank = "retrieval/all/image_to_text_median_rank"  # The real tower sees the pictures.
    assert found[-1][rank] == pytest.approx(seen[-1][rank], abs=2)
    ours, theirs = clip_jax.load(config.run).params, clip_jax.load(locked.run).params
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), ours, theirs)
    before = clip_jax.load(finished.run).params
    jax.tree.map(np.testing.assert_array_equal, ours["image"], before["image"])
    assert not np.array_equal(ours["text"]["head"]["kernel"], before["text"]["head"]["kernel"])


def test_embeddings_of_another_size_are_refused_at_the_start(locked, table, tmp_path):
    wide = tmp_path / "wide.parquet"
    half = pq.read_table(table)
    size = half.schema.field("embedding").type.list_size
    column = half["embedding"].combine_chunks().flatten()
    wider = pa.FixedSizeListArray.from_arrays(column, 2 * size)
    pq.write_table(pa.table({"path": half["path"][: len(wider)], "embedding": wider}), wide)
    with pytest.raises(ValueError, match=f"has embeddings of {2 * size} numbers, the model {size}"):
        go(embedded(locked, wide, tmp_path / "run"), tmp_path / "log")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"start_from": None}, "embeddings needs start_from"),
        ({"augment": Augment(flip=True)}, "augment changes nothing with embeddings"),
        ({"optim": OptimConfig(learning_rate=1e-3)}, "embeddings needs a locked image tower"),
        (
            {"optim": OptimConfig(learning_rate=1e-3, rates={"image/*": 0.0, "*/head/*": 1.0})},
            "embeddings needs a locked image tower",
        ),
        (
            {
                "last": Stage(
                    steps=1,
                    optim=OptimConfig(learning_rate=1e-3, rates={"image/*": 0.0}),
                    image_size=24,
                )
            },
            "last: images of another kind",
        ),
        (
            {"last": Stage(steps=1, optim=OptimConfig(learning_rate=1e-3))},
            "last: embeddings needs a locked image tower",
        ),
    ],
)
def test_what_would_be_ignored_or_wrong_is_refused(locked, table, changes, message):
    config = embedded(locked, table, "run")
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(config, **changes)


def test_dropout_that_would_be_ignored_is_refused(locked, experiment, table):
    dropping = dataclasses.replace(locked, model=experiment("run").model)
    with pytest.raises(ValueError, match="dropout in the image tower changes nothing"):
        embedded(dropping, table, "run")
