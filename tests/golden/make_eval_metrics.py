"""What clip_benchmark, scikit-learn and fairlearn measure on small drawn embeddings and answers.

Writes eval_metrics.npz beside this file: what was given, and each of their figures. Needs torch,
clip_benchmark, scikit-learn and fairlearn: `python -m tests.golden.make_eval_metrics` from the
root of the repository.
"""

import pathlib
import warnings

import numpy as np

IMAGES, CLASSES, GROUPS = 60, 9, 4
CANDIDATES = (5, 6, 10, 12)


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def given(seed):
    """Embeddings without ties, answers with many; class 4 has no sample, yet is predicted."""
    rng = np.random.default_rng(seed)
    classifier, labels = unit(rng.normal(size=(CLASSES, 8))), rng.integers(CLASSES - 1, size=IMAGES)
    labels[labels == 4] = CLASSES - 1
    images = unit(classifier[labels] + rng.normal(size=(IMAGES, 8)) * 0.6)
    owner = np.concatenate([np.arange(IMAGES), rng.integers(IMAGES, size=2 * IMAGES)])
    targets = rng.random((IMAGES, CLASSES)) < 0.3
    targets[rng.permutation(IMAGES)[:CLASSES], np.arange(CLASSES)] = True
    predicted = np.where(rng.random(IMAGES) < 0.5, labels, rng.integers(CLASSES, size=IMAGES))
    predicted[:3] = 4
    cues = np.repeat(np.arange(20), np.resize(CANDIDATES, 20))
    associated = rng.random(len(cues)) < 0.4
    associated[np.searchsorted(cues, np.arange(20))] = True
    return {
        "images": images,
        "classifier": classifier,
        "labels": labels,
        "texts": unit(images[owner] + rng.normal(size=(len(owner), 8)) * 0.5),
        "owner": owner,
        "targets": targets,
        "tied": np.round(4 * (targets + rng.normal(size=targets.shape))) / 4,
        "predicted": predicted,
        "groups": rng.integers(GROUPS, size=IMAGES),
        "chosen": rng.random(IMAGES) < 0.4,
        "truth": np.arange(IMAGES) % 2 == 0,
        "cues": unit(rng.normal(size=(20, 8))),
        "candidates": unit(rng.normal(size=(len(cues), 8))),
        "cue_of_candidate": cues,
        "associated": associated,
    }


def answers(given):
    """Their figures, by name."""
    with warnings.catch_warnings():
        # That a class was predicted which has no sample: as intended.
        warnings.filterwarnings("ignore", "y_pred contains classes not in y_true")
        return {**_clip_benchmark(given), **_scikit_learn(given), **_fairlearn(given)}


def _clip_benchmark(given):
    import torch
    from clip_benchmark.metrics import zeroshot_classification, zeroshot_retrieval

    tensors = {name: torch.from_numpy(given[name]) for name in ("images", "texts", "classifier")}
    logits = 100.0 * tensors["images"] @ tensors["classifier"].T
    targets = torch.from_numpy(given["targets"]).long()
    areas = zeroshot_classification.average_precision_per_class(logits, targets)
    found = {"average_precision": areas.numpy()}
    scores = tensors["texts"] @ tensors["images"].T
    pairs = torch.zeros_like(scores, dtype=torch.bool)
    pairs[torch.arange(len(scores)), torch.from_numpy(given["owner"])] = True
    for k in (1, 5, 10):
        for name, rows, own in (("image", scores, pairs), ("text", scores.T, pairs.T)):
            hits = zeroshot_retrieval.recall_at_k(rows, own, k) > 0
            found[f"{name}_retrieval_recall@{k}"] = hits.double().mean().item()
    return found


def _scikit_learn(given):
    from sklearn import metrics

    labels, predicted = given["labels"], given["predicted"]
    cosines = given["images"].astype(np.float64) @ given["classifier"].T
    known = range(CLASSES)
    jaccard, cues = [], given["cue_of_candidate"]
    for cue, embedding in enumerate(given["cues"]):
        truth = given["associated"][cues == cue]
        order = np.argsort(given["candidates"][cues == cue] @ embedding)
        chosen = np.isin(np.arange(len(truth)), order[-truth.sum() :])
        jaccard.append(metrics.jaccard_score(truth, chosen))
    return {
        # clip_benchmark's own `accuracy` does not run under numpy 2.4; it is this.
        "acc1": metrics.top_k_accuracy_score(labels, cosines, k=1, labels=known),
        "acc5": metrics.top_k_accuracy_score(labels, cosines, k=5, labels=known),
        "mean_per_class_recall": metrics.balanced_accuracy_score(labels, cosines.argmax(axis=1)),
        "tied_average_precision": metrics.average_precision_score(
            given["targets"], given["tied"], average=None
        ),
        "confusion_matrix": metrics.confusion_matrix(labels, predicted, labels=known),
        "macro_f1": metrics.f1_score(labels, predicted, average="macro"),
        # As WILDS asks for it.
        "present_macro_f1": metrics.f1_score(
            labels, predicted, average="macro", labels=np.unique(labels)
        ),
        # As DataComp asks for it.
        "jaccard": np.array(jaccard),
    }


def _fairlearn(given):
    from fairlearn.metrics import MetricFrame, equalized_odds_difference
    from sklearn.metrics import accuracy_score

    right = {"y_true": given["labels"], "y_pred": given["predicted"]}
    frame = MetricFrame(metrics=accuracy_score, **right, sensitive_features=given["groups"])
    return {
        "equalized_odds_difference": equalized_odds_difference(
            given["truth"].astype(int),
            given["chosen"].astype(int),
            sensitive_features=given["groups"],
        ),
        "accuracy_by_group": frame.by_group.to_numpy(np.float64),
        "worst_group_accuracy": frame.group_min(),
        "largest_gap": frame.difference(),
    }


def main():
    """Write one set of each."""
    drawn = given(0)
    golden = {f"given/{name}": value for name, value in drawn.items()}
    golden |= {f"answer/{name}": value for name, value in answers(drawn).items()}
    path = pathlib.Path(__file__).with_name("eval_metrics.npz")
    np.savez_compressed(path, **golden)


if __name__ == "__main__":
    main()
