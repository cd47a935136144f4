import re

import pytest

from clip_jax.data.folder import Folder
from clip_jax.data.sample import BadSampleError, Dataset, Source


@pytest.fixture
def folder(tmp_path, png):
    """Captioned images at two depths."""
    for name in ("10", "2", "deep/er/1"):
        path = tmp_path / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(int(path.stem)))
        path.with_suffix(".txt").write_text(f" picture {path.stem}\n\nalso {path.stem}\n")
    return tmp_path


@pytest.fixture
def classes(tmp_path, png):
    """Two class folders in each of two splits; captions only for one image."""
    for name in ("train/n10/a", "train/n2/b", "train/n2/c/d", "test/n10/e", "test/n2/f"):
        path = tmp_path / f"{name}.PNG"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(len(name)))
    (tmp_path / "train/n2/b.txt").write_text("b")
    return tmp_path


def test_the_contracts_are_kept(folder):
    assert isinstance(Folder(root=str(folder)), Dataset)
    assert isinstance(Folder(root=str(folder)).open("train"), Source)


def test_captioned_images_of_any_depth_in_natural_order(folder, png):
    source = Folder(root=str(folder)).open("train")
    samples = [source[i] for i in range(len(source))]
    assert [s.key for s in samples] == ["2.png", "10.png", "deep/er/1.png"]
    assert samples[1].texts == ("picture 10", "also 10")
    assert samples[1].image == png(10) and samples[1].label is None
    assert Folder(root=str(folder)).class_names("train") == ()


def test_class_folders_give_labels(classes):
    dataset = Folder(root=str(classes), class_folders=True)
    source = dataset.open("train")
    samples = [source[i] for i in range(len(source))]
    assert [(s.key, s.label, s.texts) for s in samples] == [
        ("n2/b.PNG", 0, ("b",)),
        ("n2/c/d.PNG", 0, ()),
        ("n10/a.PNG", 1, ()),
    ]
    assert dataset.class_names("train") == dataset.class_names("test") == ("n2", "n10")
    (classes / "classnames.txt").write_text("cat\ndog\n")
    assert dataset.class_names("test") == ("cat", "dog")


def test_class_names_must_fit_the_folders(classes):
    (classes / "classnames.txt").write_text("cat\n")
    with pytest.raises(ValueError, match=r"names 1 classes, but .*train has 2 folders: n2, n10"):
        Folder(root=str(classes), class_folders=True).open("train")


def test_images_outside_class_folders_are_named(classes, png):
    (classes / "train" / "loose.png").write_bytes(png(0))
    with pytest.raises(ValueError, match=r"1 images lie in .*, in no class folder: loose.png"):
        Folder(root=str(classes), class_folders=True).open("train")


def test_hidden_files_and_folders_are_left_out(classes, png):
    for name in ("train/.cache/x.png", "train/n2/._b.png"):
        (classes / name).parent.mkdir(exist_ok=True)
        (classes / name).write_bytes(png(0))
    assert len(Folder(root=str(classes), class_folders=True).open("train")) == 3


def test_a_missing_root_or_split_is_named(classes, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"/no is not a folder; it should hold images"):
        Folder(root=str(tmp_path / "no")).open("train")
    with pytest.raises(
        FileNotFoundError, match=r"has no split 'val'; its folders: 'test', 'train'"
    ):
        Folder(root=str(classes)).open("val")


def test_test_images_never_become_training_images(classes):
    (classes / "train").rename(classes / "training")
    with pytest.raises(FileNotFoundError, match=r"no split 'train'; its folders: 'test', 'train"):
        Folder(root=str(classes)).open("train")


def test_a_folder_without_images_is_named(tmp_path):
    message = f"no image (jpg, jpeg, png, webp) in {tmp_path} or below; it holds nothing"
    with pytest.raises(FileNotFoundError, match=f"^{re.escape(message)}$"):
        Folder(root=str(tmp_path)).open("train")


@pytest.mark.parametrize(
    "name, text, reason",
    [
        ("2.txt", None, "no captions: 2.txt is not there"),
        ("2.txt", " \n", "the captions in 2.txt are empty"),
        ("2.png", None, "No such file"),
    ],
)
def test_a_bad_sample_is_named_with_its_reason(folder, name, text, reason):
    source = Folder(root=str(folder)).open("train")
    (folder / name).unlink() if text is None else (folder / name).write_text(text)
    with pytest.raises(BadSampleError, match=rf"^sample '2.png' in {folder}: .*{reason}"):
        source[0]
    assert source[1].key == "10.png"


def test_positions_outside_are_refused(folder):
    with pytest.raises(IndexError, match="sample 3 of 3"):
        Folder(root=str(folder)).open("train")[3]
