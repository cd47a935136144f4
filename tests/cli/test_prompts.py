import io
import pathlib
import tarfile
import types

import numpy as np
import pytest
from PIL import Image

from clip_jax.cli import prompts
from clip_jax.eval.embed import Embedder

COLOURS = {
    "red": (250, 30, 20),
    "green": (20, 220, 40),
    "blue": (30, 40, 240),
    "tan": (210, 180, 90),
}
TEMPLATES = ["not {c}", "a {c}", "{} mixed", "{{x}} dark {c}"]
COUNTS = {"train": 60, "test": 40}


def tokenize(texts):
    """The colour of a text, changed by the word before or after it."""
    rows = []
    for text in texts:
        (colour,) = [np.array(rgb) for name, rgb in COLOURS.items() if name in text]
        if "not" in text:
            colour = 255 - colour
        if "mixed" in text:
            colour = colour // 2 + 90
        if "dark" in text:
            colour = colour // 3 + np.array([0, 60, 0])
        rows.append(colour.astype(np.int32))
    return np.stack(rows)


def prepare(data):
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def colours_of(split):
    """Pictures' colours, far enough from those of their classes that some are taken for others."""
    rng = np.random.default_rng(len(split))
    labels = np.arange(COUNTS[split]) % len(COLOURS)
    noise = rng.integers(-90, 90, (len(labels), 3))
    return np.clip(np.array(list(COLOURS.values()))[labels] + noise, 1, 255), labels


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "wds"
    for split in COUNTS:
        (root / split).mkdir(parents=True)
        (root / split / "nshards.txt").write_text("1")
        with tarfile.open(root / split / "0.tar", "w") as tar:
            for number, (rgb, label) in enumerate(zip(*colours_of(split), strict=True)):
                buffer = io.BytesIO()
                Image.fromarray(np.full((4, 4, 3), rgb, np.uint8)).save(buffer, format="png")
                for name, data in (("png", buffer.getvalue()), ("cls", b"%d" % label)):
                    member = tarfile.TarInfo(f"s{number:07d}.{name}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    (root / "classnames.txt").write_text("\n".join(COLOURS))
    (root / prompts.TEMPLATES).write_text("\n".join([*TEMPLATES, ""]))
    return root


@pytest.fixture
def model(monkeypatch):
    """Commands load a model that sees mean colours."""

    def load(path, *, batch):
        assert path == "colours"
        made = Embedder(
            image_fn=lambda images: images.mean((1, 2)).astype(np.float32),
            text_fn=lambda tokens: tokens.astype(np.float32),
            tokenizer=tokenize,
            prepare=prepare,
            batch=batch or 16,
        )
        return types.SimpleNamespace(embedder=made)

    monkeypatch.setattr("clip_jax.api.load", load)


def run(*argv, status=0):
    assert prompts.main([str(word) for word in argv]) == status


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def hits(split, chosen, measure="acc1"):
    """Which pictures a set of templates gets right, from scratch."""
    colours, labels = colours_of(split)
    each = [unit(tokenize([t.format(n, c=n) for n in COLOURS]).astype(float)) for t in chosen]
    right = (unit(colours.astype(float)) @ unit(np.mean(each, axis=0)).T).argmax(axis=1) == labels
    if measure == "acc1":
        return float(right.mean())
    return float(np.mean([right[labels == k].mean() for k in range(len(COLOURS))]))


def grown(measure="acc1"):
    order, curve = [], []
    while len(order) < len(TEMPLATES):
        rest = [t for t in TEMPLATES if t not in order]
        best = max(rest, key=lambda t: hits("train", [*order, t], measure))
        order.append(best)
        curve.append(hits("train", order, measure))
    return order, curve


def percent(share):
    return f"{100 * share:.1f}%"


@pytest.mark.parametrize("measure", ["acc1", "mean_per_class_recall"])
def test_templates_are_scored_and_the_best_set_is_written(folder, model, measure, capsys):
    run(folder, "--model", "colours", "--measure", measure, "--out", "best.txt")
    said = capsys.readouterr()
    lines = said.out.splitlines()
    rows = [[c.strip() for c in line.split("│")[1:-1]] for line in lines if line.startswith("│")]
    order, curve = grown(measure)
    assert rows == [
        [str(i), t, percent(hits("train", [t], measure)), percent(figure)]
        for i, (t, figure) in enumerate(zip(order, curve, strict=True), 1)
    ]
    size = int(np.argmax(curve)) + 1
    assert 1 <= size < len(TEMPLATES) and len(set(curve)) > 2
    everything, best = hits("train", TEMPLATES, measure), order[:size]
    told = (
        f"{measure} on train, 60 pictures: {percent(max(curve))} with the best {size} templates, "
        f"{percent(everything)} with all 4"
    )
    assert told in lines
    old, new = hits("test", TEMPLATES, measure), hits("test", best, measure)
    told = (
        f"{measure} on test, 40 pictures: {percent(new)} with the best set, {percent(old)} with "
        "all 4"
    )
    (line,) = [line for line in lines if line.startswith(told)]
    assert line.endswith(")") == (measure == "acc1")
    if measure == "acc1":
        assert f"({100 * (new - old):+.1f} points, 95% interval " in line
    assert lines[-1] == "written: best.txt, best.png" and said.err == ""
    written = pathlib.Path("best.txt").read_text().splitlines()
    assert written == [t.replace("{}", "{c}") for t in best]
    with Image.open("best.png") as image:
        assert min(image.size) > 200


def test_what_was_written_is_read_again_and_means_the_same(folder, model, capsys):
    """Also where a placeholder is `{}`, or braces are letters."""
    pathlib.Path("own.txt").write_text("\n {{x}} dark {}\n", "utf-8-sig")
    run(folder, "--model", "colours", "--templates", "own.txt", "--out", "first.txt")
    first = pathlib.Path("first.txt").read_text()
    assert first == "{{x}} dark {c}\n"
    capsys.readouterr()
    run(folder, "--model", "colours", "--templates", "first.txt", "--out", "second.txt")
    assert pathlib.Path("second.txt").read_text() == first


def test_a_set_may_be_kept_small_and_the_rest_stands_below_it(folder, model, capsys):
    run(folder, "--model", "colours", "--most", 1, "--split", "test", "--test", "train")
    lines = capsys.readouterr().out.splitlines()
    rows = [[c.strip() for c in line.split("│")[1:-1]] for line in lines if line.startswith("│")]
    alone = sorted(TEMPLATES, key=lambda t: -hits("test", [t]))
    assert [row[1] for row in rows] == alone
    assert [row[0] for row in rows] == ["1", "", "", ""]
    assert len(pathlib.Path("templates.txt").read_text().splitlines()) == 1
    assert any(line.startswith("acc1 on train, 60 pictures: ") for line in lines)


def test_without_a_test_split_it_says_so(folder, model, capsys):
    for path in (folder / "test").iterdir():
        path.unlink()
    run(folder, "--model", "colours")
    told = "no test split, so no figure of pictures that the set was not chosen on"
    assert told in capsys.readouterr().out.splitlines()
    run(folder, "--model", "colours", "--test", "test", status=1)
    assert "test" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (["--most", "5"], "--most is 1 to 4, the templates there are: 5"),
        (["--batch", "0", "--test", "train"], "--batch starts at 1, got 0; --test train is the"),
        (["--templates", "twice.txt"], "templates that stand twice: ['a {c}']"),
        (["--templates", "bad.txt"], "'no place' has none; '{} {}' has 2: {}, {}"),
        (["--templates", "empty.txt"], "at least one template is needed"),
        (["--templates", "latin.txt"], "latin.txt is no UTF-8 text"),
        (["--split", "val"], "val"),
        (["--out", "x.png"], "--out x.png is the file of templates; the drawing ends in .png"),
        (["--out", "no/x.txt"], "--out no/x.txt: give the name of a file in a folder that exists"),
    ],
)
def test_faults_are_told_before_a_model_is_loaded(folder, options, fault, capsys):
    pathlib.Path("twice.txt").write_text("a {c}\na {c}\n")
    pathlib.Path("bad.txt").write_text("no place\n{} {}\n")
    pathlib.Path("empty.txt").write_text("\n")
    pathlib.Path("latin.txt").write_bytes(b"caf\xe9 {c}")
    run(folder, "--model", "nowhere", *options, status=1)
    said = capsys.readouterr()
    assert fault in said.err and said.err.count("\n") == 1 and said.out == ""
    assert not pathlib.Path("templates.txt").exists()


def test_folders_that_lack_something_are_named(folder, model, capsys):
    (folder / prompts.TEMPLATES).unlink()
    run(folder, "--model", "colours", status=1)
    assert capsys.readouterr().err == (
        f"error: {folder} has no {prompts.TEMPLATES}; templates may come from --templates FILE\n"
    )
    (folder / "classnames.txt").unlink()
    run(folder, "--model", "colours", status=1)
    assert f"has no classnames.txt and no {prompts.TEMPLATES};" in capsys.readouterr().err
    run("nothing", "--model", "colours", status=1)
    assert capsys.readouterr().err == "error: nothing is no folder\n"
    run("--model", "colours", status=1)
    assert capsys.readouterr().err == (
        "error: colours is no run with data of its own: give DATASET\n"
    )


def test_a_runs_own_data_and_classes_are_used(finished, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("t.txt").write_text("the digit {c}\na {c} on black\n")
    run("--model", finished.run, "--split", "unseen_images", "--templates", "t.txt", "--batch", 16)
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("acc1 on unseen_images, ") for line in lines)
    assert any(line.startswith("acc1 on test, ") for line in lines)
    written = pathlib.Path("templates.txt").read_text().splitlines()
    assert set(written) <= {"the digit {c}", "a {c} on black"} and written
