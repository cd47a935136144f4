"""Folders of tokenizer files: found by what is in them, and written."""

import dataclasses
import json
import pathlib
import re
import shutil

import numpy as np
import pytest

from clip_jax.tokenizers import ClipBpe, HubTokenizer, SentencePiece, clip_bpe, files, sentencepiece
from clip_jax.tokenizers.clean import clean_text

ANY = {"context_length": 16, "vocab_size": 50_000}
TEXTS = ["a red dog", "", "A_Red DOG's  “Ball”! É", "dark green&amp;yellow", "two children " * 9]


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    files.write(ClipBpe(), folder)
    return folder


@pytest.fixture
def folder(tmp_path):
    """A function that makes a folder of copies, and of settings for them."""

    def make(*paths, settings=None, **named):
        made = tmp_path / f"folder{len(list(tmp_path.iterdir()))}"
        made.mkdir()
        for path in map(pathlib.Path, paths):
            shutil.copy(path, made)
        for name, path in named.items():
            shutil.copy(path, made / name.replace("_model", ".model"))
        if settings is not None:
            (made / "tokenizer_config.json").write_text(json.dumps(settings))
        return made

    return make


# CLIP's own vocabulary.


@pytest.mark.parametrize("names", [("vocab.json", "merges.txt"), ("tokenizer.json",)])
def test_clips_vocabulary_is_known_by_its_content(clip_folder, folder, names):
    made = folder(*(clip_folder / name for name in names))
    assert files.find(made, **ANY) == ClipBpe(context_length=16)


def test_merges_may_be_written_in_both_ways(clip_folder, folder):
    made = folder(clip_folder / "tokenizer.json")
    data = json.loads((made / "tokenizer.json").read_text())
    for form in (lambda pair: " ".join(pair), list):
        pairs = [p.split() if isinstance(p, str) else p for p in data["model"]["merges"]]
        data["model"]["merges"] = [form(pair) for pair in pairs]
        (made / "tokenizer.json").write_text(json.dumps(data))
        assert files.find(made, **ANY) == ClipBpe(context_length=16)


def test_one_other_merge_is_another_vocabulary(clip_folder, folder):
    made = folder(clip_folder / "vocab.json", clip_folder / "merges.txt")
    lines = (made / "merges.txt").read_text().split("\n")
    lines[100], lines[101] = lines[101], lines[100]
    (made / "merges.txt").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=r"has merges\.txt, vocab\.json, which are not CLIP's"):
        files.find(made, **ANY)


def test_one_other_id_is_another_vocabulary(clip_folder, folder):
    made = folder(clip_folder / "tokenizer.json")
    data = json.loads((made / "tokenizer.json").read_text())
    ids = data["model"]["vocab"]
    ids["dog</w>"], ids["cat</w>"] = ids["cat</w>"], ids["dog</w>"]
    (made / "tokenizer.json").write_text(json.dumps(data))
    found = files.find(made, **ANY)
    assert isinstance(found, HubTokenizer) and found.pad_id == clip_bpe.END_ID
    assert found(["a dog"])[0, 2] == ClipBpe()(["a cat"])[0, 2]


def test_a_model_of_clips_size_without_files_has_clips_vocabulary(tmp_path):
    assert files.find(tmp_path, context_length=77, vocab_size=49408) == ClipBpe()


def test_clips_vocabulary_as_written_gives_the_same_ids_by_the_rust_rules(clip_folder, captions):
    theirs = HubTokenizer(file=str(clip_folder / "tokenizer.json"), context_length=77, pad_id=0)
    # Plain texts: in others mojibake, entities and names of special tokens are read differently.
    texts = ["", "x" * 300, "I'D 3.14 snake_case  ...!?", "NAÏVE CAFÉ 猫", *captions, *captions[:9]]
    np.testing.assert_array_equal(theirs(texts), ClipBpe()(texts))
    assert theirs.vocab_size == 49408


def test_open_clip_without_a_name_has_its_own_tokenizer(tmp_path):
    text = {"context_length": 77, "vocab_size": 49408}
    found = files.find(tmp_path, context_length=77, vocab_size=49408, open_clip=text)
    assert found == ClipBpe(spelling="open_clip")
    text["tokenizer_kwargs"] = {"clean": "canonicalize"}
    found = files.find(tmp_path, context_length=77, vocab_size=49408, open_clip=text)
    assert found == ClipBpe(spelling="open_clip", clean="open_clip_canonicalize")


# SentencePiece models.


