import copy
import gzip
import os
import pathlib
import pickle
import re
import tarfile
import threading
import warnings

import numpy as np
import pytest

from clip_jax.data.sample import BadSampleError, Dataset, Source
from clip_jax.data.tar_shards import TarShards


def opened(folder, split="train", **fields):
    return TarShards(root=str(folder), **fields).open(split)


def single(tmp_path, write_tar, members, **fields):
    write_tar(tmp_path / "train" / "0.tar", members)
    return opened(tmp_path, **fields)[0]


def test_the_contracts_are_kept(folder):
    assert isinstance(TarShards(root=str(folder)), Dataset)
    assert isinstance(opened(folder), Source)


def test_samples_come_in_natural_order_of_shards(folder, png):
    source = opened(folder)
    texts = [source[i].texts for i in range(len(source))]
    assert texts == [(f"picture {n} {i}",) for n in (0, 2, 10) for i in range(3)]
    assert source[4].key == "2/s0021"
    assert source[4].image == png(3) and source[4].label is None


def test_labels_and_class_names(folder):
    sample = opened(folder, "test")[0]
    assert (sample.label, sample.texts) == (7, ())
    assert TarShards(root=str(folder)).class_names("test") == ("cat", "dog")
    assert TarShards(root=str(folder / "test")).class_names("test") == ()


def test_loose_shards_and_a_single_shard_are_the_training_split(folder):
    assert len(opened(folder / "train")) == 9
    assert len(opened(folder / "train" / "2.tar")) == 3


def test_the_layout_of_the_tar_does_not_matter(tmp_path, write_tar, png):
    """Members of samples mixed, in folders, with dots, upper case, long names, links between."""
    long = "x" * 120
    members = [("a/one.jpg", png(1)), ("b/one.JPG", png(2)), (f"{long}.v2.txt", "no member")]
    members += [("b/one.txt", "b one"), ("a/one.TXT", "a one"), (f"{long}.Jpeg", png(3))]
    members += [("README", "hello"), ("._a.txt", "junk"), (f"{long}.txt", "long")]
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        link = tarfile.TarInfo("c.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    plain = write_tar(tmp_path / "y.tar", [m for m in members if long not in m[0]])
    source = opened(plain)
    assert [(source[i].key, source[i].texts, source[i].image) for i in range(len(source))] == [
        ("y/a/one", ("a one",), png(1)),
        ("y/b/one", ("b one",), png(2)),
    ]
    with tarfile.open(path, "a", format=tarfile.PAX_FORMAT) as tar:
        for name, content in members:
            file = tmp_path / "content"
            file.write_bytes(content if isinstance(content, bytes) else content.encode())
            tar.add(file, name)
    source = opened(path)
    assert len(source) == 3
    assert source[2].key == f"x/{long}" and source[2].texts == ("long",)


def test_captions_are_lines_and_may_hold_escaped_newlines(tmp_path, write_tar, png):
    sample = single(
        tmp_path, write_tar, [("a.png", png(0)), ("a.txt", " one \n\ntwo\\nlines\ndrei ü\n")]
    )
    assert sample.texts == ("one", "two\nlines", "drei ü")


@pytest.mark.parametrize("value, texts", [("one", ("one",)), (["one", " two"], ("one", "two"))])
def test_captions_from_json(tmp_path, write_tar, png, value, texts):
    members = [("a.png", png(0)), ("a.txt", "text"), ("a.json", {"url": "u", "caption": value})]
    assert single(tmp_path, write_tar, members, caption_key="caption").texts == texts
    assert opened(tmp_path)[0].texts == ("text",)


def test_captions_from_text_where_there_is_no_json(tmp_path, write_tar, png):
    members = [("a.png", png(0)), ("a.txt", "text")]
    assert single(tmp_path, write_tar, members, caption_key="caption").texts == ("text",)


@pytest.mark.parametrize(
    "slug, members, reason",
    [
        ("missing image", [("a.txt", "text")], "no image (jpg, jpeg, png, webp), or an empty one"),
        (
            "missing image",
            [("a.png", b""), ("a.txt", "text")],
            "no image (jpg, jpeg, png, webp), or an empty one",
        ),
        ("missing caption", [("a.png", b"x")], "neither captions nor a label"),
        ("empty caption", [("a.png", b"x"), ("a.txt", " \n\n")], "its captions are empty"),
        (
            "bad label",
            [("a.png", b"x"), ("a.cls", "cat")],
            "its .cls must hold a number from 0 on, not b'cat'",
        ),
        (
            "bad label",
            [("a.png", b"x"), ("a.cls", "-1")],
            "its .cls must hold a number from 0 on, not b'-1'",
        ),
        (
            "bad caption",
            [("a.png", b"x"), ("a.txt", b"\xff\xfe")],
            "'utf-8' codec can't decode byte 0xff",
        ),
        (
            "bad caption",
            [("a.png", b"x"), ("a.json", {"url": 1})],
            "its .json has no 'caption'; it has url",
        ),
        (
            "bad caption",
            [("a.png", b"x"), ("a.json", [1])],
            "its .json has no 'caption'; it has a list",
        ),
        ("bad caption", [("a.png", b"x"), ("a.json", "{")], "Expecting property name"),
        (
            "bad caption",
            [("a.png", b"x"), ("a.json", {"caption": [None]})],
            "'caption' in its .json is neither a string nor a list of strings",
        ),
    ],
)
def test_a_bad_sample_names_shard_key_and_reason(tmp_path, write_tar, slug, members, reason):
    shard = tmp_path / "train" / "0.tar"
    with pytest.raises(BadSampleError) as caught:
        single(tmp_path, write_tar, members, caption_key="caption")
    assert str(caught.value).startswith(f"{shard}: sample '0/a': {reason}")
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.shard) == (str(caught.value), str(shard))
    assert again.reason == caught.value.reason == slug


