"""Hooks that evaluate and save; logging is in `train/log`."""

from collections.abc import Callable, Mapping
from typing import Any

from clip_jax.checkpoint.store import Store
from clip_jax.data.feed import Feed
from clip_jax.data.position import join
from clip_jax.sharding.processes import gather_json
from clip_jax.train.log import Figures, Stopwatch
from clip_jax.train.state import State
from clip_jax.train.step import Metrics


class EvalHook:
    """Runs evaluations on the parameters of this step (their average where there is one)."""

    def __init__(
        self,
        every: int,
        name: str,
        evaluate: Callable[[Any, str], Mapping[str, float]],
        *,
        found: dict[int, dict[str, float]],
        figures: Figures,
        stopwatch: Stopwatch,
    ):
        """`evaluate(params, name)` gives figures; they also go to `found` under their step."""
        self.every = every
        self._name, self._evaluate, self._found = name, evaluate, found
        self._figures, self._stopwatch = figures, stopwatch

    def __call__(self, done: int, state: State, metrics: Metrics) -> None:
        with self._stopwatch.pause():
            new = dict(self._evaluate(state.used, self._name))
        self._found.setdefault(done, {}).update(new)
        self._figures.write(done, new)


class SaveHook:
    """Saves state, data position and config; comes after all `EvalHook`s."""

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
        self.every = every
        self._store, self._feed, self._config = store, feed, config
        self._found, self._stopwatch = found, stopwatch

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
