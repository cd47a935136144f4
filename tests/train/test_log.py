import io
import itertools
import json
import re
import types
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.data.feed import Feed
from clip_jax.data.packing import Packing
from clip_jax.data.position import NOTHING, counted
from clip_jax.data.visits import Skip
from clip_jax.train.log import Figures, Line, LogHook, Stopwatch, told_of_room
from clip_jax.train.state import State


class Skipping(Feed):
    """A feed without batches."""

    wait_s = 0.0

    def __init__(self):
        self.skips = []
        self.position = {"source": {"visits": [0], "before": []}, **NOTHING}

    def skip(self, skips):
        self.skips += skips
        skipped = counted(self.position["skipped"], skips)
        self.position = {**self.position, "skipped": skipped}

    def take_skips(self):
        taken, self.skips = self.skips, []
        return taken


FLOPS = 3e12
"""Of a step."""


@pytest.fixture(params=[None])
def peak(request):
    return request.param


@pytest.fixture
def shown():
    return io.StringIO()


@pytest.fixture
def hook(tmp_path, peak, shown):
    from rich.console import Console

    told, feed = [], Skipping()
    figures, stopwatch = Figures(tmp_path, 0), Stopwatch(clock=itertools.count(0.0).__next__)
    line = Line(Console(file=shown), 10, 0, every_s=0.0)
    run = {"batch": 4, "steps": 10, "start": 0, "flops": FLOPS, "peak": peak}
    made = LogHook(
        1, **run, feed=feed, figures=figures, line=line, stopwatch=stopwatch, warn=told.append
    )

    def log(done):
        names = ("loss", "accuracy", "learning_rate", "temperature")
        metrics = dict.fromkeys(names, jax.numpy.ones(()))
        made(done, State(done, None, None), metrics)
        return json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])

    yield feed, told, log
    figures.close()


def test_skips_are_counted_by_reason_and_by_shard_and_few_are_told(hook):
    feed, told, log = hook
    assert not [name for name in log(2) if "skipped" in name and name != "skipped"]
    reasons = ["bad image", "truncated", "bad image"]
    skips = [Skip(f"{n}: bad", reasons[n % 3], f"{n % 4}.tar") for n in range(11)]
    feed.skip(skips)
    line = log(3)
    assert line["skipped"] == 11
    by_reason, by_shard = Counter(s.reason for s in skips), Counter(s.shard for s in skips)
    assert {k: v for k, v in line.items() if "skipped/" in k} == {
        f"skipped/{reason}": count for reason, count in by_reason.items()
    }
    assert {k: v for k, v in line.items() if "_from/" in k} == {
        f"skipped_from/{shard}": count for shard, count in by_shard.items()
    }
    assert told == [
        *(f"skipped {n}: bad" for n in range(5)),
        "skipped 6 more: 4 bad image, 2 truncated",
    ]
    feed.skip([Skip("late: bad", "vanished", "")])
    line = log(4)
    assert (line["skipped"], line["skipped/vanished"]) == (12, 1)
    assert told[-1] == "skipped late: bad" and len(told) == 7


def test_only_the_worst_shards_are_in_the_metrics(hook):
    feed, _, log = hook
    feed.skip([Skip("bad", "truncated", f"{n:03d}.tar") for n in range(80) for _ in range(n)])
    line = log(2)
    shown = [name for name in line if "_from/" in name]
    assert shown == [f"skipped_from/{n:03d}.tar" for n in range(79, 29, -1)]
    assert line["skipped"] == sum(range(80))


@pytest.mark.parametrize("peak", [None, 48e12], indirect=True)
def test_speed_is_in_operations_and_in_what_the_devices_could_do_if_known(hook, peak, shown):
    log = hook[-1]
    log(1)
    line = log(9)  # Eight steps in the one second that the clock counts between two looks.
    assert line["tflops_per_s"] == pytest.approx(8 * FLOPS / 1e12)
    assert line["pairs_per_s"] == pytest.approx(8 * 4)
    said = shown.getvalue().splitlines()[-1]
    assert "  24 TFLOP/s  " in said
    if peak is None:
        assert "mfu" not in line and "MFU" not in said
    else:
        assert line["mfu"] == pytest.approx(8 * FLOPS / peak)
        assert "  MFU 50%  " in said


@pytest.mark.parametrize("captions, rows", [(4096, 2563), (64, 9), (3, 2), (4096, 2600), (10, 10)])
def test_the_room_that_is_advised_holds_these_captions(captions, rows):
    said, given = [], []
    packed = types.SimpleNamespace(tokens=np.zeros((2, rows, 8)), ends=np.zeros((2, captions)))
    packing = Packing(row=8, tokens_per_caption=0.01)

    def inner(state, batch):
        given.append(batch)
        return state, {}

    step = told_of_room(inner, packing, said.append)
    for number in (4, 5):
        step(State(jnp.int32(number), None, None), {"tokens": packed})
    assert len(given) == 2 and len(said) == 1
    assert said[0].startswith(f"step 5: {captions} captions need {rows} rows of 8 tokens")
    advised = float(re.search(r"tokens_per_caption of (\S+) holds these$", said[0]).group(1))
    assert Packing(row=8, tokens_per_caption=advised).rows(captions) >= rows
    assert advised <= rows * 8 / captions + 0.1 + 1e-9
