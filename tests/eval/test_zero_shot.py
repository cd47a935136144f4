import numpy as np
import pytest

from clip_jax.config import from_data, to_data
from clip_jax.data import Folder
from clip_jax.eval.zero_shot import ZeroShot, classifier, classify

NAMES = ("red", "green", "blue", "yellow", "violet", "white")


def test_figures_of_a_model_that_sees_colours(toy):
    entries = [toy.sample(name, label=label) for label, name in enumerate(NAMES)]
    entries += [toy.sample("red", f"again {n}", label=0) for n in range(3)]
    entries += [toy.sample("red", "mislabelled", label=1)]
    dataset = toy.dataset({"test": entries}, NAMES)
    figures = dict(ZeroShot(split="test").run(dataset, toy.embedder()))
    assert figures == {
        "acc1": pytest.approx(9 / 10),
        "acc5": 1.0,
        "mean_per_class_recall": pytest.approx((5 + 1 / 2) / 6),
    }


def test_its_own_names_and_data_go_before_those_of_the_run(toy, monkeypatch):
    entries = {"test": [toy.sample("blue", label=1), "sample 1: broken"]}
    own = toy.dataset(entries, ("no", "names"))
    monkeypatch.setattr(Folder, "open", lambda self, split: own.open(split))
    evaluation = ZeroShot(split="test", class_names=("red", "blue"), data=Folder(root="own"))
    assert from_data(ZeroShot, to_data(evaluation)) == evaluation
    embedder = toy.embedder(warn=lambda message: None)
    figures = dict(evaluation.run(toy.dataset({}), embedder))
    assert figures == {"acc1": 1.0, "mean_per_class_recall": 1.0, "skipped": 1.0}


def test_a_class_without_a_sample_is_a_candidate_but_not_in_the_mean(toy):
    dataset = toy.dataset({"test": [toy.sample("red", label=1), toy.sample("green", label=2)]})
    evaluation = ZeroShot(split="test", class_names=("red", "blue", "green"))
    figures = dict(evaluation.run(dataset, toy.embedder()))
    assert figures == {"acc1": 0.5, "mean_per_class_recall": 0.5}


def test_classes_of_one_name_cannot_be_right_and_are_told(toy):
    told = []
    entries = [toy.sample("red", label=0), toy.sample("blue", label=2)]
    dataset = toy.dataset({"test": entries}, ("red", "red", "blue"))
    figures = dict(ZeroShot(split="test").run(dataset, toy.embedder(warn=told.append)))
    assert figures["acc1"] == 0.5
    assert told == [
        "split 'test': class names that stand for several classes ['red']; "
        "no picture of these can count as right"
    ]


def test_the_classifier_is_the_scaled_mean_of_unit_prompt_embeddings():
    rows = {"a red.": [3, 0], "the red": [0, 0.5], "a {x}.": [0, 2], "the {x}": [0, 9]}

    def embed(texts):
        return np.array([rows[text] for text in texts], np.float32)

    expected = [[0.5**0.5, 0.5**0.5], [0, 1]]
    weights = classifier(embed, ("red", "{x}"), ("a {}.", "the {c}"))
    np.testing.assert_allclose(weights, expected, rtol=1e-6)


def test_probabilities_are_a_softmax_over_classes(toy):
    embedder = toy.embedder()
    weights = classifier(embedder.texts, NAMES, ("{}",))
    images = embedder.images([toy.sample(name).image for name in ("blue", "white")])
    odds = classify(images, weights, scale=20.0)
    assert odds.argmax(axis=1).tolist() == [2, 5]
    np.testing.assert_allclose(odds.sum(axis=1), 1.0)
    ratio = np.exp(20.0 * (images[0] @ weights[2] - images[0] @ weights[0]))
    assert odds[0, 2] / odds[0, 0] == pytest.approx(ratio, rel=1e-4)
    assert np.isfinite(classify(images, weights, scale=1e6)).all()


@pytest.mark.parametrize("good", ["{}", "{c}", "a {} with {{braces}}", "{c}, a thing"])
def test_one_placeholder_is_right(good):
    assert ZeroShot(split="x", templates=(good,)).templates == (good,)


@pytest.mark.parametrize(
    "bad, fault",
    [
        ("a photo", "'a photo' has none"),
        ("", "'' has none"),
        ("{{}}", "'{{}}' has none"),
        ("{} and {}", "'{} and {}' has 2: {}, {}"),
        ("{c} or {}", "'{c} or {}' has 2: {c}, {}"),
        ("a {name}", "'a {name}' has {name}"),
        ("a {0}", "'a {0}' has {0}"),
        ("a {c!r:>9}", "'a {c!r:>9}' has {c!r:>9}"),
        ("a {", "'a {' cannot be read (Single '{' encountered in format string)"),
    ],
)
def test_other_templates_are_named(bad, fault):
    with pytest.raises(ValueError) as error:
        ZeroShot(split="x", templates=("a {}", bad, "x"))
    assert str(error.value) == (
        f"a template holds exactly one placeholder, {{}} or {{c}}, but {fault}; 'x' has none"
    )


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"templates": ()}, "at least one template is needed, such as 'a photo of a {}.'"),
        ({"every_steps": 0}, "every_steps must be at least 1, got 0"),
    ],
)
def test_a_config_checks_itself(changes, message):
    with pytest.raises(ValueError) as error:
        ZeroShot(split="x", **changes)
    assert str(error.value) == message


@pytest.mark.parametrize(
    "names, message",
    [
        ((), "a classifier needs at least one class name"),
        (("a", " ", "b", ""), "empty class names: those of classes [1, 3]"),
    ],
)
def test_class_names_must_say_something(toy, names, message):
    with pytest.raises(ValueError) as error:
        classifier(toy.embedder().texts, names, ("{}",))
    assert str(error.value) == message


def test_prompts_that_cancel_out_are_an_error():
    def embed(texts):
        return np.array([[1, 0] if text.startswith("a") else [-1, 0] for text in texts], "f4")

    message = "1 of 1 embeddings of classes are NaN, infinite or zero; the first is row 0"
    with pytest.raises(ValueError, match=f"^{message}$"):
        classifier(embed, ("x",), ("a {}", "no {}"))


@pytest.mark.parametrize(
    "labels, names, message",
    [
        (
            (0, 2, -1),
            ("red", "green"),
            "split 'test': 2 of 3 labels are not among the 2 classes (0 to 1); "
            "the first is 2 of sample 'k1'",
        ),
        (
            (0, 1, 1),
            (),
            "split 'test' has no class names: give them as class_names, or choose a split that has",
        ),
        (
            (None, None),
            ("red",),
            "split 'test' holds no usable sample; 2 left out: "
            "sample 'k0': it has no label; sample 'k1': it has no label",
        ),
        ((), ("red",), "split 'test' holds no usable sample"),
    ],
)
def test_a_split_that_cannot_be_classified_says_why(toy, labels, names, message):
    entries = [toy.sample("red", f"k{n}", label=label) for n, label in enumerate(labels)]
    with pytest.raises(ValueError) as error:
        dict(ZeroShot(split="test").run(toy.dataset({"test": entries}, names), toy.embedder()))
    assert str(error.value) == message
