"""The public data sets as an evaluation: the suite's figures, its messages, and no end of a run."""

import contextlib
import dataclasses
import json
import pathlib
import re
import runpy
import shutil
import types

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clip_jax.config import from_data, to_data
from clip_jax.data import Digits
from clip_jax.eval.outcome import file_name
from clip_jax.eval.public_sets import PublicSets
from clip_jax.eval.run_suite import PROGRAM
from clip_jax.eval.suite import EvalConfig, Evaluator, open_evals, opened_by, run_evals
from clip_jax.eval.tasks import SUITES, TASKS
from clip_jax.eval.zero_shot import ZeroShot
from clip_jax.overrides import override

HERE = pathlib.Path(__file__).parent
every = types.SimpleNamespace(**runpy.run_path(str(HERE / "test_every_set.py")))
sets = every.sets
UNUSED = Digits()
OF_EACH_KIND = {
    "vtab/pets": "benchmark",
    "flickr8k": "benchmark",
    "voc2007_multilabel": "benchmark",
    "misc/winogavil": "datacomp",
    "wilds/iwildcam": "datacomp",
    "wilds/fmow": "datacomp",
    "fairness/dollar_street": "datacomp",
    "fairness/geode": "datacomp",
    "fairness/utkface": "datacomp",
}


def winoground(root, pictures=4):
    cells = [{"bytes": sets.picture(i), "path": None} for i in range(pictures)]
    columns = {
        "image_0": cells[0::2],
        "image_1": cells[1::2],
        "caption_0": [f"a {i} on b" for i in range(pictures // 2)],
        "caption_1": [f"b on a {i}" for i in range(pictures // 2)],
    }
    (root / "winoground").mkdir()
    pq.write_table(pa.table(columns), root / "winoground" / "test.parquet")


def sugar_crepe(root):
    home = root / "sugar_crepe"
    (home / "val2017").mkdir(parents=True)
    for kind in ("swap_att", "add_obj"):
        entries = {}
        for i in range(3):
            (home / "val2017" / f"{i}.png").write_bytes(sets.picture(i))
            texts = {"caption": f"{kind} {i}", "negative_caption": f"no {kind} {i}"}
            entries[str(i)] = {"filename": f"{i}.png", **texts}
        (home / f"{kind}.json").write_text(json.dumps(entries))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A stand-in of each kind; one picture of the pets cannot be read."""
    root = tmp_path_factory.mktemp("root")
    for key, layout in OF_EACH_KIND.items():
        every.write(root, TASKS[key], layout)
    samples = sets.labelled(9, 6)
    samples[2]["png"] = b"no picture"
    sets.wds(root / "wds_vtab-pets", samples, classes=sets.CLASSES)
    winoground(root)
    sugar_crepe(root)
    return root


KEYS = (*OF_EACH_KIND, "winoground", "sugar_crepe")


KEPT = {
    "3": {
        "zero_shot": "class_names confidence credit group group_names keys labels picture_rows "
        "pictures top",
        "multilabel": "class_names keys ranks targets",
        "retrieval": "captions credit image_of_text keys picture_rows pictures rank "
        "to_image/found to_image/queries to_text/found to_text/queries",
        "winogavil": "credit keys",
        "winoground": "credit keys",
        "sugarcrepe": "credit group group_names keys",
        "faces": "credit group group_names keys predicted/gender",
    }
}
"""Arrays of outcomes by version of the measures and kind. Whoever keeps another array also changes
`PROGRAM`: else results that lack it would count as done."""


def embedder(**changes):
    return dataclasses.replace(sets.model().embedder, **{"scale": 20.0, **changes})


def figures(evaluation, **changes):
    return run_evals({"all": evaluation}, UNUSED, embedder(**changes))


def test_figures_are_those_of_the_suite_whatever_the_kind(root, tmp_path):
    said = []
    found = figures(PublicSets(sets=KEYS, root=str(root)), warn=said.append)
    told = []
    report = sets.run(root, KEYS, tmp_path / "out", said=told)
    flat = json.loads((tmp_path / "out" / "eval.json").read_text())
    expected = {f"public/all/{name.partition('/')[2]}": value for name, value in flat.items()}
    assert found == expected
    assert set(report.outcomes) == set(KEYS) and not report.failures
    kept: dict[str, set[str]] = {}
    for one in report.outcomes.values():
        names = (re.sub(r"^(credit|group|group_names|rank)/.*", r"\1", name) for name in one.arrays)
        kept.setdefault(one.task, set()).update(names)
    assert {kind: " ".join(sorted(names)) for kind, names in kept.items()} == KEPT[PROGRAM]
    assert {name.split("/")[2] for name in found} == {*map(file_name, KEYS), "Average"}
    assert found["public/all/vtab-pets/skipped"] == 1
    assert found["public/all/winoground/acc"] == flat["winoground/winoground/acc"]
    # All that the suite says but for its progress.
    assert [line for line in told if "/11 " not in line] == [
        line for line in said if "left out: sample" not in line
    ]
    (skipped,) = [line for line in said if "left out: sample" in line]
    assert skipped.startswith("vtab/pets: 1 left out: sample '0/s0000002': ")


def test_pictures_that_several_data_sets_share_are_embedded_once(root):
    """Both names of CIFAR-10 mean one folder; and the same folder may also hold several labels."""
    keys = ("vtab/pets", "wds_vtab-pets")
    counts = []
    counting = dataclasses.replace(sets.model(counts).embedder, scale=20.0, warn=[].append)
    each = [dict(PublicSets(sets=(key,), root=str(root)).run(UNUSED, counting)) for key in keys]
    apart = counts.count("images")
    counts.clear()
    both = dict(PublicSets(sets=keys, root=str(root)).run(UNUSED, counting))
    assert 2 * counts.count("images") == apart > 0
    for key, one in zip(keys, each, strict=True):
        assert {name: both[f"{file_name(key)}/{name}"] for name in one} == one


def test_of_one_data_set_the_figures_have_plain_names(root, tmp_path):
    found = figures(PublicSets(sets=("winoground",), root=str(root)))
    sets.run(root, ("winoground",), tmp_path / "out")
    flat = json.loads((tmp_path / "out" / "eval.json").read_text())
    names = ("acc", "image_acc", "text_acc")
    assert found == {f"public/all/{n}": flat[f"winoground/winoground/{n}"] for n in names}


def test_a_suite_means_its_data_sets_in_its_own_layout(tmp_path):
    assert PublicSets(sets=("quick", "flickr8k"), root="x").keys == SUITES["quick"]
    sets.wds(tmp_path / "wds_mnist", sets.labelled(4, 2), classes=sets.CLASSES)
    sets.wds(tmp_path / "wds_mnist_test", sets.labelled(7, 2), classes=sets.CLASSES)
    found = {
        names: dict(
            PublicSets(sets=names, root=str(tmp_path)).run(UNUSED, embedder(warn=[].append))
        )
        for names in [("mnist",), ("datacomp",)]
    }
    assert found["mnist",].keys() < {n.partition("/")[2] for n in found["datacomp",]} | {"skipped"}
    assert found["datacomp",]["left_out"] == 39
    one = dict(
        PublicSets(sets=("wds_mnist_test",), root=str(tmp_path)).run(
            UNUSED, embedder(warn=[].append)
        )
    )
    assert found["datacomp",]["mnist/calibration_error"] == one["calibration_error"]
    assert found["mnist",]["calibration_error"] != one["calibration_error"]


def test_what_cannot_be_measured_is_told_and_the_rest_is_measured(root, tmp_path):
    own = tmp_path / "root"
    shutil.copytree(root / "winoground", own / "winoground")
    sets.wds(own / "wds_gtsrb", sets.labelled(4, 5, seed=8), classes=sets.CLASSES[:2])
    keys = ("gtsrb", "cars", "winoground", "onw")
    said = []
    found = figures(PublicSets(sets=keys, root=str(own)), warn=said.append)
    said = [line for line in said if ": left out: " in line]
    failures = sets.run(own, keys[:2], tmp_path / "out").failures
    assert said[0] == f"gtsrb: left out: {failures['gtsrb']}"
    assert said[1] == f"cars: left out: {failures['cars']}"
    assert said[2].startswith("onw: left out: no suite or data set, and no folder with test/ in ")
    metrics = {name.removeprefix("public/all/"): value for name, value in found.items()}
    assert metrics.pop("left_out") == 3
    assert set(metrics) == {f"winoground/{n}" for n in ("acc", "image_acc", "text_acc")}


def test_a_model_that_gives_no_numbers_is_told(root):
    said = []
    evaluation = PublicSets(sets=("winoground",), root=str(root))
    nothing = figures(evaluation, image_fn=lambda x: np.full((len(x), 6), np.nan), warn=said.append)
    assert nothing == {"public/all/left_out": 1.0}
    assert said == [
        "winoground: left out: 4 of 4 embeddings of images are NaN, infinite or zero; the first "
        "is row 0"
    ]


def test_what_is_missing_shows_before_it_is_needed_all_at_once(root, tmp_path):
    def fault(*keys):
        with pytest.raises((ValueError, OSError)) as error:
            list(opened_by(PublicSets(sets=keys, root=str(root)), UNUSED))
        return error.value

    report = sets.run(root, ("cars",), tmp_path / "out")
    assert isinstance(fault("winoground", "cars"), FileNotFoundError)
    assert str(fault("winoground", "cars")) == report.failures["cars"]
    both = str(fault("winogruond", "cars"))
    assert both == f"{fault('winogruond')}; {report.failures['cars']}"
    assert str(fault("winogruond")).endswith("is called 'winogruond' (nearest: 'winoground')")
    evaluation = PublicSets(sets=("winoground",), root=str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError, match=r"none is no folder; data sets are looked for"):
        evaluation.open()


def test_the_evaluation_that_cannot_be_opened_is_named(root):
    evals = {
        "good": PublicSets(sets=("winoground",), root=str(root)),
        "lost": PublicSets(sets=("cars",), root=str(root)),
        "odd": ZeroShot(split="tset"),
    }
    each = {}
    for name in ("lost", "odd"):
        with pytest.raises((ValueError, OSError)) as error:
            list(opened_by(evals[name], UNUSED))
        each[name] = f"evals.{name}: {error.value}"
        with pytest.raises(FileNotFoundError if name == "lost" else ValueError) as error:
            open_evals({"good": evals["good"], name: evals[name]}, UNUSED)
        assert str(error.value) == each[name]
    with pytest.raises(ValueError) as error:
        open_evals(evals, UNUSED)
    assert str(error.value) == "; ".join(each.values())
    sources, words = open_evals({"good": evals["good"]}, UNUSED)
    assert list(sources) == ["data of evals.good, winoground"]
    assert list(words) == ["names and texts of evals.good, winoground"]


def test_what_is_opened_is_named_and_marked_by_its_words(root, tmp_path):
    evaluation = PublicSets(sets=("winoground", "vtab/pets"), root=str(root))
    opened = {name: (len(source), words) for name, source, words in opened_by(evaluation, UNUSED)}
    assert {name: count for name, (count, _) in opened.items()} == {"winoground": 4, "vtab/pets": 9}

    def words(templates):
        root = tmp_path / templates[0]
        sets.wds(root / "pets", sets.labelled(9, 6), classes=sets.CLASSES, templates=templates)
        ((_, _, found),) = opened_by(PublicSets(sets=("vtab/pets",), root=str(root)), UNUSED)
        return found

    assert words(("a {c}.", "{c}")) == opened["vtab/pets"][1]  # Wherever they lie.
    assert words(("the {c}.", "{c}")) != opened["vtab/pets"][1]


def together(pair, evaluations):
    """What each of two processes finds, and what it is told."""

    def work(number, one):
        said = []
        own = dataclasses.replace(one, warn=said.append)
        return run_evals({"all": evaluations[number]}, UNUSED, own), said

    return zip(*pair(embedder(), work), strict=True)


def test_processes_together_find_what_one_finds(root, pair):
    evaluation = PublicSets(sets=KEYS, root=str(root))
    alone = figures(evaluation, warn=[].append)
    found, said = together(pair, [evaluation, evaluation])
    assert found[0] == found[1] == pytest.approx(alone, abs=1e-6)
    assert said[0] == said[1] and any("vtab/pets: 1 left out" in line for line in said[0])


def test_what_one_process_cannot_open_all_leave_out(root, tmp_path, pair):
    shutil.copytree(root / "sugar_crepe", tmp_path / "sugar_crepe")
    roots = (str(root), str(tmp_path))
    found, said = together(
        pair, [PublicSets(sets=("winoground", "sugar_crepe"), root=where) for where in roots]
    )
    assert found[0] == found[1]
    assert found[0]["public/all/left_out"] == 1
    assert "public/all/sugar_crepe/acc" in found[0]
    assert said[0] == said[1]
    assert said[0][0].startswith(f"winoground: left out: winoground is not in {tmp_path}: looked")


def test_pictures_that_are_one_folder_on_one_process_alone_are_embedded_by_all(tmp_path, pair):
    roots = [tmp_path / name for name in "ab"]
    for root in roots:
        sets.wds(root / "wds_vtab-pets", sets.labelled(9, 6), classes=sets.CLASSES)
    (roots[0] / "wds_vtab-copy").symlink_to(roots[0] / "wds_vtab-pets")
    # Written anew: of another time, by which files are told apart.
    sets.wds(roots[1] / "wds_vtab-copy", sets.labelled(9, 6), classes=sets.CLASSES)
    keys = ("vtab/pets", "wds_vtab-copy")
    found, _ = together(pair, [PublicSets(sets=keys, root=str(root)) for root in roots])
    assert found[0] == found[1]
    assert found[0]["public/all/wds_vtab-copy/acc1"] == found[0]["public/all/vtab-pets/acc1"]


def test_confidences_need_a_temperature(root):
    evaluation = PublicSets(sets=("winoground",), root=str(root))
    with pytest.raises(ValueError, match="left out: this embedder tells no temperature, which"):
        figures(evaluation, scale=None)


def test_it_is_a_config_like_the_others():
    evaluation = PublicSets(sets=("winoground", "quick"), root="data", every_steps=100)
    assert isinstance(evaluation, Evaluator)
    data = json.loads(json.dumps(to_data(evaluation)))
    assert from_data(dict[str, EvalConfig], {"a": data}) == {"a": evaluation}
    data["sets"] = "winoground"
    with pytest.raises(ValueError, match="'winoground' is not"):
        from_data(EvalConfig, data)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sets": ()}, "sets must be one or more names, none of them empty, got ()"),
        ({"sets": ("a", "")}, "sets must be one or more names, none of them empty, got ('a', '')"),
        ({"root": ""}, "root must name a folder, or be 'hub'"),
        ({"sets": ("tfds:cifar10",)}, "tfds:cifar10: here that is ZeroShot(data=Tfds(...))"),
        ({"sets": ("a/b", "a-b")}, "figures of several of these data sets would be called ['a-b']"),
        ({"every_steps": 0}, "every_steps must be at least 1, got 0"),
    ],
)
def test_what_makes_no_sense_is_refused(fields, message):
    with pytest.raises(ValueError) as error:
        PublicSets(**{"sets": ("quick",), "root": "data", **fields})
    assert str(error.value) == message


def test_a_forgotten_comma_is_told():
    fields = types.SimpleNamespace(sets="quick", root="data", every_steps=None)
    with pytest.raises(ValueError, match=r"^sets holds names, so write \('quick',\) with a comma$"):
        PublicSets.__post_init__(fields)


def test_fields_on_the_command_line(experiment, capsys):
    evals = {"quick": PublicSets(sets=("quick",), root="data")}
    config = experiment("run", evals=evals)
    more = ("--evals.quick.root", "elsewhere", "--evals.quick.every-steps", "5")
    changed = override(config, (*more, "--evals.quick.sets", "winoground", "mnist"), "train.py c")
    assert changed.evals == {
        "quick": PublicSets(sets=("winoground", "mnist"), root="elsewhere", every_steps=5)
    }
    with contextlib.suppress(SystemExit):
        override(config, ("--help",), "train.py c")
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--evals.quick.sets" in shown and "--evals.quick.root STR" in shown
    assert "Folder of the data sets; `hub`: fetched from Hugging Face" in shown
