import json

import pytest

from clip_jax.cli import plan
from clip_jax.cli.plan import split, stage
from clip_jax.overrides import load_config


def test_without_a_config_or_chips_it_says_what_is_needed(capsys):
    with pytest.raises(SystemExit) as stopped:
        plan.main([])
    assert stopped.value.code == 2 and "--topology NAME" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        plan.main(["--help"])
    assert stopped.value.code == 0
    assert plan.main(["configs/clip_b32.py"]) == 1
    assert "Give --topology, such as v5e:16x16" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--topology", "v5x:2x2"], "nearest 'v5p'"),
        (["--topology"], "--topology needs a value"),
        (["--topology", "h100:8", "--price", "much"], "--price 'much' is no number"),
        (["--topology", "h100:8", "--samples=-3"], "--samples must be above 0"),
        (["--topology", "h100:7"], "batch 32768 does not split over 7 devices"),
    ],
)
def test_mistakes_become_one_message(words, message, capsys):
    assert plan.main(["configs/clip_b32.py", *words]) == 1
    assert message in capsys.readouterr().err


def test_options_of_the_command_and_of_the_config_are_told_apart():
    words = ["--batch", "64", "--topology=v5e:2x2", "--sweep", "--rules.params", "data"]
    own, rest = split(words)
    assert own == {"--topology": "v5e:2x2", "--sweep": ""}
    assert rest == ["--batch", "64", "--rules.params", "data"]


def test_a_plan_is_of_one_stage():
    config = load_config("configs/clipa_l16.py")
    for name, size in ((None, 96), ("first", 96), ("last", 224)):
        assert stage(config, name).recipe.size == size
    assert stage(config, "last").steps == config.last.steps
    with pytest.raises(ValueError, match=r"^--stage 'third': this config has first and last$"):
        stage(config, "third")
    with pytest.raises(ValueError, match=r"^--stage 'last': this config has first$"):
        stage(stage(config, "last"), "last")


def test_a_plan_is_printed_and_written(tmp_path, capsys):
    path = tmp_path / "plans" / "b32.json"
    words = ["--topology", "h100:64", "--price", "2.5", "--samples", "1_000_000", "--batch", "4096"]
    assert plan.main(["configs/clip_b32.py", *words, "--json", str(path)]) == 0
    assert "h100:64, 64 chips, batch 4,096" in capsys.readouterr().out
    written = json.loads(path.read_text())
    found = written["estimate"]
    assert written["batch"] == 4096 and found["samples"] == 1_000_000
    assert found["cost"] == pytest.approx(2.5 * found["chip_hours"])


def test_a_sweep_is_ranked(tmp_path, capsys):
    path = tmp_path / "sweep.json"
    words = ["--topology", "a100:8", "--batch", "512", "--sweep", "--json", str(path)]
    assert plan.main(["configs/clip_b32.py", *words]) == 0
    assert capsys.readouterr().out.count("ms a step") == len(json.loads(path.read_text()))
