"""The index of a model in several files: all of them open as one."""

import json

import numpy as np
import pytest

from clip_jax.pretrained.arrays import open_weights, write_npz, write_safetensors, write_torch


def write_shards(folder, weight_map=None, write=write_safetensors):
    shards = {
        "one.bin": {"a": np.full(2, 1.0), "b": np.full(3, 2.0)},
        "two.bin": {"c": np.full(4, 3.0)},
    }
    for name, arrays in shards.items():
        write(folder / name, arrays)
    places = {"a": "one.bin", "b": "one.bin", "c": "two.bin"}
    index = {"metadata": {"total_size": 72}, "weight_map": weight_map or places}
    path = folder / "index.json"
    path.write_text(json.dumps(index, indent=1))
    return path


@pytest.mark.parametrize("write", [write_safetensors, write_torch, write_npz])
def test_an_index_stands_for_all_its_files(tmp_path, write):
    path = write_shards(tmp_path, write=write)
    found = open_weights(path)
    assert found.kind == write.__name__.removeprefix("write_")
    assert {name: stored.read().tolist() for name, stored in found.arrays.items()} == {
        "a": [1.0] * 2,
        "b": [2.0] * 3,
        "c": [3.0] * 4,
    }


@pytest.mark.parametrize(
    "name", ["../one.bin", "/etc/passwd", "sub/one.bin", "..", "", "C:one.bin", "a\\b", 3, None]
)
def test_an_index_names_files_beside_it_only(tmp_path, name):
    path = write_shards(tmp_path, {"a": name})
    with pytest.raises(ValueError, match="is JSON, but no index of weights: it has no `weight_"):
        open_weights(path)


def test_an_index_that_does_not_fit_lists_all(tmp_path):
    path = write_shards(tmp_path, {"a": "two.bin", "x": "one.bin", "c": "two.bin"})
    with pytest.raises(ValueError) as caught:
        open_weights(path)
    assert str(caught.value) == (
        f"{path}: does not fit its files: a is not in two.bin; x is not in one.bin; "
        "a is in one.bin, but not in the index; b is in one.bin, but not in the index"
    )


def test_an_index_of_different_kinds_is_refused(tmp_path):
    path = write_shards(tmp_path)
    write_torch(tmp_path / "two.bin", {"c": np.ones(4)})
    with pytest.raises(ValueError, match="of different kinds: safetensors, torch"):
        open_weights(path)


def test_files_that_an_index_lacks_are_all_named(tmp_path):
    path = write_shards(tmp_path)
    for name in ("one.bin", "two.bin"):
        (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError) as caught:
        open_weights(path)
    assert str(caught.value) == f"{path}: names files that are not beside it: one.bin, two.bin"


def test_an_index_that_names_itself_is_refused(tmp_path):
    path = write_shards(tmp_path, {"a": "index.json"})
    with pytest.raises(ValueError, match=r"names files that are JSON again, .*: index\.json"):
        open_weights(path)
