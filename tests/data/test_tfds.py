import concurrent.futures
import io
import json
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image
from tensorflow_datasets import features as F
from tensorflow_datasets.proto import tf_example_pb2

from clip_jax.config import from_data, to_data
from clip_jax.data import DatasetConfig
from clip_jax.data.sample import BadSampleError, Dataset, Source
from clip_jax.data.tfds import Tfds
from clip_jax.overrides import override


def jpeg(grey, mode="RGB"):
    data = io.BytesIO()
    Image.fromarray(np.full((6, 8), grey, np.uint8)).convert(mode).save(data, "JPEG")
    return data.getvalue()


FEATURES = F.FeaturesDict(
    {
        "image": F.Image(encoding_format="jpeg"),
        "image/filename": F.Text(),
        "captions": F.Sequence({"id": np.int64, "text": np.str_}),
        "label": F.ClassLabel(names=["tabby_cat", "dog"]),
        "meta": {"title": F.Text(), "parts": F.Sequence({"words": F.Sequence(F.Text())})},
        "objects": F.Sequence({"label": F.ClassLabel(names=["cat", "dog"])}),
        "pixels": F.Tensor(shape=(4, None, 1), dtype=np.uint8),
        "depth": F.Image(shape=(None, None, 1), dtype=np.float32),
        "zipped": F.Tensor(shape=(4, 5, 3), dtype=np.uint8, encoding="zlib"),
        "count": np.int64,
    }
)


def example(number, captions, label):
    """A serialised example, written as `tfds build` does."""
    plain = {k: v for k, v in FEATURES.items() if k not in ("meta", "depth")}
    whole = F.FeaturesDict(plain).serialize_example(
        {
            "image": jpeg(number),
            "image/filename": f"{number}.jpg",
            "captions": [{"id": i, "text": text} for i, text in enumerate(captions)],
            "label": label,
            "objects": [{"label": "dog"}, {"label": "cat"}],
            "pixels": np.full((4, 5, 1), number, np.uint8),
            "zipped": np.zeros((4, 5, 3), np.uint8),
            "count": number,
        }
    )
    made = tf_example_pb2.Example.FromString(whole)
    # tensorflow-datasets needs TensorFlow to write sequences of sequences, and pictures of floats.
    for name, values in {
        "depth": [b"floats"],
        "meta/title": [f"title {number}".encode()],
        "meta/parts/words/ragged_flat_values": [b"a", b"b", b"c"],
    }.items():
        made.features.feature[name].bytes_list.value.extend(values)
    made.features.feature["meta/parts/words/ragged_row_lengths_0"].int64_list.value.extend([2, 1])
    return made.SerializeToString()


def changed(record, name, kind, values):
    """An example whose feature `name` holds something else."""
    made = tf_example_pb2.Example.FromString(record)
    del made.features.feature[name]
    getattr(made.features.feature[name], kind).value.extend(values)
    return made.SerializeToString()


def prepare(folder, splits, features=FEATURES, file_format="array_record"):
    """A data set as `tfds build` leaves it; `splits`: name -> shards -> serialised examples."""
    folder.mkdir(parents=True)
    features.save_config(folder)
    features.save_metadata(folder)
    info = {
        "name": "pairs",
        "version": folder.name,
        "fileFormat": file_format,
        "splits": [
            {
                "name": split,
                "shardLengths": [str(len(shard)) for shard in shards],
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
            }
            for split, shards in splits.items()
        ],
    }
    if folder.parent.name != "pairs":
        info["configName"] = folder.parent.name
    (folder / "dataset_info.json").write_text(json.dumps(info))
    for split, shards in splits.items():
        for i, shard in enumerate(shards):
            name = f"pairs-{split}.array_record-{i:05d}-of-{len(shards):05d}"
            writer = ArrayRecordWriter(str(folder / name), "group_size:1")
            for record in shard:
                writer.write(record)
            writer.close()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("tfds")
    bad = tf_example_pb2.Example.FromString(example(6, ["x"], 0))
    bad.features.feature["captions/text"].bytes_list.value[0] = b"\xff"
    del bad.features.feature["image"]
    train = [
        [example(0, ["größer", " a  "], 0), example(1, ["b"], 1)],
        [example(2, [], 1), example(3, ["", " "], -1), example(4, ["e"], -1)],
        [b"no protocol buffer", bad.SerializeToString()],
    ]
    prepare(root / "pairs" / "1.10.0", {"train": train, "val": [[example(9, ["val"], 1)]]})
    return root


