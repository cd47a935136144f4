import jax
import numpy as np
import pytest

from clip_jax.data.feed import Feed
from clip_jax.data.position import NOTHING
from clip_jax.data.visits import Skip
from clip_jax.sharding.mesh import MeshConfig, build_mesh
from clip_jax.sharding.place import batch_sharding
from clip_jax.sharding.rules import DATA_PARALLEL


class Counting:
    """Batches numbered from 0; every third one says that something was skipped."""

    def __init__(self, fail_at=None):
        self.next, self.fail_at = 0, fail_at

    def __next__(self):
        number, self.next = self.next, self.next + 1
        if number == self.fail_at:
            raise OSError("disk on fire")
        skipped = [Skip(f"sample {number}: bad", "bad image", "a.tar")] if number % 3 == 0 else []
        return {"images": np.full((8, 2), number), "skipped": skipped, "cut": number}

    def get_state(self):
        return {"next": self.next}

    def set_state(self, state):
        self.next = state["next"]

    def close(self):
        self.closed = True


def counts(skipped):
    return {"skipped": {"reasons": {"bad image": skipped}, "shards": {"a.tar": skipped}}}


@pytest.fixture
def feed(request):
    made = []

    def make(batches, **options):
        sharding = batch_sharding(DATA_PARALLEL, build_mesh(MeshConfig()))
        made.append(Feed(batches, sharding, **options))
        return made[-1]

    yield make
    for feed in made:
        feed.close()
        assert not feed._thread.is_alive() and feed._batches.closed


def number(batch):
    assert isinstance(batch["images"], jax.Array) and batch["images"].shape == (8, 2)
    return int(batch["images"][0, 0])


def test_batches_come_in_order_and_are_split_over_the_mesh(feed):
    made = feed(Counting())
    batches = [next(made) for _ in range(5)]
    assert [number(batch) for batch in batches] == [0, 1, 2, 3, 4]
    assert len(batches[0]["images"].addressable_shards) == 8


def test_the_position_is_that_of_the_batches_handed_out_not_of_those_read_ahead(feed):
    made = feed(Counting(), depth=4)
    assert made.position == {"source": {"next": 0}, **NOTHING}
    for _ in range(5):
        next(made)
    assert made.position == {"source": {"next": 5}, **counts(2), "cut": 10}


def test_a_feed_goes_on_from_a_position_with_the_very_next_batch(feed):
    first = feed(Counting())
    for _ in range(4):
        next(first)
    second = feed(Counting(), position=first.position)
    assert number(next(second)) == 4
    assert second.position == {"source": {"next": 5}, **counts(2), "cut": 10}


def test_skips_are_handed_over_once(feed):
    made = feed(Counting())
    for _ in range(4):
        next(made)
    assert [skip.message for skip in made.take_skips()] == ["sample 0: bad", "sample 3: bad"]
    assert made.take_skips() == []


def test_a_failure_in_the_thread_reaches_every_later_caller(feed):
    made = feed(Counting(fail_at=2))
    assert [number(next(made)) for _ in range(2)] == [0, 1]
    for _ in range(2):
        with pytest.raises(OSError, match="disk on fire"):
            next(made)


def test_arrange_shapes_what_the_step_takes(feed):
    made = feed(Counting(), arrange=lambda batch: {**batch, "twice": 2 * batch["images"]})
    next(made)
    assert int(next(made)["twice"][0, 0]) == 2
