import contextlib
import dataclasses
import json
import pathlib
import runpy
import types

import jax
import numpy as np
import pytest

from clip_jax.api import Clip
from clip_jax.cli import eval as eval_command
from clip_jax.eval import outcome
from clip_jax.eval.encoders import Encoders, usual_batch
from clip_jax.eval.run_suite import run_suite
from clip_jax.models.clip import CLIP, init_params
from clip_jax.preprocess.recipe import Recipe

TESTS = pathlib.Path(__file__).parents[1]
sets = types.SimpleNamespace(**runpy.run_path(str(TESTS / "eval" / "standins.py")))
CLASSES = ("cat", "dog", "cow", "hen", "owl")


@dataclasses.dataclass(frozen=True)
class Hashes:
    """Eight tokens below 64 of each text."""

    context_length: int = 8
    vocab_size: int = 64

    def tokenize(self, texts):
        tokens = sets.tokenize(list(texts)) % 62
        tokens = np.pad(tokens, ((0, 0), (1, 2)), constant_values=((0, 0), (62, 63)))
        return tokens, np.zeros(len(tokens), bool)

    def __call__(self, texts):
        return self.tokenize(texts)[0]


@pytest.fixture
def loaded(tiny, tiny_params, monkeypatch):
    """What the command loads, whatever it is told: a tiny model; the calls are noted."""
    calls = []

    def load(path, *, batch, dtype, sharding):
        calls.append((path, batch))
        params = jax.tree.map(
            lambda p: p if p.ndim == 0 or not dtype else p.astype(dtype), tiny_params
        )
        return Clip(
            model=CLIP(dataclasses.replace(tiny, dtype=dtype or "auto")),
            params=jax.device_put(params, sharding),
            tokenizer=Hashes(),
            preprocess=Recipe(size=8),
            batch=batch,
        )

    monkeypatch.setattr("clip_jax.api.load", load)
    return calls


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("root")
    sets.wds(root / "wds_mnist", sets.labelled(21, 5), classes=CLASSES)
    sets.wds(root / "wds_mnist", sets.labelled(40, 5, seed=1), classes=CLASSES, split="train")
    samples = [{"png": sets.picture(i), "txt": f"a {i}\nb {i}"} for i in range(11)]
    sets.wds(root / "flickr8k", samples, kind="retrieval")
    return root


