import json
import pathlib
import runpy
import types

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clip_jax.data.sample import BadSampleError
from clip_jax.eval import example_sets, fetch, folders
from clip_jax.eval.tasks import TASKS, Task

sets = types.SimpleNamespace(**runpy.run_path(str(pathlib.Path(__file__).parent / "standins.py")))
CLASSES = ("cat", "dog", "cow")


@pytest.fixture
def mnist(tmp_path):
    return sets.wds(tmp_path / "wds_mnist", sets.labelled(7, 3), classes=CLASSES)


def opened(folder, key="mnist", said=None):
    return example_sets.open_folder(TASKS[key], folder, (said or []).append)


@pytest.mark.parametrize(
    ("key", "names"),
    [
        ("vtab/pets", ("wds_vtab-pets", "wds_vtab-pets_test", "vtab/pets", "vtab-pets", "pets")),
        ("cifar10", ("wds_vtab-cifar10", "wds_cifar10_test", "cifar10", "wds_cifar10")),
        ("fairness/geode", ("wds_geode_test", "fairness/geode", "wds_fairness-geode", "geode")),
        ("misc/winogavil", ("winogavil", "misc/winogavil")),
        (
            "retrieval/flickr_1k_test_image_text_retrieval",
            ("flickr_1k_test_image_text_retrieval",),
        ),
    ],
)
def test_a_data_set_is_found_in_either_layout(tmp_path, key, names):
    for name in names:
        root = tmp_path / name.replace("/", "_")
        (root / name).mkdir(parents=True)
        assert folders.find(TASKS[key], root) == root / name


def test_the_suite_decides_where_both_layouts_are_there(tmp_path):
    for name in ("wds_mnist", "wds_mnist_test"):
        (tmp_path / name).mkdir()
    assert folders.find(TASKS["mnist"], tmp_path, "datacomp").name == "wds_mnist_test"
    assert folders.find(TASKS["mnist"], tmp_path, "benchmark").name == "wds_mnist"


def test_what_is_not_there_is_said_with_what_is(tmp_path):
    (tmp_path / "wds_minst").mkdir()
    with pytest.raises(FileNotFoundError) as error:
        folders.find(TASKS["mnist"], tmp_path)
    assert str(error.value) == (
        f"mnist is not in {tmp_path}: looked for wds_mnist, wds_mnist_test, mnist; it holds "
        "wds_minst (nearest: wds_minst)"
    )
    with pytest.raises(FileNotFoundError, match=r"/none is no folder; data sets"):
        folders.find(TASKS["mnist"], tmp_path / "none")


def test_a_folder_of_tars_is_read_as_it_was_written(mnist):
    samples, found = sets.labelled(7, 3), opened(mnist)
    assert (found.classes, found.templates) == (CLASSES, ("a {c}.", "{c}"))
    assert [found.source[i].label for i in range(7)] == [int(s["cls"]) for s in samples]
    assert [found.source[i].image for i in range(7)] == [s["png"] for s in samples]
    assert [found.source[i].key for i in (0, 6)] == ["0/s0000000", "1/s0000006"]


def test_all_missing_lists_are_named_at_once(mnist):
    for name in ("test/nshards.txt", "classnames.txt"):
        (mnist / name).unlink()
    with pytest.raises(FileNotFoundError) as error:
        opened(mnist)
    assert str(error.value) == (
        f"mnist: no file {mnist}/test/nshards.txt and no file {mnist}/classnames.txt"
    )


@pytest.mark.parametrize(
    ("count", "kind", "message"),
    [
        ("3", FileNotFoundError, r"nshards.txt counts 3 shards; missing: 2.tar; copy them"),
        ("1", ValueError, r"nshards.txt counts 1 shards, but there are 2: remove those that"),
        ("two", ValueError, r"nshards.txt must hold one number, not 'two'"),
    ],
)
def test_shards_are_those_that_are_counted(mnist, count, kind, message):
    (mnist / "test" / "nshards.txt").write_text(count)
    with pytest.raises(kind, match=message):
        opened(mnist)


def test_a_shard_that_is_no_tar_and_a_member_twice_are_errors(mnist):
    (mnist / "test" / "1.tar").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"test/1.tar: is no readable tar file"):
        opened(mnist)
    sets.tar(mnist / "test" / "1.tar", [("a.cls", b"1"), ("b.png", b""), ("a.cls", b"2")])
    with pytest.raises(ValueError, match=r"1.tar: two members for one place .*'a.cls' \(byte 512"):
        opened(mnist)


