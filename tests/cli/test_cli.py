import dataclasses
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
from rich.console import Console

from clip_jax import cli
from clip_jax.cli import eval as eval_command
from clip_jax.cli import process
from clip_jax.cli import train as train_command
from clip_jax.config import to_data
from clip_jax.data import Folder
from clip_jax.eval.retrieval import Retrieval

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIG = '''
import dataclasses
import pathlib
import runpy

from clip_jax.data import Digits
from clip_jax.models.transformer import StackConfig
from clip_jax.sharding.rules import FSDP


def get_config():
    """The demo's config, made tiny."""
    demo = runpy.run_path("DEMO")["get_config"]()
    stack = StackConfig(width=16, layers=1, heads=2)
    model = dataclasses.replace(
        demo.model,
        image=dataclasses.replace(demo.model.image, stack=stack, patch_size=16),
        text=dataclasses.replace(demo.model.text, stack=stack),
        embed_dim=16,
    )
    evals = {name: dataclasses.replace(e, every_steps=2) for name, e in demo.evals.items()}
    return dataclasses.replace(
        demo,
        data=Digits(colourings=1),
        run="unset",
        steps=4,
        batch=16,
        model=model,
        rules=FSDP,
        evals=evals,
        log_every=1,
    )
'''


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "tiny.py"
    path.write_text(CONFIG.replace("DEMO", str(ROOT / "configs" / "digits.py")))
    return path


@pytest.fixture(scope="module")
def unmeasured(config):
    """The same training without evaluations: most of what a start costs here."""
    path = config.with_name("unmeasured.py")
    path.write_text(config.read_text().replace("evals=evals", "evals={}"))
    return path


def script(name, *args, **env):
    return subprocess.run(
        [sys.executable, ROOT / name, *map(str, args)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **env},
        check=False,
    )


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(config, tmp_path_factory):
    run = tmp_path_factory.mktemp("trained") / "run"
    return run, script("train.py", config, "--run", run)


def test_training_from_the_command_line_leaves_figures_and_pictures(trained):
    run, ran = trained
    assert ran.returncode == 0, ran.stderr
    for word in ("loss", "acc", "lr", "temp", "pairs/s", "TFLOP/s", "wait", "left", "step 4/4"):
        assert word in ran.stdout
    assert "unseen_images" in ran.stdout
    pictures = [line.split()[-1] for line in ran.stdout.splitlines() if "picture:" in line]
    assert {pathlib.Path(p).name for p in pictures} >= {"loss.png", "schedule.png"}
    assert all(pathlib.Path(p).stat().st_size > 1000 for p in pictures)
    assert list((run / "tensorboard").iterdir())


def test_a_second_start_finds_its_step_compiled_and_can_be_recorded(unmeasured, trained, tmp_path):
    told = {"JAX_DEBUG_LOG_MODULES": "jax._src.compiler", "JAX_LOGGING_LEVEL": "DEBUG"}
    ran = script("train.py", unmeasured, "--run", tmp_path / "run", "--profile", "2:3", **told)
    assert ran.returncode == 0, ran.stderr
    assert re.search(r"compilation cache hit for 'jit_step'", ran.stderr)
    assert not re.search(r"compilation cache miss for 'jit_step'", ran.stderr, re.IGNORECASE)
    losses = [
        [seen["loss"] for seen in metrics(run) if "loss" in seen]
        for run in (trained[0], tmp_path / "run")
    ]
    assert losses[0] == losses[1] and len(losses[1]) == 4
    folder = tmp_path / "run" / "profile"
    assert f"trace of steps 2 to 3: {folder}" in ran.stdout
    assert [path.stat().st_size > 0 for path in folder.rglob("*.xplane.pb")] == [True]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--profile", "13:10"], "--profile '13:10': give the first and the last step"),
        (["--profile=x"], "--profile 'x': give the first and the last step"),
        (["--profile"], "--profile '': give the first"),
        (["--profile", "1:2", "--profile=2:3"], "--profile is given 2 times: 1:2, 2:3"),
    ],
)
def test_a_range_of_steps_that_is_none_is_refused_before_anything_is_written(
    config, tmp_path, capsys, argv, message
):
    assert train_command.main([str(config), "--run", str(tmp_path / "run"), *argv]) == 1
    assert message in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_steps_to_record_that_the_run_does_not_have_are_refused(config, tmp_path, capsys):
    argv = [str(config), "--run", str(tmp_path / "run"), "--profile", "4:5"]
    assert train_command.main(argv) == 1
    assert "--profile 4:5: this start trains steps 1 to 4" in capsys.readouterr().err


