import json
import pathlib
import runpy
import shutil
import types

import jax
import numpy as np
import pytest

from clip_jax.api import load, save
from clip_jax.checkpoint.start import checkpoint_folder, saved_config
from clip_jax.cli import ensemble, prompts, soup
from clip_jax.cli import eval as eval_command

TESTS = pathlib.Path(__file__).parents[1]
sets = types.SimpleNamespace(**runpy.run_path(str(TESTS / "eval" / "standins.py")))
CLASSES = ("one", "two", "three")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("root")
    sets.wds(root / "mnist", sets.labelled(24, 3), classes=CLASSES)
    sets.wds(root / "mnist", sets.labelled(30, 3, seed=1), classes=CLASSES, split="train")
    return root


@pytest.fixture
def command(tmp_path, root, monkeypatch):
    """`command(main, *args)`: exit status; the data set and a small batch are given."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))

    def run(main, *args):
        given = ("--suite", "mnist", "--root", root, "--batch", 16)
        try:
            return main([str(arg) for arg in (*given, *args)])
        except SystemExit as stop:
            return stop.code

    return run


@pytest.fixture
def models(finished):
    """Two checkpoints of one run."""
    return [f"{finished.run}/checkpoints/5", finished.run]


def figures(command, model, out, *more):
    assert command(eval_command.main, model, "--out", out, *more) == 0
    return json.loads((pathlib.Path(out) / "eval.json").read_text())["zero_shot/mnist/acc1"]


def test_a_uniform_soup_is_the_mean_and_loads_as_any_run(command, models, tmp_path, capsys):
    assert command(soup.main, *models, "--out", "soup") == 0
    shown = capsys.readouterr().out
    members, made = [load(model).params for model in models], load("soup")
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *members)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), made.params, mean)
    told = json.loads((tmp_path / "soup" / "soup.json").read_text())
    assert told["members"] == models and told["how"] == "uniform"
    alone = [figures(command, model, f"alone{i}") for i, model in enumerate(models)]
    assert list(told["test"].values()) == alone
    assert told["soup"] == figures(command, "soup", "own")
    assert told["gain"] == pytest.approx(told["soup"] - max(alone))
    assert f"{told['gain']:+.4f}" in shown and f"{told['soup']:.4f}" in shown
    texts = ["one", "a picture of two"]
    np.testing.assert_array_equal(made.tokenizer(texts), load(models[1]).tokenizer(texts))
    assert list((tmp_path / "soup").glob("tokenizer*"))


def test_a_greedy_soup_is_chosen_on_the_train_split(command, models, tmp_path, root):
    assert command(soup.main, *models, "--greedy", "--out", "soup") == 0
    told = json.loads((tmp_path / "soup" / "soup.json").read_text())
    best = max(told["train"], key=lambda name: told["train"][name])
    assert told["members"][0] == best
    assert told["soup_train"] >= told["train"][best]
    wanted = [load(name).params for name in told["members"]]
    mean = jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *wanted)
    made = load("soup").params
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), made, mean)
    swapped = tmp_path / "swapped" / "mnist"  # The figures on the train split, as a test split's.
    shutil.copytree(root / "mnist", swapped)
    shutil.rmtree(swapped / "test")
    (swapped / "train").rename(swapped / "test")
    found = figures(command, best, "on_train", "--root", swapped.parent)
    assert found == told["train"][best]


def changed(model, out, change):
    """A copy of a checkpoint whose config says something else."""
    shutil.copytree(f"{model}/checkpoints/10", out)
    path = out / "config" / "metadata"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))
    return out


def test_what_does_not_go_together_is_named(command, models, tmp_path, capsys):
    def other(config):
        config["model"]["image"]["stack"]["width"] = 32
        config["model"]["image"]["stack"]["dropout"] = 0.5
        config["recipe"]["mean"] = [0.5, 0.5, 0.5]
        config["tokenizer"]["context_length"] = 7

    odd = changed(models[1], tmp_path / "odd", other)
    assert command(soup.main, *models, odd, "--out", "soup") == 1
    shown = capsys.readouterr().err
    assert shown.startswith(f"error: {odd} cannot be averaged with {models[0]}: ")
    for fault in ("model.image.stack.width: 16 -> 32", "recipe.mean", "another tokenizer"):
        assert fault in shown
    assert "dropout" not in shown and not (tmp_path / "soup").exists()

    def same(config):
        config["model"]["image"]["stack"]["dropout"] = 0.5
        config["model"]["temperature"] = 0.5
        del config["model"]["max_scale"]  # As written before there was such a field.

    like = changed(models[1], tmp_path / "like", same)
    assert command(soup.main, models[0], like, "--out", "soup") == 0


def test_what_cannot_be_a_soup_is_refused(command, models, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    twice = (models[1], f"{models[1]}/checkpoints/10")
    for args, message in (
        ((models[0],), f"a soup needs two or more models, each once; got {models[0]}"),
        (twice, f"a soup needs two or more models, each once; got {', '.join(twice)}"),
        ((models[0], "full"), "full holds no weights"),
        ((models[0], "absent"), "'absent' is no folder or file, and no catalogued name"),
        ((*models, "--suite", "mnits"), "no suite or data set, and no folder with test/ in "),
        ((*models, "--batch", "12"), "--batch 12 is no multiple of the 8 devices"),
    ):
        assert command(soup.main, *args, "--out", "out") == 1
        assert capsys.readouterr().err.startswith(f"error: {message}")
    assert command(soup.main, *models, "--out", "full") == 1
    assert capsys.readouterr().err.startswith("error: full exists and is not empty")


def test_an_ensemble_from_the_command_line(command, models, tmp_path, capsys):
    assert command(ensemble.main, *models, "--average", "logits", "--out", "both") == 0
    shown = capsys.readouterr().out
    found = json.loads((tmp_path / "both" / "eval.json").read_text())
    outcome = json.loads((tmp_path / "both" / "results" / "mnist.json").read_text())
    alone = [row["acc1"] for row in outcome["tables"]["Each model alone"].values()]
    assert list(outcome["tables"]["Each model alone"]) == models
    assert found["zero_shot/mnist/acc1_best_single"] == max(alone)
    gain = found["zero_shot/mnist/acc1"] - max(alone)
    assert f"{gain:+.4f}" in shown and "all together" in shown
    assert (tmp_path / "both" / "report.html").is_file()
    capsys.readouterr()
    assert command(ensemble.main, *models, "--average", "logits", "--out", "both") == 0
    assert "(done before)" in capsys.readouterr().out
    assert command(ensemble.main, models[0], models[0], "--out", "both") == 1
    assert "an ensemble needs two or more models, each once" in capsys.readouterr().err
    assert command(ensemble.main, models[1], models[0], "--out", "both") == 1
    assert "holds results of another model" in capsys.readouterr().err


@pytest.fixture
def weights(models, tmp_path):
    """The same two as weights of another library's format."""
    folders = [tmp_path / name for name in ("five", "ten")]
    for model, folder in zip(models, folders, strict=True):
        save(load(model), folder, format="open_clip")
    return [str(folder) for folder in folders]