@pytest.mark.parametrize(
    ("name", "clean", "pad_id"),
    [
        ("spiece_model", "siglip", None),
        ("tokenizer_model", "lower", 0),
        ("sentencepiece_model", "lower_ascii", None),
        ("gemma_tokenizer_model", "lower_ascii", 0),
    ],
)
def test_a_lone_model_is_used_as_its_publisher_does(model, folder, name, clean, pad_id):
    made = folder(**{name: model})
    file = str(made / name.replace("_model", ".model"))
    assert files.find(made, **ANY) == SentencePiece(
        model=file, context_length=16, clean=clean, pad_id=pad_id
    )


@pytest.mark.parametrize(("pad", "pad_id"), [("</s>", None), ({"content": "<pad>"}, 0)])
def test_the_settings_choose_the_padding(model, folder, pad, pad_id):
    made = folder(spiece_model=model, settings={"pad_token": pad})
    assert files.find(made, **ANY).pad_id == pad_id


def test_siglips_class_goes_before_a_tokenizer_json(model, tokenizer_json, folder):
    made = folder(
        tokenizer_json, spiece_model=model, settings={"tokenizer_class": "SiglipTokenizer"}
    )
    assert files.find(made, **ANY).clean == "siglip"
    other = folder(tokenizer_json, spiece_model=model, settings={"tokenizer_class": "T5Tokenizer"})
    assert isinstance(files.find(other, **ANY), HubTokenizer)


def test_another_class_has_no_cleaning(model, folder):
    made = folder(spiece_model=model, settings={"tokenizer_class": "T5Tokenizer"})
    assert files.find(made, **ANY).clean == "none"


def test_siglips_class_without_its_model_cleans_all_the_same(tokenizer_json, folder):
    made = folder(tokenizer_json, settings={"tokenizer_class": "SiglipTokenizer"})
    found = files.find(made, **ANY)
    assert isinstance(found, HubTokenizer) and found.clean == "siglip"


# tokenizer.json and vocab.txt.


@pytest.mark.parametrize("kind", ["GemmaTokenizer", "GemmaTokenizerFast", "Siglip2Tokenizer"])
def test_siglip_2_is_lower_case(tokenizer_json, folder, kind):
    made = folder(tokenizer_json, settings={"tokenizer_class": kind})
    assert files.find(made, **ANY) == HubTokenizer(
        file=str(made / "tokenizer.json"), context_length=16, lower=True
    )


def test_flags_of_the_settings_go_before_the_files_rule(tokenizer_json, folder):
    given = {"bos_token": "[CLS]", "eos_token": {"content": "[SEP]"}, "pad_token": "[MASK]"}
    flags = {"add_bos_token": True, "add_eos_token": False}
    found = files.find(folder(tokenizer_json, settings=given | flags), **ANY)
    assert found.around == ("[CLS]", "") and found.pad_id == 4
    found = files.find(folder(tokenizer_json, settings=given | {"add_eos_token": True}), **ANY)
    assert found.around == ("", "[SEP]")
    assert files.find(folder(tokenizer_json, settings=given), **ANY).around is None


def test_the_settings_go_before_the_map_of_special_tokens(tokenizer_json, folder):
    made = folder(tokenizer_json, settings={"pad_token": None})
    (made / "special_tokens_map.json").write_text('{"pad_token": "[MASK]"}')
    assert files.find(made, **ANY).pad_id == 4
    (made / "tokenizer_config.json").write_text('{"pad_token": "[UNK]"}')
    assert files.find(made, **ANY).pad_id == 1


def test_names_of_special_tokens_as_the_settings_say(tokenizer_json, folder):
    made = folder(tokenizer_json, settings={"split_special_tokens": True})
    assert files.find(made, **ANY).names is False


@pytest.mark.parametrize(("given", "lower"), [({}, True), ({"do_lower_case": False}, False)])
def test_a_list_of_words_is_uncased_unless_it_says_so(bert_words, folder, given, lower):
    made = folder(settings=given)
    (made / "vocab.txt").write_text("\n".join(bert_words))
    assert files.find(made, **ANY) == HubTokenizer(
        file=str(made / "vocab.txt"), context_length=16, lower=lower
    )


OPEN_CLIP = {"hf_tokenizer_name": "some/name"}


