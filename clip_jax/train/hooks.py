"""Hooks that evaluate and save; logging is in `train/log`."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from clip_jax.checkpoint.store import Store
from clip_jax.data.feed import Feed
from clip_jax.data.position import join
from clip_jax.sharding.processes import gather_json
from clip_jax.train.log import Figures, Stopwatch, is_due
from clip_jax.train.state import State
from clip_jax.train.step import Metrics


class EvalHook:
    """Runs evaluations on the parameters of this step (their average where there is one)."""

    def __init__(
        self,
        every: Mapping[str, int | None],
        evaluate: Callable[[Any, Sequence[str]], Iterable[Mapping[str, float]]],
        *,
        end: int,
        found: dict[int, dict[str, float]],
        figures: Figures,
        stopwatch: Stopwatch,
    ):
        """`evaluate(params, names)` gives figures, evaluation by evaluation.

        They also go to `found` under their step; what came before an error is kept.

        Each evaluation is due after so many steps, and all are after step `end`. Those that are
        due together run together: what they share is embedded once.
        """
        self._each, self._end = every, end
        self._evaluate, self._found = evaluate, found
        self._figures, self._stopwatch = figures, stopwatch

    def due(self, done: int) -> bool:
        """See `Hook`."""
        return any(is_due(done, steps) for steps in self._each.values())

    def __call__(self, done: int, state: State, metrics: Metrics) -> None:
        due = [n for n, steps in self._each.items() if done == self._end or is_due(done, steps)]
        new = dict[str, float]()
        try:
            with self._stopwatch.pause():
                for figures in self._evaluate(state.used, due):
                    new.update(figures)
        finally:
            if new:
                self._found.setdefault(done, {}).update(new)
                self._figures.write(done, new)


class SaveHook:
    """Saves state, data position and config; comes after the `EvalHook`."""

    def __init__(
        self,
        every: int,
        store: Store,
        *,
        feed: Feed,
        config: Any,
        found: Mapping[int, Mapping[str, float]],
        stopwatch: Stopwatch,
    ):
        self._every = every
        self._store, self._feed, self._config = store, feed, config
        self._found, self._stopwatch = found, stopwatch

    def due(self, done: int) -> bool:
        """See `Hook`."""
        return is_due(done, self._every)

    def __call__(self, done: int, state: State, metrics: Metrics) -> None:
        with self._stopwatch.pause():
            self._store.save(
                done,
                params=state.params,
                ema=state.ema,
                progress={"step": state.step, "opt": state.opt},
                position=join(gather_json(self._feed.position)),
                config=self._config,
                figures=self._found.get(done),
            )
