import json
import math

import numpy as np
import pytest
from PIL import Image

from clip_jax.train.plots import plot_run, read_curves, smoothed


def line(step, **figures):
    return json.dumps({"step": step, **figures})


def run_of(steps, *, evals=()):
    lines = []
    for step in range(10, steps + 1, 10):
        loss, accuracy = 5 * math.exp(-step / 300), 1 - math.exp(-step / 300)
        lines.append(line(step, loss=loss, accuracy=accuracy, learning_rate=1e-3, temperature=0.07))
        if step in evals:
            figures = {"zero_shot/unseen_images/acc1": accuracy, "retrieval/t/median_rank": 9.0}
            lines.append(line(step, **figures))
    return lines


def written(tmp_path, lines, end="\n"):
    path = tmp_path / "metrics.jsonl"
    path.write_text("\n".join(lines) + end)
    return path


def pixels_of(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("steps, evals", [(10, ()), (200, (100,)), (900, (300, 600, 900))])
def test_pictures_are_drawn_of_what_there_is(tmp_path, steps, evals):
    folder = tmp_path / "deep" / "plots"
    paths = plot_run(written(tmp_path, run_of(steps, evals=evals)), folder)
    names = ["loss.png", "schedule.png"] + ["evals.png"] * (len(evals) > 1)
    assert [path.name for path in paths] == names
    for path in paths:
        pixels = pixels_of(path)
        assert min(pixels.shape[:2]) > 300
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20
        assert (np.abs(pixels.astype(int) - (31, 119, 180)).max(axis=-1) < 10).sum() > 20  # C0.


def test_another_loss_is_another_picture(tmp_path):
    first, again, other = (tmp_path / name for name in ("first", "again", "other"))
    plot_run(written(tmp_path, run_of(500)), first)
    plot_run(written(tmp_path, run_of(500)), again)
    plot_run(written(tmp_path, [line(s, loss=math.sin(s)) for s in range(10, 501, 10)]), other)
    loss = [pixels_of(folder / "loss.png") for folder in (first, again, other)]
    np.testing.assert_array_equal(loss[0], loss[1])
    assert loss[0].shape != loss[2].shape  # No accuracy there: one panel, not two.
    assert not (other / "schedule.png").exists()


def test_the_later_line_wins_metric_by_metric(tmp_path):
    lines = [
        line(1, loss=9.0, accuracy=0.1),
        line(3, loss=7.0),
        line(2, loss=8.0),
        line(3, loss=6.0),
        line(3, **{"zero_shot/a/acc1": 0.5}),
        line(1, loss=8.5),
    ]
    curves = read_curves(written(tmp_path, lines))
    assert {name: list(curve.items()) for name, curve in curves.items()} == {
        "loss": [(1, 8.5), (2, 8.0), (3, 6.0)],
        "accuracy": [(1, 0.1)],
        "zero_shot/a/acc1": [(3, 0.5)],
    }


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_a_line_cut_short_by_a_kill_is_passed_over(tmp_path, cut):
    whole = [line(1, loss=3.0, note="é"), line(2, loss=2.0)]
    last = line(3, loss=1.0, accuracy=0.25, step_time=1.5)
    at_the_end = read_curves(written(tmp_path, [*whole, last[:cut]], end=""))
    in_the_middle = read_curves(written(tmp_path, [whole[0], last[:cut], whole[1]]))
    assert at_the_end == in_the_middle == {"loss": {1: 3.0, 2: 2.0}}


def test_a_cut_inside_a_letter_is_passed_over(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes((line(1, loss=3.0) + '\n{"step": 2, "é').encode()[:-1])
    assert read_curves(path) == {"loss": {1: 3.0}}


def test_lines_without_figures_say_nothing(tmp_path):
    lines = ["[]", "3", line("x", loss=1.0), '{"loss": 1.0}', line(1, loss=None, name="run"), ""]
    curves = read_curves(written(tmp_path, [*lines, line(4, loss=1.0)]))
    assert curves == {"loss": {4: 1.0}}


def test_a_diverged_loss_is_a_gap_and_no_warning(tmp_path):
    losses = [3.0, 2.5, float("nan"), 2.0, float("inf"), float("nan")] * 40
    lines = [line(step, loss=loss) for step, loss in enumerate(losses)]
    assert [p.name for p in plot_run(written(tmp_path, lines), tmp_path)] == ["loss.png"]
    only = [line(step, loss=float("nan")) for step in range(3)]
    assert [p.name for p in plot_run(written(tmp_path, only), tmp_path)] == ["loss.png"]


def test_odd_names_of_evaluations_are_drawn_as_they_are(tmp_path):
    lines = [
        line(step, **{f"zero_shot/$x_1$ 猫 {n}/acc{n}": step / 3 for n in range(12)})
        for step in (1, 2, 3)
    ]
    assert [p.name for p in plot_run(written(tmp_path, lines), tmp_path)] == ["evals.png"]


def test_figures_of_single_groups_hide_no_others(tmp_path):
    def drawn(folder, groups):
        figures = {"public/a/fmow/acc1": 0.5, "public/a/fmow/acc_worst_region": 0.25}
        figures |= {f"public/a/fmow/{name}_region:{n}": n for n in groups for name in ("acc", "n")}
        lines = [line(step, **figures) for step in (1, 2)]
        (path,) = plot_run(written(tmp_path, lines), tmp_path / folder)
        return path.read_bytes()

    assert drawn("many", range(40)) == drawn("none", ())


def test_a_file_that_is_no_log_of_metrics_is_an_error(tmp_path):
    path = written(tmp_path, ["some text", '{"cut'])
    with pytest.raises(ValueError) as error:
        plot_run(path, tmp_path)
    assert str(error.value) == f"{path}: no line is a JSON object with a step and a figure"
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jsonl"):
        plot_run(tmp_path / "nowhere.jsonl", tmp_path)


@pytest.mark.parametrize("n, reach", [(1, 0), (5, 2), (3, 7), (40, 4)])
def test_smoothing_equals_the_mean_of_each_window(n, reach):
    rng = np.random.default_rng(n)
    values = rng.normal(size=n)
    values[rng.random(n) < 0.2] = np.nan
    expected = [
        v if np.isnan(v) else np.nanmean(values[max(0, i - reach) : i + reach + 1])
        for i, v in enumerate(values)
    ]
    np.testing.assert_allclose(smoothed(values, reach), expected, atol=1e-12)
