import base64
import collections
import dataclasses
import io
import pathlib
import re

import numpy as np
import pytest
from PIL import Image

from clip_jax.eval import classification, page, page_data, page_parts, page_plots
from clip_jax.eval.classification import calibration
from clip_jax.eval.outcome import Outcome, file_name, save
from clip_jax.eval.page_parts import Html, tag, write
from clip_jax.eval.published import reported
from clip_jax.eval.report import readable
from tests.eval import dom, outcomes

HOSTILE = ["<script>alert(1)</script>", "a\"b'c&amp;", "כלב 🐶", "x\x00\x1b[31m", "</table></main>"]
MANY = [f"class {i}" for i in range(50)]
CAPTIONS = [f'<img src=x onerror="{i // 2}"> & 猫 {i}' for i in range(24)]


@pytest.fixture(scope="module")
def found():
    few = outcomes.classification(
        "cifar10", "CIFAR <10>", HOSTILE, n=90, skipped=["0.tar: <broken> & cut", "no label"]
    )
    many = outcomes.classification("imagenet1k", "ImageNet", MANY, n=400, side=16)
    flickr = "retrieval/flickr_1k_test_image_text_retrieval"
    return [few, many, outcomes.grouped(), outcomes.retrieval(flickr, "Flickr", CAPTIONS, side=64)]


@pytest.fixture(scope="module")
def folder(found, tmp_path_factory):
    return outcomes.write(tmp_path_factory.mktemp("out"), *found)


@pytest.fixture(scope="module")
def tree(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page_plots, "draw", lambda *_: [])
        path = page.write_report(
            folder,
            "ViT-B-32/openai",
            averages={"VTAB": 0.25, "Retrieval": 1 / 3},
            absent={"wilds/<fmow>": "no folder & no <hub>"},
        )
    assert path == folder / "report.html"
    return dom.parse(path.read_text("utf-8"))


@pytest.fixture(scope="module")
def sections(tree, found):
    by_id = {node["id"]: node for node in tree.all("section")}
    return {one.key: by_id[file_name(one.key)] for one in found}


def captioned(node, words):
    """The table of a section whose caption holds the words."""
    (table,) = [t for t in node.all("table") if any(words in c.text for c in t.all("caption"))]
    return table


def pixels(image):
    kind, data = re.fullmatch(r"data:image/(png|jpeg);base64,(.+)", image["src"]).groups()
    with Image.open(io.BytesIO(base64.b64decode(data))) as opened:
        assert opened.format.lower() == kind
        return np.asarray(opened)


def test_every_figure_stands_there_exactly_and_as_people_read_it(found, sections):
    for one in found:
        rows = captioned(sections[one.key], f"All {len(one.figures)} metrics").rows()
        names = [cells[0].text.removesuffix(" (main)") for cells in rows]
        assert names == list(one.figures)
        assert [cells[0].text for cells in rows if "(main)" in cells[0].text] == [
            f"{one.main} (main)"
        ]
        for cells, (metric, figure) in zip(rows, one.figures.items(), strict=True):
            assert dom.value(cells[1]) == figure
            assert cells[1].text == readable(metric, figure)


def test_the_overview_has_main_figures_samples_and_unfolds_to_all_metrics(found, tree):
    table = captioned(tree, "Main figure of each data set")
    ordered = sorted(found, key=lambda one: file_name(one.key))
    for one, cells in zip(ordered, table.rows(), strict=True):
        link = cells[0].one("a")
        assert (link.text, link["href"]) == (one.dataset, f"#{file_name(one.key)}")
        unfolded = [float(d.one("data")["value"]) for d in cells[1].all("dd")]
        assert unfolded == list(one.figures.values())
        assert [d.text for d in cells[1].all("dt")] == list(one.figures)
        assert dom.value(cells[2]) == one.main_figure
        assert cells[-1].text == f"{len(one.arrays['keys']):,}"


