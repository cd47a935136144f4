"""Data sets whose samples carry several labels: intervals between models, and linear probes."""

import dataclasses
import functools
import io
import json
import pathlib
import runpy
import types

import jax
import numpy as np
import pytest
import sklearn.metrics as sklearn
from PIL import Image
from sklearn.linear_model import LogisticRegression

from clip_jax.cli import eval_suite
from clip_jax.eval import compare as compare_module
from clip_jax.eval import measure_classes, measure_probe, outcome
from clip_jax.eval.bootstrap import levels
from clip_jax.eval.classification import average_precision
from clip_jax.eval.compare import compare
from clip_jax.eval.drawn_precision import drawn_precision, ranks
from clip_jax.eval.logistic import Regression
from clip_jax.eval.one_vs_rest import one_versus_rest
from clip_jax.eval.probe import STRENGTHS, Labelled

sets = types.SimpleNamespace(**runpy.run_path(str(pathlib.Path(__file__).parent / "standins.py")))
KEY, CLASSES = "voc2007_multilabel", sets.CLASSES[:4]


@functools.cache
def drawn(n=60, classes=5, seed=0, grid=4.0):
    """Scores with many ties, and targets that they tell of."""
    rng = np.random.default_rng(seed)
    targets = rng.random((n, classes)) < 0.3
    scores = np.round((rng.normal(size=targets.shape) + targets) * grid) / grid
    return scores, targets


def mean(scores, targets, rows, wanted):
    """Slowly: scikit-learn's, over the classes `wanted`, those without a positive apart."""
    found = [
        sklearn.average_precision_score(targets[rows, k], scores[rows, k])
        for k in wanted
        if targets[rows, k].any()
    ]
    return np.mean(found)


@pytest.mark.parametrize("grid", [1.0, 1e9])
def test_precision_of_drawn_rows_is_scikit_learns(grid):
    scores, targets = drawn(grid=grid)
    measure = drawn_precision(ranks(scores), targets)
    everything = range(targets.shape[1])
    assert measure(np.arange(60)) == pytest.approx(mean(scores, targets, slice(None), everything))
    for seed in range(4):
        rows = np.random.default_rng(seed).integers(60, size=60)
        assert measure(rows) == pytest.approx(mean(scores, targets, rows, everything))


def test_a_class_without_a_positive_counts_as_0_and_one_that_was_not_drawn_not_at_all():
    scores, targets = (array.copy() for array in drawn())
    targets[:, 1] = False
    targets[1:, 2], targets[0, 2] = False, True
    measure = drawn_precision(ranks(scores), targets)
    each = np.nan_to_num(average_precision(scores, targets))
    assert measure(np.arange(60)) == pytest.approx(each.mean())
    rows = np.arange(1, 60)  # Without the only positive of class 2.
    assert measure(rows) == pytest.approx(mean(scores, targets, rows, [0, 3, 4]) * 4 / 5)
    assert np.isnan(measure(np.array([k for k in rows if not targets[k].any()])))


def test_ranks_keep_order_and_ties_in_few_bytes():
    scores = np.array([[0.1, -1.0], [0.7, -1.0], [0.1 + 1e-16, 3.0], [0.7, 1e-300]])
    assert ranks(scores).tolist() == [[2, 2], [0, 2], [1, 0], [0, 1]]
    assert ranks(scores).dtype == np.uint8
    assert ranks(np.zeros((300, 1))).dtype == np.uint16


@pytest.fixture(scope="module")
def pictures():
    """A train and a test split whose pictures tell each label, but not surely."""
    rng, splits = np.random.default_rng(0), []
    motifs = np.random.default_rng(9).integers(0, 256, (len(CLASSES), sets.SIZE, sets.SIZE, 3))
    for count in (50, 30):
        samples = []
        for target in rng.integers(0, 2, (count, len(CLASSES))):
            parts = [motif for motif, on in zip(motifs, target, strict=True) if on]
            parts.append(rng.integers(0, 256, motifs[0].shape))
            data = io.BytesIO()
            Image.fromarray(np.mean(parts, axis=0).astype(np.uint8)).save(data, "PNG")
            samples.append({"png": data.getvalue(), "npy": sets.npy(target)})
        splits.append(samples)
    return splits


@pytest.fixture(scope="module")
def root(tmp_path_factory, pictures):
    root = tmp_path_factory.mktemp("several")
    for samples, split in zip(pictures, ("train", "test"), strict=True):
        sets.wds(root / f"wds_{KEY}", samples, classes=CLASSES, kind="multilabel", split=split)
    return root