@pytest.mark.parametrize(
    ("kwargs", "fields"),
    [
        (None, {"clean": "open_clip_whitespace"}),
        ({"clean": "lower"}, {"clean": "open_clip_lower"}),
        ({"clean": "canonicalize"}, {"clean": "open_clip_canonicalize"}),
        ({"strip_sep_token": True}, {"clean": "open_clip_whitespace", "blank_id": 3}),
    ],
)
def test_open_clips_options(tokenizer_json, folder, kwargs, fields):
    made = folder(tokenizer_json, settings={"tokenizer_class": "BertTokenizer"})
    found = files.find(made, **ANY, open_clip=OPEN_CLIP | {"tokenizer_kwargs": kwargs})
    assert found == HubTokenizer(file=str(made / "tokenizer.json"), context_length=16, **fields)


def test_open_clip_over_siglips_class(model, folder):
    made = folder(spiece_model=model, settings={"tokenizer_class": "SiglipTokenizer"})
    found = files.find(
        made, **ANY, open_clip=OPEN_CLIP | {"tokenizer_kwargs": {"clean": "canonicalize"}}
    )
    assert found == SentencePiece(
        model=str(made / "spiece.model"), context_length=16, clean="open_clip_canonicalize"
    )
    with pytest.raises(ValueError, match="SiglipTokenizer with clean='whitespace' is not"):
        files.find(made, **ANY, open_clip=OPEN_CLIP)


# What cannot be.


def test_an_empty_folder_lists_what_was_looked_for(tmp_path):
    looked = (
        "tokenizer.json, vocab.json, merges.txt, vocab.txt, spiece.model, tokenizer.model, "
        "sentencepiece.model, gemma_tokenizer.model"
    )
    with pytest.raises(FileNotFoundError) as caught:
        files.find(tmp_path, **ANY)
    assert str(caught.value) == f"no tokenizer in {tmp_path}: none of {looked}"
    with pytest.raises(FileNotFoundError, match=r"\.model; open_clip would take those of 'some/n"):
        files.find(tmp_path, **ANY, open_clip=OPEN_CLIP)


def test_a_tokenizer_with_more_ids_than_the_model_is_refused(tokenizer_json, folder, bert_words):
    made, size = folder(tokenizer_json), len(bert_words)
    assert files.find(made, context_length=16, vocab_size=size).vocab_size == size
    with pytest.raises(ValueError, match=f"has {size} ids, but the model only {size - 1}: these"):
        files.find(made, context_length=16, vocab_size=size - 1)


def test_all_options_of_open_clip_that_are_not_known_are_listed(tmp_path):
    text = {
        "tokenizer_kwargs": {"clean": "loud", "reduction_mask": "random"},
        "tokenizer_mode": "clips",
    }
    with pytest.raises(ValueError) as caught:
        files.find(tmp_path, **ANY, open_clip=text)
    assert str(caught.value) == (
        "open_clip's text_cfg: tokenizer_kwargs.reduction_mask is not supported; "
        "tokenizer_kwargs.clean 'loud' is none of whitespace, lower, canonicalize; "
        "tokenizer_mode 'clips' is not supported; "
        "no hf_tokenizer_name, and vocab_size 50,000 is not CLIP's 49,408"
    )


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize(("data", "what"), [("{", "is not JSON"), ("[]", "holds list, not an")])
def test_damaged_settings_are_named(tokenizer_json, folder, name, data, what):
    made = folder(tokenizer_json)
    (made / name).write_text(data)
    with pytest.raises(ValueError, match=re.escape(f"{made / name} {what}")):
        files.find(made, **ANY)


@pytest.mark.parametrize(
    "data",
    [{"model": []}, {"model": {"vocab": {}, "merges": [1]}}, {"model": {"vocab": 1, "merges": {}}}],
)
def test_a_tokenizer_json_of_any_other_form_is_damaged(folder, data):
    made = folder()
    (made / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match=r"tokenizer\.json is no tokenizer file, or is damaged"):
        files.find(made, **ANY)


def test_settings_that_are_not_supported_are_all_named(bert_words, folder):
    wrong = {"padding_side": "left", "strip_accents": False, "tokenize_chinese_chars": False}
    made = folder(settings=wrong)
    (made / "vocab.txt").write_text("\n".join(bert_words))
    with pytest.raises(ValueError, match="padding_side 'left' is not supported; strip_accents Fal"):
        files.find(made, **ANY)


def test_siglip_with_capitals_is_not_supported(model, folder):
    settings = {"tokenizer_class": "SiglipTokenizer", "do_lower_case": False}
    with pytest.raises(ValueError, match="SiglipTokenizer without lower case is not supported"):
        files.find(folder(spiece_model=model, settings=settings), **ANY)


