import logging
import os
import pathlib
import tarfile

import numpy as np
import pytest

from clip_jax.data import tar_index
from clip_jax.data.sample import BadSampleError
from clip_jax.data.tar_shards import TarShards


def opened(folder):
    return TarShards(root=str(folder)).open("train")


@pytest.mark.parametrize("where", ["in content", "in header", "after padding", "in padding"])
def test_a_cut_shard_gives_its_complete_members_and_a_warning(
    tmp_path, write_tar, png, caplog, where
):
    path = write_tar(
        tmp_path / "0.tar",
        [m for i in range(4) for m in ((f"{i}.png", png(i)), (f"{i}.txt", "x" * 600))],
    )
    with tarfile.open(path) as tar:
        last = tar.getmember("3.txt")
    sizes = {
        "in content": last.offset_data + 599,
        "in header": last.offset + 100,
        "after padding": last.offset,
        "in padding": last.offset_data + 601,
    }
    os.truncate(path, sizes[where])
    with caplog.at_level(logging.WARNING):
        source = opened(tmp_path)
    assert f"{path}: damaged or cut off" in caplog.text
    assert [source[i].texts for i in range(3)] == [("x" * 600,)] * 3
    if where == "in padding":
        assert source[3].texts == ("x" * 600,)
    else:
        with pytest.raises(BadSampleError, match="neither captions nor a label"):
            source[3]


def test_a_damaged_header_is_told_and_the_rest_is_used(tmp_path, write_tar, png, caplog):
    path = write_tar(tmp_path / "0.tar", [(f"{i}.png", png(i)) for i in range(4)])
    with tarfile.open(path) as tar:
        third = tar.getmember("2.png").offset
    data = bytearray(path.read_bytes())
    data[third : third + 512] = b"\xaa" * 512
    path.write_bytes(data)
    assert len(opened(tmp_path)) == 2
    assert f"damaged or cut off at byte {third} of" in caplog.text


def test_a_whole_shard_gives_no_warning(folder, caplog):
    opened(folder)
    assert caplog.text == ""


def index_of(folder, name):
    return folder / "train" / tar_index.FOLDER / f"{name}.npz"


def count_builds(monkeypatch):
    built = []
    build = tar_index._build
    monkeypatch.setattr(
        tar_index,
        "_build",
        lambda file, stamp: built.append(pathlib.Path(file.name).name) or build(file, stamp),
    )
    return built


def test_an_index_is_made_once(folder, monkeypatch):
    built = count_builds(monkeypatch)
    first = opened(folder)
    assert sorted(built) == ["0.tar", "10.tar", "2.tar"]
    second = opened(folder)
    assert len(built) == 3
    assert [first[i] for i in range(9)] == [second[i] for i in range(9)]
    assert not list((folder / "train" / tar_index.FOLDER).glob("*.part"))


def test_a_changed_shard_is_indexed_again(folder, write_tar, png, monkeypatch):
    opened(folder)
    built = count_builds(monkeypatch)
    write_tar(folder / "train" / "2.tar", [("new.png", png(9)), ("new.txt", "new")])
    source = opened(folder)
    assert built == ["2.tar"] and len(source) == 7 and source[3].texts == ("new",)


def test_a_shard_of_equal_size_but_later_date_is_indexed_again(folder, monkeypatch):
    opened(folder)
    built = count_builds(monkeypatch)
    os.utime(folder / "train" / "0.tar", ns=(1, 1))
    opened(folder)
    assert built == ["0.tar"]


@pytest.mark.parametrize("damage", [b"", b"rubbish", None])
def test_a_damaged_index_is_made_again(folder, damage):
    expected = opened(folder)[4]
    path = index_of(folder, "2.tar")
    path.write_bytes(path.read_bytes()[:300] if damage is None else damage)
    assert opened(folder)[4] == expected
    assert np.load(path)["keys"].shape == (3,)


def test_a_folder_marked_read_only_stays_as_it_is(folder, home, monkeypatch):
    train = folder / "train"
    train.chmod(0o555)
    try:
        opened(folder)
        assert not (train / tar_index.FOLDER).exists()
        cached = list((home / ".cache" / "clip_jax" / "tar_index").iterdir())
        assert sorted(path.name.split("-")[1] for path in cached) == [
            "0.tar.npz",
            "10.tar.npz",
            "2.tar.npz",
        ]
        built = count_builds(monkeypatch)
        opened(folder)
        assert built == []
    finally:
        train.chmod(0o755)


def test_where_no_index_can_be_kept_the_shards_are_still_read(folder, monkeypatch, caplog):
    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(tar_index, "_save", full)
    assert len(opened(folder)) == 9
    assert "its index can be kept nowhere" in caplog.text


def test_slow_indexing_is_shown(folder, monkeypatch, capsys):
    monkeypatch.setattr(tar_index, "_QUIET_SECONDS", -1.0)
    opened(folder)
    assert capsys.readouterr().err.endswith("indexing shards: 3 of 3\n")


def test_a_shard_that_changes_while_it_is_indexed_is_refused(folder, monkeypatch):
    shard = folder / "train" / "2.tar"
    scan = tar_index.scan

    def slow(read, size):
        if not slow.done:
            slow.done = True
            os.utime(shard, ns=(1, 1))
        return scan(read, size)

    slow.done = False
    monkeypatch.setattr(tar_index, "scan", slow)
    with pytest.raises(ValueError, match=r"^\S*2.tar: changed while it was indexed; start again"):
        TarShards(root=str(shard)).open("train")
    assert not index_of(folder, "2.tar").exists()


def test_a_pipe_and_a_folder_are_no_shards_and_nobody_waits_for_them(folder):
    os.mkfifo(folder / "train" / "3.tar")
    (folder / "train" / "4.tar").mkdir()
    with pytest.raises(ValueError, match=r"3.tar: cannot be read: .* is not a regular file; .*4.t"):
        opened(folder)


def test_of_many_bad_shards_twenty_are_told(tmp_path):
    for number in range(25):
        (tmp_path / f"{number}.tar").write_bytes(b"x" * 600)
    with pytest.raises(ValueError, match=r"19.tar: is no readable .*; and 5 more shards$") as told:
        opened(tmp_path)
    assert "20.tar" not in str(told.value)


def test_as_many_bad_shards_as_allowed_are_left_out(folder, caplog):
    (folder / "train" / "2.tar").write_bytes(b"")
    source = TarShards(root=str(folder), bad_shards=0.34).open("train")
    assert [source[i].key for i in (0, 3)] == ["0/s0000", "10/s0100"] and len(source) == 6
    assert "1 of 3 shards are left out: " in caplog.text and "2.tar: is no" in caplog.text
    (folder / "train" / "10.tar").unlink()
    (folder / "train" / "10.tar").mkdir()
    with pytest.raises(ValueError, match=r"2.tar: is no readable tar file: empty file; \S*10.tar"):
        TarShards(root=str(folder), bad_shards=0.34).open("train")
