import dataclasses
import functools
import io
import pathlib
import runpy
import types

import numpy as np
import pytest
from PIL import Image

from clip_jax.eval.cache import Cache
from clip_jax.eval.measure_ensemble import MODELS, ensemble, joined
from clip_jax.eval.once import Embeddings

sets = types.SimpleNamespace(**runpy.run_path(str(pathlib.Path(__file__).parent / "standins.py")))
CLASSES, KEYS = sets.CLASSES, ("mnist", "stl10")
SAMPLES = {"mnist": sets.labelled(23, 6), "stl10": sets.labelled(9, 3, seed=3)}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("root")
    for key, samples in SAMPLES.items():
        sets.wds(root / key, samples, classes=CLASSES[: 6 if key == "mnist" else 3])
    return root


@pytest.fixture(scope="module")
def models():
    """Two that see other things, at other temperatures."""
    first = sets.model()
    look = dataclasses.replace(first.embedder, image_fn=lambda images: sets.feel(images)[:, 2:])
    return {"a": first, "b": dataclasses.replace(first, embedder=look, weights="v", scale=5.0)}


def measured(root, models, tmp_path, by="probability", keys=KEYS):
    cache = Cache(folder=tmp_path / "cache", limit=10**9)
    said = []
    members = {name: Embeddings(model, cache, said.append) for name, model in models.items()}
    marks = joined(models)
    told = {name: getattr(marks, name) for name in ("weights", "preprocessing", "tokenizer")}
    measure = functools.partial(ensemble, members=members, by=by)
    return sets.run(root, keys, tmp_path / by, measures={"zero_shot": measure}, **told)


def logits(key):
    """Of each model, by hand, and the labels."""
    pixels = [np.asarray(Image.open(io.BytesIO(s["png"])).convert("RGB")) for s in SAMPLES[key]]
    classes = CLASSES[: 6 if key == "mnist" else 3]
    weights = sets.prototypes(classes, ("a {c}.", "{c}"))
    looks = {"a": (sets.look, 20.0), "b": (lambda p: sets.feel(p)[:, 2:], 5.0)}
    found = {
        name: scale * sets.unit(look(np.stack(pixels))) @ weights.T
        for name, (look, scale) in looks.items()
    }
    return found, np.array([int(s["cls"]) for s in SAMPLES[key]])


def softmax(rows):
    odds = np.exp(rows)
    return odds / odds.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("by", ["probability", "logits"])
def test_answers_are_averaged(root, models, tmp_path, by):
    report = measured(root, models, tmp_path, by)
    assert not report.failures
    answers = set()
    for key in KEYS:
        each, labels = logits(key)
        if by == "logits":
            odds = softmax((each["a"] + each["b"]) / 2)
        else:
            odds = (softmax(each["a"]) + softmax(each["b"])) / 2
        found = report.outcomes[key]
        np.testing.assert_array_equal(found.arrays["top"], np.argsort(-odds, axis=1)[:, :5])
        np.testing.assert_allclose(found.arrays["confidence"], odds.max(axis=1), atol=1e-5)
        assert found.figures["acc1"] == np.mean(odds.argmax(axis=1) == labels)
        alone = {name: np.mean(rows.argmax(axis=1) == labels) for name, rows in each.items()}
        assert {n: row["acc1"] for n, row in found.tables[MODELS].items()} == alone
        assert found.figures["acc1_best_single"] == max(alone.values())
        gain = found.figures["acc1"] - max(alone.values())
        assert found.figures["acc1_gain"] == pytest.approx(gain)
        answers |= {tuple(odds.argmax(axis=1)), *(tuple(r.argmax(axis=1)) for r in each.values())}
    assert len(answers) > 2 * len(KEYS)  # Neither model alone decides.


def test_small_shares_are_told_apart(root, models, tmp_path):
    """At a low temperature the fifth class has less than any tie is wide."""
    sure = {name: dataclasses.replace(model, scale=300.0) for name, model in models.items()}
    found = measured(root, sure, tmp_path, keys=("mnist",)).outcomes["mnist"]
    each, labels = logits("mnist")
    odds = softmax(each["a"] * 15) + softmax(each["b"] * 60)
    five = np.argsort(-odds, axis=1)[:, :5]
    assert found.figures["acc5"] == np.mean((five == labels[:, None]).any(axis=1))
    assert np.sort(odds, axis=1)[:, 1].min() < 1e-9


def test_equal_models_gain_nothing(root, models, tmp_path):
    twins = {"a": models["a"], "again": models["a"]}
    for found in measured(root, twins, tmp_path).outcomes.values():
        assert found.figures["acc1_gain"] == 0


def test_marks_tell_which_models_they_are(models):
    both = joined(models)
    again = joined({"x": models["a"], "y": models["b"]})
    twice = joined({"x": models["a"], "y": models["a"]})
    assert both.weights == again.weights
    assert len({both.weights, twice.weights, models["a"].weights}) == 3


def test_pictures_that_one_model_cannot_read_are_told(root, models, tmp_path):
    first = models["a"].embedder
    seen = []

    def prepare(image):
        seen.append(image)
        if len(seen) == 4:
            raise ValueError("too strange")
        return first.prepare(image)

    odd = dataclasses.replace(models["b"], embedder=dataclasses.replace(first, prepare=prepare))
    report = measured(root, {"a": models["a"], "b": odd}, tmp_path, keys=("stl10",))
    assert report.failures["stl10"].startswith(
        f"{root / 'stl10'}: 1 pictures can be read by some of the models only; the first is '"
    )
