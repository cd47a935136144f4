"""A few steps of a run recorded by JAX's profiler."""

import contextlib
import dataclasses
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping

import jax
from jaxtyping import Array

from clip_jax.train.state import State
from clip_jax.train.step import Metrics, Step


@dataclasses.dataclass(frozen=True, kw_only=True)
class Profile:
    """Steps of which a trace is written, both ends included."""

    first: int
    last: int

    def __str__(self) -> str:
        return f"{self.first}:{self.last}"

    def check(self, start: int, end: int) -> None:
        """Raises ValueError if not all of these steps lie after step `start`, up to `end`."""
        if not start < self.first <= self.last <= end:
            raise ValueError(f"--profile {self}: this start trains steps {start + 1} to {end}")


def parse_profile(text: str) -> Profile:
    """`10:13` as steps 10 to 13.

    Raises:
      ValueError: it is not of this form, or runs backwards.
    """
    ends = re.fullmatch(r"(\d+):(\d+)", text)
    first, last = map(int, ends.groups()) if ends else (0, 0)
    if not 1 <= first <= last:
        raise ValueError(f"--profile {text!r}: give the first and the last step, such as 10:13")
    return Profile(first=first, last=last)


@contextlib.contextmanager
def profiled(
    step: Step,
    steps: Profile | None,
    *,
    start: int,
    folder: pathlib.Path,
    say: Callable[[str], None],
) -> Iterator[Step]:
    """`step`, of whose calls those with the numbers in `steps` are recorded.

    Before the first of them and after the last it waits for the device, so that the trace holds
    these steps and no other. Where the block ends earlier, so does the trace.

    Args:
      steps: None: none.
      start: number of the call before the first.
      folder: of the trace; one process is enough to write it.
      say: told where the trace is, and how to look at it.
    """
    if steps is None:
        yield step
        return
    number, traced = start, 0

    def call(state: State, batch: Mapping[str, Array]) -> tuple[State, Metrics]:
        nonlocal number, traced
        number += 1
        if not steps.first <= number <= steps.last:
            return step(state, batch)
        if number == steps.first:
            jax.block_until_ready(state)
            jax.profiler.start_trace(folder)
        with jax.profiler.StepTraceAnnotation("train", step_num=number):
            done = step(state, batch)
        traced = number
        if number == steps.last:
            jax.block_until_ready(done)
            finish()
        return done

    def finish() -> None:
        nonlocal traced
        jax.profiler.stop_trace()
        say(
            f"trace of steps {steps.first} to {traced}: {folder} "
            f"(pip install xprof; xprof --logdir {folder}, or tensorboard)"
        )
        traced = 0

    try:
        yield call
    finally:
        if traced:
            finish()
