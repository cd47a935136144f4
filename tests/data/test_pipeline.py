import json
import multiprocessing
import re
import threading

import numpy as np
import pytest

from clip_jax.data import windows
from clip_jax.data.order import locate
from clip_jax.data.pipeline import Pipeline, train_batches
from clip_jax.data.position import NOTHING, join
from clip_jax.data.sample import BadSampleError, Sample
from clip_jax.data.tar_shards import TarShards
from clip_jax.preprocess.augment import Augment
from clip_jax.preprocess.recipe import Recipe
from clip_jax.tokenizers import ClipBpe

SIZE = 4


class Numbers:
    """Sample i is a plain picture of grey i, with captions "<i> 0" to "<i> 2"."""

    def __init__(self, samples, bad=(), keys=None):
        self.samples, self.bad = samples, dict(bad)
        self.keys = keys or [f"k{i}" for i in range(samples)]

    def __len__(self):
        return self.samples

    def __getitem__(self, index):
        number = int(self.keys[index][1:])
        image = np.full((SIZE, SIZE, 3), number % 256, np.uint8)
        texts = tuple(f"{number} {i}" for i in range(3))
        match self.bad.get(number):
            case "source":
                raise BadSampleError(f"sample 'k{number}': the source says no")
            case "image":
                return Sample(key=self.keys[index], image=b"junk", texts=texts)
            case "text":
                return Sample(key=self.keys[index], image=image, texts=("", "  "))
        return Sample(key=self.keys[index], image=image, texts=texts)


class Words:
    """A text of numbers is its numbers; longer texts than two are cut."""

    context_length = 2
    vocab_size = 10_000

    def tokenize(self, texts):
        rows = [[int(word) for word in text.split()] for text in texts]
        ids = np.array([row[:2] for row in rows], np.int32).reshape(-1, 2)
        return ids, np.array([len(row) > 2 for row in rows], bool)

    def __call__(self, texts):
        return self.tokenize(texts)[0]


def open_batches(source, batch=4, **changes):
    fields = {
        "seed": 0,
        "recipe": Recipe(size=SIZE),
        "augment": Augment(),
        "tokenizer": Words(),
        "pipeline": Pipeline(threads=2),
    }
    return train_batches(source, batch=batch, **{**fields, **changes})


def take(batches, count, close=True):
    taken = [next(batches) for _ in range(count)]
    if close:
        batches.close()
    return taken


def numbers(taken):
    return [int(n) for batch in taken for n in batch["tokens"][:, 0]]


def same(a, b):
    assert len(a) == len(b)
    for one, other in zip(a, b, strict=True):
        assert one.keys() == other.keys() == {"images", "tokens", "skipped", "cut"}
        np.testing.assert_array_equal(one["images"], other["images"])
        np.testing.assert_array_equal(one["tokens"], other["tokens"])
        assert (one["skipped"], one["cut"]) == (other["skipped"], other["cut"])


@pytest.mark.parametrize("samples, batch", [(10, 4), (7, 7), (5, 12), (1, 3), (100, 50), (2, 1)])
def test_every_epoch_visits_every_sample_once_across_batch_borders(samples, batch):
    count = 3 * samples // batch + 1
    seen = numbers(take(open_batches(Numbers(samples), batch), count))
    epochs = [seen[i * samples : (i + 1) * samples] for i in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(samples))
    if samples >= 10:
        assert epochs[0] != epochs[1] != epochs[2] != list(range(samples))


def test_batches_have_their_shapes_and_types():
    (batch,) = take(open_batches(Numbers(9), 5), 1)
    assert batch["images"].shape == (5, SIZE, SIZE, 3) and batch["images"].dtype == np.uint8
    assert batch["tokens"].shape == (5, 2) and batch["tokens"].dtype == np.int32
    assert batch["images"][:, 0, 0, 0].tolist() == batch["tokens"][:, 0].tolist()


@pytest.mark.parametrize("hosts", [2, 4])
def test_the_global_order_is_the_same_for_any_number_of_hosts(hosts):
    whole = take(open_batches(Numbers(30), 8), 11)
    parts = [
        take(open_batches(Numbers(30), 8, process_index=h, process_count=hosts), 11)
        for h in range(hosts)
    ]
    for step, batch in enumerate(whole):
        for name in ("images", "tokens"):
            joined = np.concatenate([part[step][name] for part in parts])
            np.testing.assert_array_equal(joined, batch[name])


