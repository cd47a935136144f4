"""The original tokenizers, live, on other strings than the golden ones, and on what we write."""

import dataclasses
import json
import re
import unicodedata

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="make parity installs it")

from clip_jax.tokenizers import ClipBpe, HubTokenizer, SentencePiece, files
from tests.golden import make_tokenizers
from tests.parity import peers

pytestmark = pytest.mark.filterwarnings("ignore")  # The originals'.
TEXTS = make_tokenizers.texts(seed=7, count=2200)
NAMES = re.compile(r"<[^<>]{1,14}>|<0x", re.IGNORECASE)
PLAIN = re.compile(r"(?:([ -~])(?!\1\1))*")
"""ASCII, and nothing thrice."""
LARGE = 100_000


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Folders as transformers saves them."""
    made = tmp_path_factory.mktemp("folders")
    make_tokenizers.make_folders(made)
    return made


@pytest.fixture(scope="module")
def originals(root):
    return make_tokenizers.originals(root)


def differing(ours, original, texts=TEXTS):
    """Texts for which the rows differ; an original may take no half surrogate pairs."""
    rows = make_tokenizers.rows_of(original, texts)
    return [
        (ascii(text), row, kept)
        for text, row, kept in zip(texts, ours(texts).tolist(), rows, strict=True)
        if kept is not None and row != kept + kept[-1:] * (len(row) - len(kept))
    ]


def named(name="any", **kwargs):
    return {"hf_tokenizer_name": name, "tokenizer_kwargs": kwargs}


FOUND = {
    "siglip": ("siglip", 64, None),
    "siglip_bytes": ("siglip_bytes", 64, None),
    "siglip2": ("gemma", 64, None),
    "open_clip_siglip": ("t5", 16, named(clean="canonicalize")),
    "open_clip_siglip2": ("gemma", 64, named(clean="canonicalize")),
    "clipa": ("bert", 32, named(strip_sep_token=True)),
}


@pytest.mark.parametrize("name", FOUND)
def test_what_is_found_in_a_folder_gives_the_originals_ids(name, root, originals):
    folder, length, text = FOUND[name]
    found = files.find(root / folder, context_length=length, vocab_size=LARGE, open_clip=text)
    assert not differing(found, originals[name])


@pytest.mark.parametrize("spelling", ["openai", "open_clip"])
def test_clip(spelling, originals):
    assert not differing(ClipBpe(spelling=spelling), originals[spelling])


@pytest.mark.parametrize("clean", ["whitespace", "canonicalize"])
def test_clip_cleaned_in_open_clips_other_ways(clean):
    original = peers.open_clip().tokenizer.SimpleTokenizer(clean=clean, context_length=20)
    ours = ClipBpe(spelling="open_clip", clean=f"open_clip_{clean}", context_length=20)
    assert not differing(ours, lambda texts: original(texts).tolist())


def test_every_character_is_cut_by_clip_where_the_original_does():
    original = peers.open_clip().tokenizer.SimpleTokenizer()
    assigned = filter(make_tokenizers.assigned, map(chr, range(0x110000)))
    texts = [f"a{c}1{c}.{c} b" for c in assigned][::7]
    assert len(texts) > 15_000 and unicodedata.unidata_version >= "14"
    ours = ClipBpe(spelling="open_clip", context_length=40)(texts)
    for text, row in zip(texts, ours.tolist(), strict=True):
        ids = [49406, *original.encode(text), 49407]
        assert row == ids + [0] * (40 - len(ids)), ascii(text)


def of_transformers(folder, length):
    """The ids that AutoTokenizer's choice gives."""
    tokenizer = peers.transformers().AutoTokenizer.from_pretrained(folder)
    fixed = {"padding": "max_length", "truncation": True, "max_length": length}
    return lambda texts: tokenizer(texts, **fixed).input_ids


def test_clip_as_written_is_transformers_clip_tokenizer(tmp_path):
    files.write(ClipBpe(), tmp_path)
    tokenizer = peers.transformers().AutoTokenizer.from_pretrained(tmp_path)
    assert type(tokenizer).__name__ == "CLIPTokenizer"
    original = of_transformers(tmp_path, 77)
    plain = [text for text in TEXTS if text.isascii() and text.isprintable()]
    plain = [text for text in plain if "&" not in text and not NAMES.search(text)]
    assert len(plain) > 150
    padded = np.array(original(plain))
    ends = (padded == 49407).argmax(1)
    padded[np.arange(77) > ends[:, None]] = 0  # There padding is the end token.
    np.testing.assert_array_equal(padded, ClipBpe()(plain))


