"""Single towers and position tables beside the originals, in more shapes than the goldens have."""

import types

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="make parity installs it")

from clip_jax.models.posemb import resample, resample_length
from tests.golden import check_modules, make_modules
from tests.parity import peers


def close(golden, tower):
    """Both limits of the project: 1e-5 for embeddings, 1e-4 for gradients."""
    embeddings, gradient = check_modules.differences(golden, check_modules.answers(*tower(golden)))
    return embeddings < 1e-5 and gradient < 1e-4


@pytest.mark.parametrize(
    "fields",
    [
        {"width": 8},
        {"width": 8, "layers": (1, 2, 3, 2), "heads": 8, "seed": 3},
        {"width": 6, "layers": (1, 1, 1, 1), "heads": 3, "size": 96, "seed": 4},
        {"width": 4, "size": 32, "embed_dim": 5, "seed": 5},
    ],
    ids=str,
)
def test_resnets_are_open_clips(fields):
    assert close(make_modules.resnet(**fields), check_modules.resnet)


@pytest.mark.parametrize(
    "fields",
    [
        {"width": 32, "heads": 4, "layers": 3},
        {"grids": ((1, 12), (12, 2)), "seed": 6},
        {"patch": 4, "grids": ((9, 9), (3, 20), (1, 1), (4, 4)), "seed": 7},
    ],
    ids=str,
)
def test_naflex_towers_are_those_of_transformers(fields):
    assert close(make_modules.naflex(**fields), check_modules.naflex)


def visual(grid):
    return types.SimpleNamespace(visual=types.SimpleNamespace(grid_size=(grid, grid)))


@pytest.mark.parametrize(("old", "new"), [(7, 14), (14, 7), (16, 24), (24, 16), (16, 27)])
def test_position_tables_are_resized_as_by_open_clip(old, new):
    library = peers.open_clip()
    table = np.random.default_rng(old).normal(size=(1 + old**2, 8)).astype(np.float32)
    state = {"visual.positional_embedding": torch.from_numpy(table)}
    library.model.resize_pos_embed(state, visual(new))
    found = resample(table, (old, old), (new, new), prefix=1, method="bicubic")
    np.testing.assert_allclose(found, state["visual.positional_embedding"], rtol=0, atol=1e-5)


def test_a_single_column_is_a_single_row_turned():
    """PyTorch 2.13's antialiasing on the CPU gives something else for several rows of one column.

    Its own answer for one row is right, and the two must be alike; so NaFlex images of one column
    differ from what transformers computes there.
    """
    table = np.random.default_rng(0).normal(size=(4, 4, 3)).astype(np.float32)
    turned = torch.from_numpy(table).permute(2, 1, 0)[None].contiguous()
    way = {"mode": "bilinear", "antialias": True, "align_corners": False}
    expected = torch.nn.functional.interpolate(turned, size=(1, 12), **way)[0, :, 0].T
    found = resample(table.reshape(16, 3), (4, 4), (12, 1), prefix=0, method="bilinear")
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize(("old", "new"), [(77, 32), (32, 77), (77, 248), (64, 16)])
def test_text_tables_are_resized_as_by_open_clip(old, new):
    library = peers.open_clip()
    table = np.random.default_rng(old).normal(size=(old, 8)).astype(np.float32)
    state = {"positional_embedding": torch.from_numpy(table)}
    wanted = types.SimpleNamespace(positional_embedding=torch.zeros(new, 8))
    library.model.resize_text_pos_embed(state, wanted)
    found = resample_length(table, new)
    np.testing.assert_allclose(found, state["positional_embedding"], rtol=0, atol=1e-5)
