"""Hooks alone, without a run."""

import json

import pytest

from clip_jax.train.hooks import EvalHook
from clip_jax.train.log import Figures, Stopwatch
from clip_jax.train.state import State


@pytest.mark.parametrize("ema, used", [("average", "average"), (None, "newest")])
def test_evaluations_see_the_average_where_there_is_one(ema, used, tmp_path):
    seen, found, figures = [], {}, Figures(tmp_path, 0)

    def evaluate(params, names):
        seen.append((params, names))
        return [{name: 1.0} for name in names]

    every = {"often": 2, "last": None, "seldom": 6}
    common = {"found": found, "figures": figures, "stopwatch": Stopwatch()}
    hook = EvalHook(every, evaluate, end=9, **common)
    assert [done for done in range(1, 9) if hook.due(done)] == [2, 4, 6, 8]
    for done in (2, 6, 9):
        hook(done, State(done, "newest", None, ema), {})
    figures.close()
    due = {2: ["often"], 6: ["often", "seldom"], 9: ["often", "last", "seldom"]}
    assert seen == [(used, names) for names in due.values()]
    assert found == {done: dict.fromkeys(names, 1.0) for done, names in due.items()}


def test_a_run_does_not_wait_where_no_evaluation_is_due(tmp_path):
    figures = Figures(tmp_path, 0)
    common = {"end": 40, "found": {}, "figures": figures, "stopwatch": Stopwatch()}
    hook = EvalHook({"a": 9, "b": 15, "last": None}, pytest.fail, **common)
    assert [done for done in range(1, 40) if hook.due(done)] == [9, 15, 18, 27, 30, 36]
    assert not any(map(EvalHook({"a": None}, pytest.fail, **common).due, range(40)))
    figures.close()


@pytest.mark.parametrize("good", [0, 2])
def test_what_was_found_before_an_error_is_kept(good, tmp_path):
    found, figures = {}, Figures(tmp_path, 0)

    def evaluate(params, names):
        yield from ({name: 1.0} for name in names[:good])
        raise TypeError("a mistake")

    every = {"a": 3, "b": 3, "c": 3}
    common = {"found": found, "figures": figures, "stopwatch": Stopwatch()}
    hook = EvalHook(every, evaluate, end=9, **common)
    with pytest.raises(TypeError, match=r"^a mistake$"):
        hook(3, State(3, "newest", None, None), {})
    figures.close()
    kept = dict.fromkeys(list(every)[:good], 1.0)
    assert found == ({3: kept} if good else {})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert list(map(json.loads, lines)) == ([{"step": 3, **kept}] if good else [])
