"""Outcomes as an evaluation writes them, made up: for tests of what is drawn and compared."""

import numpy as np
from PIL import Image, ImageDraw

from clip_jax.eval.outcome import Outcome, save

PAINTS = ((200, 60, 50), (50, 130, 70), (60, 80, 190), (220, 180, 40), (130, 60, 150))


def thumbnail(number, side):
    """A picture that no other number has: a coloured shape on a ground."""
    image = Image.new("RGB", (side, side), PAINTS[number % 5])
    draw = ImageDraw.Draw(image)
    place = (number * 7) % (side // 2)
    draw.ellipse(
        (place, place // 2, place + side // 3, place // 2 + side // 2),
        fill=PAINTS[(number + 2) % 5],
    )
    return np.asarray(image)


def classification(
    key, dataset, names, *, n=400, skill=2.0, seed=0, side=32, main="acc1", skipped=()
):
    """Labels depend on the key alone: models, which are seeds, share them."""
    classes = len(names)
    labels = np.random.default_rng(len(key)).integers(classes, size=n)
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, classes))
    logits[np.arange(n), labels] += skill * (0.4 + np.arange(classes) / classes)[labels]
    logits[np.arange(n), (labels + 1) % classes] += skill / 3
    odds = np.exp(2 * logits)
    odds /= odds.sum(axis=1, keepdims=True)
    top = np.argsort(-odds, axis=1, kind="stable")[:, :5]
    right = top[:, 0] == labels
    recalls = [right[labels == k].mean() for k in np.unique(labels)]
    confidence = odds.max(axis=1)
    wrong = np.flatnonzero(~right)
    rows = wrong[np.argsort(-confidence[wrong], kind="stable")][:12]
    hits = (top == labels[:, None]).any(axis=1)
    return Outcome(
        key=key,
        dataset=dataset,
        task="zero_shot",
        main=main,
        figures={
            "acc1": float(right.mean()),
            "acc5": float(hits.mean()),
            "mean_per_class_recall": float(np.mean(recalls)),
        },
        skipped=tuple(skipped),
        arrays={
            "keys": np.array([f"0/s{i:07d}" for i in range(n)]),
            "class_names": np.array(names),
            "labels": labels,
            "top": top,
            "confidence": confidence,
            "credit/acc1": right.astype(float),
            "credit/acc5": hits.astype(float),
            "pictures": np.stack([thumbnail(int(i), side) for i in rows]),
            "picture_rows": rows,
        },
    )


def grouped(key="fairness/geode", dataset="GeoDE", *, seed=0, skill=1.5):
    """Accuracy by region, the worst of which is the main figure."""
    regions = ("Africa", "Americas", "East Asia", "Europe", "Southeast Asia", "West Asia")
    one = classification(
        key, dataset, [f"thing {i}" for i in range(40)], n=600, seed=seed, skill=skill, side=96
    )
    region = np.random.default_rng(5).integers(len(regions), size=600)
    right = one.arrays["credit/acc1"]
    means = {name: float(right[region == g].mean()) for g, name in enumerate(regions)}
    rows = {
        name: {"accuracy": mean, "count": float((region == g).sum())}
        for g, (name, mean) in enumerate(means.items())
    }
    return Outcome(
        key=key,
        dataset=dataset,
        task="zero_shot",
        main="acc_wg",
        figures={"acc_wg": min(means.values()), "acc_avg": float(right.mean())},
        tables={"By region": rows},
        arrays={
            **one.arrays,
            "group/region": region,
            "group_names/region": np.array(regions),
        },
    )


def retrieval(key, dataset, captions, *, seed=0, skill=0.6, side=96, each=2):
    """`each` captions a picture, in order."""
    rng = np.random.default_rng(seed)
    m, n = len(captions), len(captions) // each
    owner = np.repeat(np.arange(n), each)
    scores = rng.normal(size=(n, m)) * 0.4
    scores[owner, np.arange(m)] += skill
    to_image = np.argsort(-scores.T, axis=1, kind="stable")[:, :5]
    to_text = np.argsort(-scores, axis=1, kind="stable")[:, :5]
    own = scores[owner, np.arange(m)]
    others = np.where(owner == np.arange(n)[:, None], -np.inf, scores)
    ranks = {
        "image_retrieval": (others >= own).sum(axis=0),
        "text_retrieval": (others >= np.maximum.reduceat(own, np.arange(0, m, each))[:, None]).sum(
            axis=1
        ),
    }
    found_image, found_text = ((one < 1).astype(float) for one in ranks.values())
    asked, shown = np.arange(0, m, max(1, m // 6))[:6], np.arange(0, n, max(1, n // 6))[:6]
    rows = np.unique(np.concatenate([to_image[asked].ravel(), shown]))
    figures = {
        "image_retrieval_recall@1": float(found_image.mean()),
        "text_retrieval_recall@1": float(found_text.mean()),
        "mean_recall@1": float((found_image.mean() + found_text.mean()) / 2),
        **{f"{way}_median_rank": float(np.median(one)) + 1 for way, one in ranks.items()},
    }
    return Outcome(
        key=key,
        dataset=dataset,
        task="retrieval",
        main="mean_recall@1",
        figures=figures,
        arrays={
            "keys": np.array([f"0/s{i:07d}" for i in range(n)]),
            "captions": np.array(captions),
            "image_of_text": owner,
            "to_image/queries": asked,
            "to_image/found": to_image[asked],
            "to_text/queries": shown,
            "to_text/found": to_text[shown],
            "credit/image_retrieval_recall@1": found_image,
            "credit/text_retrieval_recall@1": found_text,
            **{f"rank/{way}": one.astype(np.uint8) for way, one in ranks.items()},
            "pictures": np.stack([thumbnail(int(i), side) for i in rows]),
            "picture_rows": rows,
        },
    )


def write(folder, *found):
    """As a suite does; the folder of the evaluation."""
    for one in found:
        save(one, folder / "results", {"weights": "none"})
    return folder
