import dataclasses
import errno
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import warnings

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import clip_jax
from clip_jax.cli import embed
from clip_jax.data.images import ImageFiles
from clip_jax.data.tar_shards import natural

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "models"
MODEL = GOLDEN / "open_clip_ViT_GELU"
NAMES = ["2.png", "10.png", "a/1.png", "a/2.png", "a/b/1.jpg", "b/1.png", "b/3.webp"]
NAMES += [f"c/{number}.png" for number in range(4)]
"""Eleven, in the order of the table."""

load = clip_jax.load


@pytest.fixture(scope="module")
def clip():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*has no tokenizer")
        return load(MODEL)


@pytest.fixture(scope="module")
def album(tmp_path_factory):
    folder = tmp_path_factory.mktemp("album")
    for number, name in reversed(list(enumerate(NAMES))):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (9, 7, 3), np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return folder


@pytest.fixture
def photos(album, tmp_path, monkeypatch):
    """A copy in the working folder, in parts of four images: 4, 4 and 3."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(embed, "PART", 4)
    return pathlib.Path(shutil.copytree(album, tmp_path / "photos"))


@pytest.fixture
def loaded(clip, monkeypatch):
    """Commands load this model, compiled once, whatever they are told; its params may be set."""
    held = {"clip": clip}
    monkeypatch.setattr("clip_jax.api.load", lambda *_, **__: held["clip"])
    return held


@pytest.fixture
def seen(monkeypatch):
    """Names of the images that were read, in their order."""
    names = []
    read = ImageFiles.__getitem__

    def note(self, index):
        names.append(self.paths[index].as_posix().rpartition("photos/")[2])
        return read(self, index)

    monkeypatch.setattr(ImageFiles, "__getitem__", note)

    def take():
        taken = sorted(names, key=natural)
        names.clear()
        return taken

    return take


def run(*argv, status=0):
    try:
        found = embed.main([str(word) for word in argv])
    except SystemExit as stop:
        found = stop.code
    assert found == status


def read(path="out.parquet"):
    table = pq.read_table(path)
    width = table.schema.field("embedding").type.list_size
    vectors = table["embedding"].combine_chunks().flatten().to_numpy().reshape(-1, width)
    return table["path"].to_pylist(), vectors


def hidden():
    return [path.name for path in pathlib.Path().iterdir() if path.name.startswith(".")]


def test_the_table_is_what_the_library_gives(clip, photos, capsys):
    run("photos", "out.parquet", "--model", MODEL)
    said = capsys.readouterr()
    assert said == ("written: out.parquet (11 images, 24 numbers each)\n", "")
    paths, vectors = read()
    assert paths == NAMES
    assert vectors.dtype == np.float32 and vectors.shape == (11, 24)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    expected = clip.encode_image([photos / name for name in NAMES])
    np.testing.assert_allclose(vectors, expected, atol=1e-6)
    assert len(np.unique(expected.round(3), axis=0)) == 11
    schema = pq.read_schema("out.parquet")
    assert str(schema.field("path").type) == "string"
    assert str(schema.field("embedding").type) == "fixed_size_list<element: float>[24]"
    facts = {b"model": str(MODEL).encode(), b"folder": b"photos", b"left_out": b"0"}
    assert schema.metadata == facts
    assert hidden() == []


@pytest.mark.parametrize("part", [1, 10, 11])
def test_parts_of_any_size_make_the_same_table(part, loaded, photos, monkeypatch):
    run("photos", "out.parquet")
    monkeypatch.setattr(embed, "PART", part)
    run("photos", "again.parquet")
    for ours, again in zip(read(), read("again.parquet"), strict=True):
        np.testing.assert_array_equal(ours, again)
    assert pq.ParquetFile("again.parquet").num_row_groups == -(-11 // part)


def test_patches_of_any_shape(photos):
    model = GOLDEN / "transformers_SigLIP_2_NaFlex"
    run("photos/a", "out.parquet", "--model", model, "--batch", 2)
    paths, vectors = read()
    assert paths == ["1.png", "2.png", "b/1.jpg"] and vectors.shape == (3, 24)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


KILLED = """
import os, signal, sys
import jax
from clip_jax.cli import embed

