import collections.abc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.eval import ensemble


def odds(rng, rows=8, classes=3):
    found = rng.random((rows, classes))
    return found / found.sum(axis=1, keepdims=True)


def test_an_average_is_weighted_and_stays_a_probability():
    rng = np.random.default_rng(0)
    answers = [odds(rng) for _ in range(3)]
    np.testing.assert_allclose(ensemble.average(answers), np.mean(answers, axis=0))
    found = ensemble.average(answers, [1.0, 0.0, 3.0])
    np.testing.assert_allclose(found, 0.25 * answers[0] + 0.75 * answers[2])
    np.testing.assert_allclose(found.sum(axis=1), 1)
    np.testing.assert_allclose(ensemble.average(answers, [2.0, 0.0, 6.0]), found)
    np.testing.assert_array_equal(ensemble.average(answers[:1]), answers[0])
    mixed = ensemble.average([answers[0].astype("f4"), answers[1]])
    assert mixed.dtype == np.float64


def test_averaged_logits_are_the_geometric_mean():
    rng = np.random.default_rng(1)
    answers = [odds(rng) for _ in range(3)]
    found = np.exp(ensemble.average([np.log(a) for a in answers]))
    expected = np.prod(answers, axis=0) ** (1 / 3)
    np.testing.assert_allclose(found, expected)


@pytest.mark.parametrize(
    "shapes, weights, message",
    [
        ([], None, "an ensemble needs at least one model's answers"),
        ([(2, 3), (2, 4)], None, r"models answered in different shapes: \[\(2, 3\), \(2, 4\)\]"),
        ([(2, 3)] * 2, [1.0], r"2 models need as many weights, .*; got \[1.0\]"),
        ([(2, 3)] * 2, [2.0, -1.0], r"2 models need as many weights, .*; got \[2.0, -1.0\]"),
        ([(2, 3)] * 2, [0.0, 0.0], r"2 models need as many weights, .*; got \[0.0, 0.0\]"),
    ],
)
def test_answers_that_do_not_go_together_are_named(shapes, weights, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        ensemble.average([np.ones(shape) for shape in shapes], weights)


def model(value, dtype="f4"):
    return {"a": {"kernel": np.full((2, 3), value, dtype)}, "b": np.array([value, -value], dtype)}


def near(target):
    """The nearer the mean of all weights of `a`, the better."""
    return lambda params: -abs(float(np.mean(params["a"]["kernel"], dtype=np.float64)) - target)


def test_a_uniform_soup_is_the_mean():
    rng = np.random.default_rng(2)
    models = [jax.tree.map(lambda x: rng.normal(size=x.shape), model(0.0)) for _ in range(3)]
    found = ensemble.uniform_soup(models, near(0.0))
    expected = jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *models)
    jax.tree.map(np.testing.assert_allclose, found.params, expected)
    assert found.members == (0, 1, 2)
    assert found.alone == tuple(near(0.0)(m) for m in models)
    assert found.score == near(0.0)(found.params)
    assert found.gain == found.score - max(found.alone)


def test_a_greedy_soup_takes_what_does_not_harm_from_the_best_down():
    # Alone 0, -1, -2, -4; 4 with 5 is worse than 4; 4 with 2 too; only the twin stays.
    models = [model(v) for v in (5.0, 4.0, 2.0, 8.0, 4.0)]
    found = ensemble.greedy_soup(models, near(4.0))
    assert (found.members, found.score, found.gain) == ((1, 4), 0.0, 0.0)
    np.testing.assert_array_equal(found.params["b"], [4.0, -4.0])
    # 3 is the best alone; 6 brings the mean to the target; 0 brings it back to 3.
    found = ensemble.greedy_soup([model(v) for v in (0.0, 6.0, 3.0)], near(4.5))
    assert (found.members, found.score, found.gain) == ((1, 2), 0.0, 1.5)


def slow_greedy(models, evaluate):
    order = sorted(range(len(models)), key=lambda i: -evaluate(models[i]))
    members = order[:1]

    def score(chosen):
        return evaluate(jax.tree.map(lambda *x: np.mean(x, axis=0), *[models[i] for i in chosen]))

    for i in order[1:]:
        if score([*members, i]) >= score(members):
            members.append(i)
    return tuple(members), score(members)


@pytest.mark.parametrize("seed", range(5))
def test_a_greedy_soup_is_the_papers_recipe_and_never_worse_than_its_best(seed):
    rng = np.random.default_rng(seed)
    models = [model(float(v), "f8") for v in rng.normal(size=6)]
    found = ensemble.greedy_soup(models, near(0.1))
    members, score = slow_greedy(models, near(0.1))
    assert (found.members, found.score) == (members, pytest.approx(score))
    assert found.gain >= 0


@pytest.mark.parametrize("soup", [ensemble.uniform_soup, ensemble.greedy_soup])
def test_a_soup_of_one_or_of_twins_is_that_model(soup):
    params = model(0.1)
    for count in (1, 3):
        found = soup([params] * count, near(0.0))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found.params, params)
        assert found.members == tuple(range(count))


def test_half_precision_is_summed_in_single_and_keeps_its_type():
    models = [{"w": jnp.full(2, v, jnp.bfloat16)} for v in (256.0, 1.0, 1.0, 2.0)]
    found = ensemble.uniform_soup(models, lambda params: 0.0).params["w"]
    assert found.dtype == jnp.bfloat16
    # In bfloat16, 256 + 1 is 256: the sum would be 258 rather than 260.
    np.testing.assert_array_equal(found, jnp.full(2, 65.0, jnp.bfloat16))


def test_models_may_be_loaded_when_they_are_asked_for():
    class Lazy(collections.abc.Sequence):
        loads = 0

        def __len__(self):
            return 3

        def __getitem__(self, index):
            if not 0 <= index < 3:
                raise IndexError(index)
            Lazy.loads += 1
            return model(float(index))

    found = ensemble.greedy_soup(Lazy(), near(1.5))
    assert (found.members, found.score, found.alone) == ((1, 2), 0.0, (-1.5, -0.5, -0.5))
    assert Lazy.loads > 3  # More often than once each, so none was kept.


@pytest.mark.parametrize("soup", [ensemble.uniform_soup, ensemble.greedy_soup])
def test_models_of_another_architecture_are_told_by_all_that_differs(soup):
    other = {"a": {"kernel": np.ones((2, 4), "f4"), "bias": np.ones(1, "f2")}, "b": np.ones(2)}
    message = (
        r"^model 2 is of another architecture: a/bias is float16\[1\], but absent in the first; "
        r"a/kernel is float32\[2, 4\], but float32\[2, 3\] in the first; "
        r"b is float64\[2\], but float32\[2\] in the first$"
    )
    with pytest.raises(ValueError, match=message):
        soup([model(0.0), model(1.0), other], near(0.0))
    with pytest.raises(ValueError, match=r"^a soup needs at least one model$"):
        soup([], near(0.0))
