import io
import pathlib

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def photo():
    """A smooth coloured picture, 61 x 43, in which every row, column and channel differs."""
    y, x = np.mgrid[0:43, 0:61]
    waves = [np.sin(x / 7 + y / 11), np.cos(x / 5 - y / 13), np.sin(x * y / 300)]
    return (np.stack(waves, -1) * 100 + 128).astype(np.uint8)


@pytest.fixture
def encode():
    def encode(image, form, **options):
        image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
        data = io.BytesIO()
        image.save(data, form, **options)
        return data.getvalue()

    return encode


@pytest.fixture(scope="session")
def golden():
    """What open_clip and transformers make of small pictures; see golden/make_preprocess.py."""
    with np.load(pathlib.Path(__file__).parents[1] / "golden" / "preprocess.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="session")
def pictures(golden):
    """Name -> uint8 picture, in the order of the golden results."""
    return {key[8:]: array for key, array in golden.items() if key.startswith("picture/")}
