import dataclasses
import json
import math
import pickle
import re
from collections import Counter
from fractions import Fraction

import jax
import numpy as np
import pytest

from clip_jax.config import from_data, to_data
from clip_jax.data import DatasetConfig, Digits, Folder, Mixture, Synthetic, Table
from clip_jax.data.feed import Feed
from clip_jax.data.mixture import MixtureSource
from clip_jax.data.order import locate
from clip_jax.data.pipeline import Pipeline, iterate, train_batches
from clip_jax.data.position import NOTHING, join
from clip_jax.data.sample import BadSampleError, Dataset, Sample, Source
from clip_jax.overrides import override
from clip_jax.preprocess.augment import Augment
from clip_jax.preprocess.recipe import Recipe

SIZE = 4
WEIGHTS = [
    {"a": 1.0},
    {"a": 0.5, "b": 0.5},
    {"a": 0.7, "b": 0.3},
    {"a": 0.001, "b": 0.999},
    {"a": 1.0, "b": 1e-9},
    {"a": 3.0, "b": 2.0, "c": 1.0},
    {"a": 1 / 3, "b": 0.1, "c": math.pi, "d": 7.0},
    {name: 1.0 for name in "abcdefghijk"},
]


class Numbers:
    """Sample i has the key "k<i>" and one caption, "<first + i> 0"; some are bad."""

    def __init__(self, samples, first=0, bad=()):
        self.samples, self.first, self.bad = samples, first, bad

    def __len__(self):
        return self.samples

    def __getitem__(self, index):
        if index in self.bad:
            raise BadSampleError(f"sample 'k{index}': the source says no")
        image = np.full((SIZE, SIZE, 3), index % 256, np.uint8)
        return Sample(key=f"k{index}", image=image, texts=(f"{self.first + index} 0",), label=index)


class Words:
    context_length = 2
    vocab_size = 10_000

    def tokenize(self, texts):
        rows = [[int(word) for word in text.split()] for text in texts]
        return np.array(rows, np.int32).reshape(-1, 2), np.zeros(len(rows), bool)

    def __call__(self, texts):
        return self.tokenize(texts)[0]


def mix(samples, weights, labels=False, bad=()):
    """Numbers of source n begin at 1000 n."""
    sources = {
        name: Numbers(count, 1000 * n, bad)
        for n, (name, count) in enumerate(zip(weights, samples, strict=True))
    }
    return MixtureSource(sources, weights, labels=labels)


THREE = mix((40, 100, 70), {"a": 0.5, "b": 0.3, "c": 0.2})


def open_batches(source, batch=8, **changes):
    fields = {
        "seed": 0,
        "recipe": Recipe(size=SIZE),
        "augment": Augment(color_jitter=0.4),
        "tokenizer": Words(),
        "pipeline": Pipeline(threads=1),
    }
    return train_batches(source, batch=batch, **{**fields, **changes})


def take(batches, count):
    taken = [next(batches) for _ in range(count)]
    batches.close()
    return taken


def numbers(taken):
    return [int(n) for batch in taken for n in batch["tokens"][:, 0]]


def same(a, b):
    for one, other in zip(a, b, strict=True):
        np.testing.assert_array_equal(one["images"], other["images"])
        np.testing.assert_array_equal(one["tokens"], other["tokens"])
        assert (one["skipped"], one["cut"]) == (other["skipped"], other["cut"])


@pytest.mark.parametrize("weights", WEIGHTS)
def test_turns_are_numbered_without_a_gap_and_shared_by_weight(weights):
    source = mix([5] * len(weights), weights)
    exact = [Fraction(str(weight)) for weight in weights.values()]
    shares = [float(weight / sum(exact)) for weight in exact]
    counts = [0] * len(weights)
    for position in range(3000):
        part, turn = source.turn(position)
        assert turn == counts[part]
        counts[part] += 1
        for count, share in zip(counts, shares, strict=True):
            assert abs(count - (position + 1) * share) <= len(weights) / 2 + 1e-6