def test_published_figures_stand_beside_those_of_a_known_model_with_their_source(found, tree):
    rows = {r[0].text: r for r in captioned(tree, "Main figure of each data set").rows()}
    seen = 0
    for one in found:
        known, cells = reported("ViT-B-32/openai", one.key, one.main), rows[one.dataset]
        published = [float(node["value"]) for node in cells[3].all("data")]
        assert published == [figure.value for figure in known]
        assert [node.text for node in cells[3].all("span")] == [figure.source for figure in known]
        if known:
            seen += 1
            assert dom.value(cells[4]) == pytest.approx(one.main_figure - known[0].value)
            assert cells[4].text[0] == "\N{MINUS SIGN}"
        else:
            assert cells[4].text == ""
    assert seen == 2


def test_a_model_that_nobody_published_has_no_such_columns(folder, monkeypatch):
    monkeypatch.setattr(page_plots, "draw", lambda *_: [])
    tree = dom.parse(page.write_report(folder, "runs/<mine>").read_text("utf-8"))
    table = captioned(tree, "No published figure of this model")
    assert [th.text for th in table.one("thead").all("th")] == [
        *("data set", "metric", "value", "samples")
    ]
    assert tree.one("h1").text == "Evaluation of runs/<mine>"


def test_averages_are_those_given_or_the_mean_of_main_figures(found, tree, folder, monkeypatch):
    rows = captioned(tree, "Means of main figures").rows()
    assert [(r[0].text, dom.value(r[1])) for r in rows] == [("VTAB", 0.25), ("Retrieval", 1 / 3)]
    monkeypatch.setattr(page_plots, "draw", lambda *_: [])
    again = dom.parse(page.write_report(folder, "mine").read_text("utf-8"))
    (row,) = captioned(again, "Means of main figures").rows()
    assert row[0].text == f"mean of {len(found)} main figures"
    assert dom.value(row[1]) == pytest.approx(sum(one.main_figure for one in found) / len(found))


def test_the_published_average_stands_beside_one_over_all_its_data_sets_only(tmp_path, monkeypatch):
    monkeypatch.setattr(page_plots, "draw", lambda *_: [])
    made = [
        Outcome(
            key=f"set{i}", dataset=f"Set {i}", task="zero_shot", main="acc1", figures={"acc1": 0.5}
        )
        for i in range(38)
    ]
    (figure,) = reported("ViT-B-32/openai", "average", "average")
    for count, columns in ((38, 4), (37, 2)):
        outcomes.write(tmp_path / str(count), *made[:count])
        averages = {"average over all": 0.5}
        path = page.write_report(tmp_path / str(count), "ViT-B-32/openai", averages=averages)
        (row,) = captioned(dom.parse(path.read_text("utf-8")), "Means of main figures").rows()
        assert len(row) == columns
        if columns == 4:
            assert dom.value(row[2]) == figure.value
            assert dom.value(row[3]) == pytest.approx(0.5 - figure.value)


def test_the_page_needs_nothing_else_and_runs_nothing(tree, folder):
    text = (folder / "report.html").read_text("utf-8")
    style = tree.one("style").text
    assert "url(" not in style and "@import" not in style
    assert "http:" not in text and "https:" not in text
    tags = {node.tag for node in every(tree)}
    assert not tags & {"script", "link", "iframe", "object", "embed", "form", "base"}
    for node in every(tree):
        assert not [name for name in node.attributes if name.startswith("on")]
        if node["href"] is not None:
            assert node["href"].startswith("#")
        if node["src"] is not None:
            assert node["src"].startswith("data:image/")


def every(node):
    for child in node.children:
        if isinstance(child, dom.Node):
            yield child
            yield from every(child)


def test_links_lead_somewhere_and_names_of_places_are_unique(tree):
    places = [node["id"] for node in every(tree) if node["id"] is not None]
    assert len(set(places)) == len(places)
    links = [node["href"][1:] for node in tree.all("a")]
    assert len(links) > 4 and set(links) <= set(places)


def test_tables_and_pictures_speak_to_those_who_do_not_see_them(tree):
    assert tree.one("html")["lang"] == "en"
    assert all(th["scope"] in ("col", "row") for th in tree.all("th"))
    for table in tree.all("table"):
        box = table.parent
        assert box["class"] == "wide" and box["role"] == "region" and box["aria-label"]
        assert box["tabindex"] == "0"
        columns = len(list(table.one("thead").all("th")))
        assert {len(row) for row in table.rows()} == {columns}
    assert all(image["alt"] for image in tree.all("img"))
    assert all(svg["aria-label"] and svg["role"] == "img" for svg in tree.all("svg"))
    assert [m["content"] for m in tree.all("meta") if m["name"] == "viewport"] == [
        "width=device-width, initial-scale=1"
    ]


