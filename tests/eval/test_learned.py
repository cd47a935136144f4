import dataclasses
import re

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from clip_jax.config import from_data, to_data
from clip_jax.eval.groups import ByGroups
from clip_jax.eval.learned import LinearProbe, NearestNeighbours
from clip_jax.eval.suite import EvalConfig, Evaluator, run_evals, splits_of
from clip_jax.eval.zero_shot import ZeroShot

TRAIN, TEST, CLASSES = 40, 15, 5
EVALS = {
    "probe": LinearProbe(split="test"),
    "near": NearestNeighbours(split="test", k=3),
    "groups": ByGroups(split="test", groups=("first", "second")),
}


def feel(images):
    """Features that are not the embeddings: colours around their middle, and the squares."""
    colours = np.asarray(images)[:, 0, 0].astype(np.float32) / 255 - 0.5
    return np.concatenate([colours, colours**2], axis=1)


@pytest.fixture
def dataset(toy):
    """Pictures whose colour tells their class, but not surely."""
    names = list(toy.colours)[:CLASSES]

    def drawn(count, seed):
        rng = np.random.default_rng(seed)
        samples = []
        for row in range(count):
            label = row % CLASSES
            sample = toy.sample(names[label], key=f"{seed}-{row}", label=label)
            noise = rng.normal(0, 90, 3)
            colour = np.clip(sample.image + noise, 0, 255).astype(np.uint8)
            group = (int(rng.integers(9)), row % 2)
            samples.append(dataclasses.replace(sample, image=colour, numbers=group))
        return samples

    return toy.dataset({"train": drawn(TRAIN, 1), "test": drawn(TEST, 2)}, tuple(names))


@pytest.fixture
def embedder(toy):
    return toy.embedder(feature_fn=feel)


def features(dataset, split):
    """Of each sample, by hand, and the labels."""
    samples = dataset.splits[split]
    colours = np.stack([sample.image.mean((0, 1)).astype("u1") for sample in samples])
    rows = feel(colours[:, None, None].astype(np.float32)).astype(np.float64)
    return rows, np.array([sample.label for sample in samples])


@pytest.mark.parametrize("strength", [0.01, 1.0])
def test_a_probe_is_scikit_learns(dataset, embedder, strength):
    (train, labels), (test, own) = (features(dataset, split) for split in ("train", "test"))
    peer = LogisticRegression(C=1 / strength, solver="newton-cholesky", tol=1e-12)
    odds = peer.fit(train, labels).predict_proba(test)
    found = dict(LinearProbe(split="test", strength=strength).run(dataset, embedder))
    assert found["acc1"] == np.mean(odds.argmax(axis=1) == own)
    recalls = [np.mean(odds[own == k].argmax(axis=1) == k) for k in range(CLASSES)]
    assert found["mean_per_class_recall"] == pytest.approx(np.mean(recalls))
    assert found["acc5"] == 1.0
    assert 0.3 < found["acc1"] < 1


def test_a_swept_strength_is_told(dataset, embedder):
    found = dict(LinearProbe(split="test", strength=None).run(dataset, embedder))
    at = LinearProbe(split="test", strength=found["strength"])
    assert dict(at.run(dataset, embedder)) == {k: v for k, v in found.items() if k != "strength"}


@pytest.mark.parametrize("temperature", [None, 0.07])
def test_neighbours_are_scikit_learns(dataset, embedder, temperature):
    (train, labels), (test, own) = (features(dataset, split) for split in ("train", "test"))

    def weights(distances):
        return np.ones_like(distances) if temperature is None else np.exp(-distances / temperature)

    peer = KNeighborsClassifier(7, metric="cosine", weights=weights, algorithm="brute")
    votes = peer.fit(train, labels).predict_proba(test)
    mine = votes[np.arange(TEST), own][:, None]
    ranks = (votes >= mine - 1e-9).sum(axis=1) - 1  # A tie is a miss here.
    evaluation = NearestNeighbours(split="test", k=7, temperature=temperature)
    assert dict(evaluation.run(dataset, embedder))["acc1"] == np.mean(ranks == 0)
    many = NearestNeighbours(split="test", k=TRAIN + 1, temperature=None)
    assert dict(many.run(dataset, embedder))["acc1"] == 0  # All classes have as many votes.


