import pickle
import re

import numpy as np
import pytest

from clip_jax.config import from_data, to_data
from clip_jax.data import DatasetConfig, Synthetic
from clip_jax.data.sample import Dataset, Source
from clip_jax.preprocess import geometry

SMALL = {"samples": 50, "width": 40, "height": 24, "pictures": 7}


def test_the_contracts_are_kept():
    config = Synthetic(**SMALL, words=(1, 3))
    assert isinstance(config, Dataset) and isinstance(config.open("train"), Source)
    assert from_data(DatasetConfig, to_data(config)) == config
    assert config.class_names("train") == ()


@pytest.mark.parametrize("encoded", [True, False])
def test_samples_are_functions_of_their_index_alone(encoded):
    config = Synthetic(**SMALL, encoded=encoded)
    forwards, backwards = config.open("train"), pickle.loads(pickle.dumps(config.open("train")))
    samples = [forwards[i] for i in range(50)]
    for i in reversed(range(50)):
        assert backwards[i].texts == samples[i].texts and backwards[i].key == samples[i].key
        np.testing.assert_array_equal(
            geometry.as_rgb(backwards[i].image), geometry.as_rgb(samples[i].image)
        )
    assert len({sample.key for sample in samples}) == 50
    assert len({sample.texts for sample in samples}) == 50


def test_pictures_have_their_size_and_number_and_contrast():
    source = Synthetic(**SMALL).open("train")
    pixels = [geometry.decode(source[i].image) for i in range(14)]
    assert all(image.shape == (24, 40, 3) and image.std() > 20 for image in pixels)
    assert len({image.tobytes() for image in pixels}) == 7
    assert source[3].image is source[10].image


def test_decoded_pictures_are_the_same_up_to_jpeg_and_cannot_be_written_to():
    plain = Synthetic(**SMALL, encoded=False).open("train")[0].image
    coded = geometry.decode(Synthetic(**SMALL).open("train")[0].image)
    assert plain.shape == (24, 40, 3) and plain.dtype == np.uint8
    assert np.abs(plain.astype(int) - coded).mean() < 12
    with pytest.raises(ValueError, match="read-only"):
        plain[0, 0, 0] = 1


def test_a_picture_of_the_usual_size_takes_the_bytes_of_a_photograph():
    data = Synthetic(samples=1).open("train")[0].image
    assert geometry.decode(data).shape == (480, 640, 3)
    assert 80_000 < len(data) < 250_000


def test_captions_have_their_number_of_words():
    source = Synthetic(samples=300, width=8, height=8, words=(2, 4)).open("train")
    lengths = [len(source[i].texts[0].split()) for i in range(300)]
    assert set(lengths) == {2, 3, 4} and all(len(source[i].texts) == 1 for i in range(300))


def test_seeds_and_splits_differ_in_words_and_pictures():
    sources = [Synthetic(**SMALL, seed=seed).open(s) for seed in (0, 1) for s in ("train", "test")]
    assert len({source[5].texts for source in sources}) == 4
    assert len({source[5].image for source in sources}) == 4


def test_positions_outside_and_other_splits_are_refused():
    source = Synthetic(**SMALL).open("train")
    for index in (50, -1):
        with pytest.raises(IndexError, match=f"sample {index} of 50"):
            source[index]
    with pytest.raises(ValueError, match=r"^Synthetic has no split 'val'; it has train, test$"):
        Synthetic(**SMALL).open("val")


def test_all_impossible_fields_are_named():
    message = (
        "Synthetic.samples must be above 0, got 0; Synthetic.height must be above 0, got -1; "
        "Synthetic.words must be two numbers above 0, in order, got (3, 2); "
        "Synthetic.seed must be 0 or more, got -1"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Synthetic(samples=0, height=-1, words=(3, 2), seed=-1)
