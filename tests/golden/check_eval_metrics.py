"""Our figures for what make_eval_metrics.py gave to the peers, under the same names."""

import numpy as np

from clip_jax.eval import classification, compositional, fairness, metrics, shifts


def figures(given):
    classes, groups = len(given["classifier"]), [str(g) for g in range(given["groups"].max() + 1)]
    labels, predicted = given["labels"], given["predicted"]
    right = predicted == labels
    ranks = metrics.class_ranks(given["images"], given["classifier"], labels)
    to_text, to_image = metrics.retrieval_ranks(given["images"], given["texts"], given["owner"])
    confusion = classification.confusion_matrix(predicted, labels, classes)
    cosines = given["images"].astype(np.float64) @ given["classifier"].T
    by_group = fairness.by_group(right, given["groups"], groups)
    jaccard = compositional.winogavil(
        given["cues"], given["candidates"], given["cue_of_candidate"], given["associated"]
    )
    recalls = {
        f"{name}_retrieval_recall@{k}": metrics.hit_rate(found, k)
        for name, found in (("image", to_image), ("text", to_text))
        for k in (1, 5, 10)
    }
    return {
        "acc1": metrics.hit_rate(ranks, 1),
        "acc5": metrics.hit_rate(ranks, 5),
        "mean_per_class_recall": metrics.mean_per_class_recall(ranks, labels),
        "average_precision": classification.average_precision(cosines, given["targets"]),
        "tied_average_precision": classification.average_precision(given["tied"], given["targets"]),
        "confusion_matrix": confusion,
        "macro_f1": classification.macro_f1(confusion),
        "present_macro_f1": shifts.present_macro_f1(predicted, labels, classes),
        "jaccard": jaccard.jaccard,
        "equalized_odds_difference": fairness.equalized_odds_difference(
            given["chosen"], given["truth"], given["groups"], groups
        ),
        "accuracy_by_group": by_group.means,
        "worst_group_accuracy": by_group.worst[1],
        "largest_gap": by_group.gap,
        **recalls,
    }
