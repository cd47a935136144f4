import contextlib
import dataclasses
import pathlib
import runpy
import subprocess
import sys
import types

import numpy as np
import pytest
from rich.console import Console

from clip_jax.cli import compare, suites
from clip_jax.eval import compare as measures
from clip_jax.eval.outcome import Outcome
from clip_jax.eval.page_data import read_all
from clip_jax.eval.report import readable, signed
from tests.eval import dom, outcomes

STANDINS = pathlib.Path(__file__).parents[1] / "eval" / "standins.py"
sets = types.SimpleNamespace(**runpy.run_path(str(STANDINS)))
NAMES = ["cat", "<b>dog</b>", "[red]"]
CAPTIONS = [f"caption {i}" for i in range(40)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two evaluations: B is far better at sets/0, each has a set of its own."""
    base = tmp_path_factory.mktemp("runs")
    for name, seed, skill in (("a", 1, 0.5), ("b", 2, 6.0)):
        outcomes.write(
            base / name,
            outcomes.classification("sets/0", "Set <0>", NAMES, n=150, seed=seed, skill=skill),
            outcomes.retrieval("flickr", "Flickr", CAPTIONS, seed=seed),
            outcomes.classification(f"own_{name}", "Own", NAMES, n=20),
        )
    return base


@pytest.fixture
def few_resamples(monkeypatch):
    monkeypatch.setattr(measures, "RESAMPLES", 40)


def run(*argv, status=0):
    assert compare.main([str(word) for word in argv]) == status


@pytest.fixture
def pairings(folders, few_resamples):
    return {p.key: p for p in measures.compare(read_all(folders / "a"), read_all(folders / "b"))}


def test_a_table_and_a_page_say_the_same(folders, pairings, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run(folders / "a", folders / "b")
    said = capsys.readouterr()
    lines = said.out.splitlines()
    rows = [[c.strip() for c in line.split("│")[1:-1]] for line in lines if line.startswith("│")]
    assert [row[0] for row in rows] == list(pairings) == ["flickr", "sets/0"]
    tree = dom.parse(pathlib.Path("compare.html").read_text("utf-8"))
    table = next(tree.all("table")).rows()
    for row, cells, pairing in zip(rows, table, pairings.values(), strict=True):
        one = pairing.main_metric
        ends = one.interval.low, one.interval.high
        shown = [readable(one.metric, v) for v in (one.first, one.second)]
        shown += [
            signed(one.metric, one.difference),
            " to ".join(signed(one.metric, e) for e in ends),
        ]
        assert row[1:6] == [one.metric, *shown]
        assert [cell.text for cell in cells[:5]] == [pairing.dataset + row[1], *row[2:6]]
        assert cells[0].one("span", "metric").text == one.metric
        assert [dom.value(cells[i]) for i in (1, 2, 3)] == [one.first, one.second, one.difference]
        assert [float(d["value"]) for d in cells[4].all("data")] == list(ends)
        assert row[6] == cells[5].text
    assert rows[1][6] == "B is higher" and pairings["sets/0"].main_metric.interval.low > 0
    assert [cell.text for cell in table[1][6:]] == [
        f"{count:,}" for count in (pairings["sets/0"].lost, pairings["sets/0"].gained)
    ]
    assert lines[-1] == "written: compare.html" and said.err == ""


def test_the_page_unfolds_to_all_metrics_and_needs_nothing_else(folders, pairings, tmp_path):
    path = tmp_path / "c.html"
    run(folders / "a", folders / "b", "--out", path)
    text = path.read_text("utf-8")
    assert "http" not in text and "<script" not in text
    tree = dom.parse(text)
    assert [p.text for p in tree.all("p")][:2] == [f"A: {folders / 'a'}", f"B: {folders / 'b'}"]
    for details, pairing in zip(tree.all("details"), pairings.values(), strict=True):
        assert details.one("summary").text == f"All metrics of {pairing.dataset}"
        for cells, one in zip(details.one("table").rows(), pairing.metrics, strict=True):
            assert cells[0].text == one.metric
            assert [dom.value(cells[i]) for i in (1, 2)] == [one.first, one.second]
            assert (cells[4].text == "–") == (one.interval is None)  # noqa: RUF001


def test_which_is_higher_is_told_where_it_is_decided_and_follows_the_order(
    folders, capsys, tmp_path
):
    out = tmp_path / "c.html"
    run(folders / "b", folders / "a", "--out", out)
    assert "A is higher" in capsys.readouterr().out
    tree = dom.parse(out.read_text("utf-8"))
    assert {span.text for span in tree.all("span", "worse")} == {"A is higher"}
    assert not list(tree.all("span", "better"))
    run(folders / "a", folders / "a", "--out", out)
    assert "is higher" not in capsys.readouterr().out
    assert "is higher" not in out.read_text("utf-8")


def test_less_is_better_of_some_metrics(tmp_path):
    """The larger gap between groups is told as higher, and shown as worse."""
    for name, rates in (("even", (0.8, 0.8)), ("apart", (0.95, 0.5))):
        group = np.arange(400) % 2
        right = np.random.default_rng(1).random(400) < np.array(rates)[group]
        means = [right[group == g].mean() for g in (0, 1)]
        one = Outcome(
            key="g",
            dataset="G",
            task="zero_shot",
            main="acc_gap_region",
            figures={"acc_gap_region": abs(means[1] - means[0]), "acc_wg": min(means)},
            arrays={
                "keys": np.arange(400).astype(str),
                "credit/acc1": right.astype(float),
                "group/region": group,
            },
        )
        outcomes.write(tmp_path / name, one)
    for pair, styles in ((("even", "apart"), ["worse"]), (("apart", "even"), ["better"])):
        out = tmp_path / "c.html"
        run(*(tmp_path / name for name in pair), "--out", out)
        tree = dom.parse(out.read_text("utf-8"))
        cells = [row for table in tree.all("table") for row in table.rows()]
        told = [[span["class"] for span in row[5].all("span")] for row in cells]
        # Of both metrics, though one is higher and the other lower; and in the difference itself.
        assert told == [[b["class"] for b in row[3].all("b")] for row in cells] == [styles] * 3
        words = {row[0].text: row[5].text for row in cells[1:]}
        higher = "B is higher" if pair[1] == "apart" else "A is higher"
        assert words["acc_gap_region"] == higher != words["acc_wg"] != ""


def test_sets_of_one_side_alone_are_said(folders, few_resamples, capsys, tmp_path):
    out = tmp_path / "c.html"
    run(folders / "a", folders / "b", "--out", out)
    lines = capsys.readouterr().out.splitlines()
    assert "only in A: own_a" in lines and "only in B: own_b" in lines
    told = [li.text for li in dom.parse(out.read_text("utf-8")).all("li")]
    assert told == ["only in A: own_a", "only in B: own_b"]


def test_samples_left_out_and_intervals_that_are_not_there_are_said(tmp_path, capsys):
    one = outcomes.classification("s", "S", NAMES, n=30)
    figures = {"mean_average_precision": 0.5}
    multi = dataclasses.replace(one, key="m", main="mean_average_precision", figures=figures)
    short = {k: a[:-2] if len(a) == 30 else a for k, a in one.arrays.items()}
    right = {"acc1": float(short["credit/acc1"].mean())}
    less = dataclasses.replace(one, arrays=short, figures=right, skipped=("x", "y"))
    outcomes.write(tmp_path / "a", one, multi)
    outcomes.write(tmp_path / "b", less, multi)
    run(tmp_path / "a", tmp_path / "b", "--out", tmp_path / "c.html")
    wanted = [
        "m: no interval for mean_average_precision: it cannot be computed from what was kept of "
        "each sample",
        "s: compared over the 28 samples that both have (2 only in A, 0 only in B)",
    ]
    out = capsys.readouterr().out.splitlines()
    assert [line for line in out if line in wanted] == wanted
    tree = dom.parse((tmp_path / "c.html").read_text("utf-8"))
    assert [li.text for li in tree.all("li")] == wanted


def test_the_page_says_below_all_metrics_which_have_no_interval_and_why(tmp_path):
    one = outcomes.classification("s", "S", NAMES, n=30)
    figures = {**one.figures, "calibration_error": 0.1, "ndkl_race": 0.2, "max_skew@100_race": 0}
    outcomes.write(tmp_path / "a", dataclasses.replace(one, figures=figures))
    run(tmp_path / "a", tmp_path / "a", "--out", tmp_path / "c.html")
    details = dom.parse((tmp_path / "c.html").read_text("utf-8")).one("details")
    assert [p.text for p in details.all("p", "quiet")] == [
        "No interval for calibration_error: chance adds to it, and adds most where a model is well "
        "calibrated.",
        "No interval for ndkl_race, max_skew@100_race: a picture drawn twice stands twice in a "
        "ranking, which looks more skewed than it is.",
    ]


def test_data_sets_without_a_figure_are_told_on_the_report_and_left_out_of_the_comparison(
    tmp_path, capsys
):
    """A could read no picture of one and did not find another; `none` has only such."""
    whole, bad = sets.three_sets(tmp_path / "whole"), tmp_path / "bad"
    sets.wds(bad / "wds_stl10", 7 * [{"png": b"?", "cls": "0"}], classes=NAMES, shards=1)
    (bad / "wds_mnist").symlink_to(whole / "wds_mnist")
    reports, keys = {}, ("mnist", "stl10", "flickr8k")
    for name, root, asked in (("a", bad, keys), ("b", whole, keys), ("none", bad, keys[1:])):
        reports[name] = report = sets.run(root, asked, tmp_path / name)
        left = pytest.raises(SystemExit) if report.failures else contextlib.nullcontext()
        with left:
            suites.finish(report, tmp_path / name, "model", Console(), print)
    tree = dom.parse((tmp_path / "a" / "report.html").read_text("utf-8"))
    assert next(tree.all("p")).text == "1 data set, 23 samples, 2 data sets not evaluated"
    (told,) = [t for t in tree.all("table") if t.one("caption").text.startswith("Asked for, but")]
    assert [tuple(c.text for c in row) for row in told.rows()] == [*reports["a"].failures.items()]
    assert list(reports["a"].failures) == ["stl10", "flickr8k"]
    assert {s["id"] for s in tree.all("section")} == {"all", "mnist"}
    out = tmp_path / "c.html"
    for sides, lonely in (
        ("ab", "only in B: flickr8k, stl10"),
        ("ba", "only in A: flickr8k, stl10"),
    ):
        run(*(tmp_path / side for side in sides), "--out", out)
        tree = dom.parse(out.read_text("utf-8"))
        assert [li.text for li in tree.all("li")] == [lonely]
        assert len(list(tree.all("details"))) == 1
    # Where nothing could be measured there is nothing to show, and an earlier page stays.
    written = out.read_bytes()
    capsys.readouterr()
    run(tmp_path / "a", tmp_path / "none", "--out", out, status=1)
    assert capsys.readouterr().err.startswith(f"error: no evaluation in {tmp_path / 'none'}: ")
    assert out.read_bytes() == written and not (tmp_path / "none" / "report.html").exists()


def test_faults_are_one_message_and_nothing_is_written(folders, tmp_path, capsys):
    out = tmp_path / "c.html"
    run(folders / "a", tmp_path, "--out", out, status=1)
    said = capsys.readouterr()
    assert said.err == (
        f"error: no evaluation in {tmp_path}: it has no results/, as eval.py MODEL --suite writes "
        "them\n"
    )
    run(folders, folders / "a", "--out", out, status=1)
    assert f"; below it {folders / 'a'}, {folders / 'b'} have them\n" in capsys.readouterr().err
    other = outcomes.classification("sets/0", "Set", NAMES, n=149)
    outcomes.write(tmp_path / "other", other)
    run(folders / "a", tmp_path / "other", "--out", out, status=1)
    said = capsys.readouterr()
    assert said.err.startswith("error: not the same data on both sides: sets/0: ")
    assert said.out == "" and said.err.count("\n") == 1 and not out.exists()
    (tmp_path / "file").write_text("")
    run(folders / "a", folders / "b", "--out", tmp_path / "file" / "c.html", status=1)
    assert str(tmp_path / "file") in capsys.readouterr().err


def test_of_a_run_the_last_step_evaluated_is_taken(folders, few_resamples, tmp_path, capsys):
    steps = tmp_path / "run" / "suites"
    for step in ("90", "500", "500/probe_linear", "odd"):
        (steps / step).mkdir(parents=True)
    for step, name in (("90", "b"), ("500", "a"), ("odd", "b"), ("500/probe_linear", "b")):
        (steps / step / "results").symlink_to(folders / name / "results")
    out = tmp_path / "new" / "folder" / "c.html"
    run(steps.parent, folders / "a", "--out", out)
    shown = capsys.readouterr().out
    assert f"A: {steps / '500'}\n" in shown and "own_a" in shown
    assert out.is_file()


def test_help_is_told_at_once():
    code = (
        "import sys; from clip_jax.cli import compare, prompts; "
        "print(compare.parser().format_help(), prompts.parser().format_help()); "
        "print([m for m in ('jax', 'rich', 'numpy', 'PIL', 'matplotlib') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.endswith("\n[]\n")
    for word in ("RUN_A", "(compare.html)", "--templates", "(templates.txt)", "--measure"):
        assert word in ran.stdout
