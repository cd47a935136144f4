"""Embeddings that take the place of pictures."""

import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clip_jax.data.embeddings import EmbeddingTable
from clip_jax.data.pipeline import Pipeline, train_batches
from clip_jax.data.sample import Sample
from clip_jax.preprocess.augment import Augment
from clip_jax.preprocess.recipe import Recipe
from clip_jax.tokenizers import ClipBpe

WIDTH = 5


def unit(count, seed=0):
    vectors = np.random.default_rng(seed).normal(size=(count, WIDTH))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def write(path, names, vectors, kind=np.float32):
    values = pa.array(np.asarray(vectors, kind).ravel())
    column = pa.FixedSizeListArray.from_arrays(values, WIDTH)
    pq.write_table(pa.table({"path": pa.array(names, pa.string()), "embedding": column}), path)
    return path


class Words:
    """Sample i says i; its picture cannot be decoded."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return Sample(key=f"{index}.jpg", image=b"no picture", texts=("word",))


def batches(count, table, workers=0, **changes):
    return train_batches(
        Words(count),
        batch=4,
        seed=0,
        recipe=Recipe(size=8),
        augment=Augment(),
        tokenizer=ClipBpe(context_length=8),
        pipeline=Pipeline(threads=1, workers=workers, prefetch=1),
        embeddings=table,
        **changes,
    )


@pytest.mark.parametrize("kind", [np.float16, np.float32])
def test_a_sample_is_found_by_its_path_or_by_its_path_without_ending(tmp_path, kind):
    names = ["a/x.jpg", "a/y.png", "b.jpg", "b.png", "c.d.jpg", "c.d"]
    vectors = unit(len(names))
    table = EmbeddingTable(write(tmp_path / "t.parquet", names, vectors, kind))
    assert table.width == WIDTH
    for name, vector in zip(names, vectors, strict=True):
        np.testing.assert_array_equal(table.get(name), vector.astype(kind))
    np.testing.assert_array_equal(table.get("a/x"), vectors[0].astype(kind))
    np.testing.assert_array_equal(table.get("c.d"), vectors[5].astype(kind))
    assert table.get("b") is None and table.get("x.jpg") is None
    again = pickle.loads(pickle.dumps(table))
    np.testing.assert_array_equal(again.get("a/y.png"), vectors[1].astype(kind))


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_hold_embeddings_and_no_picture_is_decoded(tmp_path, workers):
    vectors = unit(8)
    names = [f"{i}.jpg" for i in range(8)]
    table = EmbeddingTable(write(tmp_path / "t.parquet", names, vectors, np.float16))
    made = batches(8, table, workers)
    taken = np.concatenate([next(made)["images"] for _ in range(2)])
    made.close()
    assert taken.dtype == np.float32 and taken.shape == (8, WIDTH)
    expected = vectors.astype(np.float16).astype(np.float32)
    assert sorted(map(tuple, taken)) == sorted(map(tuple, expected))


def test_samples_without_an_embedding_are_skipped_and_counted(tmp_path):
    path = write(tmp_path / "t.parquet", [f"{i}.jpg" for i in range(6)], unit(6))
    made = batches(8, EmbeddingTable(path))
    skips = [skip for _ in range(3) for skip in next(made)["skipped"]]
    made.close()
    assert {skip.reason for skip in skips} == {"missing embedding"}
    assert {f"sample '{i}.jpg': {path} has no embedding of it" for i in (6, 7)} == {
        skip.message for skip in skips
    }


def test_what_is_no_table_of_embeddings_is_refused(tmp_path):
    path = tmp_path / "t.parquet"
    with pytest.raises(FileNotFoundError, match=r"no table of embeddings .*: see clip-jax embed"):
        EmbeddingTable(path)
    pq.write_table(pa.table({"path": ["a"], "vector": [[1.0]]}), path)
    with pytest.raises(ValueError, match=r"has no columns \['embedding'\], only \['path', 'vec"):
        EmbeddingTable(path)
    pq.write_table(pa.table({"path": ["a"], "embedding": [[1.0]]}), path)
    with pytest.raises(ValueError, match=r"embedding is list.*, not a float16 or float32 list"):
        EmbeddingTable(path)
    with pytest.raises(ValueError, match="the embedding of row 2 is not of length 1"):
        EmbeddingTable(write(path, list("abc"), unit(3) * [[1], [1], [3]])).get("a")
    with pytest.raises(ValueError, match="has 'a' twice"):
        EmbeddingTable(write(path, list("aba"), unit(3))).get("a")
