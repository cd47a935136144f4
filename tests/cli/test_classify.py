import dataclasses
import io
import json
import os
import pathlib
import re
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from rich.cells import cell_len

import clip_jax
from clip_jax.cli import classify
from clip_jax.cli.progress import EmbeddingBar
from clip_jax.data import Digits
from clip_jax.data.images import ImageFiles

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "models"


@pytest.fixture(scope="module")
def sharp(finished):
    """A trained model, so cold that its probabilities differ."""
    clip = clip_jax.load(finished.run)
    params = {**clip.params, "logit_scale": jnp.asarray(9.0)}
    return dataclasses.replace(clip, params=params)


@pytest.fixture
def loaded(sharp, monkeypatch):
    """Commands load `sharp`, whatever they are told."""
    monkeypatch.setattr("clip_jax.api.load", lambda *_, **__: sharp)


@pytest.fixture(scope="module")
def pixels():
    source = Digits().open("test")
    return [source[i].image for i in range(6)]


@pytest.fixture
def photos(tmp_path, pixels, monkeypatch):
    """Six images, to be named from the folder above them."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "photos"
    for number, name in enumerate(["2.png", "10.png", "a/1.png", "a/2.png", "b/1.png", "b/2.png"]):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[number]).save(folder / name)
    return folder


def run(*argv, status=0):
    argv = ["--batch", "2", *(str(word) for word in argv)]  # One compilation for most.
    if status == 0:
        assert classify.main(argv) == 0
        return
    try:
        found = classify.main(argv)
    except SystemExit as stop:
        found = stop.code
    assert found == status


def json_lines(text):
    return {(line := json.loads(one))["image"]: line["probabilities"] for one in text.splitlines()}


def test_probabilities_are_those_of_the_library(finished, photos, pixels, capsys):
    names = ["zero", "a red 7", "naïve 猫"]
    prompts = ["the digit {}", "{c} on black"]
    asked = ["--classes", ",".join(names), "--template", prompts[0], "--template", prompts[1]]
    run("--model", finished.run, *asked, "--json", "photos", "photos/a/1.png")
    said = capsys.readouterr()
    keys = [f"photos/{name}.png" for name in ("2", "10", "a/1", "a/2", "b/1", "b/2")]
    lines = [json.loads(line) for line in said.out.splitlines()]
    assert [line["image"] for line in lines] == [*keys, "photos/a/1.png"]
    assert all(list(line["probabilities"]) == names for line in lines) and said.err == ""
    expected = clip_jax.load(finished.run).classify(pixels, names, prompts)
    found = np.array([list(line["probabilities"].values()) for line in lines])
    np.testing.assert_allclose(found[:6], expected, atol=1e-6)
    np.testing.assert_array_equal(found[6], found[2])


def test_the_table_has_the_same_figures_and_whole_lines_in_a_pipe(
    loaded, photos, capsys, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "20")
    long = photos / ("very_long_name_" * 12) / "[red]x[bold] 猫[/].png"
    long.parent.mkdir(parents=True)
    long.write_bytes((photos / "2.png").read_bytes())
    asked = ["photos", "--classes", "[red]one,[/]two three,zero,four"]
    run(*asked, "--json")
    figures = json_lines(capsys.readouterr().out)
    for top, shown in ([], 4), (["--top", 2], 2), (["--top", 99], 4):
        run(*asked, *top)
        head, *lines = capsys.readouterr().out.splitlines()
        assert head.split() == ["image", *(f"{i + 1}." for i in range(shown))]
        for line, (key, odds) in zip(lines, figures.items(), strict=True):
            best = sorted(odds, key=odds.__getitem__, reverse=True)[:shown]
            cells = [text for name in best for text in (name, f"{odds[name]:.1%}")]
            assert line.split() == " ".join([key, *cells]).split()
        assert len(set(map(cell_len, lines))) == 1 < len(set(map(len, lines)))  # One is wide.


def test_what_cannot_be_read_is_named_and_the_rest_is_classified(loaded, photos, capsys):
    run("photos", "--classes", "a,b", "--json")
    whole = capsys.readouterr().out.splitlines()
    (photos / "3.png").write_bytes(b"")
    (photos / "4.jpg").write_text("no picture")
    (photos / "a" / "3.png").write_bytes((photos / "2.png").read_bytes()[:99])
    (photos / "5.png").symlink_to("nowhere")
    run("photos", "--classes", "a,b", "--json", status=1)
    said = capsys.readouterr()
    assert said.out.splitlines() == whole
    assert [line.split(": ")[:3] for line in said.err.splitlines()] == [
        ["left out", "sample 'photos/3.png'", "the image file is empty"],
        ["left out", "sample 'photos/4.jpg'", "cannot decode the image"],
        ["left out", "sample 'photos/5.png'", "No such file or directory"],
        ["left out", "sample 'photos/a/3.png'", "cannot decode the image"],
    ]
    run("photos/3.png", "photos/4.jpg", "--classes", "a,b", "--json", status=1)
    said = capsys.readouterr()
    assert said.out == "" and said.err.splitlines()[2:] == [
        "error: none of the images could be read"
    ]


def test_places_without_images_are_named(photos, capsys):
    run("photos", "no.png", "nor", "--classes", "a,b", status=1)
    assert capsys.readouterr() == ("", "error: no such file or folder: no.png, nor\n")
    (photos / "empty").mkdir()
    run("photos/empty", "--classes", "a,b", status=1)
    assert capsys.readouterr().err == (
        "error: no image (jpg, jpeg, png, webp) in photos/empty or below\n"
    )


def test_a_file_of_classes_has_one_name_a_line(loaded, photos, capsys):
    names = ["a cat, asleep", "#2", "naïve 猫"]
    pathlib.Path("names.txt").write_bytes(
        b"\xef\xbb\xbf" + "a cat, asleep\r\n\r\n  #2 \r\nnaïve 猫".encode()
    )
    run("photos", "--classes", "names.txt", "--json")
    assert [list(odds) for odds in json_lines(capsys.readouterr().out).values()] == [names] * 6


def test_a_hundred_classes_and_five_of_them_shown(loaded, photos, capsys):
    names = [f"{i} is the number" for i in range(100)]
    pathlib.Path("names").write_text("\n".join(names))
    run("photos", "--classes", "names", "--json", "--batch", 4)
    figures = json_lines(capsys.readouterr().out)
    for odds in figures.values():
        assert list(odds) == names and sum(odds.values()) == pytest.approx(1)
    run("photos", "--classes", "names")
    assert capsys.readouterr().out.splitlines()[0].split()[-1] == "5."


def test_equal_probabilities_keep_the_order_of_the_classes(capsys):
    odds = np.array([[0.25, 0.25, 0.25, 0.25], [0.1, 0.4, 0.1, 0.4]])
    classify._print_table(("x", "longer"), ["d", "c", "b", "a"], odds, 4)
    assert capsys.readouterr().out == (
        "image   1.          2.          3.          4.\n"
        "x       d    25.0%  c    25.0%  b    25.0%  a    25.0%\n"
        "longer  c    40.0%  a    40.0%  d    10.0%  b    10.0%\n"
    )


class Terminal(io.StringIO):
    def isatty(self):
        return True

    def lines(self):
        return re.sub(r"\x1b\[[0-9;]*m", "", self.getvalue()).splitlines()


@pytest.fixture
def terminal(monkeypatch):
    """`terminal(width)` takes the place of stdout."""

    def make(width):
        made = Terminal()
        monkeypatch.setattr("sys.stdout", made)
        monkeypatch.setenv("COLUMNS", str(width))
        monkeypatch.setenv("TERM", "xterm")
        return made

    return make


ODDS = np.array([[0.999, 0.001, 0.0], [0.2, 0.3, 0.5]])
NAMES = ["[red]teapot[/red]", "a 猫 asleep", "dog"]


@pytest.mark.parametrize(("width", "shown"), [(88, 3), (87, 3), (86, 2), (60, 2), (59, 1), (39, 1)])
def test_on_a_terminal_as_many_classes_as_fit(width, shown, terminal, capsys):
    screen = terminal(width)
    classify._print_table(("[bold]/ü.png", "b.png"), NAMES, ODDS, 3)
    columns = 1 + 2 * shown
    cells = [
        ["image", "1.", "", "2.", "", "3.", ""],
        ["[bold]/ü.png", "[red]teapot[/red]", " 99.9%", "a 猫 asleep", "  0.1%", "dog", "  0.0%"],
        ["b.png", "dog", " 50.0%", "a 猫 asleep", " 30.0%", "[red]teapot[/red]", " 20.0%"],
    ]
    sizes = [12, 17, 6, 10, 6, 17, 6]  # The cat is one character, and takes two cells.
    wanted = [
        "  ".join(
            text.ljust(size + (place == 3 and "猫" not in text))
            for place, (text, size) in enumerate(zip(row, sizes, strict=True))
            if place < columns
        ).rstrip()
        for row in cells
    ]
    assert [line.rstrip() for line in screen.lines()] == wanted
    said = f"{shown} of 3 classes fit the terminal's width; in a file or pipe all do\n"
    assert capsys.readouterr().err == ("" if shown == 3 else said)


def test_a_long_path_is_folded_where_it_would_take_more_than_half_of_a_terminal(terminal):
    screen = terminal(96)
    path = "/".join("[b]cdefgh" for _ in range(7)) + ".jpg"
    classify._print_table((path, "b.png"), NAMES, ODDS, 3)
    head, *lines = screen.lines()
    assert head.split() == ["image", "1.", "2."] and len(lines) == 3
    assert "".join(line.split()[0] for line in lines[:2]) == path
    assert lines[0].split()[1:] == ["[red]teapot[/red]", "99.9%", "a", "猫", "asleep", "0.1%"]


def test_on_a_narrow_terminal_nothing_is_cut(terminal):
    screen = terminal(24)
    classify._print_table(("photos/[a]/b.png",), NAMES, ODDS[:1], 3)
    lines = screen.lines()
    assert len(lines) > 2 and max(map(len, lines)) <= 24 and "99.9%" in lines[1]
    shown = "".join(lines).replace(" ", "")
    assert sorted(shown) == sorted("image1.photos/[a]/b.png[red]teapot[/red]99.9%")


def test_names_that_would_spoil_the_terminal_or_are_no_text(loaded, photos, capsys):
    names = [b"photos/\x1b[31mred.png", b"photos/caf\xe9.png", b"photos/a\nb.png"]
    for name in map(os.fsdecode, names):
        pathlib.Path(name).write_bytes((photos / "2.png").read_bytes())
    places = [os.fsdecode(name) for name in names]
    run(*places, "--classes", "a,b\x07", "--json")
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [os.fsencode(line["image"]) for line in lines] == names
    run(*places, "--classes", "a,b\x07")
    text = capsys.readouterr().out
    assert len(text.splitlines()) == 4 and text.encode() and "\x1b" not in text
    assert (
        "photos/\N{REPLACEMENT CHARACTER}[31mred.png " in text
        and "b\N{REPLACEMENT CHARACTER} " in text
    )


@pytest.mark.parametrize(
    ("options", "faults"),
    [
        (["--classes", "a,b, a,c,b"], "--classes names twice: a, b"),
        (["--classes", " , ,"], "--classes ' , ,' names 0 and is no file, but a probability"),
        (["--classes", "clases.txt"], "--classes 'clases.txt' names 1 and is no file, but"),
        (["--classes", "one.txt"], "--classes 'one.txt' names 1, but a probability"),
        (["--classes", "one.txt"], "at least two: write 'cat,dog'\n"),
        (["--classes", "latin.txt"], "--classes: latin.txt is no UTF-8 text"),
        (["--classes", "photos"], "Is a directory: 'photos'"),
        (
            ["--classes", "a,a", "--top", "0", "--batch", "-2"],
            "names twice: a; --top starts at 1, got 0; --batch starts at 1, got -2",
        ),
        (
            ["--classes", "a,b", "--template", "x", "--template", "{}{}"],
            "'x' has none; '{}{}' has 2",
        ),
        (["--classes", "a,b", "--template", "{0.__class__}"], "has {0.__class__}"),
    ],
)
def test_faults_of_options_are_told_before_anything_is_read(options, faults, photos, capsys):
    pathlib.Path("one.txt").write_text("cat\n")
    pathlib.Path("latin.txt").write_bytes(b"caf\xe9\n")
    run("photos", "--model", "nowhere", *options, status=1)
    said = capsys.readouterr()
    assert said.out == "" and faults in said.err and said.err.count("\n") == 1


def test_a_model_without_a_vocabulary_is_an_error_before_any_image_is_read(
    photos, capsys, monkeypatch
):
    monkeypatch.setattr(ImageFiles, "__getitem__", lambda *_: pytest.fail("read"))
    run("photos", "--model", GOLDEN / "open_clip_ViT_GELU", "--classes", "a,b", status=1)
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    assert said.err.startswith("error: ") and "has no tokenizer" in said.err


def test_a_model_that_is_not_there(photos, capsys):
    run("photos", "--model", "ViT-B-33/openai", "--classes", "a,b", status=1)
    assert "nearest ViT-B-32/openai" in capsys.readouterr().err


def test_no_more_is_computed_than_there_are_images_and_prompts(loaded, sharp, photos, monkeypatch):
    seen = []
    embedder = sharp.embedder

    def note(name):
        function = getattr(embedder, name)

        def call(block):
            seen.append((name, len(block)))
            return function(block)

        return call

    spied = dataclasses.replace(embedder, image_fn=note("image_fn"), text_fn=note("text_fn"))
    monkeypatch.setitem(vars(sharp), "embedder", spied)
    run("photos/2.png", "--classes", "a,b")
    assert set(seen) == {("image_fn", 1), ("text_fn", 2)}
    seen.clear()
    run("photos", "--classes", "a,b", "--batch", 4)
    assert seen == [("text_fn", 2), ("image_fn", 4), ("image_fn", 4)]


def test_the_bar_is_for_terminals_alone():
    from rich.console import Console

    for stream, shown in (Terminal(), True), (io.StringIO(), False):
        with EmbeddingBar(Console(file=stream, force_terminal=shown)) as show:
            show("images", 3, 7)
            show("texts", 1, None)
            show("images", 7, 7)
        assert ("embedding images" in stream.getvalue()) == shown
        assert shown or stream.getvalue() == ""


def test_help_is_told_at_once():
    code = (
        "import sys; from clip_jax.cli import classify; "
        "print(classify.parser().format_help()); "
        "print([m for m in ('jax', 'rich', 'numpy', 'PIL') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.endswith("\n[]\n")
    for word in ("--template", "(5)", "(ViT-B-32/openai)", "'a photo of a {}.'", "teapot", "exit"):
        assert word in ran.stdout
