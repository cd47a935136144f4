"""Every file of configs/ is a whole experiment that can be written down and read again."""

import csv
import dataclasses
import pathlib

import pytest

from clip_jax.checkpoint.start import open_run
from clip_jax.config import differences, from_data, to_data
from clip_jax.losses import Sigmoid
from clip_jax.models.flops import parameters
from clip_jax.models.presets import preset
from clip_jax.overrides import load_config, override
from clip_jax.pretrained.start import MAY_DIFFER
from clip_jax.sharding.rules import FSDP
from clip_jax.train import config as train_config
from clip_jax.train.config import TrainConfig
from clip_jax.train.recipes import LAION_400M

CONFIGS = sorted((pathlib.Path(__file__).parents[1] / "configs").glob("*.py"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_survives_json_and_the_command_line(path):
    config = load_config(str(path))
    assert from_data(TrainConfig, to_data(config)) == config
    last = ["--last.steps", "3"] if config.last else []
    changed = override(config, ["--steps", "7", "--run", "elsewhere", *last], prog="test")
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


def load(stem):
    return load_config(str(next(p for p in CONFIGS if p.stem == stem)))


PUBLISHED = {
    "clip_b32": "ViT-B-32-quickgelu",
    "clip_b16": "ViT-B-16-quickgelu",
    "clip_l14": "ViT-L-14-quickgelu",
    "clip_l14_336": "ViT-L-14-336-quickgelu",
    "clip_h14": "ViT-H-14",
    "clip_rn50": "RN50-quickgelu",
    "siglip_b16": "ViT-B-16-SigLIP",
    "siglip_so400m": "ViT-SO400M-14-SigLIP",
}
LATER = {"clip_l14_336": "clip_l14"}
"""Runs that begin with the parameters of others."""
LARGE = [*PUBLISHED, *LATER, "clipa_l16"]


@pytest.mark.parametrize("stem", PUBLISHED)
def test_a_published_recipe_trains_the_published_architecture(stem, shared):
    config = load(stem)
    assert parameters(config.model) == parameters(preset(PUBLISHED[stem]))
    with (shared / "reference" / "model_sizes.csv").open() as file:
        sizes = {row["model"]: float(row["mparams"]) for row in csv.DictReader(file)}
    name = PUBLISHED[stem] if PUBLISHED[stem] in sizes else PUBLISHED[stem][: -len("-quickgelu")]
    assert parameters(config.model).model / 1e6 == pytest.approx(sizes[name], abs=0.006)


@pytest.mark.parametrize("stem", LARGE)
def test_a_published_recipe_is_made_for_many_devices_and_says_what_is_ours(stem):
    config = load(stem)
    assert config.rules == FSDP and config.loss.tile
    assert isinstance(config.loss, Sigmoid) == (config.model.bias is not None)
    text = " ".join(next(p for p in CONFIGS if p.stem == stem).read_text().split())
    assert "arXiv:" in text and "Ours: " in text and "Published, zero-shot on" in text


@pytest.mark.parametrize("stem", LATER)
def test_a_later_stage_begins_with_the_run_before_it(stem):
    config, before = load(stem), load(LATER[stem])
    assert config.start_from == before.run != config.run
    first, second = to_data(before.model), to_data(config.model)
    assert differences(first, second, ignore=MAY_DIFFER) == []
    assert config.model.image.image_size > before.model.image.image_size
    assert config.steps * config.batch < before.steps * before.batch / 10


def test_clipa_ends_at_full_size_in_the_same_run():
    config = load("clipa_l16")
    first, last = config.stages()
    assert first.steps + last.steps == config.steps
    assert first.steps * first.batch == pytest.approx(6 * LAION_400M, rel=1e-4)
    assert last.steps * last.batch == pytest.approx(131_072_000, rel=1e-4)
    for stage, tokens, texts, rate in ((first, 37, 8, 1.024e-3), (last, 197, 32, 2.24e-5)):
        assert stage.model.image.grid**2 + 1 == tokens
        assert stage.tokenizer.context_length == stage.model.text.context_length == texts
        assert stage.optim.learning_rate == rate and stage.optim.method.b2 == 0.95
        assert stage.rules == FSDP and stage.model.image.stack.remat == "nothing"


def test_a_resnet_from_scratch_trains_by_the_statistics_of_its_batches():
    config = load("clip_rn50")
    assert config.model.image.batch_statistics and config.accumulate == 1
    assert dataclasses.replace(config.model.image, batch_statistics=False) == preset("RN50").image
    method = config.optim.method
    assert (method.b1, method.b2, method.eps, method.weight_decay) == (0.9, 0.999, 1e-8, 0.2)
    assert (config.optim.learning_rate, config.optim.schedule.warmup) == (5e-4, 2_000)


def test_a_run_goes_on_with_other_room_for_captions_or_none(tmp_path):
    (path,) = [path for path in CONFIGS if path.stem == "clip_b32"]
    config = load_config(str(path))
    assert config.packing is not None
    more = dataclasses.replace(config.packing, tokens_per_caption=48.0)
    none = override(config, ["--packing", "None"], "train.py")
    assert none == dataclasses.replace(config, packing=None)

    def opened(**changes):
        data = to_data(dataclasses.replace(config, **changes))
        open_run(tmp_path, data, may_differ=train_config.MAY_DIFFER)

    opened()
    (tmp_path / "checkpoints" / "10").mkdir(parents=True)
    for packing in (more, None, config.packing):
        opened(packing=packing)
    with pytest.raises(ValueError, match=r"another config.*seed"):
        opened(seed=1)