@pytest.fixture
def pairs(root):
    return lambda **fields: Tfds(name="pairs", data_dir=str(root), **fields)


def test_the_contracts_are_kept(pairs):
    assert isinstance(pairs(text="captions.text"), Dataset)
    assert isinstance(pairs(text="captions.text").open("train"), Source)


def test_images_stay_encoded_and_captions_come_from_a_nested_sequence(pairs):
    source = pairs(text="captions.text").open("train")
    assert len(source) == 7
    first = source[0]
    assert (first.key, first.image, first.label) == ("pairs/1.10.0/train/0", jpeg(0), None)
    assert first.texts == ("größer", "a")
    assert source[4].image == jpeg(4) and source[4].texts == ("e",)


@pytest.mark.parametrize(
    "path, texts",
    [
        ("meta.title", ("title 1",)),
        ("meta.parts.words", ("a", "b", "c")),
        ("image/filename", ("1.jpg",)),
    ],
)
def test_texts_at_any_depth(pairs, path, texts):
    assert pairs(text=path).open("train")[1].texts == texts


def test_labels_become_captions_through_templates(pairs):
    data = pairs(label="label", templates=("a {}", "{c}!"))
    source = data.open("train")
    assert (source[0].label, source[0].texts) == (0, ("a tabby cat", "tabby cat!"))
    assert (source[2].label, source[2].texts) == (1, ("a dog", "dog!"))
    assert data.class_names("train") == ("tabby cat", "dog")
    assert pairs(text="captions.text").class_names("train") == ()
    with pytest.raises(BadSampleError, match=r"^sample 'pairs/1.10.0/train/3': its label is not"):
        source[3]


def test_captions_and_a_label_together(pairs):
    source = pairs(text="captions.text", label="label").open("train")
    assert (source[0].label, source[0].texts) == (0, ("größer", "a"))
    assert (source[2].label, source[2].texts) == (1, ())
    assert (source[4].label, source[4].texts) == (None, ("e",))


def test_pictures_stored_decoded(pairs):
    image = pairs(text="captions.text", image="pixels").open("train")[1].image
    np.testing.assert_array_equal(image, np.full((4, 5, 3), 1, np.uint8))
    assert image.dtype == np.uint8


@pytest.mark.parametrize(
    "index, reason",
    [
        (2, "no caption"),
        (3, "no caption"),
        (5, "Error parsing message"),
        (6, "it has no image"),
    ],
)
def test_a_bad_sample_is_named_with_its_reason(pairs, index, reason):
    source = pairs(text="captions.text").open("train")
    with pytest.raises(BadSampleError, match=rf"^sample 'pairs/1.10.0/train/{index}': .*{reason}"):
        source[index]
    with pytest.raises(BadSampleError, match="can't decode byte 0xff"):
        pairs(text="captions.text", image="pixels").open("train")[6]


def test_splits_by_other_names_and_parts_of_them(pairs):
    data = pairs(text="captions.text", splits={"test": "val", "train": "train[:2]+val"})
    assert data.open("test")[0].texts == ("val",)
    train = data.open("train")
    assert [train[i].texts for i in range(len(train))] == [("größer", "a"), ("b",), ("val",)]
    assert [train[i].key for i in range(3)] == [f"pairs/1.10.0/train/{i}" for i in range(3)]