def test_another_seed_is_another_order_and_other_captions():
    first, second = (take(open_batches(Numbers(50), 50, seed=s), 1)[0] for s in (0, 1))
    assert first["tokens"][:, 0].tolist() != second["tokens"][:, 0].tolist()
    by_number = [dict(b["tokens"].tolist()) for b in (first, second)]
    assert by_number[0] != by_number[1]


def test_a_visit_depends_on_the_key_and_not_on_the_place():
    jitter = Augment(color_jitter=0.5)
    plain = Numbers(40)
    turned = Numbers(40, keys=plain.keys[::-1])
    views = []
    for source in (plain, turned):
        (batch,) = take(open_batches(source, 40, augment=jitter), 1)
        rows = zip(batch["tokens"].tolist(), batch["images"][:, 0, 0].tolist(), strict=True)
        views.append(sorted(rows))
    assert views[0] == views[1]


def test_captions_and_views_change_with_the_epoch():
    source = Numbers(1)
    batches = take(open_batches(source, 30, augment=Augment(color_jitter=0.5)), 2)
    captions = np.concatenate([b["tokens"][:, 1] for b in batches])
    assert set(captions.tolist()) == {0, 1, 2}
    grey = Numbers(1, keys=["k200"])
    (batch,) = take(open_batches(grey, 30, augment=Augment(color_jitter=0.5)), 1)
    assert len(np.unique(batch["images"][:, 0, 0], axis=0)) > 20


def test_captions_are_drawn_evenly():
    counts = np.zeros(3)
    for batch in take(open_batches(Numbers(100), 100), 12):
        counts += np.bincount(batch["tokens"][:, 1], minlength=3)
    assert counts.sum() == 1200 and counts.min() > 340


def test_order_and_randomness_are_pinned():
    """Values that must not change: else a resumed run goes on with other data."""
    assert windows.digest("visit", 0, 1, "k7") == 3729439212243490132
    assert numbers(take(open_batches(Numbers(8), 8), 2)) == [
        2,
        6,
        4,
        3,
        0,
        1,
        5,
        7,
        6,
        5,
        0,
        1,
        2,
        7,
        4,
        3,
    ]


@pytest.mark.parametrize("threads, prefetch", [(0, 0), (1, 0), (1, 3), (5, 2)])
def test_threads_and_prefetch_change_nothing(threads, prefetch):
    source = Numbers(33, {3: "source", 8: "image", 21: "text"})
    expected = take(open_batches(source, 6), 12)
    pipeline = Pipeline(threads=threads, prefetch=prefetch)
    same(take(open_batches(source, 6, pipeline=pipeline), 12), expected)


def test_bad_samples_are_skipped_reported_and_replaced():
    source = Numbers(20, {3: "source", 8: "image", 15: "text"})
    taken = take(open_batches(source, 4), 13)  # 52 good visits of 17 an epoch: 3 epochs and a bit.
    assert all(len(batch["images"]) == 4 for batch in taken)
    seen = numbers(taken)
    good = sorted(set(range(20)) - {3, 8, 15})
    assert [sorted(seen[i : i + 17]) for i in (0, 17, 34)] == [good] * 3
    skipped = [skip for batch in taken for skip in batch["skipped"]]
    assert len(skipped) in (9, 10, 11, 12)
    assert {(skip.message, skip.reason) for skip in skipped} == {
        ("sample 'k3': the source says no", "unreadable"),
        (
            "sample 'k8': cannot decode the image: not a picture that can be read "
            "(4 bytes, first b'junk')",
            "bad image",
        ),
        ("sample 'k15': it has no caption", "missing caption"),
    }


def test_hosts_skip_for_themselves():
    source = Numbers(40, {n: "source" for n in range(0, 40, 5)})
    parts = [take(open_batches(source, 8, process_index=h, process_count=2), 4) for h in range(2)]
    seen = [numbers(part) for part in parts]
    assert not set(seen[0]) & set(seen[1]) and len(set(seen[0] + seen[1])) == 32
    assert len({m for part in parts for b in part for m in b["skipped"]}) in (7, 8)