@pytest.mark.parametrize(
    ("settings", "kwargs", "what"),
    [
        ({"pad_token": "<none>"}, {}, "no padding token <none>"),
        ({"sep_token": "<none>"}, {"strip_sep_token": True}, "no separator"),
    ],
)
def test_tokens_of_the_settings_must_exist(tokenizer_json, folder, settings, kwargs, what):
    made = folder(tokenizer_json, settings=settings)
    with pytest.raises(ValueError, match=rf"tokenizer\.json has {what}"):
        files.find(made, **ANY, open_clip=OPEN_CLIP | {"tokenizer_kwargs": kwargs})


def test_a_padding_piece_must_exist(model, folder):
    with pytest.raises(ValueError, match=r"spiece\.model has no piece '<none>'"):
        files.find(folder(spiece_model=model, settings={"pad_token": "<none>"}), **ANY)


# Writing.


@pytest.fixture(scope="module")
def every(model, tokenizer_json, tmp_path_factory, bert_words):
    """Tokenizers of all kinds, with fields of all kinds."""
    words = tmp_path_factory.mktemp("words") / "vocab.txt"
    words.write_text("\n".join(bert_words))
    clip = [ClipBpe(context_length=16), ClipBpe(context_length=16, spelling="open_clip")]
    ways = ("none", "lower", "lower_ascii", "canonicalize", "siglip", "open_clip_canonicalize")
    pieces = [
        SentencePiece(model=model, context_length=16, clean=clean, pad_id=pad_id)
        for clean, pad_id in zip(ways, (None, 0, None, 0, None, 0), strict=True)
    ]
    hub = HubTokenizer(file=tokenizer_json, context_length=16)
    changes = [
        {},
        {"clean": "siglip", "lower": True, "names": False},
        {"clean": "open_clip_lower", "blank_id": 3, "pad_id": 2},
        {"around": ("[CLS]", "[SEP]"), "clean": "lower_ascii"},
        {"file": str(words), "lower": True},
    ]
    return [*clip, *pieces, *(dataclasses.replace(hub, **change) for change in changes)]


def test_what_was_written_is_found_again(every, tmp_path):
    for i, tokenizer in enumerate(every):
        folder = tmp_path / str(i)
        files.write(tokenizer, folder)
        text = {"vocab_size": 50_000, **files.open_clip_fields(tokenizer)}
        for open_clip in (None, text):
            found = files.find(folder, **ANY, open_clip=open_clip)
            np.testing.assert_array_equal(found(TEXTS), tokenizer(TEXTS))
            if not isinstance(tokenizer, HubTokenizer):  # Its fields have become the file's rules.
                own = {"model": getattr(found, "model", "")} if hasattr(found, "model") else {}
                assert found == dataclasses.replace(tokenizer, **own)
        again = tmp_path / f"{i} again"
        files.write(files.find(folder, **ANY), again)
        for path in folder.iterdir():
            assert path.read_bytes() == (again / path.name).read_bytes(), path


def test_the_rules_as_written_give_the_same_ids(every, tmp_path, captions):
    """As transformers reads them: the file's rules alone, and OpenCLIP's cleaning if it is told."""
    texts = [*captions, *(text.upper() for text in captions[:50]), "A_b, “c”!", "  two  dogs. "]
    for i, tokenizer in enumerate(every):
        folder = tmp_path / str(i)
        files.write(tokenizer, folder)
        if isinstance(tokenizer, ClipBpe) or tokenizer.clean == "siglip":
            continue  # Compared above; and its class cleans.
        clean = f"open_clip_{files.open_clip_fields(tokenizer)['tokenizer_kwargs']['clean']}"
        given = [clean_text(t, clean) for t in texts] if clean == tokenizer.clean else texts
        plain = HubTokenizer(file=str(folder / "tokenizer.json"), context_length=16)
        ids, settings = plain.rules(), json.loads((folder / "tokenizer_config.json").read_text())
        assert ids.token_to_id(settings["pad_token"]) == tokenizer(["a"])[0, -1]
        read = dataclasses.replace(
            plain,
            pad_id=ids.token_to_id(settings["pad_token"]),
            names=not settings["split_special_tokens"],
            blank_id=getattr(tokenizer, "blank_id", None),
        )
        np.testing.assert_array_equal(read(given), tokenizer(texts), str(tokenizer))


