"""Probes of whole data sets beside scikit-learn's on features computed by hand."""

import functools
import io
import json
import pathlib
import runpy
import types

import jax
import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from clip_jax.eval import outcome, probe
from clip_jax.eval.measure_probe import PROBES, SEEDS

sets = types.SimpleNamespace(**runpy.run_path(str(pathlib.Path(__file__).parent / "standins.py")))
CLASSES, TRAIN, TEST = sets.CLASSES[:4], 60, 24


def drawn(count, seed):
    """Samples whose pictures tell their class, but not surely."""
    rng = np.random.default_rng(seed)
    motifs = np.random.default_rng(9).integers(0, 256, (len(CLASSES), sets.SIZE, sets.SIZE, 3))
    samples = []
    for row in range(count):
        label = row % len(CLASSES)
        noise = rng.integers(0, 256, motifs[0].shape)
        data = io.BytesIO()
        pixels = (0.4 * motifs[label] + 0.6 * noise).astype(np.uint8)
        Image.fromarray(pixels).save(data, "PNG")
        samples.append({"png": data.getvalue(), "cls": str(label)})
    return samples


def seen(samples, look=sets.feel):
    """Features of samples in the order of their shards, and their labels."""
    pixels = [np.asarray(Image.open(io.BytesIO(s["png"])).convert("RGB")) for s in samples]
    return look(np.stack(pixels)), np.array([int(s["cls"]) for s in samples])


@pytest.fixture(scope="module")
def splits():
    return drawn(TRAIN, 1), drawn(TEST, 2)


@pytest.fixture(scope="module")
def root(tmp_path_factory, splits):
    root = tmp_path_factory.mktemp("probes")
    sets.wds(root / "wds_mnist", splits[0], classes=CLASSES, split="train")
    sets.wds(root / "wds_mnist", splits[1], classes=CLASSES, shards=1)
    return root


def measured(root, tmp_path, name, *, key="mnist", projected=False, mesh=None, **more):
    measure = functools.partial(PROBES[name], projected=projected, mesh=mesh)
    report = sets.run(
        root, (key,), tmp_path / name, measures={"zero_shot": measure}, train=True, **more
    )
    assert not report.failures, report.failures
    return report.outcomes[key]


@pytest.fixture(scope="module")
def linear(root, tmp_path_factory):
    return measured(root, tmp_path_factory.mktemp("out"), "linear")


@pytest.mark.parametrize("projected", [False, True])
def test_a_linear_probe_is_scikit_learns(root, linear, splits, tmp_path, projected):
    found = measured(root, tmp_path, "linear", projected=True) if projected else linear
    look = (lambda images: sets.unit(sets.look(images))) if projected else sets.feel
    (train, labels), (test, own) = (seen(split, look) for split in splits)

    def fitted(rows, strength):
        solver = {"solver": "newton-cholesky", "tol": 1e-12, "max_iter": 1000}
        peer = LogisticRegression(C=1 / strength, **solver)
        return peer.fit(train[rows].astype(np.float64), labels[rows])

    kept, held = probe.hold_out(labels)
    tried = found.tables["Validation accuracy by strength of the penalty"]
    strengths = [s for s in probe.STRENGTHS if s >= 1e-2 and f"{s:.3g}" in tried]
    assert len(strengths) > 3
    for strength in strengths:
        expected = fitted(kept, strength).score(train[held].astype(np.float64), labels[held])
        assert tried[f"{strength:.3g}"]["acc1"] == pytest.approx(expected)
    strength = found.figures["strength"]
    assert found.figures["validation_acc1"] == tried[f"{strength:.3g}"]["acc1"]
    peer = fitted(np.arange(TRAIN), strength)
    odds = peer.predict_proba(test.astype(np.float64))
    assert found.figures["acc1"] == peer.score(test.astype(np.float64), own)
    assert found.figures["acc1"] > 0.5
    np.testing.assert_array_equal(found.arrays["top"][:, 0], odds.argmax(axis=1))
    np.testing.assert_allclose(found.arrays["confidence"], odds.max(axis=1), atol=1e-4)
    assert (found.task, found.main) == ("linear_probe", "acc1")


