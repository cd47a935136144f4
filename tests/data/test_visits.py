import dataclasses

import numpy as np
import pytest

from clip_jax.data import visits
from clip_jax.data.sample import BadSampleError, Sample
from clip_jax.data.slots import Slots
from clip_jax.data.visits import Visits
from clip_jax.preprocess.augment import Augment
from clip_jax.tokenizers import ClipBpe


class Mixed:
    """Every third sample is bad, each in another way."""

    def __len__(self):
        return 40

    def __getitem__(self, index):
        if index % 9 == 2:
            raise BadSampleError(f"sample {index}: no", reason="truncated", shard="one")
        image = np.full((6, 5, 3), index, np.uint8)
        if index % 9 == 5:
            image = b"junk"
        texts = ("",) if index % 9 == 8 else (f"number {index}", f"numeral {index}")
        return Sample(key=str(index), image=image, texts=texts, shard="two")


@pytest.fixture
def chunks():
    return Visits(
        source=Mixed(),
        batch=80,
        streams=1,
        seed=0,
        size=4,
        augment=Augment(),
        tokenizer=ClipBpe(context_length=8),
        process_index=0,
        process_count=1,
    )


def same(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(value, other[name], err_msg=name)
        else:
            assert value == other[name], name


def test_a_chunk_has_the_good_and_the_bad_in_the_order_of_their_visits(chunks):
    chunk = chunks(0)
    bad = [visit for visit, _ in chunk["faults"]]
    assert bad == sorted(bad) and list(chunk["visits"]) == sorted(chunk["visits"])
    assert sorted([*bad, *chunk["visits"]]) == list(range(32))
    kinds = {skip.reason: skip.shard for _, skip in chunk["faults"]}
    assert kinds == {"truncated": "one", "bad image": "two", "missing caption": "two"}
    good = chunks.tokenizer.tokenize([f"number {i}" for i in range(40)])[0]
    other = chunks.tokenizer.tokenize([f"numeral {i}" for i in range(40)])[0]
    for image, tokens in zip(chunk["images"], chunk["tokens"], strict=True):
        number = int(image[0, 0, 0])
        assert (tokens == good[number]).all() or (tokens == other[number]).all()


@pytest.mark.parametrize("together", [1, 5, 32])
def test_how_many_are_read_before_they_are_decoded_changes_nothing(chunks, together, monkeypatch):
    expected = [chunks(number) for number in range(3)]
    monkeypatch.setattr(visits, "_READ", together)
    for number in range(3):
        same(chunks(number), expected[number])


def test_slots_hold_the_same_pictures(chunks):
    slots = Slots(chunks.shape, 2)
    shared = dataclasses.replace(chunks, slots=slots)
    for number in range(4):
        expected, chunk = chunks(number), shared(number)
        assert chunk["images"] is None
        chunk["images"] = slots.take(number, len(chunk["visits"]))
        same(chunk, expected)
    slots.close()
