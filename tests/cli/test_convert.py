import pathlib
import shutil
import subprocess
import sys
import warnings

import jax
import numpy as np
import pytest

import clip_jax
from clip_jax.cli import convert
from clip_jax.pretrained import catalog, formats

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "models"
FILES = {
    "open_clip": ["open_clip_config.json", "open_clip_model.safetensors"],
    "huggingface": ["config.json", "model.safetensors", "preprocessor_config.json"],
    "openai": ["model.pt"],
    "big_vision": ["model.npz"],
}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(*argv, status=0):
    assert convert.main([str(word) for word in argv]) == status


def load(path):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*has no tokenizer")
        return clip_jax.load(path)


def listed(out):
    """Names that a command printed, after checking that these are all files, of the told sizes."""
    lines = [line.removeprefix("written: ").rpartition(" (") for line in out.splitlines()]
    files = [pathlib.Path(path) for path, _, _ in lines]
    assert sorted(files) == sorted(files[0].parent.iterdir())
    for file, (_, _, size) in zip(files, lines, strict=True):
        number, unit = size.removesuffix(")").split()
        bytes_told = float(number) * {"kB": 1e3, "MB": 1e6}[unit]
        assert bytes_told == pytest.approx(file.stat().st_size, abs=51, rel=0.01)
    return [file.name for file in files]


@pytest.mark.parametrize(
    ("model", "target"),
    [
        ("open_clip_ViT_GELU", "huggingface"),
        ("OpenAI_ViT", "openai"),
        ("transformers_SigLIP", "big_vision"),
    ],
)
def test_every_format_is_written_listed_and_read_again(model, target, capsys):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(GOLDEN / model, "new/out", "--format", target)
    said = capsys.readouterr()
    assert set(FILES[target]) <= set(listed(said.out)) and said.err == ""
    assert [p.name for p in pathlib.Path("new").iterdir()] == ["out"]
    # Said once, of what is written; OpenAI's format has no place for a tokenizer anyway.
    told = [str(warning.message) for warning in caught]
    assert all(text.startswith("no tokenizer is written: ") for text in told)
    assert len(told) == (target != "openai")
    ours, again = load(GOLDEN / model), load("new/out")
    assert again.model.cfg == ours.model.cfg and again.preprocess == ours.preprocess
    jax.tree.map(np.testing.assert_array_equal, again.params, ours.params)


def test_a_run_takes_its_vocabulary_along(finished, capsys):
    run(finished.run, "out", "--format", "open_clip")
    said = capsys.readouterr()
    tokenizer = ["spiece.model", "tokenizer.json", "tokenizer_config.json"]
    assert listed(said.out) == FILES["open_clip"] + tokenizer and said.err == ""
    ours, again = clip_jax.load(finished.run), clip_jax.load("out")
    texts = ["a red 7", "THE digit four"]
    np.testing.assert_array_equal(ours.tokenizer(texts), again.tokenizer(texts))
    np.testing.assert_allclose(ours.encode_text(texts), again.encode_text(texts), atol=1e-6)


@pytest.mark.filterwarnings("ignore:no tokenizer is written")
def test_positions_are_resampled():
    sizes = ["--image-size", 48, "--context-length", 5]
    run(GOLDEN / "open_clip_ViT_GELU", "out", "--format", "huggingface", *sizes)
    again = load("out").model.cfg
    assert (again.image.image_size, again.text.context_length) == (48, 5)


def test_a_model_that_the_format_cannot_hold_leaves_nothing(capsys):
    run(GOLDEN / "open_clip_ViT_GELU", "new/out", "--format", "big_vision", status=1)
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    assert said.err.startswith("error: big_vision's SigLIP has no image pool 'class'; ")
    assert list(pathlib.Path("new").iterdir()) == []


@pytest.fixture
def unread(monkeypatch):
    """Faults that are found before any weights are read."""
    monkeypatch.setattr("clip_jax.api.load", lambda *_, **__: pytest.fail("read"))