@pytest.mark.parametrize("batch, steps", [(1, 9), (6, 9), (40, 4), (70, 3)])
def test_a_restored_position_gives_exactly_the_batches_that_followed(batch, steps):
    source = Numbers(33, {3: "source", 8: "image", 9: "source", 21: "text"})
    changes = {"augment": Augment(color_jitter=0.4)}
    through = open_batches(source, batch, **changes)
    expected, states = [], [through.get_state()]
    for _ in range(steps):
        expected.append(next(through))
        states.append(json.loads(json.dumps(through.get_state())))
    through.close()
    for done in range(steps):
        again = open_batches(source, batch, **changes)
        again.set_state(states[done])
        assert again.get_state() == states[done]
        same(take(again, steps - done), expected[done:])


def test_the_position_can_be_set_while_running_and_backwards():
    batches = open_batches(Numbers(33), 5)
    start = batches.get_state()
    expected = take(batches, 4, close=False)
    batches.set_state(start)
    same(take(batches, 4), expected)


def test_the_position_says_what_was_given_out_not_what_was_read_ahead():
    batches = open_batches(Numbers(100), 5, pipeline=Pipeline(threads=2, prefetch=4))
    take(batches, 3)
    counts = {"hosts": 1, "batch": 5, "samples": 100, "streams": 1}
    assert batches.get_state() == {"visits": [15], "before": [], "origin": 0, **counts}


def test_a_restored_position_reads_no_earlier_sample_again():
    source, read = Numbers(400), []
    take_one = source.__class__.__getitem__
    Recorded = type("Recorded", (Numbers,), {})
    Recorded.__getitem__ = lambda self, i: read.append(i) or take_one(self, i)
    batches = open_batches(Recorded(400), 32, pipeline=Pipeline(threads=0))
    take(batches, 6, close=False)
    earlier = set(read)
    again = open_batches(Recorded(400), 32, pipeline=Pipeline(threads=0))
    again.set_state(batches.get_state())
    read.clear()
    take(again, 3)
    assert len(read) == 96 and not earlier & set(read)


def test_another_number_of_hosts_goes_on_at_the_same_place():
    expected = take(open_batches(Numbers(30), 8), 9)
    position = walked(Numbers(30), 8, None, 2, 4)[1]
    four = open_batches(Numbers(30), 8, process_index=3, process_count=4)
    four.set_state(position)
    rest = take(four, 5)
    for batch, whole in zip(rest, expected[4:], strict=True):
        np.testing.assert_array_equal(batch["tokens"], whole["tokens"][6:])


def walked(source, batch, position, hosts, count, **changes):
    """Batches that so many hosts give out from a position on, and the position after them."""
    taken, states = [], []
    for host in range(hosts):
        among = {"process_index": host, "process_count": hosts}
        part = open_batches(
            source, batch, **among, **changes, pipeline=Pipeline(threads=0, bad=1.0)
        )
        if position is not None:
            part.set_state(position)
        taken += take(part, count)
        states.append({"source": part.get_state(), **NOTHING})
    return taken, json.loads(json.dumps(join(states)["source"]))