jax.config.update("jax_cpu_enable_async_dispatch", False)
embed.PART, written, replace = 4, [], embed.Path.replace

def replace_or_die(draft, file):
    if len(written) == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    written.append(replace(draft, file))

embed.Path.replace = replace_or_die
embed.main(sys.argv[2:])
"""


@pytest.mark.parametrize("parts", [2, 3])
def test_killed_on_the_way_it_goes_on_with_the_part_it_was_at(parts, photos, seen, capsys):
    """Twice: when the third part is written under another name, and when the whole table is."""
    pathlib.Path("out.parquet").write_text("of old")
    argv = ["photos", "out.parquet", "--model", str(MODEL)]
    ran = subprocess.run(
        [sys.executable, "-c", KILLED, str(parts), *argv],
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(GOLDEN.parents[2])},
        check=False,
    )
    assert ran.returncode == -signal.SIGKILL, ran.stderr
    assert pathlib.Path("out.parquet").read_text() == "of old"
    assert hidden() == [".out.parquet.parts"]
    kinds = sorted(path.suffix for path in pathlib.Path(".out.parquet.parts").iterdir())
    assert kinds == [".draft"] + [".parquet"] * parts
    run(*argv)
    assert seen() == NAMES[4 * parts :]
    said = capsys.readouterr()
    assert said.err == f"{min(4 * parts, 11)} of 11 images were done before\n"
    resumed = pathlib.Path("out.parquet").read_bytes()
    assert read()[0] == NAMES and hidden() == []
    run("photos", "out.parquet", "--model", MODEL)
    assert seen() == NAMES and pathlib.Path("out.parquet").read_bytes() == resumed


class Stop(ValueError):
    pass


@pytest.fixture
def interrupted(loaded, photos, seen, monkeypatch):
    """The parts of a run that stopped before its third part."""
    with monkeypatch.context() as patch:
        write, count = embed._write, []

        def write_two(*args):
            if len(count) == 2:
                raise Stop
            count.append(write(*args))

        patch.setattr(embed, "_write", write_two)
        run("photos", "out.parquet", status=1)
    assert seen() == NAMES
    return {path.name for path in pathlib.Path(".out.parquet.parts").iterdir()}


@pytest.mark.parametrize(
    "folder", ["photos/", "./photos", "../{}/photos", "{}", "photos/../photos"]
)
def test_it_goes_on_however_the_folder_is_written(folder, interrupted, photos, seen):
    folder = folder.format(photos if folder == "{}" else photos.parent.name)
    run(folder, "out.parquet")
    assert seen() == NAMES[8:] and read()[0] == NAMES


def test_another_model_begins_anew_under_the_same_name_too(interrupted, loaded, clip, seen):
    params = clip.params
    run("photos", "other.parquet")
    first = read("other.parquet")
    assert seen() == NAMES  # Parts belong to one table.
    head = params["image"]["head"]["kernel"]
    changed = {**params["image"], "head": {"kernel": head.at[-1, -1].add(1e-3)}}
    loaded["clip"] = dataclasses.replace(clip, params={**params, "image": changed})
    run("photos", "out.parquet")
    assert seen() == NAMES and not np.array_equal(read()[1], first[1])
    assert hidden() == []  # What the first model left is gone, too.


@pytest.mark.parametrize("field", ["preprocess", "model"])
def test_the_same_parameters_used_otherwise_are_another_model(
    field, interrupted, loaded, clip, seen, variant
):
    if field == "preprocess":
        other = dataclasses.replace(clip, preprocess=variant(clip.preprocess, resize="squash"))
    else:
        cfg = variant(clip.model.cfg, **{"image.stack.activation": "quick_gelu"})
        other = dataclasses.replace(clip, model=type(clip.model)(cfg))
    loaded["clip"] = other
    run("photos", "out.parquet")
    assert seen() == NAMES


def test_the_text_tower_and_the_tokenizer_do_not_matter(interrupted, loaded, clip, seen):
    text = jax.tree.map(lambda leaf: leaf + 1, clip.params["text"])
    loaded["clip"] = dataclasses.replace(clip, params={**clip.params, "text": text})
    run("photos", "out.parquet")
    assert seen() == NAMES[8:]


def test_parts_whose_images_changed_are_done_again(interrupted, photos, seen):
    image = photos / NAMES[5]
    state = image.stat()
    data = image.read_bytes()
    image.write_bytes(data[:-1] + b"x")  # The same size.
    os.utime(image, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    run("photos", "out.parquet")
    assert seen() == NAMES[4:]


@pytest.mark.parametrize("change", ["added", "removed", "renamed"])
def test_a_changed_folder_keeps_the_parts_before_the_change(change, interrupted, photos, seen):
    if change == "added":
        (photos / "b" / "0.gif").write_bytes(b"")
        (photos / "b" / "2.png").write_bytes((photos / "2.png").read_bytes())
        expected = [*NAMES[:6], "b/2.png", *NAMES[6:]]
    elif change == "removed":
        (photos / NAMES[6]).unlink()
        expected = [*NAMES[:6], *NAMES[7:]]
    else:
        (photos / NAMES[6]).rename(photos / "b" / "4.webp")
        expected = [*NAMES[:6], "b/4.webp", *NAMES[7:]]
    run("photos", "out.parquet")
    assert seen() == expected[4:] and read()[0] == expected
    run("photos", "again.parquet")
    np.testing.assert_array_equal(read()[1], read("again.parquet")[1])


def test_a_part_without_content_is_done_again(interrupted, seen):
    for name in sorted(interrupted)[:1]:
        pathlib.Path(".out.parquet.parts", name).write_bytes(b"")
    run("photos", "out.parquet")
    assert len(seen()) == 7 and read()[0] == NAMES


def test_images_that_cannot_be_read_are_named_and_left_out(loaded, photos, capsys):
    run("photos", "out.parquet")
    _, whole = read()
    (photos / "b" / "2.png").write_bytes(b"")
    (photos / "a" / "[red]x.png").write_text("no picture")
    (photos / "c" / "9.png").symlink_to("nowhere")
    capsys.readouterr()
    run("photos", "out.parquet", status=1)
    said = capsys.readouterr()
    assert said.out == "written: out.parquet (11 images, 3 left out, 24 numbers each)\n"
    assert [line.split(": ")[:2] for line in said.err.splitlines()] == [
        ["left out", f"sample 'photos/{name}'"] for name in ("a/[red]x.png", "b/2.png", "c/9.png")
    ]
    paths, vectors = read()
    assert paths == NAMES
    np.testing.assert_array_equal(vectors, whole)
    assert pq.read_schema("out.parquet").metadata[b"left_out"] == b"3"


def test_what_was_left_out_before_an_interruption_is_named_again(
    loaded, photos, capsys, monkeypatch
):
    (photos / NAMES[0]).write_bytes(b"")
    (photos / NAMES[10]).write_bytes(b"")
    with monkeypatch.context() as patch:
        patch.setattr(embed, "_join", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        run("photos", "out.parquet", status=130)
    first = capsys.readouterr().err.splitlines()
    run("photos", "out.parquet", status=1)
    said = capsys.readouterr()
    assert said.err.splitlines() == ["11 of 11 images were done before", *first[:2]]
    assert first[2:] == ["interrupted"] and "2.png" in first[0] and "3.png" in first[1]
    assert "(9 images, 2 left out," in said.out


def test_a_whole_part_may_be_broken(loaded, photos):
    for name in NAMES[4:8]:
        (photos / name).write_text("no picture")
    run("photos", "out.parquet", status=1)
    assert read()[0] == NAMES[:4] + NAMES[8:]


def test_with_nothing_to_write_the_old_table_stays(loaded, photos, capsys):
    run("photos", "out.parquet")
    whole = pathlib.Path("out.parquet").read_bytes()
    for name in NAMES:
        (photos / name).write_text("no picture")
    capsys.readouterr()
    run("photos", "out.parquet", status=1)
    said = capsys.readouterr()
    assert said.out == "" and len(said.err.splitlines()) == 12
    assert said.err.splitlines()[-1] == (
        "error: none of the images could be read; out.parquet is not written"
    )
    assert pathlib.Path("out.parquet").read_bytes() == whole and hidden() == []


@pytest.mark.parametrize("when", ["listed", "planned"])
def test_an_image_that_vanishes_after_the_listing_is_left_out(
    when, loaded, photos, capsys, monkeypatch
):
    function = {"listed": "_mark", "planned": "_embed"}[when]
    original = getattr(embed, function)

    def vanish(*args):
        (photos / NAMES[6]).unlink()
        return original(*args)

    monkeypatch.setattr(embed, function, vanish)
    run("photos", "out.parquet", status=1)
    assert read()[0] == [*NAMES[:6], *NAMES[7:]]
    assert capsys.readouterr().err == (
        f"left out: sample 'photos/{NAMES[6]}': No such file or directory\n"
    )


@pytest.mark.parametrize("when", ["a part", "the table"])
def test_a_full_disk_is_told_and_spoils_nothing(when, loaded, photos, seen, capsys, monkeypatch):
    pathlib.Path("out.parquet").write_text("of old")
    write = pq.ParquetWriter.write_table

    def full(writer, *args, **options):
        write(writer, *args, **options)
        whole = pathlib.Path(writer.where).name == "out.parquet.draft"
        if whole == (when == "the table"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(pq.ParquetWriter, "write_table", full)
        run("photos", "out.parquet", status=1)
    assert capsys.readouterr().err == "error: [Errno 28] No space left on device\n"
    assert pathlib.Path("out.parquet").read_text() == "of old"
    parts = [path.suffix for path in pathlib.Path(".out.parquet.parts").iterdir()]
    assert parts == ([] if when == "a part" else [".parquet"] * 3)
    seen()
    run("photos", "out.parquet")
    assert read()[0] == NAMES and hidden() == [] and len(seen()) == (11 if parts == [] else 0)


def test_names_that_are_no_utf8_are_written_with_their_bytes(loaded, photos):
    name = os.fsdecode(b"caf\xe9.png")
    (photos / name).write_bytes((photos / "2.png").read_bytes())
    run("photos", "out.parquet")
    paths, vectors = read()
    assert "caf\\xe9.png" in paths
    np.testing.assert_array_equal(vectors[paths.index("caf\\xe9.png")], vectors[0])


def test_the_table_may_lie_in_its_own_folder_and_is_no_image(loaded, photos, monkeypatch):
    monkeypatch.chdir(photos)
    for _ in range(2):
        run(".", "x=1.parquet")
        assert read("x=1.parquet")[0] == NAMES and hidden() == []


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["nowhere", "out.parquet"], "nowhere is no folder"),
        (["photos/2.png", "out.parquet"], "photos/2.png is no folder"),
        (["photos", "out.csv"], "out.csv: the table is parquet, so let its name end in .parquet"),
        (["photos", "photos"], "photos: the table is parquet"),
        (["photos", "no/out.parquet"], "no is no folder"),
        (["photos", "photos/2.png/out.parquet"], "photos/2.png is no folder"),
        (["photos", "folder.parquet"], "folder.parquet is a folder; give the name of a file"),
        (["photos", "out.parquet", "--batch", "0"], "--batch starts at 1, got 0"),
        (["folder.parquet", "out.parquet"], "no image (jpg, jpeg, png, webp) in folder.parquet"),
        (["photos", "out.parquet"], "'ViT-B-33/openai' is no folder or file"),
    ],
)
def test_faults_are_told_before_the_work(argv, said, photos, capsys):
    pathlib.Path("folder.parquet").mkdir()
    before = sorted(pathlib.Path().rglob("*"))
    run(*argv, "--model", "ViT-B-33/openai", status=1)
    told = capsys.readouterr()
    assert told.out == "" and told.err.startswith(f"error: {said}")
    assert sorted(pathlib.Path().rglob("*")) == before


def test_help_is_told_at_once():
    code = (
        "import sys; from clip_jax.cli import embed; "
        "print(embed.parser().format_help()); "
        "print([m for m in ('jax', 'rich', 'numpy', 'pyarrow') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.endswith("\n[]\n") and "\n    " not in ran.stdout.split("positional")[0]
    for word in ("`.OUT.parts`", "left_out", "(16 on CPU", "(ViT-B-32/openai)", "example:"):
        assert word in ran.stdout
    assert max(map(len, re.split("\n", ran.stdout))) < 100
