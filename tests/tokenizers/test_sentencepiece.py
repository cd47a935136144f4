"""SentencePiece rows, cleaning, bad files, and training."""

import errno
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
import sentencepiece as library
from etils import epath

from clip_jax.tokenizers import SentencePiece, sentencepiece

END = 1
ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pieces(model):
    return library.SentencePieceProcessor(model_file=model)


def train_raw(path, texts, **options):
    """A model file made by the library alone."""
    with path.open("wb") as file:
        library.SentencePieceTrainer.train(
            sentence_iterator=iter(texts), model_writer=file, minloglevel=2, **options
        )
    return str(path)


def test_a_row_is_the_pieces_then_end_tokens_to_the_last_position(model, pieces, captions):
    for text, row in zip(captions, SentencePiece(model=model)(captions), strict=True):
        plain = pieces.encode(text)
        assert row.tolist() == plain + [END] * (64 - len(plain))


def test_the_text_can_be_read_back(model, pieces, captions):
    ids = SentencePiece(model=model)(captions)
    assert [pieces.decode(row[row != END].tolist()) for row in ids] == captions


def test_the_last_position_always_holds_the_end_token(model):
    ids = SentencePiece(model=model, context_length=6)(
        ["", "a", "a red dog " * 9, "x" * 5, "x" * 6]
    )
    assert (ids[:, -1] == END).all()


def test_another_padding_leaves_one_end_token(model):
    row = SentencePiece(model=model, pad_id=0, context_length=30)(["a red dog"])[0]
    same = SentencePiece(model=model, context_length=30)(["a red dog"])[0]
    end = row.tolist().index(END)
    np.testing.assert_array_equal(row[: end + 1], same[: end + 1])
    assert not row[end + 1 :].any()


def test_the_end_token_comes_from_the_model_file(tmp_path, captions):
    other = train_raw(tmp_path / "o.model", captions, vocab_size=40, eos_id=7, model_type="bpe")
    assert set(SentencePiece(model=other)(["a red dog"])[0, -20:]) == {7}


def test_a_control_symbol_written_in_a_text_is_plain_text(model):
    row = SentencePiece(model=model, pad_id=0)(["a </s> dog <pad>"])[0]
    assert row.tolist().count(END) == 1


def test_cleaning_happens_before_encoding(model):
    cleaned = SentencePiece(model=model, clean="canonicalize")(["A RED-dog!", "A_Red Dog"])
    np.testing.assert_array_equal(cleaned, SentencePiece(model=model)(["a reddog", "a red dog"]))


def test_half_a_surrogate_pair_is_an_unknown_character_and_a_whole_one_is_joined(model):
    tokenizer = SentencePiece(model=model)
    broken, whole = tokenizer(["a \ud83d dog", "a \ud83d\ude00 dog"])
    np.testing.assert_array_equal(broken, tokenizer(["a \ufffd dog"])[0])
    np.testing.assert_array_equal(whole, tokenizer(["a 😀 dog"])[0])


WRONG = """
from clip_jax.tokenizers import SentencePiece
try:
    SentencePiece(model="m", context_length=0, clean="canonicalise", pad_id=-1)
except ValueError as error:
    print(error)
"""


def test_all_wrong_fields_are_reported_at_once():
    # In another process: in this one, the type checks of the test run come first.
    done = subprocess.run(
        [sys.executable, "-c", WRONG], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == (
        "SentencePiece: context_length must be at least 1, got 0; clean 'canonicalise' (nearest: "
        "'canonicalize') is not in ('none', 'lower', 'lower_ascii', 'canonicalize', 'siglip', "
        "'open_clip_whitespace', 'open_clip_lower', 'open_clip_canonicalize'); "
        "pad_id must not be negative, got -1\n"
    )


def test_padding_beyond_the_vocabulary_is_refused(model):
    with pytest.raises(ValueError, match=re.escape(f"pad_id 50: {model} has only 50 pieces")):
        SentencePiece(model=model, pad_id=50)(["a"])
    assert SentencePiece(model=model, pad_id=49)(["a"])[0, -1] == 49


def test_a_missing_model_is_named_with_the_nearest_one(tmp_path):
    (tmp_path / "caption.model").touch()
    (tmp_path / "zzz.model").touch()
    with pytest.raises(FileNotFoundError) as caught:
        SentencePiece(model=str(tmp_path / "captions.model"))(["a"])
    assert str(caught.value) == (
        f"no SentencePiece model {tmp_path}/captions.model "
        f"(nearest: caption.model; {tmp_path} has caption.model, zzz.model)"
    )


def test_a_missing_folder_is_named():
    with pytest.raises(FileNotFoundError, match=r"no SentencePiece model /no/such/m\.model$"):
        SentencePiece(model="/no/such/m.model")(["a"])


def test_a_folder_is_no_model(tmp_path):
    (tmp_path / "a.model").touch()
    with pytest.raises(
        ValueError, match=r"is a folder, not a SentencePiece model \(nearest: a\.model"
    ):
        SentencePiece(model=str(tmp_path)).tokenize(["a"])


@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b[:-5], lambda b: b"text\n" + b])
def test_a_damaged_model_is_named(model, tmp_path, damage):
    path = tmp_path / "bad.model"
    path.write_bytes(damage(epath.Path(model).read_bytes()))
    with pytest.raises(ValueError, match=re.escape(f"{path} is not a SentencePiece model, or is")):
        _ = SentencePiece(model=str(path)).vocab_size


def test_a_model_without_an_end_token_is_refused(tmp_path, captions):
    path = train_raw(tmp_path / "endless.model", captions, vocab_size=40, eos_id=-1)
    with pytest.raises(ValueError, match=r"endless.model has no end token \(</s>\)"):
        SentencePiece(model=path)(["a"])