def test_a_bpe_model_is_written_with_all_its_merges(tmp_path, captions):
    import sentencepiece as library

    path = tmp_path / "m.model"
    with path.open("wb") as file:
        library.SentencePieceTrainer.train(
            sentence_iterator=iter(captions),
            model_writer=file,
            model_type="bpe",
            vocab_size=330,
            byte_fallback=True,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            user_defined_symbols=["▁▁", "<table>"],
            minloglevel=2,
        )
    ours = SentencePiece(model=str(path), context_length=40, pad_id=0)
    files.write(ours, tmp_path / "out")
    texts = [*captions, "  two   dogs ", "x<table>y </s>", "naïve 猫\n\t", "reddog" * 30, ""]
    read = HubTokenizer(
        file=str(tmp_path / "out" / "tokenizer.json"), context_length=40, names=False
    )
    np.testing.assert_array_equal(read(texts), ours(texts))


def test_other_kinds_of_models_are_refused(tmp_path, captions):
    import sentencepiece as library

    path = tmp_path / "m.model"
    with path.open("wb") as file:
        library.SentencePieceTrainer.train(
            sentence_iterator=iter(captions),
            model_writer=file,
            model_type="char",
            vocab_size=24,
            minloglevel=2,
        )
    with pytest.raises(ValueError, match="only SentencePiece models of the kinds unigram and BPE"):
        files.write(SentencePiece(model=str(path)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("fields", "what"),
    [({"pad_id": 999}, "pad_id 999"), ({"context_length": 1}, "context_length 1")],
)
def test_what_does_not_fit_its_file_is_not_written(tokenizer_json, model, tmp_path, fields, what):
    hub = HubTokenizer(file=tokenizer_json, around=("[CLS]", "[SEP]"))
    with pytest.raises(ValueError, match=what):
        files.write(dataclasses.replace(hub, **fields), tmp_path / "out")
    with pytest.raises(ValueError, match="pad_id 999"):
        files.write(SentencePiece(model=model, pad_id=999), tmp_path / "out")
    with pytest.raises(FileNotFoundError, match=r"no SentencePiece model .*none\.model"):
        files.write(SentencePiece(model=str(tmp_path / "none.model")), tmp_path / "out")
    with pytest.raises(FileNotFoundError, match=r"no tokenizer file .*none\.json"):
        files.write(HubTokenizer(file=str(tmp_path / "none.json")), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_open_clips_fields():
    hub = HubTokenizer(file="f")
    for tokenizer, fields in [
        (ClipBpe(), {}),
        (
            ClipBpe(clean="open_clip_whitespace"),
            {"tokenizer_kwargs": {"clean": "whitespace"}},
        ),
    ]:
        assert files.open_clip_fields(tokenizer) == fields
    for tokenizer, kwargs in [
        (hub, {"clean": "whitespace"}),
        (dataclasses.replace(hub, clean="canonicalize"), {"clean": "whitespace"}),
        (dataclasses.replace(hub, clean="open_clip_lower"), {"clean": "lower"}),
        (dataclasses.replace(hub, blank_id=0), {"clean": "whitespace", "strip_sep_token": True}),
        (SentencePiece(model="m", clean="open_clip_canonicalize"), {"clean": "canonicalize"}),
    ]:
        fields = files.open_clip_fields(tokenizer)
        assert fields["tokenizer_kwargs"] == kwargs and fields["hf_tokenizer_name"]


def test_our_own_fields_are_passed_over_where_the_folder_was_saved_anew(every, tmp_path):
    pieces = next(t for t in every if isinstance(t, SentencePiece))
    files.write(pieces, tmp_path)
    (tmp_path / "spiece.model").unlink()  # transformers keeps only tokenizer.json.
    assert isinstance(files.find(tmp_path, **ANY), HubTokenizer)


@pytest.mark.parametrize(
    ("record", "what"),
    [
        ({"type": "ClipBpe", "spelling": "x"}, "clip_jax.spelling: 'x' is none of"),
        ({"type": "HubTokenizer", "clear": "none"}, r"HubTokenizer has no field 'clear' \(nearest"),
        ({"type": []}, "'type' is "),
    ],
)
def test_our_own_fields_are_checked_like_any_config(tokenizer_json, folder, record, what):
    made = folder(tokenizer_json, settings={"clip_jax": record})
    with pytest.raises(ValueError, match=what):
        files.find(made, **ANY)


def test_a_vocabulary_trained_here_survives_a_journey(tmp_path, captions):
    made = sentencepiece.train(captions, tmp_path / "v.model", 50, context_length=12)
    files.write(made, tmp_path / "out")
    found = files.find(tmp_path / "out", context_length=12, vocab_size=64)
    assert found == dataclasses.replace(made, model=str(tmp_path / "out" / "spiece.model"))
