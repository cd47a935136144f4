"""`tokenizer.json` and `vocab.txt`: what the file says, what the fields add, bad files."""

import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from clip_jax.tokenizers import HubTokenizer

ROOT = pathlib.Path(__file__).parents[2]
PAD, UNKNOWN, CLS, SEP = range(4)
LONG = "a red dog near two children " * 5


@pytest.fixture
def words(bert_words):
    """Ids of whole words."""
    return lambda text: [bert_words.index(word) for word in text.split()]


@pytest.fixture
def edited(tokenizer_json, tmp_path):
    """A function that writes the `tokenizer.json` anew with other top-level entries."""

    def write(**entries):
        path = tmp_path / "tokenizer.json"
        path.write_text(json.dumps(json.loads(pathlib.Path(tokenizer_json).read_text()) | entries))
        return str(path)

    return write


@pytest.fixture
def vocab_txt(bert_words, tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(bert_words) + "\n")
    return str(path)


def test_a_row_is_what_the_files_rules_make_then_padding(tokenizer_json, words):
    row = HubTokenizer(file=tokenizer_json, context_length=9)(["a red dog"])[0]
    assert row.tolist() == [*words("a red dog"), SEP, *[PAD] * 5]


def test_the_files_own_length_and_padding_do_not_count(tokenizer_json):
    ids, cut = HubTokenizer(file=tokenizer_json, context_length=40, pad_id=2).tokenize([LONG])
    assert ids.shape == (1, 40) and not cut[0]
    assert ids[0, 29] != SEP and ids[0, 30] == SEP and set(ids[0, 31:]) == {2}


def test_a_cut_text_keeps_all_tokens_around_it(tokenizer_json, words):
    both = HubTokenizer(file=tokenizer_json, context_length=5, around=("[CLS]", "[SEP]"))
    ids, cut = both.tokenize([LONG, "a red dog", "a red", ""])
    assert ids.tolist() == [
        [CLS, *words("a red dog"), SEP],
        [CLS, *words("a red dog"), SEP],
        [CLS, *words("a red"), SEP, PAD],
        [CLS, SEP, PAD, PAD, PAD],
    ]
    assert cut.tolist() == [True, False, False, False]


def test_the_end_is_cut_off_where_no_token_stands_there(tokenizer_json, words):
    bare = HubTokenizer(file=tokenizer_json, context_length=3, around=("", ""))
    assert bare(["a red dog near"])[0].tolist() == words("a red dog")
    start = HubTokenizer(file=tokenizer_json, context_length=3, around=("[CLS]", ""))
    assert start(["a red dog near"])[0].tolist() == [CLS, *words("a red")]


def test_a_row_may_have_room_for_the_tokens_around_alone(tokenizer_json):
    made = HubTokenizer(file=tokenizer_json, context_length=2, around=("[CLS]", "[SEP]"))
    ids, cut = made.tokenize(["a", ""])
    assert ids.tolist() == [[CLS, SEP]] * 2 and cut.tolist() == [True, False]


def test_a_blanked_id_becomes_zero_wherever_it_stands(tokenizer_json, words):
    made = HubTokenizer(file=tokenizer_json, context_length=6, blank_id=SEP, pad_id=2)
    ids = made(["a red", "a [SEP] red", LONG])
    assert ids.tolist() == [
        [*words("a red"), 0, 2, 2, 2],
        [*words("a"), 0, *words("red"), 0, 2, 2],
        [*words("a red dog near two"), 0],
    ]


def test_names_of_special_tokens_are_tokens_or_plain_text(tokenizer_json, bert_words):
    made, plain = (HubTokenizer(file=tokenizer_json, names=names) for names in (True, False))
    assert made(["[SEP]"])[0, :3].tolist() == [SEP, SEP, PAD]
    letters = [bert_words.index(piece) for piece in ("S", "##E", "##P")]
    assert plain(["[SEP]"])[0, :7].tolist() == [UNKNOWN, *letters, UNKNOWN, SEP, PAD]


def test_lower_case_comes_after_the_special_tokens_are_found(tokenizer_json, words):
    made = HubTokenizer(file=tokenizer_json, context_length=8, lower=True)
    same = HubTokenizer(file=tokenizer_json, context_length=8, clean="lower")
    assert made(["A RED Dog"])[0, :3].tolist() == words("a red dog")
    np.testing.assert_array_equal(made(["A RED Dog"]), same(["A RED Dog"]))
    assert made(["[SEP] A"])[0, :2].tolist() == [SEP, *words("a")]
    assert same(["[SEP] A"])[0, 0] != SEP


def test_cleaning_happens_before_all_else(tokenizer_json):
    made = HubTokenizer(file=tokenizer_json, clean="open_clip_canonicalize")
    plain = HubTokenizer(file=tokenizer_json)
    np.testing.assert_array_equal(made(["&lt;A&gt; RED_dog!"]), plain(["a red dog"]))


