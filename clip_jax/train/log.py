"""Figures of a run: to `metrics.jsonl`, to TensorBoard, and to the line one watches."""

import json
import math
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import jax
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from clip_jax.data.feed import Feed
from clip_jax.data.packing import Packing
from clip_jax.data.position import join
from clip_jax.data.visits import reasons
from clip_jax.sharding.processes import gather_json
from clip_jax.train.state import State
from clip_jax.train.step import Metrics, Step

_TOLD = 5
"""Bad samples told in full each time; the others are summed up."""
_SHARDS = 50
"""Shards with most bad samples that are counted in the metrics; checkpoints count all."""


class Stopwatch:
    """Seconds spent training: what runs inside `pause` does not count."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self._clock, self._start, self._paused = clock, clock(), 0.0

    def seconds(self) -> float:
        """Since the stopwatch was made."""
        return self._clock() - self._start - self._paused

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Leave out the time until the block ends."""
        start = self._clock()
        try:
            yield
        finally:
            self._paused += self._clock() - start


def compiled_apart(step: Step, stopwatch: Stopwatch) -> Step:
    """`step`, whose first call, in which it is compiled, does not count as training time."""
    steps = iter([step])

    def call(state: State, batch: Mapping[str, Any]) -> tuple[State, Metrics]:
        if next(steps, None) is None:
            return step(state, batch)
        with stopwatch.pause():
            return jax.block_until_ready(step(state, batch))

    return call


def told_of_room(step: Step, packing: Packing, say: Callable[[str], None]) -> Step:
    """`step`, whose calls say when captions first have other room than `packing` gives."""
    seen: set[int] = set()

    def call(state: State, batch: Mapping[str, Any]) -> tuple[State, Metrics]:
        (_, rows, row), captions = batch["tokens"].tokens.shape, batch["tokens"].ends.shape[1]
        if rows not in {*seen, packing.rows(captions)}:
            enough = math.ceil(10 * rows * row / captions) / 10  # Rounded down it would not be.
            say(
                f"step {int(jax.device_get(state.step)) + 1}: {captions} captions need {rows} rows "
                f"of {row} tokens, and packing has room for {packing.rows(captions)}: the step is "
                f"compiled once more. A packing.tokens_per_caption of {enough} "
                "holds these"
            )
        seen.add(rows)
        return step(state, batch)

    return call