def test_a_key_in_two_shards_is_reported(mnist):
    (mnist / "test" / "1.tar").write_bytes((mnist / "test" / "0.tar").read_bytes())
    said = []
    assert len(example_sets.open_folder(TASKS["mnist"], mnist, said.append).source) == 8
    assert said[0] == (
        "mnist: 4 keys occur in several shards, the first, 's0000000', in 0.tar and 1.tar; a "
        "shard may be there twice"
    )


def test_templates_need_a_placeholder_and_names_a_letter(mnist):
    path = mnist / "zeroshot_classification_templates.txt"
    path.write_text("a {c}.\na photo\n{d}\n")
    with pytest.raises(ValueError) as error:
        opened(mnist)
    assert str(error.value) == (
        f"{path}: a template holds exactly one placeholder, {{}} or {{c}}, but 'a photo' has none; "
        "'{d}' has {d}"
    )
    path.write_text("{c}\n")
    (mnist / "classnames.txt").write_text("cat\n\ncow\n")
    with pytest.raises(
        ValueError, match=r"classnames.txt: empty class names: those of classes \[1"
    ):
        opened(mnist)
    (mnist / "classnames.txt").write_bytes(b"cat\n\xff\n")
    with pytest.raises(ValueError, match=r"classnames.txt is no UTF-8 text"):
        opened(mnist)


def test_another_number_of_classes_than_in_print_is_reported(mnist):
    said = []
    example_sets.open_folder(TASKS["mnist"], mnist, said.append)
    assert said == [
        "mnist: 3 class names, but the data set of that name has 10 classes; the figures are not "
        "those in print"
    ]


@pytest.mark.parametrize(
    ("said", "key", "right"),
    [
        ("retrieval", "mnist", False),
        ("multilabel", "voc2007_multilabel", True),
        ("multilabel", "voc2007", True),  # One folder may serve both.
        ("classification", "voc2007_multilabel", True),
        ("retrieval", "flickr8k", True),
        ("multilabel", "flickr8k", False),
    ],
)
def test_the_type_must_fit_the_task(mnist, said, key, right):
    (mnist / "dataset_type.txt").write_text(said.upper() + "\n")
    if right:
        assert opened(mnist, key).task.key == key
        return
    with pytest.raises(ValueError, match=rf"dataset_type.txt says '{said}', but {key} is measured"):
        opened(mnist, key)


def test_a_folder_of_the_users_own_has_the_kind_that_it_says(tmp_path):
    sets.wds(tmp_path / "own" / "set", sets.labelled(2, 2), kind="retrieval")
    assert folders.unlisted("own/set", tmp_path) == Task(
        key="own/set", name="own/set", kind="retrieval", main="mean_recall@1"
    )
    (tmp_path / "own" / "set" / "dataset_type.txt").write_text("odd")
    with pytest.raises(ValueError, match=r"dataset_type.txt says 'odd', not one of classification"):
        folders.unlisted("own/set", tmp_path)
    for name in ("vtab/pet", "../own", ""):
        with pytest.raises(ValueError, match=rf"is called '{name}' \(nearest: "):
            folders.unlisted(name, tmp_path)


def test_numbers_are_vectors_and_nothing_else_is_loaded(tmp_path):
    class Trap:
        def __reduce__(self):
            return (pathlib.Path.touch, (tmp_path / "trapped",))

    huge = sets.npy([1, 2]).replace(b"(2,)", b"(2000000000000,)")[:128] + bytes(16)
    contents = {
        "int64": (sets.npy([3, 1]), (3, 1)),
        "float": (sets.npy([0.0, 1.0]), (0, 1)),
        "bool": (sets.npy([True, False]), (1, 0)),
        "big endian": (sets.npy(np.array([5], ">i4")), (5,)),
        "empty": (sets.npy(np.zeros(0, int)), ()),
        "pickled": (sets.npy(np.array([Trap()], object)), None),
        "matrix": (sets.npy([[1, 2]]), None),
        "half": (sets.npy([0.5]), None),
        "nan": (sets.npy([np.nan]), None),
        "infinite": (sets.npy([np.inf]), None),
        "cut": (sets.npy([1, 2, 3])[:-4], None),
        "no array": (b"\x93NUMPY\x01\x00garbage", None),
        "nothing": (b"", None),
        "huge": (huge, None),
        "words": (sets.npy(["a"]), None),
    }
    samples = [
        {"png": sets.picture(i), "npy": data} for i, (data, _) in enumerate(contents.values())
    ]
    folder = sets.wds(tmp_path / "wds_mnist", samples, classes=CLASSES, shards=1)
    source = opened(folder).source
    for index, (name, (_, expected)) in enumerate(contents.items()):
        if expected is None:
            with pytest.raises(BadSampleError, match=r"its \.npy must hold a vector of whole") as e:
                source[index]
            assert e.value.reason == "bad numbers", name
        else:
            assert source[index].numbers == expected, name
    assert not (tmp_path / "trapped").exists()