def test_a_missing_root_is_named(tmp_path):
    message = f"{tmp_path}/no does not exist; it should hold train/*.tar or *.tar"
    with pytest.raises(FileNotFoundError, match=f"^{re.escape(message)}$"):
        opened(tmp_path / "no")


@pytest.mark.parametrize(
    "root, has",
    [("", "'test', 'train'"), ("train", "'train'"), ("train/2.tar", "'train'"), ("empty", "none")],
)
def test_a_missing_split_is_named_with_those_there_are(folder, root, has):
    (folder / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=f"has no split 'validation'; it has {has}"):
        opened(folder / root, "validation")


def test_an_empty_folder_is_named_with_what_it_holds(folder):
    (folder / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no \*.tar in .*/empty; it holds nothing$"):
        opened(folder / "empty")
    (folder / "empty" / "x.zip").touch()
    with pytest.raises(FileNotFoundError, match=r"it holds \['x.zip'\]$"):
        opened(folder / "empty")


def test_shards_without_samples_are_refused(tmp_path, write_tar):
    write_tar(tmp_path / "0.tar", [("README", "x")])
    with pytest.raises(ValueError, match=r"0.tar: no sample in 1 shards; members must end in .jpg"):
        opened(tmp_path)


def test_a_missing_shard_is_named(folder):
    (folder / "train" / "nshards.txt").write_text("5\n")
    with pytest.raises(
        FileNotFoundError, match=r"nshards.txt counts 5 shards; missing: 1.tar, 3.tar, 4.tar;"
    ):
        opened(folder)


def test_a_missing_padded_shard_is_named_with_its_zeros(tmp_path, write_tar):
    write_tar(tmp_path / "00001.tar", [("a.txt", "x")])
    (tmp_path / "nshards.txt").write_text("2")
    with pytest.raises(FileNotFoundError, match=r"missing: 00000\.tar;"):
        opened(tmp_path)


def test_a_wrong_count_file_is_named_and_surplus_shards_are_told(folder, caplog):
    count = folder / "train" / "nshards.txt"
    count.write_text("many")
    with pytest.raises(ValueError, match=r"nshards.txt must hold one number, not 'many'"):
        opened(folder)
    for name in ("1", "0"):
        (folder / "train" / f"{name}.tar").write_bytes((folder / "train" / "2.tar").read_bytes())
    count.write_text("3")
    assert len(opened(folder)) == 12
    assert "counts 3 shards, but there are 4; all are used" in caplog.text


def test_unreadable_shards_are_all_named(folder):
    (folder / "train" / "2.tar").write_bytes(b"no tar at all" * 100)
    data = (folder / "train" / "0.tar").read_bytes()
    (folder / "train" / "0.tar").write_bytes(gzip.compress(data))
    with pytest.raises(
        ValueError, match=r"0.tar: is no readable tar file: .*unpack it; .*2.tar: is"
    ):
        opened(folder)


def test_an_empty_file_is_no_shard(folder):
    (folder / "train" / "2.tar").write_bytes(b"")
    with pytest.raises(ValueError, match=r"2.tar: is no readable tar file: empty file"):
        opened(folder)


def test_two_members_of_one_kind_are_both_named(tmp_path, write_tar, png):
    members = [("a.png", png(0)), ("a.txt", "x"), ("b.png", png(1)), ("a.PNG", png(2))]
    write_tar(tmp_path / "0.tar", members)
    with pytest.raises(ValueError, match=r"'a.png' \(byte 512\) and 'a.PNG' \(byte \d+\)"):
        opened(tmp_path)


def test_positions_outside_are_refused(folder):
    source = opened(folder)
    for index in (-1, 9):
        with pytest.raises(IndexError, match=f"sample {index} of 9"):
            source[index]


def test_a_pickled_source_and_a_copy_read_the_same(folder):
    source = opened(folder)
    first = source[5]
    for other in (pickle.loads(pickle.dumps(source)), copy.deepcopy(source)):
        assert other[5] == first and len(other) == 9


def test_a_forked_child_reads_through_the_same_handles(folder):
    source = opened(folder)
    expected = source[5]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Of threads that do not survive; this child needs none.
        pid = os.fork()
    if pid == 0:
        os._exit(0 if source[5] == expected and source[8].key else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert source[5] == expected


def test_threads_read_right_while_handles_are_dropped(tmp_path, write_tar, png, monkeypatch):
    from clip_jax.data import tar_shards

    monkeypatch.setattr(tar_shards, "_OPEN_FILES", 2)
    for i in range(8):
        write_tar(tmp_path / f"{i}.tar", [("a.png", png(i)), ("a.txt", f"text {i}")])
    source, wrong = opened(tmp_path), []
    before = len(list(pathlib.Path("/dev/fd").iterdir()))

    def read(seed):
        for i in np.random.default_rng(seed).integers(8, size=200).tolist():
            if source[i].texts != (f"text {i}",) or source[i].image != png(i):
                wrong.append(i)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(list(pathlib.Path("/dev/fd").iterdir())) <= before + 2


def test_a_shard_that_vanishes_or_shrinks_makes_bad_samples(folder):
    source = opened(folder)
    (folder / "train" / "2.tar").unlink()
    with pytest.raises(BadSampleError, match=r"2.tar: sample '2/s0020': .*No such file") as told:
        source[3]
    assert told.value.reason == "vanished"
    os.truncate(folder / "train" / "10.tar", 600)
    with pytest.raises(BadSampleError, match=r"cut off while in use \(member .png\)") as told:
        source[8]
    assert told.value.reason == "truncated"


@pytest.mark.parametrize("used", [False, True])
def test_a_shard_that_is_written_anew_makes_bad_samples(folder, write_tar, png, used):
    """Members of the same sizes in another order: the old offsets would lead to others' captions"""
    source = opened(folder)
    if used:
        assert source[3].texts == ("picture 2 0",)
    members = []
    for i in (2, 1, 0):
        members += [(f"s002{i}.png", png(2 + i)), (f"s002{i}.txt", f"picture 2 {i}")]
    write_tar(folder / "train" / "2.tar", members)
    os.utime(folder / "train" / "2.tar", ns=(1, 1))
    with pytest.raises(BadSampleError, match=r"2/s0020': the shard has changed since it") as told:
        source[3]
    assert told.value.reason == "changed"
    assert source[0].texts == ("picture 0 0",)


def test_a_shard_replaced_by_another_file_is_read_as_it_was_while_it_is_open(folder, write_tar):
    source = opened(folder)
    expected = source[3]
    other = write_tar(folder / "train" / "other", [("new.txt", "new")])
    other.replace(folder / "train" / "2.tar")
    assert source[3] == expected
    with pytest.raises(BadSampleError, match=r"cut off|changed"):
        pickle.loads(pickle.dumps(source))[3]


def test_members_far_apart_are_read_one_by_one(tmp_path, write_tar, png, monkeypatch):
    from clip_jax.data import tar_files

    members = [("a.png", png(1)), ("a.npy", b"x" * 200_000), ("a.txt", "far"), ("b.txt", "b")]
    write_tar(tmp_path / "0.tar", [*members, ("b.png", png(2))])
    source, sizes = opened(tmp_path), []
    read = tar_files.LocalFile.read
    monkeypatch.setattr(
        tar_files.LocalFile, "read", lambda *args: sizes.append(args[2]) or read(*args)
    )
    assert [(s.texts, s.image) for s in (source[0], source[1])] == [
        (("far",), png(1)),
        (("b",), png(2)),
    ]
    assert sizes == [len(png(1)), 3, 1024 + len(png(2))]


def weighted(tmp_path, write_tar, png, records, **weights):
    """`opened`, of samples with these `.json` (None: without) and a `.txt` each."""
    members = []
    for number, record in enumerate(records):
        members += [(f"{number:05d}.png", png(0)), (f"{number:05d}.txt", "txt")]
        members += [] if record is None else [(f"{number:05d}.json", record)]
    write_tar(tmp_path / "0.tar", members)
    return opened(tmp_path, caption_keys={k.replace("_", "."): w for k, w in weights.items()})


def test_weights_of_caption_keys_hold_over_samples(tmp_path, write_tar, png):
    records = [{"own": "own", "made": ["made", "made too"]}] * 1000
    weights = {"own": 1.0, "made": 6.0, "_txt": 3.0}
    source = weighted(tmp_path, write_tar, png, records, **weights)
    texts = [source[i].texts for i in range(1000)]
    counts = {text: texts.count(text) for text in set(texts)}
    assert set(counts) == {("own",), ("made", "made too"), ("txt",)}
    for text, share in ((("own",), 0.1), (("made", "made too"), 0.6), (("txt",), 0.3)):
        assert abs(counts[text] / 1000 - share) < 4 * (share * (1 - share) / 1000) ** 0.5
    again = pickle.loads(pickle.dumps(source))
    assert [again[i].texts for i in range(1000)] == texts


def test_an_empty_or_missing_key_leaves_its_share_to_the_others(tmp_path, write_tar, png):
    records = [
        {"a": "one"},
        {"b": ["two", " "]},
        {"a": " ", "b": "three"},
        {"a": None, "b": "four"},
    ]
    source = weighted(tmp_path, write_tar, png, records, a=1e9, b=1.0)
    assert [source[i].texts for i in range(4)] == [("one",), ("two",), ("three",), ("four",)]


@pytest.mark.parametrize(
    "record, slug",
    [
        ({"c": "x"}, "empty caption"),
        ({"a": " "}, "empty caption"),
        ([], "empty caption"),
        (None, "missing caption"),
        ({"a": 1}, "bad caption"),
        ({"a": "\ud800"}, "bad caption"),
        ("[" * 100_000, "bad caption"),
    ],
)
def test_without_a_caption_under_any_key_a_sample_is_bad(tmp_path, write_tar, png, record, slug):
    source = weighted(tmp_path, write_tar, png, [record], a=1.0, b=1.0)
    with pytest.raises(BadSampleError) as told:
        source[0]
    assert told.value.reason == slug


def test_wrong_fields_are_all_named():
    with pytest.raises(ValueError) as told:
        TarShards(root="x", caption_key="a", caption_keys={"b": 0.0}, bad_shards=1.5)
    assert str(told.value) == (
        "TarShards.caption_key must be None beside caption_keys, got 'a'; TarShards.caption_keys "
        "must be keys with weights above 0, got {'b': 0.0}; TarShards.bad_shards must be from 0 to "
        "below 1, got 1.5"
    )
    with pytest.raises(ValueError, match="keys with weights above 0"):
        TarShards(root="x", caption_keys={})


def test_the_config_survives_json():
    from clip_jax.config import from_data, to_data

    config = TarShards(root="x", caption_keys={"a": 1.0, ".txt": 2.5}, bad_shards=0.1)
    assert from_data(TarShards, to_data(config)) == config


def test_flickr8k_reads_as_described(shared):
    dataset = TarShards(root=str(shared / "flickr8k"), caption_key="captions")
    train, test = dataset.open("train"), dataset.open("test")
    assert (len(train), len(test)) == (6000, 1000)
    for source in (train, test):
        keys = set()
        for i in range(0, len(source), 97):
            keys.add(source[i].key)
            assert len(source[i].texts) == 5
        assert len(keys) == len(range(0, len(source), 97))


def test_cifar10_reads_as_described(shared):
    dataset = TarShards(root=str(shared / "cifar10"))
    source = dataset.open("test")
    assert len(source) == 1000 and len(dataset.class_names("test")) == 10
    assert {source[i].label for i in range(len(source))} == set(range(10))
