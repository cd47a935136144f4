"""What every tokenizer promises, whatever its table."""

import concurrent.futures
import copy
import dataclasses
import pathlib
import pickle
import subprocess
import sys
import typing

import numpy as np
import pytest

from clip_jax import tokenizers
from clip_jax.tokenizers import batch

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(params=typing.get_args(tokenizers.TokenizerConfig))
def make(request, model, tokenizer_json):
    """A function from a context length to a tokenizer of each kind in turn."""
    given = {
        tokenizers.ClipBpe: {},
        tokenizers.SentencePiece: {"model": model},
        tokenizers.HubTokenizer: {"file": tokenizer_json},
    }[request.param]
    return lambda length: request.param(context_length=length, **given)


def test_rows_have_the_context_length_and_are_int32(make, captions):
    ids, cut = make(64).tokenize(captions)
    assert (ids.shape, ids.dtype) == ((len(captions), 64), np.int32)
    assert (cut.shape, cut.dtype) == ((len(captions),), np.bool_)
    assert not cut.any()


def test_ids_stay_below_the_vocabulary_size(make, captions):
    tokenizer = make(32)
    assert 0 <= tokenizer(captions).min() <= tokenizer(captions).max() < tokenizer.vocab_size


def test_it_is_a_tokenizer_and_calling_it_gives_the_ids(make, captions):
    tokenizer = make(16)
    assert isinstance(tokenizer, tokenizers.Tokenizer)
    np.testing.assert_array_equal(tokenizer(captions), tokenizer.tokenize(captions)[0])


def test_a_batch_is_its_texts_one_by_one(make, captions):
    tokenizer = make(12)
    texts = ["", *captions, "é" * 100]
    ids, cut = tokenizer.tokenize(texts)
    single = [tokenizer.tokenize([text]) for text in texts]
    np.testing.assert_array_equal(ids, np.concatenate([one for one, _ in single]))
    np.testing.assert_array_equal(cut, np.concatenate([one for _, one in single]))


def test_no_texts_make_an_empty_batch(make):
    ids, cut = make(9).tokenize([])
    assert ids.shape == (0, 9) and cut.shape == (0,)


@pytest.mark.parametrize("length", [2, 3, 7, 8, 9, 10, 20])
def test_cutting_keeps_the_beginning_and_the_end_token(make, length):
    text = "a dark green bicycle near two children"
    whole = make(200)([text])[0]
    end = whole[np.flatnonzero(whole != whole[-1])[-1] + 1] if whole[-1] else whole[whole > 0][-1]
    needed = 1 + int(np.flatnonzero(whole == end)[0])
    ids, cut = make(length).tokenize([text])
    assert bool(cut[0]) is (needed > length)
    expected = [*whole[: length - 1], end] if needed > length else whole[:length]
    np.testing.assert_array_equal(ids[0], expected)


def test_a_text_that_just_fits_is_not_cut(make):
    text = "two red dogs"
    longest = next(n for n in range(2, 50) if not make(n).tokenize([text])[1][0])
    exact, longer = make(longest)([text])[0], make(longest + 1)([text])[0]
    np.testing.assert_array_equal(exact, longer[:-1])
    assert make(longest - 1).tokenize([text])[1][0]


@pytest.mark.parametrize("text", ["a red dog", ""])
def test_a_bare_string_is_refused_with_the_remedy(make, text):
    with pytest.raises(TypeError, match=r"got one string: write \['" + text + r"'\]$"):
        make(8).tokenize(text)
    with pytest.raises(TypeError, match="must be a list of strings"):
        make(8)(text)


def test_all_entries_that_are_no_strings_are_listed():
    with pytest.raises(TypeError, match=r"^2 of 3 texts are no strings: 1: bytes, 2: NoneType$"):
        batch.check_texts(["a", b"b", None])


def test_numpy_strings_are_strings(make):
    np.testing.assert_array_equal(make(8)(list(np.array(["a dog"]))), make(8)(["a dog"]))


def test_it_compares_and_hashes_by_its_fields(make):
    one, same, other = make(8), make(8), make(9)
    one(["used, so its table is loaded"])
    assert one == same != other
    assert len({one, same, other}) == 2
    assert dataclasses.replace(one, context_length=9) == other


@pytest.mark.parametrize("duplicate", [lambda t: pickle.loads(pickle.dumps(t)), copy.deepcopy])
def test_a_used_tokenizer_travels_without_its_table(make, captions, duplicate):
    tokenizer = make(16)
    ids = tokenizer(captions)
    assert len(pickle.dumps(tokenizer)) < 1000
    there = duplicate(tokenizer)
    assert there == tokenizer
    np.testing.assert_array_equal(there(captions), ids)


def test_it_cannot_be_changed(make):
    with pytest.raises(dataclasses.FrozenInstanceError):
        make(8).context_length = 9


def test_threads_that_share_one_unused_tokenizer_agree(make, captions):
    tokenizer, expected = make(16), make(16)(captions)
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        for ids in threads.map(tokenizer, [captions] * 32):
            np.testing.assert_array_equal(ids, expected)


def test_the_context_must_hold_the_special_tokens(model):
    with pytest.raises(ValueError, match=r"ClipBpe.context_length must be at least 2 .* got 1"):
        tokenizers.ClipBpe(context_length=1)
    with pytest.raises(ValueError, match="context_length must be at least 1, got 0"):
        tokenizers.SentencePiece(model=model, context_length=0)


def test_importing_the_room_loads_no_tokenizer_library():
    heavy = {"tokenizers", "sentencepiece", "ftfy"}
    code = f"import sys, clip_jax.tokenizers; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