def shown(name):
    return re.sub("[\x00\x1b]", "\N{REPLACEMENT CHARACTER}", name)


def test_names_from_data_are_text_whatever_they_hold(sections, tree):
    section = sections["cifar10"]
    assert section.one("h2").text == "CIFAR <10>"
    names = {row[0].text for row in captioned(section, "All 5 classes").rows()}
    assert names == set(map(shown, HOSTILE))
    assert "wilds/<fmow>" in tree.text and "no folder & no <hub>" in tree.text
    assert [li.text for li in section.one("details").all("li")] == [
        *("0.tar: <broken> & cut", "no label")
    ]


def test_bars_are_the_accuracy_of_each_class_best_first(found, sections):
    one = found[0]
    right, labels = one.arrays["credit/acc1"], one.arrays["labels"]
    rows = captioned(sections[one.key], "All 5 classes, best first").rows()
    figures = [dom.value(row[2]) for row in rows]
    assert figures == sorted(figures, reverse=True)
    for row, figure in zip(rows, figures, strict=True):
        own = labels == [shown(n) for n in HOSTILE].index(row[0].text)
        assert figure == pytest.approx(right[own].mean())
        assert row[3].text == str(own.sum())
        width = row[1].one("span", "bar").one("span")["style"]
        assert width == f"width:{100 * figure:.2f}%"


def test_of_many_classes_the_best_and_the_worst_are_shown(found, sections):
    one = found[1]
    labels, right = one.arrays["labels"], one.arrays["credit/acc1"]
    wanted = sorted([right[labels == k].mean() for k in range(50)])
    best = [dom.value(r[2]) for r in captioned(sections[one.key], "Best 20 of 50").rows()]
    worst = [dom.value(r[2]) for r in captioned(sections[one.key], "Worst 20 of 50").rows()]
    assert best == pytest.approx(wanted[:-21:-1]) and worst == pytest.approx(wanted[:20])


def test_a_class_without_a_sample_has_no_bar(found):
    arrays = {**found[0].arrays, "class_names": np.array([*HOSTILE, "empty"])}
    rows = page_data.by_class(dataclasses.replace(found[0], arrays=arrays))
    assert rows == page_data.by_class(found[0]) and len(rows) == len(HOSTILE)


def test_few_classes_have_a_whole_confusion_matrix(found, sections):
    one = found[0]
    table = captioned(sections[one.key], "Samples of each class (row)")
    top = [th.text for th in table.one("thead").all("th")][1:]
    assert top == [row[0].text for row in table.rows()] == list(map(shown, HOSTILE))
    counts = collections.Counter(
        zip(one.arrays["labels"].tolist(), one.arrays["top"][:, 0].tolist(), strict=True)
    )
    for i, row in enumerate(table.rows()):
        for j, cell in enumerate(row[1:]):
            assert int(cell.text or 0) == counts[i, j]
            assert (cell["style"] is not None) == (counts[i, j] > 0)
    assert len({counts[i, j] for i in range(5) for j in range(5)}) > 5


def test_of_many_classes_the_pairs_confused_most_are_shown(found, sections):
    one = found[1]
    given, labels = one.arrays["top"][:, 0].tolist(), one.arrays["labels"].tolist()
    counts = collections.Counter((t, g) for t, g in zip(labels, given, strict=True) if t != g)
    rows = captioned(sections[one.key], "The 20 pairs confused most often").rows()
    assert [int(row[2].text) for row in rows] == [n for _, n in counts.most_common(20)]
    for row in rows:
        true, taken = (int(cell.text.removeprefix("class ")) for cell in row[:2])
        assert int(row[2].text) == counts[true, taken]
        assert dom.value(row[3]) == pytest.approx(counts[true, taken] / labels.count(true))