def test_training_lays_the_ids_out_as_siglip_does(model, pieces):
    assert SentencePiece(model=model).vocab_size == 50
    assert [pieces.id_to_piece(i) for i in range(3)] == ["<pad>", "</s>", "<unk>"]
    assert pieces.bos_id() == -1


def test_training_gives_the_tokenizer_and_the_same_file_for_the_same_texts(
    model, tmp_path, captions
):
    out = tmp_path / "new" / "folders" / "v.model"
    made = sentencepiece.train(iter(captions), out, 50, context_length=9, clean="lower")
    assert made == SentencePiece(model=str(out), context_length=9, clean="lower")
    assert out.read_bytes() == epath.Path(model).read_bytes()  # These captions are lower case.
    assert [path.name for path in out.parent.iterdir()] == ["v.model"]


def test_training_sees_cleaned_texts(tmp_path, captions):
    shouted = [text.upper() + "!" for text in captions]
    made = sentencepiece.train(shouted, tmp_path / "v.model", 50, clean="canonicalize")
    raw = library.SentencePieceProcessor(model_file=made.model)
    assert raw.encode("A!", out_type=int).count(raw.unk_id()) > 0
    assert raw.unk_id() not in raw.encode(captions[0])


def test_training_ignores_empty_texts_but_no_long_or_many_lined_ones(tmp_path, captions):
    odd = ["", " \n", "long §" + " dog" * 2000, "two\nlines ¶", "half \ud83d", *captions]
    made = sentencepiece.train(odd, tmp_path / "v.model", 50, character_coverage=1.0)
    assert 2 not in made(["§ ¶"])


def limit(caught):
    return int(re.search(r"at (?:most|least) (\d+)$", str(caught.value))[1])


def test_a_vocabulary_too_large_for_the_text_names_the_largest(tmp_path, captions):
    out = tmp_path / "v.model"
    with pytest.raises(ValueError, match=r"^vocab_size 9000 is too large for 600 texts") as caught:
        sentencepiece.train(captions, out, 9000)
    with pytest.raises(ValueError, match="too large"):
        sentencepiece.train(captions, out, limit(caught) + 1)
    assert not out.exists()
    assert sentencepiece.train(captions, out, limit(caught)).vocab_size == limit(caught)


def test_a_vocabulary_too_small_for_the_characters_names_the_smallest(tmp_path, captions):
    out = tmp_path / "v.model"
    with pytest.raises(
        ValueError, match=r"^vocab_size 5 is too small for the characters"
    ) as caught:
        sentencepiece.train(captions, out, 5)
    with pytest.raises(ValueError, match="too small"):
        sentencepiece.train(captions, out, limit(caught) - 1)
    assert sentencepiece.train(captions, out, limit(caught)).vocab_size == limit(caught)


QUIET = """
import sys
from clip_jax.tokenizers import SentencePiece, sentencepiece
folder = sys.argv[1]
texts = ["a red dog runs", "the blue cat sleeps", "two birds fly over the green hill"] * 30
with open(folder + "/bad.model", "wb") as file:
    file.write(b"no model")
for attempt in (
    lambda: SentencePiece(model=folder + "/bad.model")(["a"]),
    lambda: sentencepiece.train(texts, folder + "/v.model", 9000),
    lambda: print(sentencepiece.train(texts, folder + "/v.model", 30)(["a dog"]).shape),
):
    try:
        attempt()
    except ValueError as error:
        print(type(error).__name__)
"""


def test_the_library_says_nothing_on_its_own(tmp_path):
    # In a fresh process, since the library keeps the level of its messages from call to call.
    done = subprocess.run(
        [sys.executable, "-c", QUIET, tmp_path], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.stdout.split("\n"), done.stderr) == (
        ["ValueError", "ValueError", "(1, 64)", ""],
        "",
    )


def test_a_vocabulary_of_nothing_is_refused(tmp_path, captions):
    with pytest.raises(
        ValueError, match="no vocabulary of 0 pieces could be trained from 600 texts"
    ):
        sentencepiece.train(captions, tmp_path / "v.model", 0)


@pytest.mark.parametrize("texts", [[], ["", "  \t"]])
def test_training_needs_text(tmp_path, texts):
    with pytest.raises(ValueError, match="no text to train a vocabulary from"):
        sentencepiece.train(texts, tmp_path / "v.model", 50)


def test_training_from_one_bare_string_is_refused(tmp_path):
    with pytest.raises(TypeError, match="got one string"):
        sentencepiece.train("a red dog", tmp_path / "v.model", 50)


def test_an_error_of_the_caption_source_arrives_unchanged(tmp_path):
    def captions():
        yield "a red dog"
        raise KeyError("shard 3")

    with pytest.raises(KeyError, match="shard 3"):
        sentencepiece.train(captions(), tmp_path / "v.model", 50)


def test_a_full_disk_leaves_the_old_model_and_no_draft(tmp_path, captions, monkeypatch):
    out = tmp_path / "v.model"
    out.write_bytes(b"old")

    def fill_up(path, data):
        with path.open("wb") as file:
            file.write(data[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(type(epath.Path(out)), "write_bytes", fill_up)
    with pytest.raises(OSError, match=r"could not write the file: No space left .*v\.model"):
        sentencepiece.train(captions, out, 50)
    assert [path.name for path in tmp_path.iterdir()] == ["v.model"]
    assert out.read_bytes() == b"old"


def test_a_folder_in_the_place_of_the_model_is_named(tmp_path, captions):
    (tmp_path / "v.model").mkdir()
    with pytest.raises(IsADirectoryError, match=r"v\.model is a folder: name a file"):
        sentencepiece.train(captions, tmp_path / "v.model", 50)