def test_decimal_weights_are_exact_however_far_one_is():
    source = mix((5, 5), {"a": 0.7, "b": 0.3})
    parts = [source.turn(position)[0] for position in range(1000)]
    assert all(sum(parts[i : i + 10]) == 3 for i in range(991))
    far = sorted(source.turn(10**15 + i) for i in range(10))
    first = [(0, 7 * 10**14 + i) for i in range(7)]
    assert far == first + [(1, 3 * 10**14 + i) for i in range(3)]


def walks(source, seed, positions):
    """Indexes that each source gives in each of its epochs, in their order, by name."""
    found = {}
    for position in positions:
        epoch, index = locate(source, seed, position)
        part = source.part(index)
        epochs = found.setdefault(source.names[part], [])
        assert epoch in (len(epochs) - 1, len(epochs))
        epochs += [[]] * (epoch == len(epochs))
        epochs[epoch] = [*epochs[epoch], index - source.first(part)]
    return found


@pytest.mark.parametrize("seed", [0, 1])
def test_every_sample_of_a_source_is_seen_once_before_any_is_seen_again(seed):
    found = walks(THREE, seed, range(700))
    assert {name: len(epochs) for name, epochs in found.items()} == {"a": 9, "b": 3, "c": 2}
    for name, size in (("a", 40), ("b", 100), ("c", 70)):
        *whole, last = found[name]
        assert all(sorted(epoch) == list(range(size)) for epoch in whole)
        assert len(set(last)) == len(last) <= size
        orders = [tuple(epoch) for epoch in whole]
        assert len({*orders, tuple(range(size))}) == len(orders) + 1


def test_sources_keep_their_order_when_others_come_or_weights_change():
    alone = walks(mix((40,), {"a": 1.0}), 0, range(300))["a"]
    mixed = walks(mix((40, 40, 9), {"a": 0.2, "b": 0.7, "0": 0.1}), 0, range(600))
    assert mixed["a"] == alone[:3] and len(mixed["b"]) == 11
    assert mixed["a"][0] != mixed["b"][0]  # Equal sizes, but orders of their own.
    other = walks(mix((40,), {"a": 1.0}), 1, range(40))["a"]
    assert other[0] != alone[0]


def test_the_order_of_sources_in_a_config_means_nothing():
    sources = {"a": Numbers(20), "b": Numbers(30, 1000)}
    weights = {"a": 0.3, "b": 0.7}
    turned = {name: sources[name] for name in ("b", "a")}
    one, other = (MixtureSource(each, weights, labels=False) for each in (sources, turned))
    assert [locate(one, 0, i) for i in range(100)] == [locate(other, 0, i) for i in range(100)]
    assert [one[i].key for i in range(50)] == [other[i].key for i in range(50)]


def test_order_is_pinned():
    """Values that must not change: else a resumed run goes on with other data."""
    pinned = [
        (0, 110),
        (0, 23),
        (0, 185),
        (0, 14),
        (0, 118),
        (1, 14),
        (0, 64),
        (1, 0),
        (0, 156),
        (1, 10),
    ]
    assert [locate(THREE, 7, position) for position in range(75, 85)] == pinned


