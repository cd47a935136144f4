"""The training algorithm, whole, on one page."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol, runtime_checkable

import jax
from jaxtyping import Array

from clip_jax.sharding.processes import StoppedError
from clip_jax.train.state import State
from clip_jax.train.step import Metrics, Step


class DivergedError(Exception):
    """The loss, its gradient or the update is no longer a finite number."""

    def __init__(self, message: str, proven: int):
        super().__init__(message)
        self.proven = proven
        """The last step whose parameters are known to be good: they gave a finite loss."""


@runtime_checkable
class Hook(Protocol):
    """Something that wants to look at the run now and then (log, save, evaluate)."""

    def due(self, done: int) -> bool:
        """Whether it wants to look after so many steps; after the last, each does."""
        ...

    def __call__(self, done: int, state: State, metrics: Metrics) -> None: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stop:
    """An end before the last step."""

    asked: Callable[[int], bool]
    """Asked after each step; gives the same answer on all processes."""
    save: Hook
    """Called before the end."""


def require_finite(done: int, metrics: Metrics) -> None:
    """Raises DivergedError naming the step; waits for that step to end."""
    names = ("loss", "grad_norm", "update_norm")
    for name, fetched in zip(names, jax.device_get([metrics[n] for n in names]), strict=True):
        if not math.isfinite(value := float(fetched)):
            # The loss is that of the parameters before the update, already in question.
            proven = done - 2 if name == "loss" else done - 1
            raise DivergedError(f"step {done}: {name} is {value}", proven)


def fit(
    state: State,
    batches: Iterator[Mapping[str, Array]],
    step: Step,
    *,
    steps: int,
    hooks: Sequence[Hook] = (),
    stop: Stop | None = None,
) -> State:
    """Train until `steps` updates, from wherever `state.step` already is.

    Metrics are looked at one step late, so that the device always has work queued
    and the host is never more than one step ahead. A step may move nothing between host and
    device but what is asked for (`jax.device_put`, `jax.device_get`): a value that slips in would
    hold up each step unseen, so JAX's guard refuses it.

    Raises:
      DivergedError: a loss or gradient is not finite; no hook has seen the step's state.
      StoppedError: `stop` was asked for before the last step, and has saved.
    """
    before: tuple[int, Metrics] | None = None
    for done in range(int(state.step) + 1, steps + 1):
        batch = next(batches)
        with jax.transfer_guard("disallow"):
            state, metrics = step(state, batch)
            if before:
                require_finite(*before)
        before = done, metrics
        due = [hook for hook in hooks if done == steps or hook.due(done)]
        if due:
            require_finite(done, metrics)
        for hook in due:
            hook(done, state, metrics)
        if stop and stop.asked(done) and done < steps:
            require_finite(done, metrics)
            stop.save(done, state, metrics)
            raise StoppedError(f"stopped after step {done} of {steps}")
    return state