def test_mistakes_are_those_it_was_surest_of_with_their_own_pictures(found, sections):
    for one in found[:2]:
        arrays = one.arrays
        wrong = [i for i, c in enumerate(arrays["credit/acc1"]) if not c]
        wanted = sorted(wrong, key=lambda i: -arrays["confidence"][i])[:12]
        cards = list(sections[one.key].one("div", "cards").all("figure"))
        assert len(cards) == len(wanted) == 12
        side = arrays["pictures"].shape[1]
        for card, row in zip(cards, wanted, strict=True):
            names = [
                shown(str(arrays["class_names"][k]))
                for k in (arrays["top"][row, 0], arrays["labels"][row])
            ]
            assert [node.text for node in card.all("bdi")] == names
            assert dom.value(card) == arrays["confidence"][row]
            image = card.one("img")
            assert (pixels(image) == outcomes.thumbnail(row, side)).all()
            key = str(arrays["keys"][row])
            assert image["alt"] == f"{key}: {names[1]}, taken for {names[0]}"


def test_a_mistake_without_a_thumbnail_says_so(found):
    arrays = {k: a for k, a in found[0].arrays.items() if not k.startswith("picture")}
    bare = dataclasses.replace(found[0], arrays=arrays)
    with_one = page_data.mistakes(found[0])
    assert [m.key for m in page_data.mistakes(bare)] == [m.key for m in with_one]
    made = dom.parse(page.section(bare))
    blanks = [node.text for node in made.one("div", "cards").all("div", "blank")]
    assert blanks == [f"no picture kept of {m.key}" for m in with_one]


def test_grids_show_what_was_found_and_what_belongs_to_the_query(found, sections):
    one = found[3]
    arrays, owner = one.arrays, one.arrays["image_of_text"]
    headings = [h.text for h in sections[one.key].all("h3")]
    assert headings[-2:] == ["Pictures found for a caption", "Captions found for a picture"]
    queries = list(sections[one.key].all("div", "query"))
    count = len(arrays["to_image/queries"])
    hits = 0
    for box, query, rows in zip(
        queries[:count], arrays["to_image/queries"], arrays["to_image/found"], strict=True
    ):
        assert box.one("p").text == CAPTIONS[query]
        items = list(box.one("ol", "found").all("li"))
        for item, row in zip(items, rows, strict=True):
            assert (pixels(item.one("img")) == outcomes.thumbnail(row, 64)).all()
            assert ("✓" in item.text) == (item["class"] == "hit") == (owner[query] == row)
            hits += "✓" in item.text
    assert hits
    for box, query, rows in zip(
        queries[count:], arrays["to_text/queries"], arrays["to_text/found"], strict=True
    ):
        assert (pixels(box.one("img")) == outcomes.thumbnail(query, 64)).all()
        said = [(item.text[0] == "✓", item.text[2:]) for item in box.one("ol").all("li")]
        assert said == [(owner[row] == query, CAPTIONS[row]) for row in rows]


def test_a_caption_that_two_pictures_carry_is_right_for_both():
    made = outcomes.retrieval("r", "R", ["same", "a", "same", "b", "c", "d"])
    arrays = {
        **made.arrays,
        "to_image/queries": np.array([0]),
        "to_image/found": np.array([[1, 2, 0]]),
        "to_text/queries": np.array([1]),
        "to_text/found": np.array([[0, 1, 3]]),
    }
    both = dataclasses.replace(made, arrays=arrays)
    assert [s.right for s in page_data.searches(both, "to_image")] == [(True, False, True)]
    assert [s.right for s in page_data.searches(both, "to_text")] == [(True, False, True)]


def test_tables_of_groups_have_every_number_and_dashes_where_there_is_none(found, sections):
    one = found[2]
    table = next(t for t in sections[one.key].all("table") if t.parent["aria-label"] == "By region")
    assert [th.text for th in table.one("thead").all("th")] == ["", "accuracy", "count"]
    rows = {row[0].text: [dom.value(cell) for cell in row[1:]] for row in table.rows()}
    assert rows == {k: list(v.values()) for k, v in one.tables["By region"].items()}
    holes = {"T": {"a": {"x": 0.5}, "b": {"y": float("nan")}}}
    made = dom.parse(page.section(dataclasses.replace(one, tables=holes)))
    table = next(t for t in made.all("table") if t.parent["aria-label"] == "T")
    assert [[cell.text for cell in row] for row in table.rows()] == [
        ["a", "50.0%", "–"],  # noqa: RUF001
        ["b", "–", "–"],  # noqa: RUF001
    ]


