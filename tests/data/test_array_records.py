import concurrent.futures
import contextlib
import dataclasses
import os
import pathlib
import pickle
import re

import msgpack
import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from clip_jax.config import from_data, to_data, write_json
from clip_jax.data import ArrayRecords, DatasetConfig, array_records
from clip_jax.data.manifest import Manifest, Shard, manifest_path, shard_paths
from clip_jax.data.record import read_record, write_record
from clip_jax.data.sample import BadSampleError, Dataset, Sample, Source

PIXELS = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
SAMPLES = [
    Sample(key="plain", image=b"\xff\xd8 a file", texts=("one",), label=None),
    Sample(key="größe/漢字/🐈", image=b"\0", texts=("é", "\n", "😀 ", ""), label=0),
    Sample(key="\udcff of no UTF-8", image=b"x", texts=("half \ud83d",), label=2**63),
    Sample(key="decoded", image=PIXELS, texts=(), label=7),
    Sample(key="a view", image=PIXELS[::2, ::-1], texts=("x" * 100_000,), label=None),
]


def equal(a, b):
    """Also in type."""
    for field in dataclasses.fields(Sample):
        if not field.compare:
            continue
        left, right = getattr(a, field.name), getattr(b, field.name)
        assert type(left) is type(right), field.name
        if isinstance(left, np.ndarray):
            assert left.dtype == right.dtype and np.array_equal(left, right)
        else:
            assert left == right, field.name
    return True


