import contextlib
import itertools
import json
import re
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_jax.data.mixture import MixtureSource
from clip_jax.data.order import check_streams, locate, near
from clip_jax.data.pipeline import Pipeline, train_batches
from clip_jax.data.sample import Sample
from clip_jax.data.windows import Window, Windowed, Windows, digest, shuffled
from clip_jax.preprocess.augment import Augment
from clip_jax.preprocess.recipe import Recipe

SIZE = 4


class Plain:
    """Sample i has one caption, "<first + i>"."""

    def __init__(self, samples, first=0):
        self.samples, self.first = samples, first

    def __len__(self):
        return self.samples

    def __getitem__(self, index):
        image = np.zeros((SIZE, SIZE, 3), np.uint8)
        return Sample(key=f"k{index}", image=image, texts=(f"{self.first + index}",))


class Sharded(Plain):
    """Refuses samples of shards that are not near."""

    def __init__(self, sizes, window, first=0):
        super().__init__(sum(sizes), first)
        ends = np.cumsum(sizes)
        self.sizes = list(sizes)
        self.windows = Windows(ends, window)
        self.shard = np.repeat(np.arange(len(sizes)), sizes)
        self.kept, self.is_open = Counter(), False

    def __getitem__(self, index):
        assert self.kept[int(self.shard[index])], "read before it was near"
        return super().__getitem__(index)

    @contextlib.contextmanager
    def near(self, shards):
        self.kept.update(set(shards))
        yield
        self.kept.subtract(set(shards))

    def open(self):
        self.is_open = True

    def close(self):
        self.is_open = False


class Words:
    context_length = 1
    vocab_size = 10_000

    def tokenize(self, texts):
        return np.array(texts, np.int32).reshape(-1, 1), np.zeros(len(texts), bool)

    def __call__(self, texts):
        return self.tokenize(texts)[0]


def open_batches(source, batch, **changes):
    fields = {
        "seed": 0,
        "recipe": Recipe(size=SIZE),
        "augment": Augment(),
        "tokenizer": Words(),
        "pipeline": Pipeline(threads=0),
    }
    return train_batches(source, batch=batch, **{**fields, **changes})


def rows(batches, count):
    """Numbers of the samples of some batches, a row a batch."""
    return np.stack([next(batches)["tokens"][:, 0] for _ in range(count)])


