"""Tokenizers as the files that transformers and OpenCLIP read."""

import dataclasses
import importlib
import json
import string
from collections.abc import Sequence
from typing import Any

from clip_jax.config import to_data
from clip_jax.tokenizers import (
    ClipBpe,
    HubTokenizer,
    SentencePiece,
    TokenizerConfig,
    clip_bpe,
    storage,
)
from clip_jax.tokenizers.batch import rust
from clip_jax.tokenizers.clean import Clean

SETTINGS = "tokenizer_config.json"
RECORD = "clip_jax"
"""The field of the settings that holds our own fields, for which transformers has no place."""
_SPACES = "\t-\r\x1c- \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
"""Python's white space; regular expressions of the Rust library know less of it."""
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4
"""Kinds of SentencePiece pieces."""


def clip_files(tokenizer: ClipBpe) -> dict[str, bytes]:
    """CLIP's vocabulary as transformers keeps it; name of each file -> content.

    There padding is the end token, not 0, as in OpenAI's own files: 0 is the id of "!", which as a
    padding token would be cut out of texts.
    """
    library, merges = rust(), clip_bpe.read_merges()
    start, end = clip_bpe.SPELLINGS["openai"]
    ids = clip_bpe.vocabulary(merges, (start, end))
    encoder = library.Tokenizer(
        library.models.BPE(
            vocab=ids,
            merges=merges,
            unk_token=end,
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
        )
    )
    n, p = library.normalizers, library.pre_tokenizers
    encoder.normalizer = n.Sequence([n.NFC(), n.Replace(library.Regex(r"\s+"), " "), n.Lowercase()])
    pattern = library.Regex(clip_bpe.pattern("openai"))
    encoder.pre_tokenizer = p.Sequence(
        [
            p.Split(pattern, behavior="removed", invert=True),
            p.ByteLevel(add_prefix_space=False),
        ]
    )
    encoder.post_processor = library.processors.RobertaProcessing(
        (end, clip_bpe.END_ID), (start, clip_bpe.START_ID), trim_offsets=False
    )
    encoder.decoder = library.decoders.ByteLevel()
    encoder.add_special_tokens([start, end])
    settings = _settings(tokenizer, "CLIPTokenizer", pad_token=end)
    settings |= {"bos_token": start, "eos_token": end, "unk_token": end}
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in merges)]
    return {
        "vocab.json": json.dumps(ids, ensure_ascii=False).encode(),
        "merges.txt": ("\n".join(lines) + "\n").encode(),
        "tokenizer.json": encoder.to_str(pretty=True).encode(),
        SETTINGS: _json(settings),
    }


def hub_files(tokenizer: HubTokenizer) -> dict[str, bytes]:
    """A `tokenizer.json` with the tokenizer's own fields as rules."""
    tokenizer.tokenize([])  # All that does not fit the file is an error here.
    encoder = tokenizer.rules()
    _put_first(encoder, normalizers(tokenizer.clean))
    clean: Clean = tokenizer.clean if tokenizer.clean.startswith("open_clip") else "none"
    remaining = dataclasses.replace(tokenizer, clean=clean, lower=False, around=None)
    settings = _settings(remaining, "PreTrainedTokenizerFast")
    settings["pad_token"] = encoder.id_to_token(tokenizer.pad_id)
    settings["split_special_tokens"] = not tokenizer.names
    if tokenizer.blank_id is not None:
        settings["sep_token"] = encoder.id_to_token(tokenizer.blank_id)
    return {"tokenizer.json": encoder.to_str(pretty=True).encode(), SETTINGS: _json(settings)}


def sentencepiece_files(tokenizer: SentencePiece) -> dict[str, bytes]:
    """The model file, and a `tokenizer.json` with the same rules (not for `clean="siglip"`).

    A unigram model in the latter reads the names of control and byte pieces in a text as these
    pieces; nothing else there does.
    """
    tokenizer.tokenize([])
    pad_id = tokenizer.end_id if tokenizer.pad_id is None else tokenizer.pad_id
    packed = storage.read(tokenizer.model, "SentencePiece model", (".model",))
    # Its classes are made when it is imported, so type checkers do not see them.
    schema: Any = importlib.import_module("sentencepiece.sentencepiece_model_pb2")
    model = schema.ModelProto.FromString(packed)
    end, pad = model.trainer_spec.eos_piece, model.pieces[pad_id].piece
    siglip = tokenizer.clean == "siglip"
    kind = "SiglipTokenizer" if siglip else "PreTrainedTokenizerFast"
    settings = _settings(tokenizer, kind, pad_token=pad)
    settings |= {"eos_token": end, "unk_token": model.trainer_spec.unk_piece}
    settings["split_special_tokens"] = True
    files = {"spiece.model": packed, SETTINGS: _json(settings)}
    if not siglip:
        encoder = _from_proto(model)
        _put_first(encoder, normalizers(tokenizer.clean))
        files["tokenizer.json"] = encoder.to_str(pretty=True).encode()
    return files