def test_what_is_opened_changes_its_hash_with_everything_in_it(mnist):
    def marks():
        found = opened(mnist)
        return found.digest, found.pictures

    first = marks()
    assert marks() == first
    (mnist / "classnames.txt").write_text("cat\ndog\nox\n")
    second = marks()
    assert second[0] != first[0]
    assert second[1] == first[1]  # The pictures need not be embedded again.
    sets.wds(mnist, sets.labelled(7, 3, seed=5), classes=CLASSES)
    assert marks()[1] != first[1]


def parquet(path, rows, group=2):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=group)


def cell(seed):
    return {"bytes": sets.picture(seed), "path": None}


def test_captions_come_from_the_parquet_files_of_the_split(tmp_path):
    rows = [{"image": cell(i), "caption": [f"a {i}", f"b {i}"]} for i in range(5)]
    key = "retrieval/flickr_1k_test_image_text_retrieval"
    for name, part in (("TEST-00000-of-2", rows[:3]), ("TEST-00010-of-2", rows[3:])):
        parquet(tmp_path / "data" / f"{name}.parquet", part)
    parquet(tmp_path / "data" / "train-00000.parquet", rows[:1])
    found = opened(tmp_path, key)
    assert [found.source[i].texts for i in range(5)] == [(f"a {i}", f"b {i}") for i in range(5)]
    assert found.source[4].image == sets.picture(4)
    names = [path.name for path in example_sets.tables(tmp_path)]
    assert names == ["TEST-00000-of-2.parquet", "TEST-00010-of-2.parquet"]


def test_without_names_of_splits_all_tables_count(tmp_path):
    parquet(tmp_path / "0001.parquet", [{"image": cell(0), "text": "a"}])
    with pytest.raises(ValueError, match=r"no column 'caption'.*its columns: 'image', 'text'"):
        opened(tmp_path, "retrieval/mscoco_2014_5k_test_image_text_retrieval")


def test_a_folder_with_neither_layout_names_what_lacks(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"flickr8k: no file .*/test/nshards.txt$"):
        opened(tmp_path, "flickr8k")
    with pytest.raises(FileNotFoundError, match=r"no test\*\.parquet in .* it holds nothing"):
        opened(tmp_path, "winoground")


def test_winogavil_has_each_picture_once_and_its_cues(tmp_path):
    rows = [
        {
            "cue": cue,
            "candidates": names,
            "associations": right,
            "candidate_images": [cell(ord(name)) for name in names],
        }
        for cue, names, right in [
            ("Eagle", ["a", "b", "c"], ["c", "a"]),
            ("wolf", ["c", "d"], ["d"]),
            ("Owl", ["e"], ["e", "z"]),
        ]
    ]
    parquet(tmp_path / "test.parquet", rows)
    found = opened(tmp_path, "misc/winogavil")
    assert [e.texts for e in found.examples] == [("An eagle",), ("A wolf",), ("An owl",)]
    assert [e.pictures for e in found.examples] == [(0, 1, 2), (2, 3), (4,)]
    assert [e.right for e in found.examples] == [(True, False, True), (False, True), (True,)]
    assert [found.source[i].image for i in range(5)] == [sets.picture(ord(n)) for n in "abcde"]
    rows[1]["associations"] = ["q"]
    parquet(tmp_path / "test.parquet", rows)
    with pytest.raises(
        ValueError, match=r"misc/winogavil: test.parquet:2: no cue, no candidate or"
    ):
        opened(tmp_path, "misc/winogavil")


def test_winoground_has_two_pictures_and_two_captions_a_row(tmp_path):
    rows = [
        {"image_0": cell(i), "image_1": cell(10 + i), "caption_0": f"{i}", "caption_1": f"not {i}"}
        for i in range(3)
    ]
    rows[2]["image_1"] = {"bytes": None, "path": "lost.png"}
    parquet(tmp_path / "default" / "test" / "0000.parquet", rows)
    found = opened(tmp_path, "winoground")
    assert [e.pictures for e in found.examples] == [(0, 1), (2, 3), (4, 5)]
    assert found.examples[1].texts == ("1", "not 1")
    assert found.source[3].image == sets.picture(11)
    with pytest.raises(BadSampleError, match=r"0000.parquet:3: .*no picture in 'image_1'"):
        found.source[5]
    rows[0]["caption_1"] = ""
    parquet(tmp_path / "default" / "test" / "0000.parquet", rows)
    with pytest.raises(ValueError, match=r"winoground: 0000.parquet:1: a caption is missing"):
        opened(tmp_path, "winoground")