def test_neighbours_are_scikit_learns(root, splits, tmp_path):
    found = measured(root, tmp_path, "knn")
    (train, labels), (test, own) = (seen(split) for split in splits)
    peer = KNeighborsClassifier(
        n_neighbors=20,
        metric="cosine",
        weights=lambda distances: np.exp((1 - distances) / 0.07),
        algorithm="brute",
    ).fit(train.astype(np.float64), labels)
    odds = peer.predict_proba(test.astype(np.float64))
    assert found.figures["acc1"] == np.mean(odds.argmax(axis=1) == own)
    np.testing.assert_allclose(found.arrays["confidence"], odds.max(axis=1), atol=1e-5)
    assert {"calibration_error", "mean_per_class_recall"} < set(found.figures)


def test_few_shots_are_means_over_draws_of_so_many_pictures_a_class(splits, tmp_path):
    few, said = splits[0][:20], []
    sets.wds(tmp_path / "mnist", few, classes=CLASSES, split="train")
    sets.wds(tmp_path / "mnist", splits[1], classes=CLASSES, shards=1)
    found = measured(tmp_path, tmp_path, "few_shot", said=said)
    (train, labels), (test, own) = (seen(split) for split in (few, splits[1]))
    kept, held = probe.hold_out(labels)  # Four of the five pictures of each class.
    shots = [1, 2, 4]
    assert list(found.figures) == [f"acc1_{k}_shot{end}" for k in shots for end in ("", "_std")]
    assert found.main == "acc1_4_shot"
    assert any("no probes of 8, 16 pictures a class: beside the" in s for s in said)
    values = []
    for seed in SEEDS:  # The strengths are those of the pure function, which has its own test.
        rows = kept[probe.few_shot_rows(labels[kept], 2, seed)]
        parts = [probe.Labelled(features=train[r], labels=labels[r]) for r in (rows, held)]
        strength = probe.linear_probe(*parts, len(CLASSES), refit=False).probe.strength
        peer = LogisticRegression(C=1 / strength, solver="newton-cholesky", tol=1e-12)
        values.append(peer.fit(train[rows].astype(np.float64), labels[rows]).score(test, own))
    assert found.figures["acc1_2_shot"] == pytest.approx(np.mean(values))
    assert found.figures["acc1_2_shot_std"] == pytest.approx(np.std(values))


def test_eight_devices_give_what_one_gives(root, linear, tmp_path):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    found = measured(root, tmp_path, "linear", mesh=mesh)
    assert found.figures == pytest.approx(linear.figures, abs=1e-6)
    np.testing.assert_array_equal(found.arrays["top"], linear.arrays["top"])


def test_what_is_done_is_kept_and_features_are_embedded_once(root, tmp_path):
    counts, said = [], []
    measured(root, tmp_path, "linear", counts=counts)
    assert set(counts) == {"features"}
    asked = len(counts)
    measured(root, tmp_path, "linear", counts=counts, said=said)
    assert len(counts) == asked and any("done before" in line for line in said)
    measured(root, tmp_path, "knn", counts=counts)
    assert len(counts) == asked  # From the cache.
    measured(root, tmp_path / "more", "knn", projected=True, counts=counts)
    assert set(counts) == {"features", "images"}
    figures = json.loads((tmp_path / "linear" / "eval.json").read_text())
    assert figures["linear_probe/mnist/acc1"] == figures["aggregate/Average/mean"]


def test_another_train_split_is_another_outcome(root, splits, tmp_path):
    own = tmp_path / "root"
    sets.wds(own / "wds_mnist", splits[1], classes=CLASSES)
    sets.wds(own / "wds_mnist", splits[0][:40], classes=CLASSES, split="train")
    first = measured(own, tmp_path, "knn")
    sets.wds(own / "wds_mnist", splits[0][20:], classes=CLASSES, split="train")
    counts = []
    second = measured(own, tmp_path, "knn", counts=counts)
    assert len(counts) == 10  # The test split is as it was.
    assert not np.array_equal(first.arrays["confidence"], second.arrays["confidence"])