def test_columns_of_tables_are_shares_unless_they_count_or_exceed_them(found):
    rows = {"a": {"Male": 1.0, "pictures": 1.0, "ndkl": 1.5}, "b": {"Male": 0.25, "ndkl": 0.5}}
    made = dom.parse(page.section(dataclasses.replace(found[2], tables={"T": rows})))
    table = next(t for t in made.all("table") if t.parent["aria-label"] == "T")
    assert [[cell.text for cell in row] for row in table.rows()] == [
        ["a", "100.0%", "1", "1.5"],
        ["b", "25.0%", "–", "0.5"],  # noqa: RUF001
    ]


def test_many_metrics_are_folded_away(found):
    figures = {f"acc_{i}": i / 30 for i in range(30)}
    made = dom.parse(page.section(dataclasses.replace(found[0], figures=figures, main=None)))
    folded = next(d for d in made.all("details") if d.one("summary").text == "All 30 metrics")
    assert [dom.value(row[1]) for row in folded.one("table").rows()] == list(figures.values())


def test_only_the_outcomes_asked_for_are_shown_in_their_order(folder, found, monkeypatch):
    monkeypatch.setattr(page_plots, "draw", lambda *_: [])
    keys = [found[3].key, "cifar10"]
    tree = dom.parse(page.write_report(folder, "m", keys=keys).read_text("utf-8"))
    assert [node["id"] for node in tree.all("section")] == ["all", *map(file_name, keys)]
    with pytest.raises(ValueError) as caught:
        page.write_report(folder, "m", keys=["cifar10", "x"])
    assert str(caught.value) == (
        f"{folder / 'results'} has no outcome of ['x']; it has "
        f"{sorted((one.key for one in found), key=file_name)}"
    )


def test_reliability_from_the_best_class_alone_is_that_of_all_probabilities():
    rng = np.random.default_rng(3)
    odds = rng.dirichlet(np.full(6, 0.3), size=500)
    labels = rng.integers(6, size=500)
    wanted = calibration(odds, labels, bins=7)
    best = odds.argmax(axis=1)
    got = classification.reliability(odds.max(axis=1), best == labels, bins=7)
    np.testing.assert_array_equal(got.counts, wanted.counts)
    np.testing.assert_array_equal(got.confidence, wanted.confidence)
    np.testing.assert_array_equal(got.accuracy, wanted.accuracy)


def test_the_curve_is_drawn_where_the_figures_are(found, sections):
    for one in found[:2]:
        curve = page_data.calibration(one)
        some = curve.counts > 0
        dots = [
            (float(c["cx"]), float(c["cy"])) for c in sections[one.key].one("svg").all("circle")
        ]
        lines = [
            node for node in sections[one.key].one("svg").all("line") if node["class"] == "ideal"
        ]
        (x0, x1), (y0, y1) = ([float(lines[0][f"{a}{i}"]) for i in (1, 2)] for a in "xy")
        got = [((x - x0) / (x1 - x0), (y - y0) / (y1 - y0)) for x, y in dots]
        wanted = np.stack([curve.confidence[some], curve.accuracy[some]], axis=1)
        np.testing.assert_allclose(got, wanted, atol=1e-4)
        assert f"{100 * curve.error:.1f} points" in sections[one.key].one("svg")["aria-label"]


def test_what_was_not_evaluated_and_left_out_is_said_at_the_top(tree, found):
    samples = sum(len(one.arrays["keys"]) for one in found)
    assert next(tree.all("p")).text == (
        f"4 data sets, {samples:,} samples, 2 samples left out, 1 data set not evaluated"
    )
    (row,) = captioned(tree, "Asked for, but without a result").rows()
    assert [cell.text for cell in row] == ["wilds/<fmow>", "no folder & no <hub>"]


