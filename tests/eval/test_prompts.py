import itertools

import numpy as np
import pytest

from clip_jax.eval import metrics, prompts
from clip_jax.eval.zero_shot import classifier


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def drawn(seed=0, classes=5, templates=4, images=60):
    """Each template is the class with noise of its own, some with more than others."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(classes, 1, 6))
    noise = rng.normal(size=(classes, templates, 6)) * np.linspace(0.3, 1.5, templates)[:, None]
    labels = rng.integers(classes, size=images)
    pictures = unit(centres[labels, 0] + rng.normal(size=(images, 6)))
    return unit(centres + noise), pictures, labels


def accuracy(embeddings, images, labels):
    return float(np.mean((images @ embeddings.T).argmax(axis=1) == labels))


def test_each_template_scores_as_if_it_were_the_only_one():
    embeddings, images, labels = drawn()
    found = prompts.score_each(embeddings, images, labels)
    assert found.tolist() == [accuracy(embeddings[:, p], images, labels) for p in range(4)]
    assert len(set(found.tolist())) > 1


def test_an_ensemble_is_the_zero_shot_classifier_of_its_templates():
    embeddings, _, _ = drawn()
    names, templates = [str(k) for k in range(5)], ["a {}", "b {}", "c {}", "d {}"]
    table = {
        t.format(n): embeddings[k, p] for k, n in enumerate(names) for p, t in enumerate(templates)
    }

    def embed(texts):
        return np.stack([table[text] for text in texts])

    expected = classifier(embed, names, [templates[p] for p in (1, 3)])
    np.testing.assert_array_equal(prompts.ensemble(embeddings, (1, 3)), expected)
    np.testing.assert_array_equal(prompts.ensemble(embeddings, (3, 1)), expected)


@pytest.mark.parametrize("seed", range(4))
def test_every_step_takes_the_best_there_is(seed):
    embeddings, images, labels = drawn(seed)
    found = prompts.greedy(embeddings, images, labels)
    assert sorted(found.order) == [0, 1, 2, 3]
    for size in range(4):
        kept = found.order[:size]
        options = {
            p: accuracy(unit(embeddings[:, [*kept, p]].mean(axis=1)), images, labels)
            for p in range(4)
            if p not in kept
        }
        assert found.curve[size] == max(options.values())
        assert found.order[size] == min(p for p, v in options.items() if v == max(options.values()))
    assert found.curve[0] == max(prompts.score_each(embeddings, images, labels))


def test_the_best_set_is_the_smallest_of_the_best():
    selection = prompts.Selection(order=(2, 0, 1), curve=(0.5, 0.75, 0.75))
    assert selection.best == (2, 0)
    embeddings, images, labels = drawn()
    same = prompts.greedy(np.repeat(embeddings[:, :1], 3, axis=1), images, labels)
    assert (same.order, same.best, len(set(same.curve))) == ((0, 1, 2), (0,), 1)


def test_a_limit_ends_the_same_path_early():
    embeddings, images, labels = drawn(1)
    whole, two = (prompts.greedy(embeddings, images, labels, limit=n) for n in (None, 2))
    assert (two.order, two.curve) == (whole.order[:2], whole.curve[:2])
    for limit in (0, 5):
        message = rf"^limit must be in 1 to 4, the number of templates; got {limit}$"
        with pytest.raises(ValueError, match=message):
            prompts.greedy(embeddings, images, labels, limit=limit)


def test_another_measure_decides_otherwise():
    embeddings, images, labels = drawn(2)
    rare = labels == 0
    kept = np.concatenate([np.flatnonzero(rare)[:2], np.flatnonzero(~rare)])
    found = prompts.score_each(
        embeddings, images[kept], labels[kept], measure=metrics.mean_per_class_recall
    )
    for p, value in enumerate(found):
        given = (images[kept] @ embeddings[:, p].T).argmax(axis=1)
        recalls = [np.mean(given[labels[kept] == k] == k) for k in range(5)]
        assert value == pytest.approx(np.mean(recalls))
    plain = prompts.score_each(embeddings, images[kept], labels[kept])
    assert any(a != pytest.approx(b) for a, b in itertools.zip_longest(found, plain))


def test_prompts_that_cancel_are_an_error():
    embeddings, images, labels = drawn()
    embeddings = np.stack([embeddings[:, 0], -embeddings[:, 0]], axis=1)
    with pytest.raises(
        ValueError, match=r"^5 of 5 embeddings of classes are NaN, infinite or zero"
    ):
        prompts.greedy(embeddings, images, labels)