def test_weights_of_any_format_are_averaged(command, models, weights, tmp_path, capsys):
    assert command(soup.main, *weights, "--out", "weights") == 0
    assert command(soup.main, weights[0], models[1], "--out", "both") == 0
    first, last = map(load, models)
    mean = jax.tree.map(lambda a, b: (a + b) / 2, first.params, last.params)
    for name in ("weights", "both"):
        made = load(name)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), made.params, mean)
        texts = ["one", "a picture of two"]
        np.testing.assert_array_equal(made.tokenizer(texts), last.tokenizer(texts))
        assert made.preprocess == last.preprocess
    told = json.loads((tmp_path / "both" / "soup.json").read_text())
    assert told["members"] == [weights[0], models[1]]
    said = f"A uniform soup of {weights[0]}, {models[1]}; tried were 2."
    assert soup.about("both") == said and soup.about(models[0]) == soup.about("none") == ""
    (tmp_path / "soup.json").write_text('["another program\'s"]')
    assert soup.about(str(tmp_path)) == ""
    # Of a run it has the data; of weights there are none.
    assert saved_config(checkpoint_folder("both"))["data"]
    capsys.readouterr()
    assert eval_command.main(["weights"]) == 1
    assert capsys.readouterr().err == (
        "error: weights was not trained here, so it has no evaluations of its own: give --suite\n"
    )
    assert prompts.main(["--model", "weights"]) == 1
    assert capsys.readouterr().err.startswith("error: weights is no run with data of its own: give")


def test_models_that_differ_are_named_whatever_they_are(command, models, weights, tmp_path, capsys):
    def other(config):
        config["model"]["text"]["stack"]["layers"] = 3

    odd = changed(models[1], tmp_path / "odd", other)
    golden = TESTS / "golden" / "models" / "OpenAI_ViT"
    assert command(soup.main, weights[0], odd, "--out", "soup") == 1
    shown = capsys.readouterr().err
    assert shown.startswith(
        f"error: {odd} cannot be averaged with {weights[0]}: model.text.stack.l"
    )
    with pytest.warns(UserWarning, match="has no tokenizer"):
        assert command(soup.main, weights[0], golden, "--out", "soup") == 1
    assert capsys.readouterr().err.startswith(f"error: {golden} comes without its tokenizer")
