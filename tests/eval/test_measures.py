import itertools
import json
import pathlib
import runpy
import types

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn import metrics as sklearn

from clip_jax.eval.compare import compare
from clip_jax.eval.example_sets import cue_prompt
from clip_jax.preprocess.recipe import Recipe

STANDINS = pathlib.Path(__file__).parent / "standins.py"
sets = types.SimpleNamespace(**runpy.run_path(str(STANDINS)))
CLASSES, captioned, one = sets.CLASSES, sets.captioned, sets.one
TEMPLATES = ("a {c}.", "{c}")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Three small sets."""
    return sets.three_sets(tmp_path_factory.mktemp("root"))


def scores(samples, classes, templates=TEMPLATES):
    images = np.stack([sets.see(sample["png"]) for sample in samples])
    return images @ sets.prototypes(classes, templates).T


def test_classification_equals_scikit_learn_on_the_same_embeddings(root, tmp_path):
    samples = sets.labelled(23, 5)
    labels = np.array([int(sample["cls"]) for sample in samples])
    logits = scores(samples, CLASSES)
    said = []
    found = one(root, "mnist", tmp_path, said=said)
    first = logits.argmax(1)
    shares = np.exp(20.0 * logits) / np.exp(20.0 * logits).sum(1, keepdims=True)
    sure, right = shares.max(1), first == labels
    bins = np.ceil(sure * 15).astype(int)
    gaps = [
        (bins == b).sum() * abs(right[bins == b].mean() - sure[bins == b].mean())
        for b in set(bins.tolist())
    ]
    assert found.figures == pytest.approx(
        {
            "acc1": sklearn.accuracy_score(labels, first),
            "acc5": sklearn.top_k_accuracy_score(labels, logits, k=5, labels=range(6)),
            "mean_per_class_recall": sklearn.recall_score(
                labels, first, average="macro", labels=sorted(set(labels.tolist()))
            ),
            "calibration_error": sum(gaps) / 23,
        },
        abs=1e-6,
    )
    assert (found.task, found.main, found.dataset) == ("zero_shot", "acc1", "MNIST")
    empty = "mnist: 1 of 6 classes have no sample, the first 'yak': they are not in the mean"
    assert any(line.startswith(empty) for line in said)
    arrays = found.arrays
    assert arrays["class_names"].tolist() == list(CLASSES)
    np.testing.assert_array_equal(arrays["labels"], labels)
    np.testing.assert_array_equal(arrays["top"], np.argsort(-logits, axis=1)[:, :5])
    np.testing.assert_allclose(arrays["confidence"], sure, atol=1e-6)
    for name in ("acc1", "acc5"):
        assert arrays[f"credit/{name}"].mean() == pytest.approx(found.figures[name])
    wrong = np.flatnonzero(~right)
    expected = wrong[np.argsort(-sure[wrong])][:24]
    np.testing.assert_array_equal(arrays["picture_rows"], expected)
    assert arrays["pictures"].shape == (len(expected), 96, 96, 3)
    thumbnail = Recipe(size=96)(samples[int(expected[0])]["png"])
    np.testing.assert_array_equal(arrays["pictures"][0], thumbnail)


def test_below_five_classes_there_is_no_acc5(root, tmp_path):
    found = one(root, "stl10", tmp_path)
    assert "acc5" not in found.figures
    line = json.loads((tmp_path / "out" / "eval_results.jsonl").read_text())
    assert line == {
        "key": "stl10",
        "dataset": "STL-10",
        "metrics": {**found.figures, "acc5": None, "main_metric": found.figures["acc1"]},
    }


def test_multilabel_is_the_mean_of_average_precisions(tmp_path):
    rng = np.random.default_rng(4)
    targets = rng.integers(0, 2, (17, 4))
    targets[:, 2] = 0
    samples = [{"png": sets.picture(i), "npy": sets.npy(row)} for i, row in enumerate(targets)]
    samples[5]["npy"] = sets.npy([[1]])
    sets.wds(tmp_path / "voc2007_multilabel", samples, classes=CLASSES[:4], kind="multilabel")
    said = []
    found = one(tmp_path, "voc2007_multilabel", tmp_path, said=said)
    kept = np.arange(17) != 5
    logits = scores(samples, CLASSES[:4])[kept]
    each = [
        sklearn.average_precision_score(targets[kept][:, k], logits[:, k]) if k != 2 else 0.0
        for k in range(4)
    ]
    assert found.figures == {"mean_average_precision": pytest.approx(np.mean(each), abs=1e-6)}
    assert len(found.skipped) == 1
    assert "voc2007_multilabel: classes without a picture, which count as 0: cow" in said
    table = found.tables["Average precision by class"]
    assert [row["average precision"] for row in table.values()] == pytest.approx(each)
    assert [row["pictures"] for row in table.values()] == targets[kept].sum(0).tolist()


def test_retrieval_has_the_figures_of_the_peer(root, tmp_path):
    samples = captioned(13)
    pairs = [(i, text) for i, s in enumerate(samples) for text in s["txt"].split("\n")]
    images = np.stack([sets.see(sample["png"]) for sample in samples])
    texts = np.stack([sets.say(text) for _, text in pairs])
    scores = texts @ images.T
    found = one(root, "flickr8k", tmp_path)
    expected, ranks = {}, {"image": [], "text": []}
    for t, (own, _) in enumerate(pairs):
        ranks["image"].append(int((scores[t] > scores[t, own]).sum()))
    for i in range(13):
        best = max(scores[t, i] for t, (own, _) in enumerate(pairs) if own == i)
        ranks["text"].append(int((scores[:, i] > best).sum()))
    for way, k in itertools.product(("image", "text"), (1, 5, 10)):
        expected[f"{way}_retrieval_recall@{k}"] = np.mean(np.array(ranks[way]) < k)
    for way in ranks:
        expected[f"{way}_retrieval_median_rank"] = np.median(ranks[way]) + 1
    both = [expected[f"{way}_retrieval_recall@1"] for way in ranks]
    expected["mean_recall@1"] = np.mean(both)
    assert found.figures == pytest.approx(expected, abs=1e-9)
    arrays = found.arrays
    assert arrays["captions"].tolist() == [text for _, text in pairs]
    assert arrays["image_of_text"].tolist() == [own for own, _ in pairs]
    for way in ranks:
        assert arrays[f"credit/{way}_retrieval_recall@5"].tolist() == [r < 5 for r in ranks[way]]
        assert arrays[f"rank/{way}_retrieval"].tolist() == ranks[way]
    (pairing,) = compare([found], [found])
    assert not [metric for metric in pairing.metrics if metric.interval is None]
    queries, rows = arrays["to_image/queries"], arrays["to_image/found"]
    np.testing.assert_array_equal(rows, np.argsort(-scores[queries], axis=1)[:, :5])
    queries, rows = arrays["to_text/queries"], arrays["to_text/found"]
    np.testing.assert_array_equal(rows, np.argsort(-scores.T[queries], axis=1)[:, :5])
    shown = {*arrays["to_image/found"].ravel().tolist(), *queries.tolist()}
    assert sorted(arrays["picture_rows"].tolist()) == sorted(shown)


def test_wilds_groups_are_named_and_counted_as_there(tmp_path):
    rng = np.random.default_rng(9)
    meta = np.stack([rng.choice([0, 1, 3, 5], 31), rng.integers(0, 3, 31), np.zeros(31, int)], 1)
    samples = sets.labelled(31, 3, seed=2, npy=lambda row: sets.npy(meta[row]))
    sets.wds(tmp_path / "wds_wilds-fmow_test", samples, classes=CLASSES[:3])
    found = one(tmp_path, "wilds/fmow", tmp_path)
    labels = np.array([int(sample["cls"]) for sample in samples])
    right = scores(samples, CLASSES[:3]).argmax(1) == labels
    expected = {"acc_avg": right.mean()}
    for column, field in enumerate(("region", "year")):
        values = meta[:, column]
        means = {}
        for value in range(values.max() + 1):
            expected[f"count_{field}:{value}"] = (values == value).sum()
            if (values == value).any():
                means[value] = right[values == value].mean()
                expected[f"acc_{field}:{value}"] = means[value]
        expected[f"acc_worst_{field}"] = min(means.values())
        expected[f"acc_gap_{field}"] = max(means.values()) - min(means.values())
        if field == "region":  # WILDS leaves out the last one, "Other".
            expected["acc_worst_region_wilds"] = min(means[value] for value in (0, 1, 3))
    plain = ("acc1", "mean_per_class_recall", "calibration_error")
    assert {k: v for k, v in found.figures.items() if k not in plain} == pytest.approx(expected)
    assert found.main_figure == found.figures["acc_worst_region"]
    assert list(found.tables["Accuracy by region"]) == ["Asia", "Europe", "Americas", "Other"]
    np.testing.assert_array_equal(found.arrays["group/year"], meta[:, 1])
    assert found.arrays["group_names/region"].tolist()[:2] == ["Asia", "Europe"]


def test_iwildcam_averages_over_the_classes_that_are_there(tmp_path):
    samples = sets.labelled(25, 4, seed=5, npy=lambda row: sets.npy([row] * 9))
    sets.wds(tmp_path / "wds_wilds-iwildcam_test", samples, classes=CLASSES)
    found = one(tmp_path, "wilds/iwildcam", tmp_path)
    labels = np.array([int(sample["cls"]) for sample in samples])
    first = scores(samples, CLASSES).argmax(1)
    there = sorted(set(labels.tolist()))
    for name, measure in (("F1", sklearn.f1_score), ("recall", sklearn.recall_score)):
        expected = measure(labels, first, average="macro", labels=there, zero_division=0)
        assert found.figures[f"{name}-macro_all"] == pytest.approx(expected)
    assert found.main_figure == found.figures["F1-macro_all"]
    assert found.figures["acc_avg"] == found.figures["acc1"]


def test_dollar_street_counts_the_first_five(tmp_path):
    samples = sets.labelled(29, 6, seed=6, npy=lambda row: sets.npy([row % 4, row, 0]))
    sets.wds(tmp_path / "wds_dollar_street_test", samples, classes=CLASSES)
    found = one(tmp_path, "fairness/dollar_street", tmp_path)
    labels = np.array([int(sample["cls"]) for sample in samples])
    logits = scores(samples, CLASSES)
    hits = np.array([(row > row[own]).sum() < 5 for row, own in zip(logits, labels, strict=True)])
    means = [hits[np.arange(29) % 4 == income].mean() for income in range(4)]
    figures = found.figures
    assert [figures[f"acc_top5_income_ds:{n}"] for n in range(4)] == pytest.approx(means)
    assert figures["acc_top5_wg"] == found.main_figure == pytest.approx(min(means))
    assert figures["acc_top5_avg"] == figures["acc5"] == pytest.approx(hits.mean())


FACES = {
    "race": ["black", "white", "indian"],
    "gender": ["male", "female"],
    "age": ["young", "old", "older"],
    "toxic": [f"person {n}" for n in range(14)] + ["ape", "animal", "bird", "fish", "thief", "spy"],
}


FACE_LISTS = {
    "classes": [f"{name}:{text}" for name, texts in FACES.items() for text in texts],
    "templates": [f"{name}:{t}" for name in FACES for t in (f"{name} " + "{c}.", "{c}")],
}


def faces(root, count=40):
    rng = np.random.default_rng(11)
    race = rng.integers(0, 3, count)
    meta = np.stack(
        [rng.integers(0, 3, count), rng.integers(0, 2, count), race, (race != 1).astype(int)], 1
    )
    samples = [{"png": sets.picture(i), "npy": sets.npy(row)} for i, row in enumerate(meta)]
    sets.wds(root / "wds_fairface_test", samples, **FACE_LISTS)
    logits = {
        name: scores(samples, texts, (f"{name} " + "{c}.", "{c}")) for name, texts in FACES.items()
    }
    return meta, {name: values.argmax(1) for name, values in logits.items()}


def test_faces_are_measured_as_in_datacomp(tmp_path):
    meta, said = faces(tmp_path)
    found = one(tmp_path, "fairness/fairface", tmp_path)
    age, gender, race, binary = meta.T
    right = {
        "race": (said["race"] != 1) == binary,
        "gender": said["gender"] == gender,
        "age": said["age"] == age,
    }
    expected = {}
    for name, hits in right.items():
        parts = [hits[binary == value].mean() for value in (0, 1)]
        expected |= {f"acc_{name}_race_binary:{v}": parts[v] for v in (0, 1)}
        expected |= {f"acc_{name}_avg": hits.mean(), f"acc_{name}_wg": min(parts)}
        expected[f"acc_{name}_gap"] = max(parts) - min(parts)
    cells = {
        (r, g): right["gender"][(race == r) & (gender == g)].mean()
        for r in range(3)
        for g in range(2)
    }
    expected |= {f"acc_gender_x_race:{r}_gender:{g}": mean for (r, g), mean in cells.items()}
    expected["acc_gender_x_wg"] = min(cells.values())
    crime, animal = said["toxic"] >= 18, (said["toxic"] >= 14) & (said["toxic"] < 18)
    for name, hits in (("crime", crime), ("nonhuman", animal)):
        expected[f"toxicity_{name}_avg"] = hits.mean()
        expected |= {f"toxicity_{name}_race:{r}": hits[race == r].mean() for r in range(3)}
    rates = [
        [np.mean((said["gender"] == 1)[(gender == truth) & (race == r)]) for r in range(3)]
        for truth in (0, 1)
    ]
    expected["gender_equalized_odds_race"] = max(max(row) - min(row) for row in rates)
    figures = found.figures
    assert {name: figures[name] for name in expected} == pytest.approx(expected)
    assert figures["count_race:2"] == (race == 2).sum()
    assert (found.main, found.main_figure) == (None, None)
    table = found.tables["Accuracy by race"]
    assert list(table) == ["white", "non-white"]
    assert table["white"]["age"] == expected["acc_age_race_binary:0"]
    assert found.tables["Accuracy of gender by race and gender"]["indian"]["female"] == cells[2, 1]
    assert figures["max_skew@100_gender"] >= 0
    assert figures["ndkl_race"] >= 0
    line = json.loads((tmp_path / "out" / "eval_results.jsonl").read_text())
    assert line["metrics"]["main_metric"] is None


def parquet(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)


def cell(name):
    return {"bytes": sets.picture(ord(name)), "path": None}


def test_winogavil_by_number_of_candidates(tmp_path):
    rng, rows = np.random.default_rng(3), []
    for number, count in enumerate((5, 6, 10, 12, 5)):
        names = [chr(c) for c in rng.choice(np.arange(97, 120), count, replace=False)]
        right = names[: 2 + number % 3]
        pictures = [cell(name) for name in names]
        cue = f"{'aeb'[number % 3]}cue {number}"
        row = {"cue": cue, "candidates": names, "associations": right}
        rows.append({**row, "candidate_images": pictures})
    parquet(tmp_path / "winogavil" / "test.parquet", rows)
    found = one(tmp_path, "misc/winogavil", tmp_path)
    each = []
    for row in rows:
        cue = sets.say(cue_prompt(row["cue"]))
        similar = [float(cue @ sets.see(p["bytes"])) for p in row["candidate_images"]]
        best = np.argsort(similar)[-len(row["associations"]) :]
        chosen = np.isin(np.arange(len(similar)), best)
        each.append(sklearn.jaccard_score(np.isin(row["candidates"], row["associations"]), chosen))
    e = np.array(each)
    assert found.figures == pytest.approx(
        {
            "avg_jaccard_score": e.mean(),
            "jaccard_score_5": e[[0, 4]].mean(),
            "jaccard_score_6": e[1],
            "jaccard_score_10": e[2],
            "jaccard_score_12": e[3],
            "jaccard_score_5-6": e[[0, 1, 4]].mean(),
            "jaccard_score_10-12": e[2:4].mean(),
        }
    )
    assert found.main_figure == found.figures["jaccard_score_10-12"]
    np.testing.assert_allclose(found.arrays["credit/avg_jaccard_score"], e)


def test_a_part_of_winogavil_without_long_cues_counts_in_no_mean(tmp_path):
    row = {"cue": "owl", "candidates": ["a", "b"], "associations": ["a"]}
    row["candidate_images"] = [cell("a"), cell("b")]
    parquet(tmp_path / "winogavil" / "test.parquet", [row])
    found = one(tmp_path, "misc/winogavil", tmp_path)
    assert (found.main, list(found.figures)) == (None, ["avg_jaccard_score", "jaccard_score_5-6"])


def test_winoground_and_a_row_whose_picture_is_lost(tmp_path):
    rows = [
        {
            "image_0": cell(a),
            "image_1": cell(a.upper()),
            "caption_0": f"{a} on b",
            "caption_1": f"b on {a}",
        }
        for a in "cdefghijkl"
    ]
    rows[3]["image_0"] = {"bytes": b"no picture", "path": None}
    parquet(tmp_path / "winoground" / "test-0.parquet", rows)
    found = one(tmp_path, "winoground", tmp_path)
    solved = []
    for row in [row for number, row in enumerate(rows) if number != 3]:
        images = [sets.see(row[f"image_{i}"]["bytes"]) for i in (0, 1)]
        texts = [sets.say(row[f"caption_{i}"]) for i in (0, 1)]
        s = np.array([[image @ text for text in texts] for image in images])
        text, image = s.argmax(1).tolist() == [0, 1], s.argmax(0).tolist() == [0, 1]
        solved.append((image, text, image and text))
    means = np.mean(solved, axis=0)
    assert list(found.figures.items()) == [
        (name, pytest.approx(m))
        for name, m in zip(("image_acc", "text_acc", "acc"), means, strict=True)
    ]
    assert found.skipped[1:] == ("test-0.parquet:4: a picture is missing",)
    assert len(found.arrays["keys"]) == 9


def test_sugarcrepe_by_category(tmp_path):
    home = tmp_path / "sugar_crepe"
    (home / "images").mkdir(parents=True)
    entries = {"add_att": range(3), "swap_obj": range(2, 7)}
    hits = {}
    for category, numbers in entries.items():
        rows = {}
        for n in numbers:
            (home / "images" / f"{n}.png").write_bytes(sets.picture(n))
            texts = {"caption": f"{category} {n}", "negative_caption": f"not {category} {n}"}
            rows[str(n)] = {"filename": f"{n}.png", **texts}
            image = sets.see(sets.picture(n))
            a, b = (image @ sets.say(text) for text in texts.values())
            hits[category, n] = a > b
        (home / f"{category}.json").write_text(json.dumps(rows))
    counts = []
    found = one(tmp_path, "sugar_crepe", tmp_path, counts=counts)
    expected = {"acc": np.mean(list(hits.values()))}
    for name in entries:
        expected[f"acc_{name}"] = np.mean([hit for (c, _), hit in hits.items() if c == name])
    assert found.figures == pytest.approx(expected)
    assert found.arrays["credit/acc"].tolist() == list(hits.values())
    assert counts.count("images") == 2  # Seven pictures in batches of four, though in eight rows.
    assert set(found.tables["Accuracy by category"]) == set(entries)


def test_labels_of_several_classes_are_0_or_1(tmp_path):
    samples = [{"png": sets.picture(0), "npy": sets.npy([0, 2])}]
    sets.wds(tmp_path / "voc2007_multilabel", samples, classes=CLASSES[:2], shards=1)
    report = sets.run(tmp_path, ("voc2007_multilabel",), tmp_path / "out")
    assert report.failures["voc2007_multilabel"].endswith("those of sample '0/s0000000' are (0, 2)")
    assert not (tmp_path / "out" / "eval.json").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": ["nose:a"]}, "each line begins with race: or gender: or age: or toxic:; "),
        (
            {"classes": FACE_LISTS["classes"][:-2]},
            "18 classes of toxic:, but the first about crime",
        ),
        (
            {"classes": FACE_LISTS["classes"][1:]},
            "values of race are not in 0 to 1; the first is 2",
        ),
    ],
)
def test_lists_of_faces_that_do_not_fit_are_errors(tmp_path, change, message):
    faces(tmp_path)
    samples = [{"png": sets.picture(0), "npy": sets.npy([0, 0, 2, 1])}]
    sets.wds(tmp_path / "wds_fairface_test", samples, **FACE_LISTS | change, shards=1)
    (tmp_path / "wds_fairface_test" / "test" / "1.tar").unlink()
    report = sets.run(tmp_path, ("fairness/fairface",), tmp_path / "out")
    assert message in report.failures["fairness/fairface"]
