import dataclasses
import io
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from clip_jax.config import read_json
from clip_jax.data import ArrayRecords, Digits, Folder, Table, TarShards
from clip_jax.data import pack as packing
from clip_jax.data.guess import open_path
from clip_jax.data.pack import pack, packed_splits, verify
from clip_jax.data.resize import Resize
from clip_jax.data.sample import BadSampleError, Sample
from clip_jax.preprocess import geometry


def encoded(height, width, kind="PNG", seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).resize((width, height)).save(data, kind)
    return data.getvalue()


@dataclasses.dataclass(frozen=True)
class Source:
    samples: tuple

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index, /):
        found = self.samples[index]
        if isinstance(found, str):
            raise BadSampleError(found)
        return found


SOURCES = {}
"""What `Memory` opens, by its name."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    name: str

    def open(self, split):
        return Source(tuple(SOURCES[self.name]))

    def class_names(self, split):
        return ("cat", "Ü")


@pytest.fixture
def memory():
    SOURCES.clear()

    def make(samples, name="data"):
        SOURCES[name] = samples
        return Memory(name=name)

    return make


def samples(count):
    return [
        Sample(
            key=f"größe/{i}.png",
            image=encoded(4, 5, seed=i) if i % 3 else np.full((3, 2, 3), i, np.uint8),
            texts=tuple(f"caption {i} {n} 漢" for n in range(i % 4)),
            label=None if i % 2 else i,
        )
        for i in range(count)
    ]


def read(out, split="train"):
    source = ArrayRecords(root=str(out)).open(split)
    return [source[i] for i in range(len(source))]


def assert_same(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert (a.key, a.texts, a.label) == (b.key, b.texts, b.label)
        assert type(a.image) is type(b.image) and np.array_equal(a.image, b.image)


@pytest.mark.parametrize("count", [1, 3, 20])
def test_samples_come_back_equal_and_in_their_order(memory, tmp_path, count):
    expected = samples(20)
    manifest = pack(memory(expected), tmp_path / "a" / "b", split="val", shards=count, threads=3)
    assert_same(read(tmp_path / "a" / "b", "val"), expected)
    assert ArrayRecords(root=str(tmp_path / "a" / "b")).class_names("val") == ("cat", "Ü")
    assert manifest.samples == 20 and manifest.left_out == ()
    names = sorted(path.name for path in (tmp_path / "a" / "b").iterdir())
    files = [f"val-{i:05d}-of-{count:05d}.array_record" for i in range(count)]
    assert names == [*files, "val.json"]
    assert verify(tmp_path / "a" / "b", "val") == manifest


def test_real_sources_come_back_equal(folder, tmp_path):
    for data, split in (
        (TarShards(root=str(folder)), "train"),
        (TarShards(root=str(folder)), "test"),
        (Digits(colourings=1), "unseen_combinations"),
    ):
        out = tmp_path / type(data).__name__
        pack(data, out, split=split)
        source = data.open(split)
        assert_same(read(out, split), [source[i] for i in range(len(source))])
        assert ArrayRecords(root=str(out)).class_names(split) == data.class_names(split)
    assert packed_splits(tmp_path / "TarShards") == ["test", "train"]
    again = ArrayRecords(root=str(tmp_path / "TarShards"))
    pack(again, tmp_path / "again", shards=2)
    assert_same(read(tmp_path / "again"), read(tmp_path / "TarShards"))


def test_files_are_counted_by_samples(memory, tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "_PER_SHARD", 7)
    assert len(pack(memory(samples(20)), tmp_path).shards) == 3


def test_bad_samples_are_left_out_with_their_reasons(memory, tmp_path):
    good = samples(6)
    jpeg = encoded(64, 64, "JPEG")
    bad = [
        "sample 'gone': no such file",
        Sample(key="none", image=b"", texts=("x",)),
        Sample(key="text", image=b"no picture", texts=("x",)),
        Sample(key="cut", image=jpeg[: len(jpeg) // 2], texts=("x",)),
        Sample(key="label", image=jpeg, label=2**64),
    ]
    mixed = [sample for pair in zip(good, bad, strict=False) for sample in pair] + good[5:]
    manifest = pack(memory(mixed), tmp_path, shards=2)
    assert_same(read(tmp_path), good)
    reasons = [
        "gone': no such",
        "none': the image file is empty",
        "text': cannot decode",
        "cut': c",
    ]
    assert len(manifest.left_out) == 5 and manifest.samples == 6
    for found, reason in zip(manifest.left_out, [*reasons, "label': cannot be"], strict=True):
        assert found.startswith(f"sample '{reason}")
    stored = read_json(tmp_path / "train.json")["shards"]
    assert [reason for shard in stored for reason in shard["left_out"]] == list(manifest.left_out)


def test_too_many_bad_samples_stop_the_work(memory, tmp_path):
    data = memory([*samples(4), "sample 'a': x", "sample 'b': y", "sample 'c': z", samples(1)[0]])
    message = "3 of samples 4 to 7 are bad; the first of them: sample 'a': x; sample 'b': y; sampl"
    with pytest.raises(ValueError, match=message):
        pack(data, tmp_path, shards=2)
    with pytest.raises(ValueError, match="interrupted after 1 of 2 files"):
        read(tmp_path)
    assert not list(tmp_path.glob(".*"))
    assert pack(data, tmp_path, shards=2, max_bad=0.75).samples == 5


def test_where_nothing_can_be_read_there_is_an_error(memory, tmp_path):
    with pytest.raises(ValueError, match=r"none of the samples can be read: sample 'a': x"):
        pack(memory(["sample 'a': x"] * 3), tmp_path, max_bad=1.0)


@pytest.mark.parametrize("encoding, kind", [("jpeg", "JPEG"), ("webp", "WEBP")])
def test_larger_pictures_are_reduced_by_their_shorter_side(memory, tmp_path, encoding, kind):
    shapes = {(90, 41): (43, 20), (20, 20): None, (21, 500): (20, 476), (64, 19): None}
    images = {shape: encoded(*shape) for shape in shapes}
    array = np.zeros((40, 50, 3), np.uint8)
    given = [Sample(key="", image=image, texts=("x",)) for image in (*images.values(), array)]
    pack(memory(given), tmp_path, resize=Resize(size=20, encoding=encoding, quality=90))
    *found, last = read(tmp_path)
    for sample, (shape, expected) in zip(found, shapes.items(), strict=True):
        if expected is None:
            assert sample.image == images[shape]
        else:
            picture = Image.open(io.BytesIO(sample.image))
            assert (picture.format, picture.size) == (kind, expected[::-1])
    assert geometry.decode(last.image).shape == (20, 25, 3)


def test_reduced_pictures_look_the_same():
    y, x = np.mgrid[:400, :600]
    smooth = np.stack([x // 3, y // 2, (x + y) // 4], axis=-1).astype(np.uint8)
    data = io.BytesIO()
    Image.fromarray(smooth).save(data, "JPEG", quality=95)
    expected = np.asarray(Image.fromarray(smooth).resize((75, 50), Image.Resampling.BICUBIC), int)
    for encoding in ("jpeg", "webp"):
        for image in (data.getvalue(), smooth):
            got = geometry.decode(Resize(size=50, encoding=encoding)(image)).astype(int)
            assert np.abs(got - expected).max() < 12 and np.abs(got - expected).mean() < 1.5


def test_small_arrays_are_encoded_where_resizing_is_asked(memory, tmp_path):
    array = np.full((4, 4, 3), 100, np.uint8)
    pack(memory([Sample(key="a", image=array, label=0)]), tmp_path, resize=Resize(size=8))
    image = read(tmp_path)[0].image
    assert isinstance(image, bytes) and geometry.decode(image).shape == (4, 4, 3)


def test_pictures_too_long_for_the_encoding_are_bad(memory, tmp_path):
    long = Sample(key="long", image=encoded(1, 20_000), texts=("x",))
    array = dataclasses.replace(long, image=np.zeros((2, 40_000, 3), np.uint8))
    resize = Resize(size=1, encoding="webp")
    manifest = pack(memory([long, array]), tmp_path, resize=resize)
    assert manifest.samples == 1 and "16383" in manifest.left_out[0]


def test_settings_are_checked(memory, tmp_path):
    with pytest.raises(
        ValueError, match=r"Resize.size must be .* got 0; Resize.quality must be .*"
    ):
        Resize(size=0, quality=101)
    for shards in (0, 3):
        with pytest.raises(ValueError, match=f"{shards} files for 2 samples: at least one"):
            pack(memory(samples(2)), tmp_path, shards=shards)
    with pytest.raises(ValueError, match="split 'train' of the source has no samples"):
        pack(memory([]), tmp_path)
    with pytest.raises(ValueError, match=r"needs a name of letters and digits, not '../x'"):
        pack(memory(samples(2)), tmp_path, split="../x")
    with pytest.raises(ValueError, match="gs://b: records are written to local folders"):
        pack(memory(samples(2)), "gs://b")
    assert list(tmp_path.iterdir()) == []


def test_finished_files_are_kept(memory, tmp_path):
    data = memory(samples(9))
    pack(data, tmp_path, shards=3)
    first, second, third = sorted(tmp_path.glob("*.array_record"))
    before = {path: path.stat().st_mtime_ns for path in (first, third)}
    second.unlink()
    pack(data, tmp_path, shards=3, threads=1)
    assert {path: path.stat().st_mtime_ns for path in (first, third)} == before
    assert_same(read(tmp_path), samples(9))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"shards": 2}, r"shards: 3 -> 2"),
        ({"resize": Resize(size=9)}, r"resize.size: absent -> 9"),
        ({"data": Memory(name="other")}, r"data.name: 'data' -> 'other'"),
        ({"data": Memory(name="data")}, r"samples: 9 -> 8"),
    ],
)
def test_other_settings_and_another_source_are_refused(memory, tmp_path, change, message):
    data = memory(samples(9))
    pack(data, tmp_path, shards=3)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    memory(samples(9), "other")
    memory(samples(8), "data") if "samples" in message else None
    settings = {"data": data, "shards": 3, **change}
    with pytest.raises(ValueError, match=rf"train.json tells of a packing with .*{message}"):
        pack(settings.pop("data"), tmp_path, **settings)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_changed_content_is_refused(memory, tmp_path):
    pack(memory(samples(9)), tmp_path)
    changed = samples(9)
    changed[8] = dataclasses.replace(changed[8], texts=("another",))
    with pytest.raises(ValueError, match=r"\(content: '[0-9a-f]+' -> '[0-9a-f]+'\)"):
        pack(memory(changed), tmp_path)
    changed[8] = "sample 'x': gone"
    with pytest.raises(ValueError, match=r"\(content: "):
        pack(memory(changed), tmp_path)


def test_another_file_of_the_manifest_s_name_is_not_replaced(memory, tmp_path):
    (tmp_path / "train.json").write_text('{"mine": 1}')
    with pytest.raises(ValueError, match=r"train.json is no manifest of clip-jax pack"):
        pack(memory(samples(2)), tmp_path)
    assert (tmp_path / "train.json").read_text() == '{"mine": 1}'


def damage(path, how):
    data = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "cut":
        path.write_bytes(data[:-5])
    elif how == "flipped":
        place = data.index(b"caption 1") + 2
        path.write_bytes(data[:place] + b"X" + data[place + 1 :])
    elif how == "exchanged":  # Whole, as many samples, as many bytes; but others.
        shutil.copy(path.with_name(path.name.replace("00000-of", "00001-of")), path)
    else:
        shutil.copy(path.with_name(path.name.replace("00000-of", "00002-of")), path)


@pytest.mark.parametrize(
    "how, message",
    [
        ("missing", "missing"),
        ("cut", "no whole ArrayRecord file"),
        ("flipped", "Corrupted"),
        ("exchanged", "its checksum is another"),
        ("other count", "holds 4 samples, not 3"),
    ],
)
def test_damage_is_found_and_mended(memory, tmp_path, how, message):
    data = memory(samples(10))
    pack(data, tmp_path, shards=3)
    damage(tmp_path / "train-00000-of-00003.array_record", how)
    damage(tmp_path / "train-00002-of-00003.array_record", "missing")
    with pytest.raises(ValueError) as caught:
        verify(tmp_path, "train")
    assert re.match(
        rf"{tmp_path}: train-00000-of-00003.array_record: .*{message}.*; "
        r"train-00002-of-00003.array_record: missing; delete these files and give the same",
        str(caught.value),
    )
    (tmp_path / "train-00000-of-00003.array_record").unlink(missing_ok=True)
    pack(data, tmp_path, shards=3)
    assert_same(read(tmp_path), samples(10))


def test_packing_ends_with_an_error_if_a_kept_file_is_damaged(memory, tmp_path):
    data = memory(samples(10))
    pack(data, tmp_path, shards=3)
    damage(tmp_path / "train-00000-of-00003.array_record", "flipped")
    with pytest.raises(ValueError, match=r"train-00000-of-00003.array_record: Corrupted"):
        pack(data, tmp_path, shards=3)


def test_verifying_what_is_not_there_or_not_finished(memory, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no packed split 'train'; packed: none"):
        verify(tmp_path, "train")
    data = memory([*samples(2), "sample 'a': x", "sample 'b': x"])
    with pytest.raises(ValueError, match="2 of samples 2 to 3 are bad"):
        pack(data, tmp_path, shards=2)
    with pytest.raises(ValueError, match=r"train-00001-of-00002.array_record: not finished"):
        verify(tmp_path, "train")
    with pytest.raises(FileNotFoundError, match="no packed split 'val'; packed: train"):
        verify(tmp_path, "val")


def test_progress_is_told(memory, tmp_path):
    told = []
    pack(memory(samples(5)), tmp_path, shards=2, progress=lambda *now: told.append(now))
    assert [now for now in told if now[0] == "verifying"] == [
        ("verifying", 2, 5),
        ("verifying", 5, 5),
    ]
    counts = [done for what, done, total in told if what == "packing"]
    assert counts == sorted(counts) and counts[0] == 1 and counts[-1] == 5
    assert {total for _, _, total in told} == {5}


@pytest.mark.skipif(not pathlib.Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_leaves_no_file(memory, tmp_path):
    draft = tmp_path / ".train-00000-of-00001.array_record.part"
    draft.symlink_to("/dev/full")
    with pytest.raises(OSError, match=rf"cannot write {draft}: .*No space left on device"):
        pack(memory(samples(3)), tmp_path)
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, signal, sys
from clip_jax.data import TarShards, pack, tar_shards

read = tar_shards.TarSource.__getitem__
count = 0

def read_and_die(self, index):
    global count
    count += 1
    if count == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    return read(self, index)

tar_shards.TarSource.__getitem__ = read_and_die
manifest = pack.pack(TarShards(root=sys.argv[1]), sys.argv[2], shards=4, threads=1)
print(manifest.samples, count)
"""