def test_half_a_surrogate_pair_is_an_unknown_character(tokenizer_json):
    made = HubTokenizer(file=tokenizer_json)
    np.testing.assert_array_equal(made(["a \ud83d dog"]), made(["a \ufffd dog"]))


def test_a_list_of_words_is_berts_tokenizer(vocab_txt, words, bert_words):
    row = HubTokenizer(file=vocab_txt, context_length=12, lower=True)(["A réd, dog dogs"])[0]
    dogs = [*words("dog"), bert_words.index("##s")]
    # No comma in the list; accents go with the capitals.
    assert row.tolist() == [CLS, *words("a red"), UNKNOWN, *words("dog"), *dogs, SEP, *[PAD] * 4]


def test_a_cased_list_of_words_keeps_capitals_and_accents(vocab_txt, bert_words):
    row = HubTokenizer(file=vocab_txt, context_length=4)(["A réd"])[0]
    assert row.tolist() == [CLS, bert_words.index("A"), UNKNOWN, SEP]


def test_a_list_of_words_may_have_the_line_ends_of_windows(vocab_txt, tmp_path):
    other = tmp_path / "w" / "vocab.txt"
    other.parent.mkdir()
    other.write_bytes(pathlib.Path(vocab_txt).read_bytes().replace(b"\n", b"\r\n"))
    ours, theirs = HubTokenizer(file=vocab_txt), HubTokenizer(file=str(other))
    np.testing.assert_array_equal(ours([LONG]), theirs([LONG]))


def test_the_vocabulary_size_is_beyond_the_largest_id(tokenizer_json, edited):
    made = HubTokenizer(file=tokenizer_json)
    data = json.loads(pathlib.Path(tokenizer_json).read_text())
    assert made.vocab_size == len(data["model"]["vocab"])
    extra = {"id": 500, "content": "<far>", "special": True, "normalized": False}
    extra |= {"single_word": False, "lstrip": False, "rstrip": False}
    vocab = data["model"]["vocab"] | {"<far>": 500}
    far = HubTokenizer(
        file=edited(
            model=data["model"] | {"vocab": vocab}, added_tokens=[*data["added_tokens"], extra]
        )
    )
    assert far.vocab_size == 501
    assert far(["<far>"])[0, 0] == 500


def test_a_missing_file_is_named_with_the_nearest_one(tmp_path):
    (tmp_path / "tokenizer.json").touch()
    (tmp_path / "notes.md").touch()
    with pytest.raises(FileNotFoundError) as caught:
        HubTokenizer(file=str(tmp_path / "tokeniser.json"))(["a"])
    assert str(caught.value) == (
        f"no tokenizer file {tmp_path}/tokeniser.json "
        f"(nearest: tokenizer.json; {tmp_path} has tokenizer.json)"
    )


@pytest.mark.parametrize("data", [b"", b"{}", b"[1]", b"\xff\xfe", b'{"model": {"type": "X"}}'])
def test_a_damaged_file_is_named(tmp_path, data):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=re.escape(f"{path} is no tokenizer file, or is damaged")):
        _ = HubTokenizer(file=str(path)).vocab_size


def test_a_list_of_words_without_berts_tokens_is_refused(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("[PAD]\n[CLS]\na\n")
    with pytest.raises(ValueError, match=r"BERT's vocabulary needs \[UNK\], \[SEP\]$"):
        HubTokenizer(file=str(path))(["a"])


def test_all_that_does_not_fit_the_file_is_reported_at_once(tokenizer_json, bert_words):
    made = HubTokenizer(
        file=tokenizer_json,
        context_length=1,
        around=("[CLS]", "[SEP]"),
        pad_id=5000,
        blank_id=6000,
    )
    size = len(bert_words)
    with pytest.raises(ValueError) as caught:
        made(["a"])
    assert str(caught.value) == (
        f"HubTokenizer on {tokenizer_json}: context_length 1: 2 tokens stand around each text; "
        f"pad_id 5000: there are {size} tokens; blank_id 6000: there are {size} tokens"
    )


def test_tokens_around_a_text_must_exist(tokenizer_json):
    made = HubTokenizer(file=tokenizer_json, around=("<s>", "</s>"))
    with pytest.raises(ValueError, match=r"around: .*tokenizer\.json has no token <s>, </s>$"):
        made(["a"])


WRONG = """
from clip_jax.tokenizers import HubTokenizer
try:
    HubTokenizer(file="f", context_length=0, pad_id=-1, blank_id=-2)
except ValueError as error:
    print(error)
"""


def test_all_wrong_fields_are_reported_at_once():
    done = subprocess.run(
        [sys.executable, "-c", WRONG], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == (
        "HubTokenizer.context_length must be at least 1, got 0; HubTokenizer.pad_id must be at "
        "least 0, got -1; HubTokenizer.blank_id must be at least 0, or None, got -2\n"
    )