def normalizers(clean: Clean) -> list[Any]:
    """A way of cleaning as rules of a `tokenizer.json`.

    OpenCLIP's ways are not among the rules: its code does them. Lower case is of each letter on
    its own (a Greek capital sigma becomes no final one).
    """
    library = rust()
    n = library.normalizers
    if clean == "lower":
        return [n.Lowercase()]
    if clean == "lower_ascii":
        return [n.Replace(letter, letter.lower()) for letter in string.ascii_uppercase]
    if clean in ("canonicalize", "siglip"):
        space = n.Replace("_" if clean == "canonicalize" else "▁", " ")
        punctuation = library.Regex(r"[!-/:-@\[-`{-~]")
        spaces = n.Replace(library.Regex(f"[{_SPACES}]+"), " ")
        return [space, n.Replace(punctuation, ""), n.Lowercase(), spaces, n.Strip()]
    return []


def _put_first(encoder: Any, rules: Sequence[Any]) -> None:
    if rules:
        own = [encoder.normalizer] if encoder.normalizer else []
        encoder.normalizer = rust().normalizers.Sequence([*rules, *own])


def _settings(tokenizer: TokenizerConfig, kind: str, **fields: Any) -> dict[str, Any]:
    record = {k: v for k, v in to_data(tokenizer).items() if k not in ("file", "model")}
    return {
        RECORD: record,
        "tokenizer_class": kind,
        "model_max_length": tokenizer.context_length,
        "padding_side": "right",
        "truncation_side": "right",
        "clean_up_tokenization_spaces": False,
        **fields,
    }


def _json(data: Any) -> bytes:
    return (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode()


def _from_proto(model: Any) -> Any:
    """A SentencePiece model in the Rust library, with its end token after each text."""
    library, trainer, spec = rust(), model.trainer_spec, model.normalizer_spec
    if trainer.model_type == trainer.UNIGRAM:
        table = library.models.Unigram(
            [(piece.piece, piece.score) for piece in model.pieces],
            unk_id=trainer.unk_id,
            byte_fallback=trainer.byte_fallback,
        )
    elif trainer.model_type == trainer.BPE:
        table = library.models.BPE(
            vocab={piece.piece: i for i, piece in enumerate(model.pieces)},
            merges=_merges(model.pieces),
            unk_token=trainer.unk_piece,
            fuse_unk=True,
            byte_fallback=trainer.byte_fallback,
        )
    else:
        raise ValueError("only SentencePiece models of the kinds unigram and BPE can be written")
    encoder = library.Tokenizer(table)
    encoder.normalizer = library.normalizers.Sequence(_spec_rules(library, spec))
    encoder.pre_tokenizer = library.pre_tokenizers.Metaspace(
        prepend_scheme="always" if spec.add_dummy_prefix else "never",
        # Unigram pieces have no space inside; those of a BPE may.
        split=trainer.model_type == trainer.UNIGRAM,
    )
    encoder.post_processor = library.processors.TemplateProcessing(
        single=["$A", trainer.eos_piece], special_tokens=[(trainer.eos_piece, trainer.eos_id)]
    )
    for piece in model.pieces:
        if piece.type in (_CONTROL, _USER_DEFINED):
            special = piece.type == _CONTROL
            token = library.AddedToken(piece.piece, special=special, normalized=not special)
            encoder.add_tokens([token])
    return encoder


def _spec_rules(library: Any, spec: Any) -> list[Any]:
    n, rules = library.normalizers, []
    if spec.precompiled_charsmap:
        rules.append(n.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        rules += [n.Replace(library.Regex("^ +| +$"), ""), n.Replace(library.Regex(" {2,}"), " ")]
    # Here, not later, so that pieces of spaces that the user defined are found.
    return [*rules, n.Replace(" ", "▁")]


def _merges(pieces: Sequence[Any]) -> list[tuple[str, str]]:
    """Every way to make a piece of two others, the best piece first."""
    normal = {piece.piece: piece.score for piece in pieces if piece.type == _NORMAL}
    return [
        (whole[:i], whole[i:])
        for whole in sorted(normal, key=lambda piece: -normal[piece])
        for i in range(1, len(whole))
        if whole[:i] in normal and whole[i:] in normal
    ]