def test_sugarcrepe_has_a_category_a_list(tmp_path):
    (tmp_path / "val2017").mkdir()
    for name in "ab":
        (tmp_path / "val2017" / f"{name}.png").write_bytes(sets.picture(ord(name)))

    def entry(name, number):
        return {"filename": f"{name}.png", "caption": f"{number}", "negative_caption": "x"}

    (tmp_path / "swap_obj.json").write_text(json.dumps({"7": entry("b", 7), "9": entry("c", 9)}))
    (tmp_path / "add_att.json").write_text(json.dumps({"0": entry("a", 0), "3": entry("b", 3)}))
    found = opened(tmp_path, "sugar_crepe")
    assert [(e.category, e.pictures, e.texts[0]) for e in found.examples] == [
        ("add_att", (0,), "0"),
        ("add_att", (1,), "3"),
        ("swap_obj", (1,), "7"),
        ("swap_obj", (2,), "9"),
    ]
    assert found.source[1].image == sets.picture(ord("b"))
    with pytest.raises(BadSampleError, match=r"sample 'c.png': No such file"):
        found.source[2]
    (tmp_path / "swap_obj.json").write_text(json.dumps({"7": {"caption": "c"}}))
    with pytest.raises(ValueError, match=r"swap_obj.json: entry '7' has not all of filename, cap"):
        opened(tmp_path, "sugar_crepe")
    (tmp_path / "swap_obj.json").unlink()
    for name in "ab":
        (tmp_path / "val2017" / f"{name}.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"none of its 2 pictures is in .*val2017, "):
        opened(tmp_path, "sugar_crepe")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub with the repositories in `there`; `asked` are (name, revision)."""
    import huggingface_hub
    from huggingface_hub import errors

    state = types.SimpleNamespace(there={}, asked=[], patterns=[], down=False)

    def download(name, *, repo_type, revision, allow_patterns):
        assert repo_type == "dataset"
        assert "test/*" in allow_patterns
        state.asked.append((name, revision))
        state.patterns.append(allow_patterns)
        if state.down:
            raise errors.LocalEntryNotFoundError("no connection")
        if name not in state.there:
            response = types.SimpleNamespace(headers={}, request=None, status_code=404, url="")
            raise errors.RepositoryNotFoundError("404", response=response)
        return str(state.there[name] if revision is None else tmp_path / "converted")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return state


def test_the_hub_is_asked_under_both_names_in_the_order_of_the_suite(hub, tmp_path):
    folder = sets.wds(tmp_path / "there", sets.labelled(2, 2), classes=CLASSES)
    hub.there["djghosh/wds_cifar10_test"] = folder
    assert fetch.fetch(TASKS["cifar10"], "benchmark") == folder
    assert fetch.fetch(TASKS["cifar10"], "datacomp") == folder
    assert "train/*" not in hub.patterns[-1]
    assert fetch.fetch(TASKS["cifar10"], "datacomp", train=True) == folder
    assert "train/*" in hub.patterns.pop()
    hub.asked.pop()
    names = [name for name, _ in hub.asked]
    assert names == ["clip-benchmark/wds_vtab-cifar10", *["djghosh/wds_cifar10_test"] * 2]


def test_tables_come_from_the_converted_branch_where_the_main_one_has_a_program(hub, tmp_path):
    parquet(tmp_path / "converted" / "default" / "test" / "0000.parquet", [{"a": 1}])
    (tmp_path / "program").mkdir()
    hub.there["nlphuji/winogavil"] = tmp_path / "program"
    assert fetch.fetch(TASKS["misc/winogavil"]) == tmp_path / "converted"
    assert [revision for _, revision in hub.asked] == [None, "refs/convert/parquet"]


def test_what_cannot_be_fetched_says_why(hub, tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        fetch.fetch(TASKS["vtab/pets"])
    where = "there is no https://huggingface.co/datasets"
    assert str(error.value) == (
        f"vtab/pets: {where}/clip-benchmark/wds_vtab-pets; {where}/djghosh/wds_vtab-pets_test"
    )
    with pytest.raises(FileNotFoundError, match=r"sugar_crepe is not on the hub; give the folder"):
        fetch.fetch(TASKS["sugar_crepe"])
    hub.down = True
    with pytest.raises(
        ConnectionError, match=r"clip-benchmark/wds_mnist is not in the cache .* now"
    ):
        fetch.fetch(TASKS["mnist"])
