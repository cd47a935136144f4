import dataclasses
import os
import pathlib
import runpy
import types

import numpy as np
import pytest

from clip_jax.eval.cache import Cache, Memory
from clip_jax.eval.identity import recipe_mark, tokenizer_mark, weights_mark
from clip_jax.eval.once import Embeddings
from clip_jax.preprocess.recipe import Recipe
from clip_jax.tokenizers import ClipBpe

sets = types.SimpleNamespace(**runpy.run_path(str(pathlib.Path(__file__).parent / "standins.py")))


def test_what_was_used_longest_ago_is_removed_first(tmp_path):
    rows = {"rows": np.arange(1000.0)}
    size = 8000
    cache = Cache(folder=tmp_path / "cache", limit=int(3.5 * size))
    for number, name in enumerate("abc"):
        cache.write(name, rows)
        os.utime(tmp_path / "cache" / f"{name}.npz", (number, number))
    np.testing.assert_array_equal(cache.read("a")["rows"], rows["rows"])
    cache.write("d", rows)
    assert cache.names("") == ["a", "c", "d"]
    cache.write("large", {"rows": np.zeros(4 * size)})
    assert cache.names("") == ["a", "c", "d"]
    assert cache.read("b") is None
    (tmp_path / "cache" / "c.npz").write_bytes(b"PK damaged")
    assert cache.read("c") is None
    assert cache.names("") == ["a", "d"]


def test_a_memory_forgets_what_was_used_longest_ago():
    rows = {"rows": np.arange(10.0), "words": np.frombuffer(b"12345678", np.uint8)}
    memory = Memory(limit=3 * 88)
    for name in "abc":
        memory.write(name, rows)
    assert memory.read("a")["rows"] is rows["rows"]
    memory.write("d", rows)
    assert memory.names("") == ["a", "c", "d"] and memory.read("b") is None
    memory.write("large", {"rows": np.zeros(4 * 11)})
    assert memory.names("") == ["a", "c", "d"]
    memory.write("c", {"rows": np.zeros(3 * 11)})
    assert memory.names("") == memory.names("c") == ["c"]


def test_an_unfinished_file_of_a_killed_process_goes(tmp_path):
    cache = Cache(folder=tmp_path, limit=10**6)
    for name, age in (("old", 0), ("new", None)):
        (tmp_path / f"{name}.npz.1.part").write_bytes(b"half")
        if age is not None:
            os.utime(tmp_path / f"{name}.npz.1.part", (age, age))
    cache.write("a", {"rows": np.zeros(1)})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "new.npz.1.part"]


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    cache = Cache(folder=tmp_path, limit=10**6)
    cache.write("a", {"rows": np.zeros(3)})

    def full(file, **arrays):
        file.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="no space left"):
        cache.write("a", {"rows": np.ones(3)})
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]
    assert cache.read("a")["rows"].tolist() == [0, 0, 0]


def test_texts_come_in_the_order_asked_for(tmp_path):
    counts = []
    cache = Cache(folder=tmp_path / "cache", limit=10**9)
    texts = ["a", "b", "ü 猫", "\ud800", "a"]
    readable = [text for text in texts if text != "\ud800"]
    for _ in range(2):  # From the model, then from the disk.
        embeddings = Embeddings(sets.model(counts), cache, lambda line: None)
        found = embeddings.texts(readable)
        np.testing.assert_allclose(found, [sets.say(text) for text in readable], atol=1e-6)
    assert counts == ["texts"]


def test_hashes_change_with_whatever_an_embedding_depends_on(tmp_path):
    params = {"a": np.arange(4.0), "b": {"c": np.float32(1)}}
    first = weights_mark("config", params)
    assert weights_mark("config", {"b": {"c": np.float32(1)}, "a": np.arange(4.0)}) == first
    assert weights_mark("other", params) != first
    assert weights_mark("config", params | {"b": {"c": np.float32(2)}}) != first
    assert weights_mark("config", params | {"a": np.arange(4.0).reshape(2, 2)}) != first
    assert weights_mark("config", {"a": params["a"], "b": {"d": np.float32(1)}}) != first
    assert recipe_mark(Recipe(size=8)) != recipe_mark(Recipe(size=9))
    short, long = ClipBpe(context_length=8), ClipBpe(context_length=9)
    assert tokenizer_mark(short) == tokenizer_mark(dataclasses.replace(short))
    assert tokenizer_mark(short) != tokenizer_mark(long)


def test_a_vocabulary_may_move_but_not_change(tmp_path):
    @dataclasses.dataclass
    class Filed:
        file: str
        words: int = 1

        def __call__(self, texts):
            return np.full((len(texts), 2), self.words)

    for name, text in (("a", "words"), ("b", "words"), ("c", "others")):
        (tmp_path / name).write_text(text)
    marks = [tokenizer_mark(Filed(str(tmp_path / name))) for name in "abc"]
    assert marks[0] == marks[1] != marks[2]
    assert tokenizer_mark(Filed(str(tmp_path / "a"), words=2)) != marks[0]