@pytest.mark.parametrize("without", ["tokenizer.json", "vocab.json"])
def test_either_half_of_clips_files_is_enough(tmp_path, without):
    files.write(ClipBpe(), tmp_path)
    texts = ["a photo of a dog", "I'D LIKE 3.14 _ things!", ""]
    whole = of_transformers(tmp_path, 77)(texts)
    (tmp_path / without).unlink()
    if without == "vocab.json":
        (tmp_path / "merges.txt").unlink()
    assert of_transformers(tmp_path, 77)(texts) == whole


def written(root):
    """Tokenizers to write, and how many of 2,200 odd strings transformers may read differently."""

    def model(folder, **fields):
        (path,) = (root / folder).glob("*.model")
        return SentencePiece(model=str(path), context_length=24, **fields)

    def hub(folder, **fields):
        return HubTokenizer(file=str(root / folder / "tokenizer.json"), context_length=24, **fields)

    yield "siglip", model("siglip", clean="siglip"), 0
    yield "siglip, bytes", model("siglip_bytes", clean="siglip", pad_id=0), 0
    yield "gemma", model("gemma_source", pad_id=0), 0
    yield "gemma, lower", model("gemma_source", clean="lower", pad_id=0), 0
    yield "gemma, ASCII", model("gemma_source", clean="lower_ascii", pad_id=0), 0
    yield "hub gemma", hub("gemma", lower=True), 0
    yield "hub gemma, around", hub("gemma", around=("<bos>", "")), 0
    yield "hub t5", hub("t5", pad_id=1), 0
    yield "hub bert", hub("bert"), 0
    # Ties of Viterbi's search, and accents that compose with nothing (see `files.write`).
    yield "unigram", model("siglip"), 40
    yield "unigram, bytes", model("siglip_bytes", pad_id=0), 60
    yield "unigram, lower", model("siglip", clean="lower"), 40
    yield "unigram, canonical", model("siglip", clean="canonicalize"), 40
    yield "hub t5, siglip", hub("t5", pad_id=1, clean="siglip"), 40


@pytest.mark.parametrize("model_type", [None, "siglip"])
def test_what_we_write_gives_the_same_ids_in_transformers(root, tmp_path, model_type):
    for name, ours, allowed in written(root):
        folder = tmp_path / name
        files.write(ours, folder)
        if model_type:
            (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
        texts = [text for text in TEXTS if not (allowed and NAMES.search(text))]
        assert len(texts) > 1000
        assert len(differing(ours, of_transformers(folder, 24), texts)) <= allowed, name
        captions = [text for text in texts if PLAIN.fullmatch(text)]
        assert len(captions) > 100
        assert not differing(ours, of_transformers(folder, 24), captions), name


def test_siglip_as_written_is_siglip_tokenizer(root, tmp_path):
    ours = SentencePiece(model=str(root / "siglip" / "spiece.model"), clean="siglip")
    files.write(ours, tmp_path)
    made = peers.transformers().SiglipTokenizer.from_pretrained(tmp_path)
    fixed = {"padding": "max_length", "truncation": True}  # The length is in the settings.
    assert not differing(ours, lambda texts: made(texts, **fixed).input_ids)


def test_what_we_write_gives_the_same_ids_in_open_clip(root, tmp_path):
    factory = peers.open_clip()
    for name, given, allowed in written(root):
        if isinstance(given, SentencePiece) and given.clean == "siglip":
            continue  # Its class cleans, whatever OpenCLIP does first.
        for clean in ("open_clip_whitespace", "open_clip_canonicalize"):
            ours = dataclasses.replace(given, clean=clean)
            folder = tmp_path / f"{name} {clean}"
            files.write(ours, folder)
            text = {"context_length": 24, "vocab_size": LARGE, **files.open_clip_fields(ours)}
            config = {"model_cfg": {"embed_dim": 8, "text_cfg": text, "vision_cfg": {}}}
            (folder / "open_clip_config.json").write_text(json.dumps(config))
            original = factory.get_tokenizer(f"local-dir:{folder}")
            texts = [text for text in TEXTS[:700] if not (allowed and NAMES.search(text))]
            found = differing(ours, lambda t, of=original: of(t).tolist(), texts)
            assert len(found) <= allowed, (name, clean, found[:3])


def test_a_blanked_separator_reaches_open_clip(root, tmp_path):
    ours = HubTokenizer(
        file=str(root / "bert" / "tokenizer.json"),
        context_length=32,
        clean="open_clip_whitespace",
        blank_id=102,
    )
    files.write(ours, tmp_path)
    kwargs = files.open_clip_fields(ours)["tokenizer_kwargs"]
    original = peers.open_clip().tokenizer.HFTokenizer(str(tmp_path), context_length=32, **kwargs)
    assert not differing(ours, lambda texts: original(texts).tolist(), TEXTS[:500])