def test_it_can_be_read_by_threads_and_pickled(pairs):
    source = pairs(text="captions.text").open("train")
    order = [0, 4, 1] * 40
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda i: source[i].image, order)) == [jpeg(i) for i in order]
    assert pickle.loads(pickle.dumps(source))[4] == source[4]


def test_positions_outside_are_refused(pairs):
    source = pairs(text="captions.text").open("train")
    for index in (7, -1):
        with pytest.raises(IndexError, match=rf"sample {index} of 7"):
            source[index]


def test_all_features_that_do_not_fit_are_named(pairs):
    with pytest.raises(ValueError) as caught:
        pairs(image="imag", text="caption.text", label="objects.label").open("train")
    message = str(caught.value)
    for part in (
        "no feature 'imag' for the image (nearest: 'image')",
        "no feature 'caption.text' for the text (nearest: 'captions.text')",
        "'objects.label' cannot be the label: it is Sequence of ClassLabel",
        "meta.parts.words (Sequence of Sequence of Text)",
        "pixels (Tensor uint8[4, None, 1])",
    ):
        assert part in message


@pytest.mark.parametrize(
    "role, path", [("image", "depth"), ("image", "zipped"), ("image", "count"), ("text", "count")]
)
def test_features_of_a_wrong_kind_are_refused(pairs, role, path):
    with pytest.raises(ValueError, match=rf"'{path}' cannot be the {role}: it is"):
        pairs(**{"text": "captions.text", role: path}).open("train")


@pytest.mark.parametrize("spec", ["tran", "val[:x]", ""])
def test_an_unknown_split_is_named(pairs, spec):
    data = pairs(text="captions.text", splits={"test": spec})
    message = f"pairs/1.10.0 has no split {spec!r} (for 'test') (nearest: "
    with pytest.raises(ValueError, match=re.escape(message) + ".*it has train, val, and parts"):
        data.open("test")


def test_what_is_not_prepared_says_how_to(tmp_path, monkeypatch):
    command = f"`tfds build pairs --data_dir={tmp_path} --file_format=array_record`"
    with pytest.raises(FileNotFoundError, match=f"pairs is not prepared in .*{command}"):
        Tfds(name="pairs", label="label", data_dir=str(tmp_path)).open("train")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "elsewhere"))
    with pytest.raises(FileNotFoundError, match=r"/elsewhere \(of pairs there is nothing\)"):
        Tfds(name="pairs:1.0.0", label="label").open("train")


def test_the_newest_version_and_the_only_config_are_taken(tmp_path):
    for folder in ("2014/1.2.0", "2014/1.10.0", "2014/2.0.0.incompleteABC"):
        prepare(tmp_path / "pairs" / folder, {"train": [[example(0, ["x"], 0)]]})

    def key(name):
        return Tfds(name=name, text="meta.title", data_dir=str(tmp_path)).open("train")[0].key

    assert key("pairs") == key("pairs/2014") == "pairs/2014/1.10.0/train/0"
    assert key("pairs:1.2.0") == "pairs/2014/1.2.0/train/0"
    with pytest.raises(
        FileNotFoundError, match=r"pairs/2015 is not .*there is pairs/2014/1.2.0, pairs/2014/1.10.0"
    ):
        key("pairs/2015")
    prepare(tmp_path / "pairs" / "2017" / "1.2.0", {"train": [[example(0, ["x"], 0)]]})
    assert key("pairs/2017") == "pairs/2017/1.2.0/train/0"
    with pytest.raises(ValueError, match=r"several configs .*: pairs/2014, pairs/2017; name one"):
        key("pairs")


def test_another_format_and_missing_files_are_named(tmp_path):
    prepare(tmp_path / "pairs" / "1.0.0", {"train": []}, file_format="tfrecord")
    data = Tfds(name="pairs", label="label", data_dir=str(tmp_path))
    with pytest.raises(ValueError, match=r"prepared as tfrecord, .*`tfds convert_format --dataset"):
        data.open("train")
    folder = tmp_path / "pairs" / "1.1.0"
    prepare(folder, {"train": [[example(0, ["x"], 0)], [example(1, ["y"], 1)]]})
    assert len(data.open("train")) == 2
    (folder / "pairs-train.array_record-00001-of-00002").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 2 files .*pairs-train.array_record-00001"):
        data.open("train")