@pytest.fixture
def command(tmp_path, root, monkeypatch):
    """`command(*args)`: exit status; everything is kept below the test's own folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))

    def run(*args):
        try:
            return eval_command.main([str(arg) for arg in args])
        except SystemExit as stop:
            return stop.code

    return run


def test_a_suite_from_the_command_line(command, loaded, root, tmp_path, capsys):
    args = ("any/model", "--suite", "mnist,flickr8k", "--root", root, "--batch", 8)
    assert command(*args) == 0
    shown = capsys.readouterr().out
    assert loaded == [("any/model", 8)]
    out = tmp_path / "suites" / "any-model"
    figures = json.loads((out / "eval.json").read_text())
    for name in ("MNIST", "Flickr8k", "Average", f"{figures['zero_shot/mnist/acc1']:.4f}"):
        assert name in shown.partition("Evaluation")[2], name
    assert "21 of 10,000" in shown
    assert f"written: {out.relative_to(tmp_path) / 'eval.json'}" in shown
    lines = (out / "eval_results.jsonl").read_text().splitlines()
    assert [json.loads(line)["dataset"] for line in lines] == ["MNIST", "Flickr8k"]
    kept = tmp_path / "home" / ".cache" / "clip_jax" / "embeddings"
    assert len(list(kept.glob("images-*.npz"))) == 2
    written = (out / "eval.json").read_bytes()
    assert command(*args) == 0
    assert capsys.readouterr().out.count("(done before)") == 2
    assert (out / "eval.json").read_bytes() == written


def test_figures_are_those_of_the_asked_type(command, loaded, root, tmp_path, capsys, monkeypatch):
    seen = []

    def noting(*args):
        seen.append(jax.config.jax_default_matmul_precision)
        return run_suite(*args)

    monkeypatch.setattr("clip_jax.eval.run_suite.run_suite", noting)
    args = ("model", "--suite", "mnist", "--root", root, "--batch", 8, "--cache-gb", 0)
    assert command(*args, "--out", "exact") == 0
    assert command(*args, "--out", "exact", "--dtype", "float32") == 0
    assert "(done before)" in capsys.readouterr().out  # What "auto" is on a CPU.
    assert command(*args, "--out", "exact", "--dtype", "bfloat16") == 1
    assert "holds results of another model" in capsys.readouterr().err
    assert command(*args, "--out", "rounded", "--dtype", "bfloat16") == 0
    assert seen == [None, "highest", None, None]
    assert jax.config.jax_default_matmul_precision is None
    outcomes = [outcome.load(tmp_path / n / "results", "mnist") for n in ("exact", "rounded")]
    exact, rounded = (one.arrays["confidence"] for one in outcomes)
    np.testing.assert_allclose(exact, rounded, rtol=0.05)
    assert not np.allclose(exact, rounded, rtol=1e-5)


def test_one_device_and_eight_give_the_same_figures(command, loaded, root, tmp_path, monkeypatch):
    args = ("model", "--suite", "mnist,flickr8k", "--root", root, "--cache-gb", 0)
    assert command(*args, "--batch", 16, "--out", "eight") == 0
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:3])
    assert command(*args, "--out", "three") == 0
    assert loaded[-1] == ("model", 3 * -(-usual_batch() // 3))  # The default, in equal parts.
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
    bound, bind = [], Encoders.bind
    monkeypatch.setattr(Encoders, "bind", lambda *given: bound.append(given[1]) or bind(*given))
    assert command(*args, "--batch", 5, "--out", "one") == 0
    (params,) = bound
    assert isinstance(params["text"]["stack"]["blocks"], tuple)
    one, eight = (json.loads((tmp_path / n / "eval.json").read_text()) for n in ("one", "eight"))
    assert one == pytest.approx(eight, abs=1e-6)
    for key in ("mnist", "flickr8k"):
        a, b = (outcome.load(tmp_path / n / "results", key) for n in ("one", "eight"))
        assert set(a.arrays) == set(b.arrays)
        for name, array in a.arrays.items():
            if array.dtype.kind == "f":
                np.testing.assert_allclose(array, b.arrays[name], atol=1e-6)
            else:
                np.testing.assert_array_equal(array, b.arrays[name])


def test_what_is_missing_is_said_at_the_end_with_a_status_of_its_own(
    command, loaded, root, tmp_path, capsys
):
    assert command("model", "--suite", "mnist,cars,sun397", "--root", root, "--batch", 8) == 3
    shown = capsys.readouterr().out
    end = shown[shown.index("2 of 3 data sets are left out:") :].splitlines()
    assert [line.split()[0] for line in end[1:]] == ["cars", "sun397"]
    assert end[1].startswith(f"  cars is not in {root}: looked for wds_cars, wds_cars_test,")
    assert "of 1, not all 3" in shown
    assert json.loads((tmp_path / "suites" / "model" / "eval.json").read_text())
    assert command("model", "--suite", "cars", "--root", root, "--out", "new", "--batch", 8) == 3
    assert not (tmp_path / "new" / "eval.json").exists()
    capsys.readouterr()
    # Of an earlier call; this one writes nothing.
    assert command("model", "--suite", "cars", "--root", root, "--batch", 8) == 3
    assert "written" not in capsys.readouterr().out


def test_a_folder_that_cannot_be_written_is_an_error_before_the_work(
    command, loaded, root, tmp_path, capsys
):
    (tmp_path / "file").write_text("")
    for out, why in (("file", "there is a file of that name"), ("file/x", "Not a directory")):
        assert command("model", "--suite", "mnist", "--root", root, "--batch", 8, "--out", out) == 1
        said = capsys.readouterr()
        assert said.err.endswith(f" cannot write to --out {out}: {why}\n")
        assert "pictures" not in said.out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--suite", "mnist,cars", "--root", "nowhere"], "--root: no folder nowhere\n"),
        (
            ["--suite", "tfds:a,mnist", "--root", "no", "--templates", "t", "--classes", "c"],
            "--root: no folder no; --classes: no file c; --templates: no file t\n",
        ),
        (["--suite", "mnist", "--root", "R", "--evals", "x"], "--evals cannot be given with --su"),
        (["--suite", "mnist", "--root", "R", "--data.root", "x"], "--data.root cannot be given wi"),
        (["--root", "R", "--cache-gb", "1"], "--root, --cache-gb cannot be given without --suite"),
        (["--probe", "knn"], "--probe cannot be given without --suite"),
        (
            ["--suite", "mnist", "--root", "R", "--projected"],
            "--projected and --train-split go with --probe",
        ),
        (["--suite", "mnist"], "--suite needs --root DIR with the data sets, or --root hub"),
        (["--suite", "mnist,", "--root", "R"], "--suite 'mnist,': an empty name; suites are data"),
        (["--suite", "tfds:a"], "tfds:a needs --templates FILE (and may have --classes FILE)"),
        (
            ["--suite", "mnist", "--root", "R", "--batch", "12"],
            "--batch 12 is no multiple of the 8",
        ),
        (["--suite", "mnist", "--root", "R", "--batch", "0"], "--batch 0 is no multiple of the 8"),
        (["--suite", "mnist", "--root", "R", "--cache-gb", "-1"], "--cache-gb starts at 0, got -1"),
    ],
)
def test_options_that_do_not_fit_are_refused(command, loaded, root, capsys, args, message):
    args = [str(root) if arg == "R" else arg for arg in args]
    assert command("model", *args) == 1
    assert capsys.readouterr().err.startswith(f"error: {message}")


def test_all_unknown_names_are_told_before_the_model_is_loaded(command, loaded, root, capsys):
    assert command("model", "--suite", "mnits,mnist,vtab/pet", "--root", root) == 1
    message = f"no suite or data set, and no folder with test/ in {root}, is called "
    assert capsys.readouterr().err == (
        f"error: {message}'mnits' (nearest: 'mnist'); {message}'vtab/pet' (nearest: 'vtab/pets')\n"
    )
    assert command("model", "--suite", "mnits", "--root", "hub") == 1
    assert capsys.readouterr().err.startswith("error: no suite or data set is called 'mnits' (nea")
    assert loaded == []


def test_a_folder_that_no_suite_knows_is_measured_by_its_type(command, loaded, tmp_path, root):
    sets.wds(tmp_path / "data" / "own" / "set", sets.labelled(5, 2, seed=1), classes=CLASSES[:2])
    args = ("--suite", "own/set", "--root", tmp_path / "data", "--batch", 8)
    assert command("model", *args) == 0
    figures = json.loads((tmp_path / "suites" / "model" / "eval.json").read_text())
    assert 0 <= figures["zero_shot/own-set/acc1"] <= 1


def test_data_sets_come_from_the_hub(command, loaded, root, tmp_path, monkeypatch, capsys):
    asked = []

    def fetch(task, first, **more):
        asked.append((task.key, first, *more.items()))
        if task.key == "mnist":
            return root / "wds_mnist"
        raise ConnectionError("the hub does not answer")

    monkeypatch.setattr("clip_jax.eval.fetch.fetch", fetch)
    args = ("--root", "hub", "--batch", 8)
    assert command("model", "--suite", "mnist,cars", *args) == 3
    assert asked == [("mnist", "benchmark"), ("cars", "benchmark")]
    assert "  cars: the hub does not answer\n" in capsys.readouterr().out
    asked.clear()
    assert command("model", "--suite", "mnist", *args, "--probe", "knn") == 0
    assert asked == [("mnist", "benchmark", ("train", True))]
    asked.clear()
    assert command("model", "--suite", "datacomp", *args, "--out", "other") == 3
    assert len(asked) == 40
    assert {first for _, first in asked} == {"datacomp"}
    assert "of 1, not all 38" in capsys.readouterr().out


def test_a_set_of_tensorflow_datasets_with_names_and_templates(command, loaded, tmp_path, capsys):
    made = types.SimpleNamespace(**runpy.run_path(str(TESTS / "data" / "test_tfds.py")))
    records = [made.example(40 * number, ["a"], number % 2) for number in range(5)]
    made.prepare(tmp_path / "tfds" / "pairs" / "1.0.0", {"validation": [records]})
    (tmp_path / "templates.txt").write_text("a photo of a {c}.\n{c}\n")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    args = ["--suite", "tfds:pairs", "--root", "tfds", "--templates", "templates.txt"]
    args += ["--split", "validation", "--batch", 8]
    assert command("model", *args, "--classes", "classes.txt", "--out", "given") == 0
    assert command("model", *args, "--out", "own") == 0
    given, own = (
        outcome.load(tmp_path / name / "results", "tfds:pairs") for name in ("given", "own")
    )
    assert given.arrays["class_names"].tolist() == ["cat", "dog"]
    assert own.arrays["class_names"].tolist() == ["tabby cat", "dog"]
    assert own.arrays["labels"].tolist() == [0, 1, 0, 1, 0]
    assert command("model", *args, "--probe", "knn", "--out", "own") == 3
    assert "has no split 'train'" in capsys.readouterr().out
    splits = ("--train-split", "validation")
    assert command("model", *args, "--probe", "knn", *splits, "--out", "own") == 0
    probed = outcome.load(tmp_path / "own" / "probe_knn" / "results", "tfds:pairs")
    assert probed.arrays["labels"].tolist() == [0, 1, 0, 1, 0]
    (tmp_path / "templates.txt").write_text("a photo\n")
    assert command("model", *args, "--out", "wrong") == 3
    assert "templates.txt: a template holds exactly one placeholder" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "out"),
    [
        ("run", "run/suites/20"),
        ("run/checkpoints/10", "run/suites/10"),
        ("ViT-B-32/openai", "suites/ViT-B-32-openai"),
        ("hf-hub:some/model", "suites/hf-hub-some-model"),
    ],
)
def test_figures_of_a_run_lie_in_its_folder_by_step(
    command, loaded, root, tmp_path, capsys, given, out
):
    for step in (10, 20):
        for name in ("params", "config"):
            (tmp_path / "run" / "checkpoints" / str(step) / name).mkdir(parents=True)
    assert command(given, "--suite", "mnist", "--root", root, "--batch", 8) == 0
    assert (tmp_path / out / "eval.json").is_file()


@pytest.mark.parametrize("flags", [["knn"], ["knn", "--projected"]])
def test_a_probe_has_a_folder_of_its_own_and_the_same_figures_on_any_devices(
    command, loaded, root, tmp_path, monkeypatch, capsys, flags
):
    args = ("model", "--suite", "mnist", "--root", root, "--probe", *flags)
    assert command(*args, "--batch", 16) == 0
    shown = capsys.readouterr().out
    assert "no projection" not in shown and "21 of 10,000" in shown
    out = tmp_path / "suites" / "model" / "_".join(["probe", *flags]).replace("--", "")
    eight = json.loads((out / "eval.json").read_text())
    assert 0 <= eight["knn/mnist/acc1"] <= 1
    assert command(*args, "--batch", 16) == 0
    assert "(done before)" in capsys.readouterr().out
    assert command("model", "--suite", "mnist", "--root", root, "--batch", 16) == 0
    assert json.loads((out / "eval.json").read_text()) == eight
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
    assert command(*args, "--batch", 5, "--out", "one", "--cache-gb", 0) == 0
    one = json.loads((tmp_path / "one" / out.name / "eval.json").read_text())
    assert one == pytest.approx(eight, abs=1e-6)


def test_of_a_suite_a_probe_takes_what_has_a_label_and_no_folder_of_datacomp(
    command, loaded, root, tmp_path, capsys
):
    own = tmp_path / "root"
    own.mkdir()
    (own / "wds_mnist").symlink_to(root / "wds_mnist")
    sets.wds(own / "wds_mnist_test", sets.labelled(4, 5), classes=CLASSES)
    (own / "wds_stl10_test").symlink_to(own / "wds_mnist_test")
    args = ("model", "--root", own, "--probe", "knn", "--batch", 8)
    assert command(*args, "--suite", "datacomp") == 3
    shown = capsys.readouterr().out
    figures = tmp_path / "suites" / "model" / "probe_knn" / "eval.json"
    assert set(json.loads(figures.read_text())) >= {"knn/mnist/acc1"}
    assert "MNIST: 21 pictures" in shown  # Not the four.
    left = shown[shown.index("are left out:") :]
    assert f"  stl10: no train/nshards.txt in {own / 'wds_stl10_test'}: a probe le" in left
    assert "winogavil" not in shown and "fairface" not in shown
    for suite, message in (
        ("mnist,flickr8k", "--probe knn needs data sets with one label a sample, unlike flickr8k"),
        ("retrieval", "--suite retrieval holds no data set for --probe knn"),
    ):
        assert command(*args, "--suite", suite) == 1
        assert capsys.readouterr().err == f"error: {message}\n"


def test_a_tower_without_a_projection_is_told(
    command, loaded, root, monkeypatch, tiny, variant, capsys
):
    width = tiny.image.stack.width
    plain = variant(tiny, **{"embed_dim": width, "image.project": False})
    shapes = jax.eval_shape(lambda: init_params(plain, jax.random.key(0)))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda s: np.float32(rng.normal(0, 0.3, s.shape)), shapes)

    def load(path, *, batch, dtype, sharding):
        return Clip(
            model=CLIP(plain),
            params=jax.device_put(params, sharding),
            tokenizer=Hashes(),
            preprocess=Recipe(size=8),
            batch=batch,
        )

    monkeypatch.setattr("clip_jax.api.load", load)
    assert command("m", "--suite", "mnist", "--root", root, "--probe", "knn", "--batch", 16) == 0
    assert "the image tower has no projection of its own: its features are" in (
        capsys.readouterr().out
    )


def test_the_help_names_suites_and_statuses(capsys):
    with contextlib.suppress(SystemExit):
        eval_command.main(["--help"])
    shown = capsys.readouterr().out
    assert "suites: datacomp, clip_benchmark, imagenet_shifts" in shown
    assert "3 some or all are left out" in shown