def test_every_batch_is_mixed_alike():
    for batch in take(open_batches(THREE, 20), 12):
        shares = np.bincount(batch["tokens"][:, 0] // 1000, minlength=3)
        assert np.abs(shares - [10, 6, 4]).max() <= 1


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_the_global_order_is_the_same_for_any_number_of_hosts(hosts):
    parts = [
        take(open_batches(THREE, process_index=h, process_count=hosts), 30) for h in range(hosts)
    ]
    joined = [n for step in range(30) for part in parts for n in numbers([part[step]])]
    expected = [locate(THREE, 0, position)[1] for position in range(240)]
    firsts = np.array([0, 1000 - 40, 2000 - 140])
    assert joined == [i + firsts[THREE.part(i)] for i in expected]


def test_a_restored_position_gives_exactly_the_batches_that_followed():
    source = mix((13, 29), {"a": 0.6, "b": 0.4}, bad=(3, 4, 11))
    through = open_batches(source, 5)
    states, expected = [through.get_state()], []
    for _ in range(15):
        expected.append(next(through))
        states.append(json.loads(json.dumps(through.get_state())))
    through.close()
    assert sum(len(batch["skipped"]) for batch in expected) > 10
    for done in range(15):
        again = open_batches(source, 5)
        again.set_state(states[done])
        assert again.get_state() == states[done]
        same([next(again) for _ in range(15 - done)], expected[done:])
        assert again.get_state() == states[-1]
        again.close()


def test_another_number_of_hosts_goes_on_at_the_same_place():
    expected = take(open_batches(THREE), 9)
    halves = [open_batches(THREE, process_index=h, process_count=2) for h in range(2)]
    for half in halves:
        take(half, 4)
    position = join([{"source": half.get_state(), **NOTHING} for half in halves])["source"]
    assert sum(position["drawn"].values()) == 32
    for host, counts in ((3, 0), (0, 32)):
        four = open_batches(THREE, process_index=host, process_count=4)
        four.set_state(position)
        assert sum(four.get_state()["drawn"].values()) == counts
        for batch, whole in zip(take(four, 5), expected[4:], strict=True):
            np.testing.assert_array_equal(batch["tokens"], whole["tokens"][2 * host :][:2])


def test_samples_given_out_are_counted_by_source_and_bad_ones_are_not():
    source = mix((20, 30), {"good": 1.0, "mixed": 1.0}, bad=(25, 26, 27, 28, 29))
    batches, counts = open_batches(source, 10, pipeline=Pipeline(threads=2, prefetch=4)), Counter()
    assert batches.get_state()["drawn"] == {"good": 0, "mixed": 0}
    for _ in range(12):
        for number in numbers([next(batches)]):
            counts[("good", "mixed")[number // 1000]] += 1
        assert batches.get_state()["drawn"] == dict(counts)
    batches.close()
    assert counts["good"] > counts["mixed"] + 5


def test_the_feed_knows_the_counts_of_what_it_handed_out():
    device = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))
    sharding = jax.sharding.NamedSharding(device, jax.sharding.PartitionSpec("data"))
    feed = Feed(open_batches(THREE, 10), sharding, depth=3)
    for _ in range(4):
        batch = next(feed)
    assert set(batch) == {"images", "tokens"}
    assert feed.position["source"]["drawn"] == {"a": 20, "b": 12, "c": 8}
    feed.close()


def test_positions_of_other_mixtures_are_refused():
    two = mix((40, 60), {"a": 1.0, "b": 1.0})
    batches = open_batches(two)
    with pytest.raises(ValueError, match=r"has \[.*'drawn', .*'visits'\], not"):
        batches.set_state(open_batches(Numbers(100)).get_state())
    other = open_batches(mix((40, 60), {"a": 1.0, "c": 1.0}))
    message = "saved in a mixture of a, c, but the training data now is one of a, b"
    with pytest.raises(ValueError, match=message):
        batches.set_state(other.get_state())
    plain = open_batches(Numbers(100))
    with pytest.raises(ValueError, match=r"has \['batch', .*\], not \['batch', .*'drawn'"):
        plain.set_state(other.get_state())


def test_skipped_samples_are_named_with_their_source():
    source = mix((6, 6), {"a": 1.0, "b": 1.0}, bad=(2,))
    messages = {s.message for batch in take(open_batches(source, 4), 6) for s in batch["skipped"]}
    assert messages == {f"{name}: sample 'k2': the source says no" for name in "ab"}
    read = list(iterate(source))
    assert [str(s) for s in read if isinstance(s, BadSampleError)] == sorted(messages)


def test_read_in_order_it_is_its_sources_one_after_the_other():
    keys = [THREE[i].key for i in range(len(THREE))]
    expected = [(name, i) for name, size in (("a", 40), ("b", 100), ("c", 70)) for i in range(size)]
    assert keys == [f"{name}/k{i}" for name, i in expected]
    assert len(set(keys)) == len(THREE) == 210
    for index in (210, -1):
        with pytest.raises(IndexError, match=f"sample {index} of 210"):
            THREE[index]


def test_workers_get_the_same_source():
    copy = pickle.loads(pickle.dumps(THREE))
    assert [locate(copy, 3, i) for i in range(200)] == [locate(THREE, 3, i) for i in range(200)]
    assert copy[150].key == THREE[150].key


@pytest.fixture
def config(tmp_path, png):
    """A table and made-up pictures, of which one has a split more."""
    for split, count in (("train", 6), ("test", 3)):
        lines = [f"{split}{i}.png\tpicture {i}" for i in range(count)]
        (tmp_path / f"{split}.csv").write_text("\n".join(["filepath\ttitle", *lines]))
        for i in range(count):
            (tmp_path / f"{split}{i}.png").write_bytes(png(i))
    made = Synthetic(samples=9, width=8, height=8)
    return Mixture(sources={"table": (Table(path=str(tmp_path)), 0.25), "made": (made, 0.75)})


def test_the_contracts_are_kept(config):
    source = config.open("train")
    assert isinstance(config, Dataset) and isinstance(source, Source)
    assert len(source) == 15 and len(config.open("test")) == 12
    assert [source[i].key for i in (0, 9)] == ["made/train-000000000", "table/train.csv:1"]
    assert from_data(DatasetConfig, json.loads(json.dumps(to_data(config)))) == config


def test_the_command_line_reaches_the_sources(config):
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        data: DatasetConfig

    args = ["--data.sources.table.0.separator", ",", "--data.sources.made.1", "2"]
    data = override(Config(data=config), args, prog="train").data
    assert data.sources["table"] == (
        dataclasses.replace(config.sources["table"][0], separator=","),
        0.25,
    )
    assert data.sources["made"] == (config.sources["made"][0], 2.0)


def test_real_sources_train_together(config):
    class Lengths(Words):
        def tokenize(self, texts):
            return super().tokenize([f"{len(text)} 0" for text in texts])

    batches = open_batches(config.open("train"), 8, tokenizer=Lengths())
    taken = take(batches, 6)
    assert batches.get_state()["drawn"] == {"table": 12, "made": 36}
    assert all(batch["images"].shape == (8, SIZE, SIZE, 3) for batch in taken)
    assert [batch["skipped"] for batch in taken] == [[]] * 6


def test_labels_stay_where_all_sources_have_the_same_classes(tmp_path, png):
    digits, again = Digits(colourings=1), Digits(colourings=1, seed=1)
    both = Mixture(sources={"a": (digits, 1.0), "b": (again, 1.0)})
    assert both.class_names("test") == digits.class_names("test")
    source = both.open("unseen_images")
    half = len(source) // 2
    assert [source[i].label for i in (0, half)] == [
        d.open("unseen_images")[0].label for d in (digits, again)
    ]
    (tmp_path / "test" / "cat").mkdir(parents=True)
    (tmp_path / "test" / "cat" / "1.png").write_bytes(png(0))
    cats = Folder(root=str(tmp_path), class_folders=True)
    other = Mixture(sources={"a": (digits, 1.0), "b": (cats, 1.0)})
    assert other.class_names("test") == ()
    source = other.open("test")
    assert {source[i].label for i in range(len(source))} == {None}


def test_all_sources_that_cannot_be_opened_are_named(config):
    data = dict(config.sources)
    message = (
        r"^Mixture, split 'val': table: .* has no split 'val'; .*; "
        r"made: Synthetic has no split 'val'; it has train, test$"
    )
    with pytest.raises(ValueError, match=message):
        Mixture(sources=data).open("val")


@pytest.mark.parametrize(
    "sources, message",
    [
        ({}, "Mixture.sources must be one data set or more, got {}"),
        ({"a/b": 1.0}, "Mixture.sources must be named, without a slash, got {'a/b': "),
        ({"": 1.0}, "Mixture.sources must be named, without a slash, got {'': "),
        ({"a": 0.0}, "Mixture.sources must be given weights above 0, got {'a': "),
        ({"a": math.nan}, "Mixture.sources must be given weights above 0, got {'a': "),
        ({"a": math.inf}, "Mixture.sources must be given weights above 0, got {'a': "),
    ],
)
def test_impossible_fields_are_refused(sources, message):
    data = Synthetic()
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        Mixture(sources={name: (data, weight) for name, weight in sources.items()})