@pytest.mark.parametrize(
    "name, kind, values, role, reason",
    [
        ("image", "bytes_list", [b""], "text", "it has no image"),
        ("image", "int64_list", [3], "text", "it has no image"),
        ("pixels", "int64_list", [256] * 20, "image", "its pixels reach from 256 to 256"),
        ("pixels", "int64_list", [1] * 19, "image", "cannot reshape"),
        ("pixels", "int64_list", [], "image", "it has no image"),
        ("label", "int64_list", [2], "label", "its label is 2, of 2 classes"),
        ("label", "int64_list", [-2], "label", "its label is -2, of 2 classes"),
        ("label", "bytes_list", [b"dog"], "label", "its label is b'dog', of 2"),
        ("label", "float_list", [1.0], "label", "its label is 1.0, of 2"),
        ("meta/title", "int64_list", [1], "text", "'int' object has no attribute 'decode'"),
    ],
)
def test_examples_unlike_their_description_are_bad(tmp_path, name, kind, values, role, reason):
    good = example(0, ["x"], 0)
    prepare(tmp_path / "pairs" / "1.0.0", {"train": [[changed(good, name, kind, values), good]]})
    fields = {"text": "meta.title"} | ({} if role == "text" else {role: name})
    source = Tfds(name="pairs", data_dir=str(tmp_path), **fields).open("train")
    with pytest.raises(BadSampleError, match=rf"^sample 'pairs/1.0.0/train/0': {reason}"):
        source[0]
    assert source[1].texts == ("title 0",)


def test_a_file_cut_off_gives_bad_samples(tmp_path):
    folder = tmp_path / "pairs" / "1.0.0"
    prepare(folder, {"train": [[example(i, ["x"], 0) for i in range(2)]]})
    path = folder / "pairs-train.array_record-00000-of-00001"
    path.write_bytes(path.read_bytes()[:30_000])
    source = Tfds(name="pairs", text="captions.text", data_dir=str(tmp_path)).open("train")
    with pytest.raises(BadSampleError, match=r"^sample 'pairs/1.0.0/train/0': "):
        source[0]


def test_a_config_is_checked():
    with pytest.raises(ValueError) as caught:
        Tfds(name="a b", templates=("no place", "{} {c}", "{", "{0.x}", "a {}"))
    assert str(caught.value) == (
        "Tfds: needs a feature for `text` or for `label`; name must look like "
        "coco_captions/2014:1.1.0, not 'a b'; templates need one place each, {} or {c}; wrong: "
        "['no place', '{} {c}', '{', '{0.x}']"
    )
    with pytest.raises(ValueError, match="wrong: none"):
        Tfds(name="a", label="label", templates=())


def test_a_config_survives_json_and_flags():
    data = Tfds(name="pairs", text="captions.text", splits={"test": "val"})
    assert from_data(DatasetConfig, to_data(data)) == data
    changed = override(data, ["--data-dir", "/x", "--splits.test", "train"], "prog")
    assert (changed.data_dir, changed.splits) == ("/x", {"test": "train"})


def test_no_tensorflow_is_imported(root):
    code = (
        "import sys, warnings; warnings.simplefilter('error')\n"
        "from clip_jax.data import Tfds\n"
        "assert 'tensorflow_datasets' not in sys.modules\n"
        f"data = Tfds(name='pairs', data_dir={str(root)!r}, text='captions.text', label='label')\n"
        "print(data.open('train')[0].texts[1], data.class_names('train'))\n"
        "print([m for m in sys.modules if m.split('.')[0] in ('tensorflow', 'tf_keras', 'torch')])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ran.stdout, ran.stderr) == ("a ('tabby cat', 'dog')\n[]\n", "")