def test_plots_are_drawn_of_all_that_an_outcome_has(found, tmp_path):
    few = outcomes.classification("cifar10", "CIFAR", ["cat", "$x_y$", "dog"], n=60)
    search = outcomes.retrieval("a/b", "Flickr", CAPTIONS[:4], side=16)
    paths = page_plots.draw([few, search], tmp_path / "plots")
    name = file_name(search.key)
    assert [path.name for path in paths] == [
        *("cifar10_classes.png", "cifar10_confusion.png"),
        *("cifar10_mistakes.png", "cifar10_calibration.png"),
        *(f"{name}_text_to_image.png", f"{name}_image_to_text.png"),
    ]
    for path in paths:
        with Image.open(path) as image:
            drawn = np.asarray(image.convert("RGB"))
        assert min(drawn.shape[:2]) > 100 and len(np.unique(drawn.reshape(-1, 3), axis=0)) > 20
    assert [kind for kind, _ in page_plots._figures(found[1])] == [
        "classes",
        "mistakes",
        "calibration",
    ]


def test_an_outcome_of_figures_alone_has_a_section(tmp_path, monkeypatch):
    monkeypatch.setattr(page_plots, "draw", lambda *_: [])
    faces = Outcome(key="f", dataset="F", task="faces", main=None, figures={"acc_race_avg": 0.5})
    outcomes.write(tmp_path, faces)
    tree = dom.parse(page.write_report(tmp_path, "m").read_text("utf-8"))
    (row,) = captioned(tree, "Main figure").rows()
    assert [cell.text for cell in row][2:] == ["–", "–"]  # noqa: RUF001
    assert row[1].one("summary").text == "no main figure" and "Averages" not in tree.text


def test_results_that_are_none_or_half_are_named(tmp_path, found):
    with pytest.raises(FileNotFoundError) as caught:
        page.write_report(tmp_path, "m")
    assert str(caught.value) == f"no evaluation in {tmp_path}: it has no results/*.json"
    save(found[0], tmp_path / "results", {})
    path = tmp_path / "results" / "cifar10.json"
    (tmp_path / "results" / "cifar10.npz").unlink()
    with pytest.raises(ValueError) as caught:
        page.write_report(tmp_path, "m")
    assert str(caught.value) == f"{path} has lost its arrays, cifar10.npz: evaluate it again"
    (tmp_path / "results" / "cifar10.npz").write_bytes(b"garbage")
    with pytest.raises(ValueError) as caught:
        page.write_report(tmp_path, "m")
    told = "not an outcome as this program writes it: cifar10.npz beside it is damaged"
    save(found[1], tmp_path / "results", {})
    page.write_report(tmp_path, "m", keys=[found[1].key])
    assert str(caught.value) == f"{path}: {told}"
    for wrong in ("[]", '{"key": 1}', '{"key": "other"}'):
        path.write_text(wrong)
        with pytest.raises(ValueError) as caught:
            page.write_report(tmp_path, "m")
        assert str(caught.value) == f"{path}: not an outcome as this program writes it"


def test_a_page_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "page.html"
    write(path, "old")

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "replace", full)
        with pytest.raises(OSError, match=r"cannot write .*page\.html: No space left"):
            write(path, "new")
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["page.html"]
    write(path, "new")
    assert path.read_text() == "new"


def test_only_markup_is_markup():
    assert (
        tag("p", "<b>", Html("<i>x</i>"), title='"<')
        == '<p title="&quot;&lt;">&lt;b&gt;<i>x</i></p>'
    )
    assert tag("img", alt=None, class_="a", aria_label="b") == '<img class="a" aria-label="b">'
    assert (
        tag("p", "a\ud800\x07\n") == "<p>a\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}\n</p>"
    )


def test_the_name_of_a_metric_goes_on_in_the_next_line_after_a_word():
    shown = page_parts.breakable("acc_<b>_race:0_gender:1")
    assert shown == "acc_<wbr>&lt;b&gt;_<wbr>race:<wbr>0_<wbr>gender:<wbr>1"
    for text in ("acc1", "", "no main figure"):
        assert page_parts.breakable(text) == text


def test_what_else_is_said_of_the_model_stands_below_its_name(folder):
    said = "A soup of <a> and b."
    tree = dom.parse(page.write_report(folder, "mine", about=said).read_text("utf-8"))
    assert next(tree.all("p")).text == said
    plain = dom.parse(page.write_report(folder, "mine").read_text("utf-8"))
    assert len([*tree.all("p")]) == len([*plain.all("p")]) + 1