@pytest.mark.parametrize(
    ("out", "options", "said"),
    [
        ("full", [], "full exists and is not empty: choose another folder"),
        ("full/.hidden", [], "full/.hidden is a file; OUT is a folder"),
        ("full/.hidden/new/out", [], "full/.hidden is a file; OUT is a folder"),
        (
            "out",
            ["--image-size", "0", "--context-length", "-3"],
            "--image-size starts at 1, got 0; --context-length starts at 1, got -3",
        ),
    ],
)
def test_faults_of_options_are_told_before_anything_is_read(out, options, said, unread, capsys):
    pathlib.Path("full").mkdir()
    pathlib.Path("full", ".hidden").write_text("kept")
    run("x", out, "--format", "openai", *options, status=1)
    assert capsys.readouterr() == ("", f"error: {said}\n")
    assert pathlib.Path("full", ".hidden").read_text() == "kept"
    assert [p.name for p in pathlib.Path().iterdir()] == ["full"]


def test_an_empty_folder_is_filled():
    pathlib.Path("out").mkdir()
    pathlib.Path("a").mkdir()
    run(GOLDEN / "OpenAI_ViT", "a/../out/", "--format", "openai")
    assert [p.name for p in pathlib.Path("out").iterdir()] == ["model.pt"]


def test_an_unknown_format_lists_those_that_are_known(capsys):
    with pytest.raises(SystemExit) as stop:
        convert.main(["x", "out", "--format", "opneclip"])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert "opneclip" in said and all(name in said for name in FILES)


@pytest.mark.parametrize(
    ("model", "options", "said"),
    [
        ("open_clip_ViT_GELU", ["--architecture", "ViT-B-33"], "nearest ViT-B-32, "),
        ("open_clip_ViT_GELU", ["--image-size", "33"], "33 is no multiple of patch_size 8"),
        ("transformers_SigLIP_2_NaFlex", ["--image-size", "64"], "NaFlex"),
        ("nothing", [], "nothing does not exist"),
    ],
)
def test_what_loading_refuses_is_said(model, options, said, capsys):
    run(GOLDEN / model, "out", "--format", "open_clip", *options, status=1)
    told = capsys.readouterr()
    assert told.out == "" and said in told.err.splitlines()[-1]
    assert list(pathlib.Path().iterdir()) == []


@pytest.mark.filterwarnings("ignore:no tokenizer is written")
def test_an_architecture_is_named_where_the_weights_do_not_tell_it(monkeypatch, capsys):
    from clip_jax.models import presets

    shutil.copytree(GOLDEN / "open_clip_ViT_QuickGELU", "in")
    pathlib.Path("in", "open_clip_config.json").unlink()
    tiny = load(GOLDEN / "open_clip_ViT_QuickGELU").model.cfg
    monkeypatch.setitem(presets.PRESETS, "tiny", tiny)
    run("in", "out", "--format", "open_clip", "--architecture", "tiny")
    assert load("out").model.cfg == tiny
    assert "taken for" not in capsys.readouterr().err


def test_a_name_that_no_one_knows(capsys):
    known = next(iter(catalog.published()))
    run(f"{known}x", "out", "--format", "open_clip", status=1)
    assert f"nearest {known.partition('/')[2]!r}" in capsys.readouterr().err


def test_help_is_told_at_once():
    assert tuple(convert.FORMATS) == formats.FORMATS
    code = (
        "import sys; from clip_jax.cli import convert; "
        "print(convert.parser().format_help()); "
        "print([m for m in ('jax', 'flax', 'numpy', 'rich') if m in sys.modules])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=GOLDEN.parents[2],
    )
    assert ran.stdout.endswith("\n[]\n")
    for word in ("(transformers)", "be empty", "--architecture", "example: clip-jax convert"):
        assert word in ran.stdout
