"""Ids of the original libraries, kept in tests/golden (make_tokenizers.py there made them)."""

import base64
import gzip
import importlib
import json
import pathlib

import pytest

from clip_jax.tokenizers import ClipBpe, HubTokenizer, SentencePiece

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "tokenizers.json.gz"
CHARSMAP = "@charsmap@"


@pytest.fixture(scope="module")
def golden():
    return json.loads(gzip.decompress(GOLDEN.read_bytes()))


@pytest.fixture(scope="module")
def folder(golden, tmp_path_factory):
    """The vocabularies as files."""
    schema = importlib.import_module("sentencepiece.sentencepiece_model_pb2")
    made, files = tmp_path_factory.mktemp("golden"), golden["files"]
    for name, text in files.items():
        if name.endswith(".model"):
            model = schema.ModelProto.FromString(base64.b64decode(text))
            if model.normalizer_spec.name != "identity":
                model.normalizer_spec.precompiled_charsmap = base64.b64decode(files[CHARSMAP])
            (made / name).write_bytes(model.SerializeToString())
        elif name != CHARSMAP:
            whole = text.replace(CHARSMAP, files[CHARSMAP])
            (made / name).write_text(whole, encoding="utf-8")
    return made


def siglip(name, clean, **fields):
    return lambda folder: SentencePiece(model=str(folder / name), clean=clean, **fields)


def hub(name, **fields):
    return lambda folder: HubTokenizer(file=str(folder / name), **fields)


REPAIRED = {"clean": "open_clip_canonicalize"}
CLIPA = {"context_length": 32, "clean": "open_clip_whitespace", "blank_id": 102}
# Name of the original, and ours.
CASES = {
    "openai": ("openai", lambda folder: ClipBpe()),
    "open_clip": ("open_clip", lambda folder: ClipBpe(spelling="open_clip")),
    "siglip": ("siglip", siglip("siglip.model", "siglip")),
    "siglip_bytes": ("siglip_bytes", siglip("siglip_bytes.model", "siglip")),
    "open_clip_siglip": (
        "open_clip_siglip",
        hub("t5.json", context_length=16, pad_id=1, **REPAIRED),
    ),
    "siglip2": ("siglip2", hub("gemma.json", lower=True)),
    "siglip2_unlowered": ("siglip2_unlowered", hub("gemma.json")),
    "open_clip_siglip2": ("open_clip_siglip2", hub("gemma.json", **REPAIRED)),
    "clipa": ("clipa", hub("bert.json", **CLIPA)),
    "clipa, its list": ("clipa", hub("vocab.txt", lower=True, **CLIPA)),
}


@pytest.mark.parametrize("case", CASES)
def test_ids_are_those_of_the_original(case, golden, folder):
    name, make = CASES[case]
    ours, texts = make(folder)(golden["texts"]), golden["texts"]
    different = [
        (ascii(text), row.tolist(), kept)
        for text, row, kept in zip(texts, ours, golden["ids"][name], strict=True)
        if kept is not None and row.tolist() != kept + kept[-1:] * (len(row) - len(kept))
    ]
    assert len(texts) >= 2000
    assert not different, (len(different), different[:5])
