"""Measures beside clip_benchmark's, scikit-learn's and fairlearn's, on more draws."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="make parity installs it")
zeroshot = pytest.importorskip("clip_benchmark.metrics.zeroshot_classification")
pytest.importorskip("fairlearn")

from sklearn.linear_model import LogisticRegression

from clip_jax.eval import classification
from clip_jax.eval.logistic import Regression
from tests.golden import check_eval_metrics, make_eval_metrics


@pytest.mark.parametrize("seed", range(1, 11))
def test_figures_equal_the_peers(seed):
    given = make_eval_metrics.given(seed)
    ours, theirs = check_eval_metrics.figures(given), make_eval_metrics.answers(given)
    assert set(ours) == set(theirs)
    for name, figure in theirs.items():
        np.testing.assert_allclose(ours[name], figure, rtol=0, atol=1e-6, err_msg=name)


def test_where_we_differ_from_clip_benchmark_on_purpose():
    scores, targets = np.array([[3.0, 1.0], [2.0, 2.0], [1.0, 3.0]]), np.zeros((3, 2), bool)
    targets[1, 0] = True
    areas = zeroshot.average_precision_per_class(
        torch.from_numpy(scores), torch.from_numpy(targets).long()
    )
    # A class without a positive sample counts as 0 with them, and not at all with us.
    assert areas.tolist() == [0.5, 0.0]
    assert classification.mean_average_precision(scores, targets) == 0.5
    # The first of equal scores is theirs; a tie is always wrong with us.
    same, labels = np.ones((4, 3)), np.zeros(4, int)
    assert (torch.from_numpy(same).argmax(axis=1).numpy() == labels).all()
    assert classification.accuracy(same, labels) == 0


@pytest.mark.parametrize("strength", [1e-3, 0.1, 3.16, 1e3])
def test_probes_of_many_classes_are_scikit_learns(strength):
    rng = np.random.default_rng(0)
    labels = np.arange(400) % 20
    centres = rng.normal(size=(20, 32))
    features = (centres[labels] + rng.normal(size=(400, 32))) * np.arange(1, 33) ** -0.8
    features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)
    peer = LogisticRegression(C=1 / strength, solver="lbfgs", tol=1e-9, max_iter=100_000)
    peer.fit(features[:300].astype(np.float64), labels[:300])
    found = Regression(features[:300], labels[:300], 20).solve(strength)
    expected = peer.predict_proba(features[300:].astype(np.float64))
    np.testing.assert_allclose(found.probabilities(features[300:]), expected, rtol=0, atol=1e-4)
    right = classification.accuracy(found.logits(features[300:]), labels[300:])
    assert right == peer.score(features[300:].astype(np.float64), labels[300:])