def write(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    for record in records:
        writer.write(record if isinstance(record, bytes) else write_record(record))
    writer.close()
    return path


def manifest(root, split, counts, **fields):
    """A manifest of files that are there; None: not finished."""
    paths = shard_paths(root, split, len(counts))
    shards = tuple(
        None if n is None else Shard(samples=n, size=path.stat().st_size, sha256="")
        for n, path in zip(counts, paths, strict=True)
    )
    made = Manifest(made_from={}, shards=shards, **fields)
    write_json(manifest_path(root, split), to_data(made))


@pytest.fixture
def packed(tmp_path):
    """All samples in three files, one of them empty."""
    paths = shard_paths(tmp_path, "train", 3)
    for path, part in zip(paths, (SAMPLES[:2], [], SAMPLES[2:]), strict=True):
        write(path, part)
    manifest(tmp_path, "train", (2, 0, 3), class_names=("a", "b"))
    return tmp_path


def test_every_field_that_training_reads_survives():
    told = {f.name for f in dataclasses.fields(Sample) if f.compare}
    assert told == {"key", "image", "texts", "label", "numbers"}  # The last is for evaluation.
    for sample in SAMPLES:
        back = read_record(write_record(sample))
        assert equal(sample, back)
    assert read_record(write_record(SAMPLES[3])).image.flags.writeable


def test_the_layout_is_what_is_documented():
    assert msgpack.unpackb(write_record(SAMPLES[0])) == [
        1, "plain", b"\xff\xd8 a file", ["one"], None,
    ]  # fmt: skip
    assert msgpack.unpackb(write_record(SAMPLES[3]))[2] == [5, 7, PIXELS.tobytes()]


@pytest.mark.parametrize(
    "record, reason",
    [
        (b"", "the record is empty"),
        (b"\xc1", "not a record of clip-jax pack"),
        (b"\x91" * 5000, "not a record of clip-jax pack"),
        (write_record(SAMPLES[0])[:-1], "not a record of clip-jax pack"),
        (write_record(SAMPLES[0]) + b"x", "not a record of clip-jax pack"),
        (msgpack.packb({"key": 1}), "not a record of clip-jax pack"),
        (msgpack.packb({(): {}}), "not a record of clip-jax pack"),
        (msgpack.packb([1, "k", b"", []]), "not a record of clip-jax pack"),
        (msgpack.packb([True, "k", b"", [], None]), "not a record of clip-jax pack"),
        (msgpack.packb([2, "k", b"", [], None]), "layout 2; this program reads layout 1"),
        (msgpack.packb([1, b"k", b"", [], None]), "of the wrong kind"),
        (msgpack.packb([1, "k", b"", "text", None]), "of the wrong kind"),
        (msgpack.packb([1, "k", b"", [1], None]), "of the wrong kind"),
        (msgpack.packb([1, "k", b"", [], -1]), "of the wrong kind"),
        (msgpack.packb([1, "k", b"", [], True]), "of the wrong kind"),
        (msgpack.packb([1, "k", "text", [], 0]), "image is neither"),
        (msgpack.packb([1, "k", [1, 2, b"12345"], [], 0]), "image is neither"),
        (msgpack.packb([1, "k", [0, 2, b""], [], 0]), "image is neither"),
        (msgpack.packb([1, "k", [-1, -2, b"123456"], [], 0]), "image is neither"),
        (msgpack.packb([1, "k", [1, 2.0, b"123456"], [], 0]), "image is neither"),
    ],
)
def test_other_bytes_are_refused(record, reason):
    with pytest.raises(ValueError, match=reason):
        read_record(record)


def test_cut_and_changed_records_end_in_one_kind_of_error():
    rng = np.random.default_rng(0)
    whole = write_record(SAMPLES[1])
    for _ in range(3000):
        record = bytearray(whole[: rng.integers(len(whole) + 1)])
        for place in rng.integers(max(1, len(record)), size=rng.integers(4)):
            record[place : place + 1] = bytes([rng.integers(256)])
        with contextlib.suppress(ValueError):
            read_record(bytes(record))


def test_what_msgpack_cannot_hold_is_a_bad_sample():
    with pytest.raises(BadSampleError, match=r"^sample 'big': cannot be written: "):
        write_record(Sample(key="big", image=b"", label=2**64))


def test_the_contracts_are_kept(packed):
    data = ArrayRecords(root=str(packed))
    assert isinstance(data, Dataset)
    assert isinstance(data.open("train"), Source)
    assert from_data(DatasetConfig, to_data(data)) == data


def test_samples_come_back_in_their_order(packed):
    data = ArrayRecords(root=str(packed))
    source = data.open("train")
    assert len(source) == 5
    for i, sample in enumerate(SAMPLES):
        assert equal(source[i], sample)
    assert data.class_names("train") == ("a", "b")
    for index in (5, -1):
        with pytest.raises(IndexError, match=f"sample {index} of 5"):
            source[index]


def test_it_can_be_read_by_threads_and_pickled(packed):
    source = ArrayRecords(root=str(packed)).open("train")
    order = np.random.default_rng(0).integers(5, size=2000).tolist()
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        keys = list(pool.map(lambda i: source[i].key, order))
    assert keys == [SAMPLES[i].key for i in order]
    assert equal(pickle.loads(pickle.dumps(source))[4], SAMPLES[4])


def open_files():
    return len(list(pathlib.Path("/proc/self/fd").iterdir()))


def test_more_files_than_are_kept_open(tmp_path, monkeypatch):
    for i in range(6):
        write(tmp_path / "train" / f"{i}.array_record", [Sample(key=str(i), image=b"")])
    monkeypatch.setattr(array_records, "_OPEN_FILES", 2)
    source = ArrayRecords(root=str(tmp_path)).open("train")
    before = open_files()
    for i in (0, 5, 3, 1, 4, 2, 0):
        assert source[i].key == str(i)
    assert open_files() <= before + 2


def test_a_folder_of_files_without_a_manifest(tmp_path):
    for name, sample in (("10", 2), ("2", 1), ("a/1", 0)):
        write(tmp_path / "val" / f"{name}.array_record", [SAMPLES[sample]])
    data = ArrayRecords(root=str(tmp_path))
    source = data.open("val")
    assert [source[i].key for i in range(len(source))] == [SAMPLES[1].key, SAMPLES[2].key]
    assert data.class_names("val") == ()


def test_a_missing_root_or_split_is_named(packed, tmp_path):
    write(tmp_path / "val" / "x.array_record", SAMPLES[:1])
    write(tmp_path / "bare-00000-of-00001.array_record", SAMPLES[:1])
    message = "has no split 'bare'; it has 'train', 'val'; copy bare.json too, beside its files"
    with pytest.raises(FileNotFoundError, match=message):
        ArrayRecords(root=str(packed)).open("bare")
    with pytest.raises(FileNotFoundError, match="/no is no folder"):
        ArrayRecords(root=str(tmp_path / "no")).open("train")
    with pytest.raises(ValueError, match="gs://x: records are read from local folders"):
        ArrayRecords(root="gs://x").open("train")


def test_missing_and_cut_files_are_named_all_at_once(packed):
    first, second, third = shard_paths(packed, "train", 3)
    sizes = [path.stat().st_size for path in (first, third)]
    for path in (first, third):
        os.truncate(path, 70_000)
    wrong = "; ".join(
        f"{path.name} has 70,000 bytes, not {size:,}"
        for path, size in zip((first, third), sizes, strict=True)
    )
    with pytest.raises(ValueError, match=f"^{re.escape(f'{packed}: {wrong}; copy them again')}"):
        ArrayRecords(root=str(packed)).open("train")
    first.unlink()
    second.unlink()
    with pytest.raises(FileNotFoundError, match=rf"2 of 3 .*: {first.name}, {second.name}$"):
        ArrayRecords(root=str(packed)).open("train")


@pytest.mark.parametrize("damage", ["cut", "junk"])
def test_damaged_files_without_a_manifest_are_named(tmp_path, damage):
    paths = [tmp_path / "train" / f"{i}.array_record" for i in range(3)]
    for path in paths:
        write(path, SAMPLES)
    for path in paths[1:]:
        data = path.read_bytes()
        path.write_bytes(data[:-1000] if damage == "cut" else b"junk" * 50_000)
    with pytest.raises(ValueError) as caught:
        ArrayRecords(root=str(tmp_path)).open("train")
    assert str(caught.value).count("no whole ArrayRecord file: ") == 2
    assert str(paths[0]) not in str(caught.value)


def test_a_damaged_record_is_a_bad_sample_and_the_others_are_read(tmp_path):
    samples = [Sample(key=str(i), image=bytes([i]) * 3000) for i in range(9)]
    path = write(tmp_path / "train" / "0.array_record", samples)
    data = path.read_bytes()
    path.write_bytes(data.replace(bytes([4]) * 100, bytes(100), 1))
    source = ArrayRecords(root=str(tmp_path)).open("train")
    with pytest.raises(BadSampleError, match=rf"^{path}: sample 4: Corrupted"):
        source[4]
    assert [source[i].key for i in (3, 5, 8)] == ["3", "5", "8"]


@pytest.mark.parametrize("damage", ["cut", "removed"])
def test_a_file_that_changes_during_the_run_gives_bad_samples(tmp_path, damage):
    samples = [Sample(key=str(i), image=os.urandom(50_000)) for i in range(9)]
    path = write(tmp_path / "train" / "0.array_record", samples)
    source = ArrayRecords(root=str(tmp_path)).open("train")
    path.unlink() if damage == "removed" else os.truncate(path, 200_000)
    with pytest.raises(BadSampleError, match=rf"^{path}: sample 8: "):
        source[8]
    opened = ArrayRecords(root=str(tmp_path))
    write(path, samples)
    source = opened.open("train")
    assert source[0].key == "0"
    os.truncate(path, 200_000)
    with pytest.raises(BadSampleError, match="the record is empty: its file was cut off while in"):
        source[8]


@pytest.mark.parametrize(
    "text, reason",
    [
        ("{", "train.json is not JSON"),
        ("[]", "train.json is no manifest of clip-jax pack"),
        ('{"a": 1}', "train.json is no manifest of clip-jax pack"),
        ('{"version": 2}', "train.json is of version 2; this program reads version 1"),
        ('{"version": 1, "shards": [3]}', r"shards.0: 3 is not"),
    ],
)
def test_a_damaged_manifest_is_named(packed, text, reason):
    (packed / "train.json").write_text(text)
    for use in (ArrayRecords.open, ArrayRecords.class_names):
        with pytest.raises(ValueError, match=reason):
            use(ArrayRecords(root=str(packed)), "train")


def test_an_unfinished_or_empty_packing_is_refused(packed):
    manifest(packed, "train", (2, None, None))
    with pytest.raises(
        ValueError, match="interrupted after 1 of 3 files; the same `clip-jax pack`"
    ):
        ArrayRecords(root=str(packed)).open("train")
    manifest(packed, "train", (0, 0, 0))
    with pytest.raises(ValueError, match=rf"{packed} holds no samples of split 'train'"):
        ArrayRecords(root=str(packed)).open("train")