@pytest.mark.parametrize("kind", [LinearProbe, NearestNeighbours])
def test_projected_ones_see_the_embeddings(dataset, toy, embedder, kind):
    blind = toy.embedder(feature_fn=lambda images: np.ones((len(images), 2), np.float32))
    assert dict(kind(split="test").run(dataset, blind))["acc1"] <= 1 / CLASSES
    found = dict(kind(split="test", projected=True).run(dataset, blind))
    assert found == dict(kind(split="test", projected=True).run(dataset, toy.embedder()))
    assert found["acc1"] > 1 / CLASSES
    with pytest.raises(ValueError, match=r"^this model tells no features before the projection"):
        dict(kind(split="test").run(dataset, toy.embedder()))


def test_samples_to_learn_from_are_spread_over_the_split(dataset, embedder, toy):
    few = LinearProbe(split="test", at_most=13)
    rows = np.linspace(0, TRAIN - 1, 13).astype(int)
    part = [dataset.splits["train"][row] for row in rows]
    same = toy.dataset({"part": part, "test": dataset.splits["test"]}, dataset.names)
    expected = dict(LinearProbe(split="test", learn_from="part").run(same, embedder))
    assert dict(few.run(dataset, embedder)) == expected
    assert dict(LinearProbe(split="test").run(dataset, embedder)) != expected


def test_accuracy_within_groups_is_that_of_each_alone(dataset, toy):
    found = dict(
        ByGroups(split="test", groups=("a", "b", "none"), column=1).run(dataset, toy.embedder())
    )
    parts = {}
    for group, name in enumerate("ab"):
        own = [s for s in dataset.splits["test"] if s.numbers[1] == group]
        alone = toy.dataset({"test": own}, dataset.names)
        parts[name] = dict(ZeroShot(split="test").run(alone, toy.embedder()))["acc1"]
    whole = dict(ZeroShot(split="test").run(dataset, toy.embedder()))
    assert found == {
        "acc1": whole["acc1"],
        "acc1_a": parts["a"],
        "acc1_b": parts["b"],
        "acc1_worst": min(parts.values()),
        "acc1_gap": pytest.approx(max(parts.values()) - min(parts.values())),
    }
    assert found["acc1_gap"] > 0


def test_numbers_are_asked_for_where_a_source_must_be_asked(dataset, toy):
    class Asked(type(dataset)):
        def open(self, split):
            numbered = super().open(split)
            bare = [dataclasses.replace(s, numbers=()) for s in numbered.entries]
            source = toy.entries(bare)
            source.with_numbers = lambda: numbered
            return source

    evaluation = ByGroups(split="test", groups=("a", "b"), column=1)
    asked = Asked(dataset.splits, dataset.names)
    expected = dict(evaluation.run(dataset, toy.embedder()))
    assert dict(evaluation.run(asked, toy.embedder())) == expected


