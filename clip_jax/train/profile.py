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

    def within(self, start: int, end: int) -> "Profile | None":
        """Those of these steps that lie after step `start`, up to `end`; None if none does."""
        first, last = max(self.first, start + 1), min(self.last, end)
        return Profile(first=first, last=last) if first <= last else None


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
    recorded = _Recorded(step, steps, start, folder, say)
    try:
        yield recorded
    finally:
        recorded.finish()


class _Recorded:
    def __init__(
        self,
        step: Step,
        steps: Profile,
        start: int,
        folder: pathlib.Path,
        say: Callable[[str], None],
    ):
        self._step, self._steps, self._folder, self._say = step, steps, folder, say
        self._number, self._last = start, 0
        """Of the newest call, and of the newest in the trace that is under way, if one is."""

    def __call__(self, state: State, batch: Mapping[str, Array]) -> tuple[State, Metrics]:
        self._number += 1
        if not self._steps.first <= self._number <= self._steps.last:
            return self._step(state, batch)
        if self._number == self._steps.first:
            jax.block_until_ready(state)
            jax.profiler.start_trace(self._folder)
        self._last = self._number
        with jax.profiler.StepTraceAnnotation("train", step_num=self._number):
            done = self._step(state, batch)
        if self._number == self._steps.last:
            jax.block_until_ready(done)
            self.finish()
        return done

    def finish(self) -> None:
        """Write the trace that is under way, if one is."""
        if not self._last:
            return
        last, self._last = self._last, 0
        jax.profiler.stop_trace()
        self._say(
            f"trace of steps {self._steps.first} to {last}: {self._folder} "
            f"(pip install xprof; xprof --logdir {self._folder}, or tensorboard)"
        )