@pytest.mark.parametrize("name", ["linear", "knn"])
def test_classes_that_nothing_is_learned_of_are_told_and_never_answered(splits, tmp_path, name):
    train = [sample for sample in splits[0] if sample["cls"] != "1"]
    sets.wds(tmp_path / "mnist", train, classes=CLASSES, split="train")
    sets.wds(tmp_path / "mnist", splits[1], classes=CLASSES)
    said = []
    found = measured(tmp_path, tmp_path, name, said=said)
    assert any("cannot" not in s and f"train split: {CLASSES[1]}" in s for s in said)
    assert 1 not in found.arrays["top"][:, 0]
    own = found.arrays["labels"] == 1
    assert own.any() and not found.arrays["credit/acc1"][own].any()
    assert found.arrays["credit/acc1"][~own].any()


def test_splits_that_cannot_be_read_or_learned_are_told(splits, tmp_path):
    sets.wds(tmp_path / "mnist", splits[1], classes=CLASSES)
    sets.wds(tmp_path / "stl10", splits[1], classes=CLASSES)
    sets.wds(tmp_path / "stl10", splits[0][::4], classes=CLASSES, split="train")
    sets.wds(tmp_path / "gtsrb", splits[1], classes=CLASSES)
    sets.wds(tmp_path / "gtsrb", splits[0][:4], classes=CLASSES, split="train")
    sets.wds(tmp_path / "flickr8k", sets.captioned(3), kind="retrieval")
    sets.wds(tmp_path / "flickr8k", sets.captioned(3), kind="retrieval", split="train")
    measures = {"zero_shot": PROBES["linear"]}
    keys = ("mnist", "stl10", "gtsrb", "flickr8k")
    report = sets.run(tmp_path, keys, tmp_path / "out", measures=measures, train=True)
    assert report.failures == {
        "mnist": f"mnist: no train/nshards.txt in {tmp_path / 'mnist'}: a probe learns from that "
        "split, which the folders of CLIP_benchmark have and those of DataComp lack",
        "stl10": "at least 2 classes are needed, got 1",
        "gtsrb": "no class has two samples, so none can be held out for validation",
        "flickr8k": "flickr8k is a task of kind 'retrieval'; this is measured only on those of "
        "kind zero_shot",
    }


def test_samples_of_the_train_split_that_are_left_out_are_told(splits, tmp_path):
    train = [dict(sample) for sample in splits[0]]
    train[5]["png"] = b"none"
    sets.wds(tmp_path / "mnist", train, classes=CLASSES, split="train")
    sets.wds(tmp_path / "mnist", splits[1], classes=CLASSES)
    said = []
    found = measured(tmp_path, tmp_path, "knn", said=said)
    assert any(s.startswith("mnist: of the train split, 1 left out: sample '0/s") for s in said)
    assert not found.skipped


def test_outcomes_are_read_back(linear, root, tmp_path):
    found = measured(root, tmp_path, "knn")
    loaded = outcome.load(tmp_path / "knn" / "results", "mnist")
    assert (loaded.task, loaded.figures) == ("knn", found.figures)


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_a_validation_split_has_some_of_each_class_and_never_the_only_one(share):
    labels = np.repeat([0, 1, 2, 5], [10, 2, 1, 7])
    kept, held = probe.hold_out(labels, share=share)
    np.testing.assert_array_equal(np.sort(np.concatenate([kept, held])), np.arange(20))
    counts = np.bincount(labels[held], minlength=6)
    assert counts.tolist() == [int(10 * share), 1, 0, 0, 0, max(int(7 * share), 1)]
    fewer = labels != 1
    others = probe.hold_out(labels[fewer], share=share)[1]
    np.testing.assert_array_equal(np.flatnonzero(fewer)[others], held[labels[held] != 1])
    with pytest.raises(ValueError, match=r"^share must be above 0 and below 1, got 1.0$"):
        probe.hold_out(labels, share=1.0)
