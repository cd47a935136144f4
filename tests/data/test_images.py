import contextlib
import os
import pathlib
import tempfile

import pytest

from clip_jax.data.images import find_images
from clip_jax.data.sample import BadSampleError, Source


def make(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())


def names(found, folder):
    return [path.relative_to(folder).as_posix() for path in found.paths]


def test_images_at_any_depth_in_natural_order_without_hidden_ones(tmp_path):
    wanted = ["a2.png", "a10.JPG", "b/a.jpeg", "b/c.png/a.png", "b/c/a.webp"]
    make(tmp_path, *reversed(wanted), "a.gif", "a.txt", "png", "a.png.txt")
    make(tmp_path, ".a.png", ".git/a.png", "b/.thumbs/c/a.png", "b/.png", "c/.../x.png")
    assert names(find_images([tmp_path]), tmp_path) == wanted


def test_what_is_given_by_name_is_taken_whatever_it_is_called_and_in_its_order(tmp_path):
    make(tmp_path, "z.png", "a.txt", ".hidden.png", "sub/1.png", ".cache/2.png")
    given = [tmp_path / n for n in ("z.png", "sub", ".cache", ".hidden.png", "a.txt", "z.png")]
    found = find_images([str(path) for path in given])
    shown = ["z.png", "sub/1.png", ".cache/2.png", ".hidden.png", "a.txt", "z.png"]
    assert names(found, tmp_path) == shown


def test_keys_are_paths_as_they_were_given(tmp_path, monkeypatch):
    make(tmp_path, "photos/sub/1.png")
    monkeypatch.chdir(tmp_path / "photos")
    places = {
        ".": "",
        "./": "",
        "../photos//": "../photos/",
        f"{tmp_path}/photos/": f"{tmp_path}/photos/",
    }
    for place, start in places.items():
        (sample,) = list_of(find_images([place]))
        assert (sample.key, sample.image) == (f"{start}sub/1.png", b"photos/sub/1.png")


def list_of(source):
    return [source[i] for i in range(len(source))]


def test_it_is_a_source(tmp_path):
    make(tmp_path, "1.png")
    found = find_images([tmp_path])
    assert isinstance(found, Source) and len(found) == 1
    for index in (1, -1):
        with pytest.raises(IndexError, match=f"image {index} of 1"):
            found[index]


def test_all_places_that_do_not_exist_are_named(tmp_path):
    make(tmp_path, "1.png")
    (tmp_path / "gone.png").symlink_to("nowhere")
    places = [tmp_path / "x.png", tmp_path, tmp_path / "1.png" / "y", tmp_path / "gone.png"]
    with pytest.raises(FileNotFoundError) as told:
        find_images(places)
    assert str(told.value) == (f"no such file or folder: {places[0]}, {places[2]}, {places[3]}")


def test_no_image_says_what_is_one(tmp_path):
    make(tmp_path, "a/1.gif", "b/.2.png")
    with pytest.raises(FileNotFoundError) as told:
        find_images([tmp_path / "a", tmp_path / "b"])
    assert str(told.value) == (
        f"no image (jpg, jpeg, png, webp) in {tmp_path / 'a'}, {tmp_path / 'b'} or below"
    )


def test_a_file_that_vanishes_or_leads_nowhere_is_a_bad_sample(tmp_path):
    make(tmp_path, "1.png", "2.png")
    (tmp_path / "3.png").symlink_to("nowhere")
    (tmp_path / "4.png").symlink_to("2.png")
    found = find_images([tmp_path])
    assert names(found, tmp_path) == ["1.png", "2.png", "3.png", "4.png"]
    (tmp_path / "1.png").unlink()
    for index in (0, 2):
        with pytest.raises(BadSampleError) as told:
            found[index]
        key = found.paths[index].as_posix()
        assert str(told.value) == f"sample {key!r}: No such file or directory"
    assert found[1].image == found[3].image == b"2.png"


def test_neither_pipes_nor_endless_circles_are_followed(tmp_path):
    make(tmp_path, "sub/1.png", "elsewhere/2.png")
    os.mkfifo(tmp_path / "sub" / "pipe.png")
    (tmp_path / "sub" / "pipe2.png").symlink_to("pipe.png")
    (tmp_path / "sub" / "circle").symlink_to("..")
    (tmp_path / "sub" / "self.png").symlink_to("self.png")
    found = find_images([tmp_path / "sub"])
    assert names(found, tmp_path / "sub") == ["1.png", "self.png"]
    with pytest.raises(BadSampleError, match="symbolic links"):
        found[1]
    (tmp_path / "link").symlink_to("elsewhere")
    assert names(find_images([tmp_path / "link"]), tmp_path / "link") == ["2.png"]


@contextlib.contextmanager
def anyone():
    """Without the administrator's rights, for whom no folder is closed."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("mode", [0o000, 0o444, 0o111])
def test_a_folder_that_may_not_be_opened_is_not_passed_over_in_silence(mode):
    with tempfile.TemporaryDirectory() as made:
        folder = pathlib.Path(made)
        folder.chmod(0o755)
        make(folder, "1.png", "closed/2.png", "z.png")
        (folder / "z.png").chmod(0o000)
        (folder / "closed").chmod(mode)
        with anyone():
            found = find_images([folder])
            faults = []
            for index in range(len(found)):
                try:
                    found[index]
                except BadSampleError as fault:
                    faults.append(str(fault))
        (folder / "closed").chmod(0o755)
    inside = "closed/2.png" if mode == 0o444 else "closed"
    denied = [f"sample '{folder}/{name}': Permission denied" for name in (inside, "z.png")]
    assert faults == denied and len(found) == 3


def test_names_that_are_no_text_are_read(tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    (tmp_path / name).write_bytes(b"x")
    found = find_images([tmp_path])
    assert os.fsencode(found[0].key).endswith(b"caf\xe9.png") and found[0].image == b"x"