def epoch_of(source, seed, epoch, stream, streams):
    """A stream's visits of one epoch."""
    first = epoch * (len(source) // streams)  # Segments are as long as that, or one longer.
    visits = (locate(source, seed, place, stream, streams) for place in itertools.count(first))
    rest = itertools.dropwhile(lambda visit: visit[0] < epoch, visits)
    return [index for _, index in itertools.takewhile(lambda visit: visit[0] == epoch, rest)]


sizes = st.lists(st.integers(0, 7), min_size=1, max_size=9).filter(lambda s: sum(s) >= 4)
sharded = st.builds(Sharded, sizes, st.integers(1, 12))
anything = st.one_of(sharded, st.builds(Plain, st.integers(4, 40)))
seeds = st.integers(0, 2**63)


@given(anything, seeds, st.integers(1, 4), st.integers(0, 2))
@settings(max_examples=25, deadline=None)
def test_all_streams_together_visit_every_sample_once_an_epoch(source, seed, streams, epoch):
    parts = [epoch_of(source, seed, epoch, stream, streams) for stream in range(streams)]
    assert sorted(itertools.chain(*parts)) == list(range(len(source)))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("window", [1, 2, 4])
def test_large_windows_are_shuffled_without_making_their_order(window):
    source = Sharded([700, 1100, 0, 900], window)
    parts = [epoch_of(source, 5, 0, stream, 2) for stream in range(2)]
    assert sorted(itertools.chain(*parts)) == list(range(2700))
    for part in parts:
        assert part != sorted(part)


@given(sharded, seeds, st.integers(1, 4))
@settings(max_examples=25, deadline=None)
def test_shards_that_are_visited_in_turns_are_at_most_a_window(source, seed, streams):
    for stream in range(streams):
        visits = source.shard[epoch_of(source, seed, 1, stream, streams)].tolist()
        last = {shard: place for place, shard in enumerate(visits)}
        together, until = set(), 0
        for place, shard in enumerate(visits):
            if place > until:  # All that were visited before are done with.
                together = set()
            together.add(shard)
            until = max(until, last[shard])
            assert len(together) <= source.windows.size


@given(sharded, seeds, st.integers(1, 4), st.integers(0, 60), st.integers(1, 20))
@settings(max_examples=25, deadline=None)
def test_what_is_near_is_what_is_visited_now_and_next(source, seed, streams, start, count):
    stream = seed % streams
    places = range(start, start + count)
    (found,) = near(source, seed, places, stream, streams)
    assert found.source is source

    def shards(places):
        visits = (locate(source, seed, place, stream, streams) for place in places)
        return {int(source.shard[index]) for _, index in visits}

    assert shards(places) <= set(found.now)
    assert len(found.now) <= source.windows.size * (count + 1)
    assert all(source.sizes[shard] for shard in found.now + found.then)
    # Of one visit it is its window; and what comes then is the window of the visit after that.
    (one,) = near(source, seed, places[:1], stream, streams)
    samples = len(source)
    segment = range(stream * samples // streams, (stream + 1) * samples // streams)
    after, span = next(source.windows.spans(seed, segment, start))
    assert one.now == span.shards.tolist() and len(one.now) <= source.windows.size
    assert start < after <= start + len(segment)
    assert one.then == next(near(source, seed, range(after, after + 1), stream, streams)).now
    within = {
        tuple(next(near(source, seed, range(p, p + 1), stream, streams)).now)
        for p in range(start, after)
    }
    assert within == {tuple(one.now)}


def test_a_host_is_near_to_its_segment_only():
    source = Sharded([5] * 40, 4)
    seen = []
    for stream in range(4):
        (found,) = near(source, 3, range(50), stream, 4)
        visited = {int(source.shard[i]) for i in epoch_of(source, 3, 0, stream, 4)}
        assert set(found.now) == visited and len(visited) == 10
        seen += found.now
    assert sorted(seen) == list(range(40))


def test_one_stream_of_a_plain_source_is_the_whole_order():
    source = Plain(11)
    expected = [
        (epoch, shuffled(place, 11, digest("order", 5, epoch)))
        for epoch in range(3)
        for place in range(11)
    ]
    assert [locate(source, 5, place) for place in range(33)] == expected


def test_streams_divide_the_order_of_a_plain_source():
    source = Plain(11)
    whole = epoch_of(source, 5, 1, 0, 1)
    parts = [epoch_of(source, 5, 1, stream, 3) for stream in range(3)]
    assert list(itertools.chain(*parts)) == whole and [len(p) for p in parts] == [3, 4, 4]


@pytest.mark.parametrize("window", [2, 5, 50])
def test_every_epoch_and_seed_has_an_order_of_its_own(window):
    source = Sharded([6] * 20, window)
    orders = [epoch_of(source, seed, epoch, 0, 1) for seed in (0, 1) for epoch in (0, 1)]
    by_shard = [list(dict.fromkeys(source.shard[order].tolist())) for order in orders]
    for one, other in itertools.combinations(range(4), 2):
        assert orders[one] != orders[other] and by_shard[one] != by_shard[other]
    for order in orders:  # Within a window shards are mixed, and so are the samples of each.
        assert (np.diff(source.shard[order]) != 0).mean() > 0.3
        places = defaultdict(list)
        for index in order:
            places[int(source.shard[index])].append(index)
        assert sum(found != sorted(found) for found in places.values()) > 15


def test_all_orders_of_shards_and_of_samples_occur():
    for source in (Sharded([1, 1, 1], 1), Sharded([1, 1, 1], 3), Sharded([3], 1)):
        orders = Counter(tuple(epoch_of(source, s, 0, 0, 1)) for s in range(300))
        assert len(orders) == 6 and min(orders.values()) > 20


def test_the_windowed_order_is_pinned():
    """Values that must not change: else a resumed run goes on with other data."""
    source = Sharded([3, 1, 0, 4, 2], 2)
    assert [locate(source, 7, place)[1] for place in range(20)] == [
        *(4, 1, 2, 7, 6, 0, 5, 3, 8, 9),
        *(3, 4, 5, 6, 7, 8, 9, 2, 1, 0),
    ]
    halves = [epoch_of(source, 7, 0, stream, 2) for stream in range(2)]
    assert list(itertools.chain(*halves)) == [4, 1, 2, 0, 5, 9, 7, 6, 8, 3]


def mixture():
    return MixtureSource(
        {"a": Sharded([3, 5, 2, 6, 4, 4], 2), "b": Plain(97, 1000), "c": Sharded([7, 1], 1, 2000)},
        {"a": 0.5, "b": 0.4, "c": 0.1},
        labels=False,
    )


@pytest.mark.parametrize("streams", [1, 2, 4])
def test_every_stream_of_a_mixture_is_a_mixture(streams):
    source = mixture()
    turns = defaultdict(list)
    for stream in range(streams):
        counts = Counter()
        for place in range(560 // streams):
            part, turn = source.turn(place)
            assert turn == counts[part]
            epoch, index = locate(source, 0, place, stream, streams)
            assert source.part(index) == part
            if epoch < 2:
                turns[part, epoch].append(index)
            counts[part] += 1
        assert source.turns(560 // streams) == tuple(counts[part] for part in range(3))
    for part, one in enumerate(source.sources):
        own = range(source.first(part), source.first(part) + len(one))
        for epoch in range(2):
            assert sorted(turns[part, epoch]) == list(own)


def test_windows_of_a_mixture_are_those_of_its_sources():
    source = mixture()
    places = range(40, 60)
    found = list(near(source, 0, places, 1, 2))
    assert [one.source for one in found] == [source.sources[0], source.sources[2]]
    for part, one in zip((0, 2), found, strict=True):
        indices = [locate(source, 0, place, 1, 2)[1] for place in places]
        own = [i - source.first(part) for i in indices if source.part(i) == part]
        assert {int(one.source.shard[i]) for i in own} <= set(one.now)
    # A source without a turn just now keeps its window.
    empty = next(p for p in itertools.count() if source.turns(p)[2] == source.turns(p + 1)[2])
    assert list(near(source, 0, range(empty, empty + 1)))[1].now


def test_plain_sources_have_nothing_near():
    assert list(near(Plain(5), 0, range(3))) == []
    assert not isinstance(Plain(5), Windowed) and isinstance(Sharded([5], 1), Windowed)


@pytest.mark.parametrize("threads", [0, 2])
def test_the_global_order_is_the_same_for_any_number_of_hosts(threads):
    changes = {"streams": 4, "pipeline": Pipeline(threads=threads)}
    make = lambda: Sharded([3, 5, 2, 6, 4, 4, 7, 1, 6], 2)  # noqa: E731
    batches = open_batches(make(), 8, **changes)
    whole = rows(batches, 15)
    batches.close()
    for hosts in (2, 4):
        parts = []
        for host in range(hosts):
            source = make()
            own = {"process_index": host, "process_count": hosts}
            batches = open_batches(source, 8, **changes, **own)
            parts.append(rows(batches, 15))
            assert source.is_open
            batches.close()
            assert not source.is_open
        np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)


def test_hosts_read_no_sample_twice():
    seen = []
    for host in range(4):
        source = Sharded([4] * 16, 2)
        own = {"process_index": host, "process_count": 4, "streams": 4}
        batches = open_batches(source, 16, **own)
        seen += rows(batches, 4).ravel().tolist()
        batches.close()
    assert sorted(seen) == list(range(64))


@pytest.mark.parametrize("hosts", [1, 2, 4])
@pytest.mark.parametrize("make", [mixture, lambda: Sharded([3, 5, 2, 6, 4, 4], 2)])
def test_a_run_goes_on_in_mid_window_with_any_number_of_hosts(make, hosts):
    batches = open_batches(make(), 8, streams=4)
    rows(batches, 5)
    state = json.loads(json.dumps(batches.get_state()))
    expected = rows(batches, 6)
    batches.close()
    parts = []
    for host in range(hosts):
        own = {"process_index": host, "process_count": hosts, "streams": 4}
        batches = open_batches(make(), 8, **own)
        batches.set_state(state)
        parts.append(rows(batches, 6))
        batches.close()
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), expected)


@pytest.mark.parametrize(
    "streams, batch, hosts, message",
    [
        (0, 8, 1, "streams is 0: there must be at least 1"),
        (3, 8, 1, "streams is 3: a batch of 8 must be a multiple of the streams"),
        (2, 8, 4, "streams is 2: they must be a multiple of the 4 hosts, or 1"),
        (16, 16, 1, "streams is 16: a source of 8 samples cannot be cut into so many"),
        (
            6,
            8,
            4,
            "streams is 6: a batch of 8 must be a multiple of the streams; they must be a multiple "
            "of the 4 hosts, or 1",
        ),
    ],
)
def test_impossible_streams_are_refused(streams, batch, hosts, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check_streams(mixture(), batch=batch, streams=streams, hosts=hosts)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        open_batches(mixture(), batch, streams=streams, process_count=hosts)


def test_one_stream_serves_any_number_of_hosts():
    check_streams(Plain(1), batch=4, streams=1, hosts=4)
    check_streams(Plain(4), batch=4, streams=4, hosts=2)


def test_all_impossible_fields_of_a_window_are_named():
    message = "Window.shards must be 1 or more, got 0; Window.fetches must be 1 or more, got -1"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Window(shards=0, fetches=-1)