def measured(root, out, **more):
    report = sets.run(root, (KEY,), out, **more)
    assert not report.failures, report.failures
    return report.outcomes[KEY]


@pytest.fixture(scope="module")
def sides(root, tmp_path_factory):
    """By names, and by scores that are a little better."""
    out = tmp_path_factory.mktemp("sides")
    first = measured(root, out)
    targets = first.arrays["targets"]
    better = first.arrays["ranks"] - 8.0 * targets
    figure = float(np.mean(average_precision(-better, targets)))
    arrays = {**first.arrays, "ranks": ranks(-better)}
    second = dataclasses.replace(
        first, figures={"mean_average_precision": figure}, arrays=arrays, skipped=()
    )
    return outcome.load(out / "results", KEY), second


def test_two_models_have_an_interval_of_their_mean_average_precision(sides, monkeypatch):
    monkeypatch.setattr(compare_module, "RESAMPLES", 60)
    a, b = sides
    (pairing,) = compare([a], [b])
    found = pairing.main_metric
    rng, drawn = np.random.default_rng(0), []
    for _ in range(60):
        rows = rng.integers(30, size=30)
        values = [
            mean(-x.arrays["ranks"].astype(float), x.arrays["targets"], rows, range(4))
            for x in sides
        ]
        drawn.append(values[1] - values[0])
    assert (found.interval.low, found.interval.high) == pytest.approx(
        tuple(np.quantile(drawn, levels(30, 0.95)))
    )
    assert found.interval.difference == pytest.approx(
        b.figures["mean_average_precision"] - a.figures["mean_average_precision"]
    )


def test_other_labels_of_the_same_samples_are_other_data(sides):
    a, b = sides
    targets = b.arrays["targets"].copy()
    targets[7, 1] ^= True
    other = dataclasses.replace(b, arrays={**b.arrays, "targets": targets})
    key = a.arrays["keys"][7]
    with pytest.raises(ValueError, match=rf"1 samples have other labels; the first is '{key}'"):
        compare([a], [other])
    fewer = dataclasses.replace(b, arrays={**b.arrays, "targets": targets[:, :2]})
    with pytest.raises(ValueError, match="4 and 2 classes"):
        compare([a], [fewer])


def test_of_huge_data_sets_no_order_is_kept_and_the_table_says_why(root, tmp_path, monkeypatch):
    monkeypatch.setattr(measure_classes, "KEPT", 30 * 4 - 1)
    found = measured(root, tmp_path)
    assert set(found.arrays) == {"keys", "class_names"}
    (pairing,) = compare([found], [found])
    assert "cannot be computed" in pairing.main_metric.why


def fitted(features, targets, strength):
    """scikit-learn's one-vs-rest: its log-odds as a function of features."""
    solver = {"solver": "newton-cholesky", "tol": 1e-12, "max_iter": 1000}
    peers = [LogisticRegression(C=1 / strength, **solver).fit(features, t) for t in targets.T]
    return lambda other: np.stack([peer.decision_function(other) for peer in peers], axis=1)


def features_of(samples, seed=1):
    look = np.random.default_rng(seed).normal(size=(sets.SIZE**2 * 3, 6))
    pixels = [np.asarray(Image.open(io.BytesIO(s["png"])).convert("RGB")) for s in samples]
    return (np.stack(pixels).reshape(len(pixels), -1) / 255 @ look).astype(np.float32)


def targets_of(samples):
    return np.stack([np.load(io.BytesIO(s["npy"])) for s in samples]).astype(bool)


@pytest.mark.parametrize("strength", [0.03, 3.0])
@pytest.mark.parametrize("devices", [1, 8])
def test_problems_solved_together_are_scikit_learns_one_by_one(pictures, strength, devices):
    features, targets = features_of(pictures[0]), targets_of(pictures[0])
    mesh = jax.make_mesh(
        (devices,), ("data",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:devices]
    )
    made = Regression(features, targets[:, 0].astype(int), 2, rows=56, mesh=mesh)
    weights, bias = made.solve_each(targets, strength)
    other = features_of(pictures[1])
    expected = fitted(features.astype(np.float64), targets, strength)(other.astype(np.float64))
    np.testing.assert_allclose(other @ weights + bias, expected, atol=2e-4 * np.abs(expected).max())


def test_problems_that_teach_nothing_are_refused(pictures):
    features, targets = features_of(pictures[0]), targets_of(pictures[0])
    made = Regression(features, targets[:, 0].astype(int), 2)
    wrong = targets.copy()
    wrong[:, 1], wrong[:, 3] = True, False
    with pytest.raises(ValueError, match=r"same target in columns \[1, 3\]"):
        made.solve_each(wrong, 1.0)
    with pytest.raises(ValueError, match="49 rows of targets for 50 samples"):
        made.solve_each(targets[1:], 1.0)
    none = Labelled(features=features, labels=np.ones_like(targets))
    with pytest.raises(ValueError, match="no label that some samples have and others lack"):
        one_versus_rest(none, none)


