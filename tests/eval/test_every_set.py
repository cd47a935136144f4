"""Each data set of both suites, as a stand-in in the layout and under the folder of that suite."""

import pathlib
import runpy
import types

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clip_jax.eval.example_sets import open_folder
from clip_jax.eval.folders import find
from clip_jax.eval.run_suite import run_suite
from clip_jax.eval.tasks import SUITES, TASKS

HERE = pathlib.Path(__file__).parent
sets = types.SimpleNamespace(**runpy.run_path(str(HERE / "standins.py")))
CLASSES, COUNT = sets.CLASSES, 8


def write(root, task, layout):
    """A stand-in; the labels of its pictures, where it has one each."""
    folder = getattr(task, layout)
    seed = sorted(TASKS).index(task.key)
    rng = np.random.default_rng(seed)
    if task.kind == "retrieval" and folder:
        sets.wds(root / folder, sets.captioned(COUNT, seed), kind="retrieval")
    elif task.kind == "multilabel":
        targets = rng.integers(0, 2, (COUNT, len(CLASSES))) | np.eye(COUNT, 6, dtype=int)
        samples = [{"png": sets.picture(i), "npy": sets.npy(t)} for i, t in enumerate(targets)]
        sets.wds(root / folder, samples, classes=CLASSES, kind="multilabel")
    elif task.kind == "faces":
        race = rng.integers(0, 2, COUNT)
        meta = np.stack([race, rng.integers(0, 2, COUNT), race, 1 - race], 1)
        samples = [{"png": sets.picture(i), "npy": sets.npy(row)} for i, row in enumerate(meta)]
        counts = {"race": 2, "gender": 2, "age": 2, "toxic": 20}
        names = [f"{name}:{name} {n}" for name, count in counts.items() for n in range(count)]
        sets.wds(root / folder, samples, classes=names, templates=[f"{n}:a {{c}}" for n in counts])
    elif task.hub:
        write_table(root / task.hub.partition("/")[2], task)
    else:
        more = {"npy": lambda row: sets.npy([row % 3] * len(task.columns))} if task.columns else {}
        samples = sets.labelled(COUNT, len(CLASSES), seed, **more)
        sets.wds(root / folder, samples, classes=CLASSES)
        return [(sample["png"], int(sample["cls"])) for sample in samples]
    return None


def write_table(folder, task):
    def cell(seed):
        return {"bytes": sets.picture(seed), "path": None}

    if task.kind == "retrieval":
        rows = [{"image": cell(i), "caption": [f"a {i}", f"b {i}"]} for i in range(COUNT)]
    else:
        names = [[f"{i} {n}" for n in range(10 + 2 * (i % 2))] for i in range(4)]
        rows = [
            {
                "cue": "owl",
                "candidates": each,
                "associations": each[:2],
                "candidate_images": [cell(n) for n in range(len(each))],
            }
            for each in names
        ]
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "test.parquet")


@pytest.mark.parametrize(
    ("suite", "layout"), [("datacomp", "datacomp"), ("clip_benchmark", "benchmark")]
)
def test_every_data_set_of_a_suite_gives_its_main_figure(tmp_path, suite, layout):
    labelled = {key: write(tmp_path, TASKS[key], layout) for key in SUITES[suite]}

    def opened(key):
        task = TASKS[key]
        return open_folder(task, find(task, tmp_path, layout), lambda line: None)

    cache = sets.Cache(folder=tmp_path / "cache", limit=10**9)
    model, out = sets.model(), tmp_path / "out"
    report = run_suite(SUITES[suite], opened, model, out, cache, lambda line: None)
    assert report.failures == {}
    assert tuple(report.outcomes) == SUITES[suite]
    prototypes = sets.prototypes(CLASSES, ("a {c}.", "{c}"))
    for key, found in report.outcomes.items():
        assert found.main == TASKS[key].main
        assert found.main is None or 0 <= found.main_figure <= 1
        if (samples := labelled[key]) is not None:
            right = [np.argmax(prototypes @ sets.see(image)) == label for image, label in samples]
            assert found.figures["acc1"] == pytest.approx(np.mean(right)), key
    assert all(mean.whole for mean in report.aggregates)
    assert report.aggregates[-1].there == sum(TASKS[key].main is not None for key in SUITES[suite])
