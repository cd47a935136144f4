import io

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console

from clip_jax.eval import report
from clip_jax.eval.retrieval import Retrieval
from clip_jax.eval.zero_shot import ZeroShot


def printed(figures):
    console = Console(file=io.StringIO(), width=100)
    console.print(report.table(figures))
    return [line.split("│")[1:-1] for line in console.file.getvalue().splitlines() if "│" in line]


def test_a_table_shows_rates_in_percent_and_names_each_evaluation_once():
    figures = {
        "retrieval/a/b/image_to_text_recall@10": 0.98765,
        "retrieval/a/b/image_to_text_recall@5": 0.5,
        "retrieval/a/b/image_to_text_median_rank": 12.5,
        "zero_shot/[red]/acc1": 1.0,
        "zero_shot/[red]/mean_per_class_recall": 0.0,
        "zero_shot/[red]/skipped": 1234.0,
    }
    rows = [[cell.strip() for cell in row] for row in printed(figures)]
    assert rows == [
        ["retrieval/a/b", "image_to_text_median_rank", "12.5"],
        ["", "image_to_text_recall@5", "50.0%"],
        ["", "image_to_text_recall@10", "98.8%"],
        ["zero_shot/[red]", "acc1", "100.0%"],
        ["", "mean_per_class_recall", "0.0%"],
        ["", "skipped", "1,234"],
    ]


@pytest.mark.parametrize(
    "metric, shown",
    [
        ("acc5", "25.0%"),
        ("text_to_image_recall@1", "25.0%"),
        ("acc_worst_region", "25.0%"),
        ("acc1_16_shot", "25.0%"),
        ("acc1_best_single", "25.0%"),
        ("validation_acc1", "25.0%"),
        ("validation_mean_average_precision", "25.0%"),
        ("text_acc", "25.0%"),
        ("F1-macro_all", "25.0%"),
        ("jaccard_score_10-12", "25.0%"),
        ("mean_average_precision", "25.0%"),
        ("ndkl_race", "0.25"),
        ("median_rank", "0.25"),
        ("accuracy_of_nothing", "0.25"),
        ("recall_time", "0.25"),
    ],
)
def test_only_known_rates_are_percentages(metric, shown):
    assert report.readable(metric, 0.25) == shown


@pytest.mark.parametrize(
    "metric, value, shown",
    [
        ("acc1", 0.0123, "+1.2"),
        ("acc1", -0.5, "−50.0"),  # noqa: RUF001
        ("acc1", -0.0004, "0.0"),
        ("acc1", 0.0, "0.0"),
        ("median_rank", -12.5, "−12.5"),  # noqa: RUF001
        ("median_rank", 0.0, "0"),
        ("ndkl_race", 0.00014219, "+0.00014"),
    ],
)
def test_differences_have_a_sign_and_those_of_rates_are_points(metric, value, shown):
    assert report.signed(metric, value) == shown


@pytest.mark.parametrize(
    "less, metrics",
    [
        (
            True,
            "acc_race_gap acc_gap_region calibration_error text_retrieval_median_rank ndkl_race",
        ),
        (True, "toxicity_crime_race:0 gender_equalized_odds_race max_skew@100_gender"),
        (False, "acc1 acc_race_wg acc_worst_region mean_recall@1 mean_average_precision strength"),
    ],
)
def test_less_is_better_of_gaps_errors_and_ranks(less, metrics):
    assert {report.is_loss(metric) for metric in metrics.split()} == {less}


def test_values_that_are_not_finite_can_be_shown():
    assert report.readable("loss", float("nan")) == "nan"
    assert report.readable("loss", float("inf")) == "inf"


@pytest.fixture
def dataset(toy):
    entries = [toy.sample(n, texts=(f"a {n} thing",), label=k) for k, n in enumerate(toy.colours)]
    broken = ["sample 'x': broken"]  # So that rows of the embeddings are not places in the split.
    return toy.dataset({"test": broken + entries}, tuple(toy.colours))


def test_pictures_of_each_evaluation_are_drawn(toy, dataset, tmp_path):
    evals = {"wds/colours": ZeroShot(split="test"), "captions": Retrieval(split="test")}
    embedder = toy.embedder(warn=lambda message: None)
    paths = report.draw_evals(evals, dataset, embedder, tmp_path / "plots")
    assert [path.name for path in paths] == [
        "wds_colours_confusion.png",
        "captions_text_to_image.png",
        "captions_image_to_text.png",
    ]
    for path in paths:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        assert min(pixels.shape[:2]) > 300
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20
    assert sorted(tmp_path.joinpath("plots").iterdir()) == sorted(paths)


def test_the_first_picture_of_each_row_is_the_captions_own(toy, dataset, tmp_path, monkeypatch):
    seen = []

    def watch(*arguments):
        seen.append(arguments)
        return Figure()

    monkeypatch.setattr(report.pictures, "text_to_image_grid", watch)
    monkeypatch.setattr(report.pictures, "image_to_text_grid", watch)
    embedder = toy.embedder(warn=lambda message: None)
    report.draw_evals({"c": Retrieval(split="test")}, dataset, embedder, tmp_path)
    (queries, images, right, _), (shown, captions, also_right, _) = seen
    assert images.shape == (6, 5, toy.side, toy.side, 3)
    own = {f"a {name} thing": rgb for name, rgb in toy.colours.items()}
    for row, caption in enumerate(queries):
        assert tuple(images[row, 0, 0, 0].tolist()) == own[caption]
    assert right.tolist() == [[True, False, False, False, False]] * 6
    assert [own[row[0]] for row in captions] == [tuple(i[0, 0].tolist()) for i in shown]
    assert also_right == right.tolist()


def test_many_classes_have_no_confusion_picture(toy, dataset, tmp_path):
    names = (*toy.colours, *(f"class {n}" for n in range(15)))
    embedder = toy.embedder(warn=lambda message: None)
    evals = {"many": ZeroShot(split="test", class_names=names)}
    assert report.draw_evals(evals, dataset, embedder, tmp_path) == []