class Figures:
    """Appends figures to `metrics.jsonl` and TensorBoard events in the run folder."""

    def __init__(self, folder: pathlib.Path, start: int, *, silent: bool = False):
        """Forget lines after step `start`: that part of the run is about to be done again.

        A silent one writes nothing: one process writes for all.
        """
        self._silent = silent
        if silent:
            return
        from tensorboardX import SummaryWriter

        path = folder / "metrics.jsonl"
        kept = [line for line in _whole_lines(path) if json.loads(line)["step"] <= start]
        partial = path.with_name(path.name + ".partial")
        partial.write_text("".join(kept))
        partial.replace(path)
        self._path, self._file = path, path.open("a")
        # An unbounded queue: where its thread dies of a full disk, training must not hang.
        board = str(folder / "tensorboard")
        self._board = SummaryWriter(board, purge_step=start + 1, max_queue=0, flush_secs=10)

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """One line, with the system when this returns, and one event, written soon after.

        Raises:
          OSError: the line cannot be written; names the file.
        """
        if self._silent:
            return
        try:
            self._file.write(json.dumps({"step": step, **figures}) + "\n")
            self._file.flush()
        except OSError as error:
            raise OSError(error.errno, f"cannot write {self._path}: {error.strerror}") from error
        for name, value in figures.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is buffered, as far as the disk allows."""
        for part in () if self._silent else (self._file, self._board):
            with suppress(OSError):
                part.close()


def _whole_lines(path: pathlib.Path) -> list[str]:
    """Lines that were written to their end; a killed process may leave half of one."""
    if not path.exists():
        return []
    return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def _share(name: str, value: float | None) -> str:
    return "" if value is None else f"{name} {100 * value:.0f}%  "


class Line:
    """The progress line; on a terminal it stays in place, elsewhere it is printed now and then."""

    def __init__(self, console: Console, steps: int, start: int, every_s: float = 10.0):
        self._console, self._steps, self._every_s = console, steps, every_s
        self._printed = -every_s
        columns = BarColumn(bar_width=20), TextColumn("{task.description}")
        self._live = Progress(*columns, console=console) if console.is_terminal else None
        if self._live:
            self._task = self._live.add_task("compiling", total=steps, completed=start)
            self._live.start()

    def show(self, step: int, figures: Mapping[str, float], seconds: float, left_s: float) -> None:
        """Show figures of a step, `seconds` into the run and `left_s` before its end."""
        text = (
            f"step {step}/{self._steps}  loss {figures['loss']:.3f}  "
            f"acc {100 * figures['accuracy']:.0f}%  lr {figures['learning_rate']:.1e}  "
            f"temp {figures['temperature']:.3f}  {figures['pairs_per_s']:,.0f} pairs/s  "
            f"{figures['tflops_per_s']:.3g} TFLOP/s  {_share('MFU', figures.get('mfu'))}"
            f"wait {100 * figures['data_wait']:.0f}%  left {timedelta(seconds=round(left_s))}"
        )
        if figures["skipped"]:
            text += f"  skipped {figures['skipped']:.0f}"
        if self._live:
            self._live.update(self._task, completed=step, description=text)
        elif seconds - self._printed >= self._every_s or step == self._steps:
            self._printed = seconds
            self._console.print(text, soft_wrap=True, highlight=False)

    def close(self) -> None:
        """Leave the last line standing."""
        if self._live:
            self._live.stop()


def is_due(done: int, every: int | None) -> bool:
    """Whether something done every so many steps is done after these; None: after none."""
    return every is not None and done % every == 0


class LogHook:
    """Writes and shows the metrics of every `every`-th step."""

    def __init__(
        self,
        every: int,
        *,
        batch: int,
        steps: int,
        start: int,
        flops: float,
        peak: float | None,
        feed: Feed,
        figures: Figures,
        line: Line,
        stopwatch: Stopwatch,
        warn: Callable[[str], None],
    ):
        """Figures of steps whose cost and whose devices' peak are known from the start.

        Args:
          start: step from which the run goes on.
          flops: operations of a step (`train.cost.StepCost.total`).
          peak: operations a second of all devices at best (`sharding.chips.peak_flops`), or None.
          warn: told what went wrong with samples.
        """
        self._every = every
        self._flops, self._peak = flops, peak
        self._batch, self._steps, self._feed = batch, steps, feed
        self._figures, self._line, self._stopwatch, self._warn = figures, line, stopwatch, warn
        self._before = start + 1, stopwatch.seconds(), feed.wait_s  # See `compiled_apart`.
        self._drawn = join(gather_json(feed.position))["source"].get("drawn", {})
        """Samples of each source of a mixture, when this hook last looked."""

    def due(self, done: int) -> bool:
        """See `Hook`."""
        return is_due(done, self._every)

    def __call__(self, done: int, state: State, metrics: Metrics) -> None:
        fetched = jax.device_get(metrics)  # Waits for the step.
        figures = {name: float(value) for name, value in fetched.items()}
        step, seconds, waited = self._before
        self._before = done, self._stopwatch.seconds(), self._feed.wait_s
        elapsed, steps = self._before[1] - seconds, done - step
        figures["pairs_per_s"] = self._batch * steps / elapsed
        figures["tflops_per_s"] = self._flops * steps / elapsed / 1e12
        if self._peak:
            figures["mfu"] = 1e12 * figures["tflops_per_s"] / self._peak
        figures["data_wait"] = min(1.0, (self._feed.wait_s - waited) / elapsed)
        figures |= self._data_figures()
        self._figures.write(done, figures)
        left_s = (self._steps - done) * elapsed / max(steps, 1)
        self._line.show(done, figures, self._before[1], left_s)
        skips = self._feed.take_skips()
        for skip in skips[:_TOLD]:
            self._warn(f"skipped {skip.message}")
        if len(skips) > _TOLD:
            self._warn(f"skipped {len(skips) - _TOLD} more: {reasons(skips[_TOLD:])}")

    def _data_figures(self) -> dict[str, float]:
        """Counts of all processes, from the start of the run; of `samples/`, since last time."""
        position = join(gather_json(self._feed.position))
        skipped, shards = position["skipped"]["reasons"], position["skipped"]["shards"]
        worst = sorted(shards, key=lambda shard: (-shards[shard], shard))[:_SHARDS]
        before, self._drawn = self._drawn, position["source"].get("drawn", {})
        counts = {
            "skipped": sum(skipped.values()),
            **{f"skipped/{reason}": count for reason, count in skipped.items()},
            **{f"skipped_from/{shard}": shards[shard] for shard in worst},
            "captions_cut": position["cut"],
            **{f"samples/{name}": n - before[name] for name, n in self._drawn.items()},
        }
        return {name: float(count) for name, count in counts.items()}
