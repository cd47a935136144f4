import threading

import numpy as np
import pytest

from clip_jax.data.pipeline import iterate
from clip_jax.data.sample import BadSampleError, Sample


class Source:
    """Sample i has the key "k<i>"; number 7 is bad."""

    def __init__(self, samples):
        self.samples = samples

    def __len__(self):
        return self.samples

    def __getitem__(self, index):
        if index == 7:
            raise BadSampleError("sample 'k7': the source says no")
        return Sample(key=f"k{index}", image=np.zeros((2, 2, 3), np.uint8))


@pytest.mark.parametrize("threads", [0, 3])
def test_reading_in_order_reports_bad_samples_in_their_place(threads):
    results = list(iterate(Source(50), threads=threads))
    assert len(results) == 50
    bad = results.pop(7)
    assert isinstance(bad, BadSampleError) and "the source says no" in str(bad)
    assert [sample.key for sample in results] == [f"k{i}" for i in range(50) if i != 7]


def test_nothing_to_read_ends_at_once():
    assert list(iterate(Source(0))) == []


def test_reading_can_stop_early_and_leaves_no_thread():
    samples = iterate(Source(500))
    assert next(samples).key == "k0"
    running = [t for t in threading.enumerate() if t.name.startswith("grain")]
    assert running
    samples.close()
    for thread in running:
        thread.join(timeout=30)
    assert not any(thread.is_alive() for thread in running)