def test_the_same_command_again_says_that_the_run_is_finished(config, trained, capsys):
    assert train_command.main([str(config), "--run", str(trained[0])]) == 0
    assert "is finished: 4 of 4 steps are done" in capsys.readouterr().out


def test_another_config_on_the_same_folder_is_refused(config, trained, capsys):
    argv = [str(config), "--run", str(trained[0]), "--optim.learning-rate", "0.5"]
    assert train_command.main(argv) == 1
    assert "optim.learning_rate: 0.0015 -> 0.5" in capsys.readouterr().err


def test_a_misspelt_field_names_the_nearest_and_nothing_is_written(config, tmp_path, capsys):
    run = tmp_path / "run"
    with pytest.raises(SystemExit) as stop:
        train_command.main([str(config), "--run", str(run), "--optim.learning-rat", "0.5"])
    assert stop.value.code == 2 and not run.exists()
    assert "--optim.learning-rate" in capsys.readouterr().err


def test_a_wrong_type_names_the_field(config, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        train_command.main([str(config), "--steps", "many"])
    assert stop.value.code == 2
    said = capsys.readouterr()
    assert "--steps" in said.err + said.out and "many" in said.err + said.out


def test_evaluating_writes_the_figures_that_the_readme_names(trained, tmp_path):
    run = trained[0]
    ran = script("eval.py", run)
    assert ran.returncode == 0, ran.stderr
    figures = json.loads((run / "eval.json").read_text())
    assert {
        "zero_shot/unseen_images/acc1",
        "zero_shot/unseen_combinations/acc1",
        "retrieval/test/image_to_text_recall@1",
        "retrieval/test/text_to_image_recall@1",
    } <= set(figures)
    assert all(isinstance(value, float) for value in figures.values())
    written = [line.split()[-1] for line in ran.stdout.splitlines() if "written:" in line]
    assert {pathlib.Path(p).name for p in written} >= {"eval.json", "test_text_to_image.png"}
    assert all(pathlib.Path(p).exists() for p in written)
    # What training measured at its last step is what the saved model gives.
    trained_figures = {k: v for line in metrics(run) if line["step"] == 4 for k, v in line.items()}
    for name, value in figures.items():
        assert trained_figures[name] == pytest.approx(value, abs=0.02), name


def test_pictures_of_what_was_left_out_are_not_drawn(finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished.run, run)
    gone = Retrieval(split="test", data=Folder(root=str(tmp_path / "gone")))
    figures = json.loads((run / "eval.json").read_text()) | {"retrieval/gone/left_out": 1.0}
    (run / "eval.json").write_text(json.dumps(figures))
    evals = {"gone": gone, **finished.evals}
    with (tmp_path / "log").open("w") as log:
        config = dataclasses.replace(finished, run=str(run), evals=evals)
        train_command._show(config, Console(file=log))
    drawn = {path.name for path in (run / "plots").iterdir()}
    assert "test_text_to_image.png" in drawn and not any("gone" in name for name in drawn)
    assert "retrieval/gone" in (tmp_path / "log").read_text()


def test_an_evaluation_that_cannot_be_done_costs_the_others_nothing(trained, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(trained[0] / "checkpoints" / "4", run / "checkpoints" / "4")
    saved = run / "checkpoints" / "4" / "config" / "metadata"
    config = json.loads(saved.read_text())
    gone = Retrieval(split="test", data=Folder(root=str(tmp_path / "gone")))
    config["evals"] = {"gone": to_data(gone), **config["evals"]}
    saved.write_text(json.dumps(config))
    with pytest.raises(SystemExit) as ended:
        eval_command.main([str(run)])
    assert ended.value.code == 3
    said = capsys.readouterr().out
    assert f"evals.gone: left out: {tmp_path / 'gone'}" in said
    figures = json.loads((run / "eval.json").read_text())
    assert figures.pop("retrieval/gone/left_out") == 1.0
    assert figures == pytest.approx(json.loads((trained[0] / "eval.json").read_text()), abs=0.02)
    assert not any("gone" in path.name for path in (run / "plots").iterdir())
    (run / "eval.json").unlink()
    assert eval_command.main([str(run), "--evals", "gone"]) == 1
    assert f"evals.gone: left out: {tmp_path / 'gone'}" in capsys.readouterr().err
    assert not (run / "eval.json").exists()


def test_one_evaluation_of_an_older_checkpoint_goes_to_a_folder_of_its_own(trained, tmp_path):
    run = trained[0]
    before = (run / "eval.json").read_text()
    newest = run / "checkpoints" / "4"
    assert eval_command.main([str(newest), "--evals", "unseen_images"]) == 0
    assert (run / "eval.json").read_text() == before
    path = run / "eval" / "4" / "eval.json"
    figures = json.loads(path.read_text())
    assert all(name.startswith("zero_shot/unseen_images/") for name in figures)
    # Done again, it is not left out any more; those of others stay.
    other = {"zero_shot/unseen_images_2/left_out": 1.0}
    path.write_text(json.dumps({"zero_shot/unseen_images/left_out": 1.0, **other}))
    assert eval_command.main([str(newest), "--evals", "unseen_images"]) == 0
    assert json.loads(path.read_text()) == pytest.approx({**figures, **other})


def test_what_cannot_be_evaluated_is_said(trained, tmp_path, capsys):
    assert eval_command.main([str(tmp_path / "nowhere")]) == 1
    assert "nowhere does not exist: give a run folder" in capsys.readouterr().err
    assert eval_command.main([str(trained[0]), "--evals", "unseen_image"]) == 1
    assert "nearest: 'unseen_images'" in capsys.readouterr().err
    assert eval_command.main([str(trained[0]), "--data.root", "x"]) == 1
    assert "--data.root: Digits reads no folder" in capsys.readouterr().err


def test_a_missing_config_or_data_folder_is_named(config, tmp_path, capsys):
    assert train_command.main([str(tmp_path / "no.py")]) == 1
    assert "no.py" in capsys.readouterr().err
    argv = [str(ROOT / "configs" / "flickr8k.py"), "--run", str(tmp_path / "run")]
    assert train_command.main([*argv, "--data.root", str(tmp_path / "photos")]) == 1
    assert str(tmp_path / "photos") in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_console_command_knows_its_commands(capsys):
    for argv, status in ([], 2), (["trian"], 2), (["--help"], 0):
        with pytest.raises(SystemExit) as stop:
            cli.main(argv)
        assert stop.value.code == status
        said = capsys.readouterr()
        assert "clip-jax train" in said.out + said.err
    with pytest.raises(SystemExit) as stop:
        cli.main(["eval", "nowhere"])
    assert stop.value.code == 1


def test_a_vocabulary_is_trained_from_the_captions_of_a_config(config, tmp_path):
    from clip_jax.tokenizers import SentencePiece

    out = tmp_path / "digits.model"
    with pytest.raises(SystemExit) as stop:
        cli.main(["tokenizer", str(config), str(out), "--vocab-size", "70"])
    assert stop.value.code == 0
    assert SentencePiece(model=str(out)).vocab_size == 70


def test_a_process_starts_over_once_with_huge_pages_and_keeps_its_arguments():
    code = (
        "import os, sys; from clip_jax.cli.process import use_huge_pages; "
        "use_huge_pages(); print(os.environ.get('GLIBC_TUNABLES'), sys.argv[1:])"
    )
    env = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
    ran = subprocess.run(
        [sys.executable, "-c", code, "a b", "c"],
        capture_output=True,
        text=True,
        env=env,
        check=True,
    )
    tunables = process.HUGE_PAGES if sys.platform == "linux" else None
    assert ran.stdout.strip() == f"{tunables} ['a b', 'c']"
    env["GLIBC_TUNABLES"] = "glibc.malloc.check=0"
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True
    )
    assert ran.stdout.strip() == "glibc.malloc.check=0 []"


def test_a_loss_that_diverges_stops_the_run_and_says_how_to_go_on(unmeasured, tmp_path, capsys):
    run = tmp_path / "run"
    wild = ["--optim.learning-rate", "1e30", "--optim.clip-norm", "None"]
    often = ["--checkpoint.every-steps", "1", "--optim.schedule.warmup", "2"]
    assert train_command.main([str(unmeasured), "--run", str(run), *wild, *often]) == 1
    said = capsys.readouterr().err
    step = int(re.search(r"error: step (\d): (loss|grad_norm|update_norm) is (nan|inf)", said)[1])
    good = run / "checkpoints" / str(step - 1)
    assert f"The last good checkpoint is {good}: use --run NEW --start-from" in said
    assert sorted(p.name for p in (run / "checkpoints").iterdir())[-1] == good.name
    calm = ["--run", str(tmp_path / "new"), "--start-from", str(good), "--steps", "1"]
    assert train_command.main([str(unmeasured), *calm]) == 0