def test_killed_at_any_place_the_same_call_goes_on(tmp_path, write_tar, png):
    members = [m for i in range(20) for m in ((f"{i}.png", png(i)), (f"{i}.txt", f"text {i}"))]
    write_tar(tmp_path / "in" / "0.tar", members)
    out = tmp_path / "out"

    def run(reads):
        command = [sys.executable, "-c", KILLED, str(tmp_path / "in"), str(out), str(reads)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    finished = []
    for reads in (18, 24):  # The 16 probes, and then in the first or the second file.
        assert run(reads).returncode == -9
        finished.append(sorted(out.glob("*.array_record")))
        assert not (out / "train.json").exists() or len(finished[-1]) == sum(
            shard is not None for shard in json.loads((out / "train.json").read_text())["shards"]
        )
    assert [len(paths) for paths in finished] == [0, 1]
    before = finished[-1][0].stat().st_mtime_ns
    ran = run(0)
    assert ran.stdout.split() == ["20", str(16 + 15)], ran.stderr
    assert finished[-1][0].stat().st_mtime_ns == before
    assert [sample.texts for sample in read(out)] == [(f"text {i}",) for i in range(20)]
    assert not list(out.glob(".*"))


def test_a_file_that_the_manifest_does_not_know_is_written_again(memory, tmp_path):
    """As if killed between the two."""
    data = memory(samples(4))
    pack(data, tmp_path, shards=2)
    stored = json.loads((tmp_path / "train.json").read_text())
    stored["shards"][0] = None
    (tmp_path / "train.json").write_text(json.dumps(stored))
    os.truncate(tmp_path / "train-00000-of-00002.array_record", 100)
    pack(data, tmp_path, shards=2)
    assert_same(read(tmp_path), samples(4))


CONFIG = """
import dataclasses
from clip_jax.data import Folder

@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    data: Folder = Folder(root="unset")

def get_config():
    return Config()
"""


def test_a_path_is_opened_as_what_it_is(tmp_path, write_tar, png):
    def put(name, data=b""):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        return str(path.parent)

    shard = write_tar(tmp_path / "tars" / "train" / "0.tar", [("a.png", png(0)), ("a.txt", "a")])
    put("tars/classnames.txt")
    put("tars/0.parquet")
    assert open_path(str(tmp_path / "tars")) == TarShards(root=str(tmp_path / "tars"))
    assert open_path(str(shard)) == TarShards(root=str(shard))
    assert open_path("x/{00..10}.tar") == TarShards(root="x/{00..10}.tar")
    records = put("records/train-00000-of-00001.array_record")
    put("records/train.json", "{}")
    assert open_path(records) == ArrayRecords(root=records)
    put("loose/train/0.array_record")
    assert open_path(str(tmp_path / "loose")) == ArrayRecords(root=str(tmp_path / "loose"))
    table = put("table/train.csv")
    assert open_path(table) == Table(path=table)
    assert open_path(f"{table}/train.csv") == Table(path=f"{table}/train.csv")
    captions = put("captions/deep/1.JPG")
    put("captions/deep/1.txt")
    assert open_path(captions) == Folder(root=captions)
    put("classes/train/cat/1.webp")
    classes = put("classes/classnames.txt")
    assert open_path(classes) == Folder(root=classes, class_folders=True)
    config = put("config/x.py", CONFIG) + "/x.py"
    assert open_path(config, ["--data.root", "/r"]) == Folder(root="/r")


def test_a_path_that_means_nothing_is_explained(tmp_path):
    with pytest.raises(FileNotFoundError, match="/no does not exist; give a config file"):
        open_path(str(tmp_path / "no"))
    with pytest.raises(ValueError, match=r"holds neither .*; it holds nothing$"):
        open_path(str(tmp_path))
    (tmp_path / "a.tar").touch()
    (tmp_path / "b.array_record").touch()
    with pytest.raises(ValueError, match=r"holds both \*.array_record and \*.tar"):
        open_path(str(tmp_path))
    (tmp_path / "features.json").touch()
    with pytest.raises(ValueError, match=r"by tensorflow-datasets: choose its features"):
        open_path(str(tmp_path))
    (tmp_path / "x.md").touch()
    with pytest.raises(ValueError, match=r"x.md is neither a config file"):
        open_path(str(tmp_path / "x.md"))
    with pytest.raises(ValueError, match=r"--data.root /r: only a config file takes overrides"):
        open_path(str(tmp_path), ["--data.root", "/r"])
    (tmp_path / "x.py").write_text(CONFIG.replace("data: Folder", "dat: Folder"))
    with pytest.raises(ValueError, match=r"x.py: the config has no data set under `data`"):
        open_path(str(tmp_path / "x.py"))