def test_groups_take_the_pictures_of_other_evaluations(dataset, toy):
    """Whatever comes first; and a number that is wrong changes no figure of theirs."""
    samples = dataset.splits["test"]
    right = [f"numbers of {s.key}" if row == 4 else s for row, s in enumerate(samples)]

    class Asked(type(dataset)):
        def open(self, split):
            source = toy.entries([dataclasses.replace(s, numbers=()) for s in samples])
            source.with_numbers = lambda: toy.entries(right)
            return source

    calls, told = [], []
    plain = toy.embedder()
    counting = toy.embedder(
        image_fn=lambda images: calls.append(1) or plain.image_fn(images), warn=told.append
    )
    asked = Asked(dataset.splits, dataset.names)
    evals = {
        "names": ZeroShot(split="test"),
        "groups": ByGroups(split="test", groups=("a", "b"), column=1),
        "other": ByGroups(split="test", groups=tuple("abcdefghi")),
    }
    alone = {}
    for name, evaluation in evals.items():
        alone |= run_evals({name: evaluation}, asked, toy.embedder(warn=[].append))
    for names in (list(evals), list(reversed(evals))):
        calls.clear(), told.clear()
        assert run_evals(evals, asked, counting, names) == alone
        assert len(calls) == -(-TEST // plain.batch)
        assert set(told) == {f"split 'test': 1 left out: {right[4]}"}
    assert "zero_shot/names/skipped" not in alone and alone["fairness/groups/skipped"] == 1
    kept = [sample for row, sample in enumerate(samples) if row != 4]
    without = toy.dataset({"test": kept}, dataset.names)
    expected = run_evals({"groups": evals["groups"]}, without, toy.embedder())
    assert {n: v for n, v in alone.items() if n in expected} == expected


def test_processes_together_read_the_numbers_of_all(dataset, toy, pair):
    class Asked(type(dataset)):
        def open(self, split):
            bare = [dataclasses.replace(s, numbers=()) for s in self.splits[split]]
            source = toy.entries(bare)
            source.with_numbers = lambda: toy.entries(["torn", *self.splits[split][1:]])
            return source

    asked = Asked(dataset.splits, dataset.names)
    evaluation = ByGroups(split="test", groups=("a", "b"), column=1)
    alone = dict(evaluation.run(asked, toy.embedder(warn=[].append)))
    found = pair(toy.embedder(warn=[].append), lambda _, one: dict(evaluation.run(asked, one)))
    assert found == [pytest.approx(alone, abs=1e-6)] * 2
    assert alone["skipped"] == 1


def test_flat_names_and_configs(dataset, embedder):
    some = {name: EVALS[name] for name in ("probe", "near")}
    names = set(run_evals(some, dataset, embedder))
    assert {"linear_probe/probe/acc1", "knn/near/mean_per_class_recall"} < names
    for evaluation in EVALS.values():
        assert isinstance(evaluation, Evaluator)
        assert from_data(EvalConfig, to_data(evaluation), "evals.x") == evaluation
    assert [splits_of(e) for e in EVALS.values()] == [("test", "train")] * 2 + [("test",)]


def test_samples_left_out_are_counted_and_told(dataset, toy):
    lines = []
    embedder = toy.embedder(feature_fn=feel, warn=lines.append)
    dataset.splits["test"][3] = "broken"
    dataset.splits["train"][4] = "broken, too"
    found = dict(LinearProbe(split="test").run(dataset, embedder))
    assert found["skipped"] == 1
    assert lines == [
        "split 'train': 1 left out: broken, too",
        "split 'test': 1 left out: broken",
    ]
    with pytest.raises(ValueError, match=r"^split 'test': 13 of 14 samples have no number 1 that"):
        for row, sample in enumerate(dataset.splits["test"]):
            if row not in (2, 3):
                dataset.splits["test"][row] = dataclasses.replace(sample, numbers=(0,))
        dict(ByGroups(split="test", groups=("a", "b"), column=1).run(dataset, embedder))


@pytest.mark.parametrize(
    ("split", "label", "message"),
    [
        ("train", 5, "split 'train': 1 of 40 labels are not among the 5 classes (0 to 4); the "),
        (
            "test",
            9,
            "split 'test': 1 of 15 labels are not among the 5 classes (0 to 4); the first ",
        ),
    ],
)
def test_labels_that_name_no_class_are_told(dataset, embedder, split, label, message):
    sample = dataset.splits[split][7]
    dataset.splits[split][7] = dataclasses.replace(sample, label=label)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        dict(NearestNeighbours(split="test").run(dataset, embedder))


def test_without_names_the_classes_are_those_that_are_there(dataset, embedder, toy):
    bare = toy.dataset(dataset.splits)
    expected = dict(LinearProbe(split="test").run(dataset, embedder))
    assert dict(LinearProbe(split="test").run(bare, embedder)) == expected


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LinearProbe(split="a", every_steps=0), "every_steps must be at least 1, got 0"),
        (lambda: LinearProbe(split="a", at_most=0), "at_most must be at least 1, or None, got 0"),
        (lambda: LinearProbe(split="a", strength=0.0), "strength must be above 0, or None, got 0"),
        (lambda: NearestNeighbours(split="a", k=0), "k must be at least 1, got 0"),
        (
            lambda: NearestNeighbours(split="a", temperature=0.0),
            "temperature must be above 0, or None, got 0.0",
        ),
        (lambda: ByGroups(split="a", groups=()), "groups must be one or more names, no two alike"),
        (
            lambda: ByGroups(split="a", groups=("x", "x", "a/b"), column=-1),
            "groups must be one or more names, no two alike, got ('x', 'x', 'a/b'); names of "
            "groups are not empty and have no slash: ['a/b']; column counts from 0 on, got -1",
        ),
        (lambda: ByGroups(split="a", groups=("x",), templates=("no",)), "a template holds exactly"),
    ],
)
def test_settings_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        make()