@pytest.mark.parametrize("hosts", [(4, 8, 2, 1, 4), (2, 4, 4, 2, 8, 1), (8, 1, 8, 2, 1)])
def test_hosts_may_come_and_go_and_no_sample_is_seen_twice_or_never(hosts):
    bad = {n: ("source", "image", "text")[n % 3] for n in range(1200) if n % 5 < 3}
    source, position, seen, skipped = Numbers(1200, bad), None, [], []
    before = []
    for number, count in enumerate(hosts):
        taken, position = walked(source, 16, position, count, 1 + number // 3)
        before.append(len(position["before"]))
        seen += numbers(taken)
        skipped += [skip.message for batch in taken for skip in batch["skipped"]]
    # Every host has its place in the order; behind the furthest are holes until all have passed.
    rest, position = walked(source, 16, position, 1, (480 - len(seen)) // 16)
    seen += numbers(rest)
    skipped += [skip.message for batch in rest for skip in batch["skipped"]]
    assert len(seen) == len(set(seen)) and len(skipped) == len(set(skipped))
    assert not set(seen) & set(bad) and any(before)
    last, position = walked(source, 16, position, 1, 2)
    assert set(seen + numbers(last)) == set(range(1200)) - set(bad)
    assert position["before"] == []


@pytest.mark.parametrize("streams", [1, 4])
def test_batches_may_change_their_size_on_the_way(streams):
    expected = take(open_batches(Numbers(300), 4, streams=streams), 33)
    stages = [(1, 8, 5), (2, 12, 2), (1, 12, 1), (2, 8, 2), (4, 20, 1)]
    source, position, seen = Numbers(300), None, []
    for hosts, batch, count in stages:
        taken, position = walked(source, batch, position, hosts, count, streams=streams)
        seen.append(sorted(numbers(taken)))
    after = 0
    order = [number for batch in expected for number in numbers([batch])]
    for (_, batch, count), got in zip(stages, seen, strict=True):
        assert got == sorted(order[after : after + batch * count])
        after += batch * count
    assert position["before"] == []


@pytest.mark.parametrize("streams", [1, 4])
def test_no_sample_is_seen_twice_or_never_where_some_are_bad_and_batches_change(streams):
    bad = {n: ("source", "image", "text")[n % 3] for n in range(1200) if n % 5 < 3}
    source, position, seen, skipped = Numbers(1200, bad), None, [], []
    before = []
    for hosts, batch in ((4, 16), (2, 24), (4, 24), (1, 8), (4, 32), (2, 16)):
        taken, position = walked(source, batch, position, hosts, 1, streams=streams)
        before.append(len(position["before"]))
        seen += numbers(taken)
        skipped += [skip.message for one in taken for skip in one["skipped"]]
    assert any(before)
    while position["hosts"] > 1 or position["before"]:  # One host fills the holes.
        taken, position = walked(source, 4, position, 1, 1, streams=streams)
        seen += numbers(taken)
        skipped += [skip.message for one in taken for skip in one["skipped"]]
    blocks, rows = divmod(position["visits"][0], 4)
    behind = set()
    for stream in range(streams):
        group = 4 // streams
        here = blocks * group + min(max(rows - stream * group, 0), group)
        places = range(position["origin"] + here)
        behind |= {locate(source, 0, place, stream, streams) for place in places}
    assert {epoch for epoch, _ in behind} == {0}
    assert set(seen) == {index for _, index in behind} - set(bad)
    assert len(seen) == len(set(seen)) and len(skipped) == len(set(skipped))
    assert len(seen) + len(skipped) == len(behind)


def test_a_position_among_other_data_is_refused():
    batches = open_batches(Numbers(30))
    here = batches.get_state()
    with pytest.raises(ValueError, match="saved with 29 samples, but now there are 30"):
        batches.set_state({**here, "samples": 29})
    with pytest.raises(ValueError, match="saved with 4 streams, but now there are 1"):
        batches.set_state({**here, "streams": 4})
    with pytest.raises(ValueError, match="a position of 1 of 2 hosts"):
        batches.set_state({**here, "hosts": 2})
    with pytest.raises(ValueError, match=r"has \['batch', .*'visits'\], not \['next'\]"):
        batches.set_state({"next": 4})


def test_captions_that_were_cut_are_counted():
    class Long(Numbers):
        def __getitem__(self, index):
            number = f"{index} 1 2" if index % 3 == 0 else f"{index} 1"
            image = np.zeros((SIZE, SIZE, 3), np.uint8)
            return Sample(key=str(index), image=image, texts=(number,))

    assert sum(batch["cut"] for batch in take(open_batches(Long(30), 10), 3)) == 10


def test_data_that_is_all_bad_ends_in_an_error_not_a_loop():
    source = Numbers(5, {n: "source" for n in range(5)})
    message = r"^\d+ of the last \d+ training samples are bad .*: \d+ unreadable; the first: sampl"
    with pytest.raises(ValueError, match=message):
        take(open_batches(source, 3), 1)


def test_the_share_that_may_be_bad_is_stated():
    source = Numbers(3000, {n: "image" for n in range(3000) if n % 20 == 0})
    stopped = open_batches(source, 50, pipeline=Pipeline(threads=0, bad=0.01))
    with pytest.raises(ValueError, match=r"\(pipeline.bad is 0.01\): \d+ bad image; the first: "):
        take(stopped, 100)
    taken = take(open_batches(source, 50, pipeline=Pipeline(threads=0, bad=0.07)), 57)
    assert sum(len(batch["skipped"]) for batch in taken) >= 140
    with pytest.raises(ValueError, match=r"bad must be from 0 to 1, got 1\.5"):
        Pipeline(bad=1.5)


def test_more_than_half_bad_ends_in_an_error_and_less_does_not():
    mostly = Numbers(3000, {n: "source" for n in range(3000) if n % 5})
    batches = open_batches(mostly, 50)
    with pytest.raises(ValueError, match=r"of the last 1000 training samples are bad"):
        take(batches, 100, close=False)
    batches.close()
    some = Numbers(3000, {n: "source" for n in range(3000) if n % 5 < 2})
    taken = take(open_batches(some, 50), 36)
    assert sum(len(batch["skipped"]) for batch in taken) in range(1150, 1201)


def test_faults_of_the_source_that_are_no_bad_samples_stop_the_run():
    class Broken(Numbers):
        def __getitem__(self, index):
            raise RuntimeError("the disk is gone")

    batches = open_batches(Broken(5))
    with pytest.raises(RuntimeError, match="the disk is gone"):
        next(batches)
    batches.close()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"batch": 10, "process_count": 4}, "a batch of 10 cannot be shared by 4 hosts"),
        ({"batch": 0}, "a batch of 0 cannot be shared by 1 hosts"),
        ({"process_index": 2, "process_count": 2}, "there is no host 2 among 2"),
    ],
)
def test_impossible_divisions_are_refused(changes, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        open_batches(Numbers(5), **changes)


def test_no_samples_are_refused():
    with pytest.raises(ValueError, match=r"^the training data has no samples$"):
        open_batches(Numbers(0))


def test_all_impossible_fields_are_named():
    message = (
        "Pipeline.threads must be 0 or more, got -1; Pipeline.workers must be 0 or more, got -2"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Pipeline(threads=-1, workers=-2)


def readers():
    return [t for t in threading.enumerate() if t.name.startswith("grain")]


def test_closing_ends_all_threads():
    batches = open_batches(Numbers(50), 5, pipeline=Pipeline(threads=3))
    next(batches)
    running = readers()
    assert running
    batches.close()
    batches.close()
    for thread in running:
        thread.join(timeout=30)
    assert not any(thread.is_alive() for thread in running)
    with pytest.raises(ValueError, match="closed"):
        next(batches)


def test_workers_give_the_same_batches_and_resume_and_leave_nothing(tmp_path, write_tar, png):
    members = []
    for i in range(90):
        image = b"junk" if i % 9 == 4 else png(i)
        members += [(f"{i}.png", image), (f"{i}.txt", f"number {i}\nnumeral {i}")]
    write_tar(tmp_path / "0.tar", members)
    source = TarShards(root=str(tmp_path)).open("train")
    changes = {"tokenizer": ClipBpe(context_length=8), "augment": Augment(color_jitter=0.3)}
    expected = take(open_batches(source, 24, **changes), 6)
    pipeline = Pipeline(threads=1, workers=2)
    batches = open_batches(source, 24, pipeline=pipeline, **changes)
    same(take(batches, 3, close=False), expected[:3])
    state = json.loads(json.dumps(batches.get_state()))
    batches.close()
    assert multiprocessing.active_children() == []
    again = open_batches(source, 24, pipeline=pipeline, **changes)
    again.set_state(state)
    same(take(again, 3), expected[3:])
    assert multiprocessing.active_children() == []


def test_flickr8k_fills_batches_of_real_pictures(shared):
    source = TarShards(root=str(shared / "flickr8k"), caption_key="captions").open("train")
    batches = open_batches(
        source,
        64,
        recipe=Recipe(size=96),
        augment=Augment(min_crop=0.875, flip=True),
        tokenizer=ClipBpe(context_length=32),
    )
    (batch,) = take(batches, 1)
    assert batch["images"].shape == (64, 96, 96, 3) and batch["images"].std() > 40
    assert batch["tokens"].shape == (64, 32) and (batch["tokens"].max(1) == 49407).all()
    assert batch["skipped"] == []