def test_a_label_that_none_has_is_scored_alike_for_all(pictures):
    features, targets = features_of(pictures[0]), targets_of(pictures[0]).copy()
    targets[:, 2] = False
    half = [Labelled(features=features, labels=targets).rows(np.arange(i, 50, 2)) for i in (0, 1)]
    found = one_versus_rest(*half)
    scores = found.scores(features)
    assert (scores[:, 2] == 0).all()
    expected = fitted(features.astype(np.float64), targets[:, [0, 1, 3]], found.strength)
    np.testing.assert_allclose(
        scores[:, [0, 1, 3]], expected(features.astype(np.float64)), atol=1e-3
    )


@pytest.fixture(scope="module")
def probed(root, tmp_path_factory):
    measures = {"multilabel": measure_probe.MULTILABEL["linear"]}
    return measured(root, tmp_path_factory.mktemp("probed"), measures=measures, train=True)


def test_a_linear_probe_of_several_labels_is_scikit_learns(probed, pictures):
    (train, targets), (test, own) = ((sets.feel(_pixels(s)), targets_of(s)) for s in pictures)
    train, test = train.astype(np.float64), test.astype(np.float64)
    strength = probed.figures["strength"]
    scores = fitted(train, targets, strength)(test)
    each = [sklearn.average_precision_score(own[:, k], scores[:, k]) for k in range(4)]
    assert probed.figures["mean_average_precision"] == pytest.approx(np.mean(each), abs=1e-6)
    kept, held = measure_probe.probe.hold_out(np.zeros(50, int))
    tried = probed.tables["Mean average precision on the validation split by strength"]
    checked = [s for s in STRENGTHS if s >= 1e-2 and f"{s:.3g}" in tried]
    assert len(checked) > 3
    for strength in checked:
        scores = fitted(train[kept], targets[kept], strength)(train[held])
        wanted = np.flatnonzero(targets[held].any(0))
        expected = mean(scores, targets[held], slice(None), wanted)
        value = tried[f"{strength:.3g}"]["mean_average_precision"]
        assert value == pytest.approx(expected, abs=1e-6)
    best = probed.figures["validation_mean_average_precision"]
    assert best == max(row["mean_average_precision"] for row in tried.values())
    assert (probed.task, probed.main) == ("linear_probe", "mean_average_precision")
    assert {"ranks", "targets"} <= set(probed.arrays)


def _pixels(samples):
    return np.stack([np.asarray(Image.open(io.BytesIO(s["png"])).convert("RGB")) for s in samples])


def test_the_command_line_knows_which_probes_take_several_labels():
    assert set(eval_suite.MULTILABEL) == set(measure_probe.MULTILABEL)
    assert set(eval_suite.PROBES) == set(measure_probe.PROBES)


def test_labels_that_the_train_split_lacks_are_told(root, tmp_path, pictures):
    samples = [dict(s) for s in pictures[0]]
    for sample in samples:
        target = np.load(io.BytesIO(sample["npy"]))
        target[1] = 0
        sample["npy"] = sets.npy(target)
    samples[3]["npy"] = sets.npy([1, 0])
    sets.wds(tmp_path / f"wds_{KEY}", pictures[1], classes=CLASSES, kind="multilabel")
    sets.wds(tmp_path / f"wds_{KEY}", samples, classes=CLASSES, kind="multilabel", split="train")
    measures = {"multilabel": measure_probe.MULTILABEL["linear"]}
    report = sets.run(tmp_path, (KEY,), tmp_path / "a", measures=measures, train=True)
    assert "samples have not a number in their .npy for each of 4 class" in report.failures[KEY]
    samples[3]["npy"] = sets.npy([1, 0, 1, 0])
    sets.wds(tmp_path / f"wds_{KEY}", samples, classes=CLASSES, kind="multilabel", split="train")
    said = []
    found = measured(tmp_path, tmp_path / "b", measures=measures, train=True, said=said)
    assert any(
        f"no probe can name classes without a picture in the train split: {CLASSES[1]}" in line
        for line in said
    )
    table = found.tables["Average precision by class"]
    share = targets_of(pictures[1])[:, 1].mean()
    assert table[CLASSES[1]]["average precision"] == pytest.approx(share)
    assert json.dumps(found.figures)
