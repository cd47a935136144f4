"""CLIP's byte-pair encoding: 49,408 tokens, lower case only, words closed by an end mark."""

import dataclasses
import functools
import gzip
import hashlib
import html
import importlib.resources
import os
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from clip_jax.tokenizers.batch import check_texts, pad_or_cut

PAD_ID = 0
START_ID = 49406
END_ID = 49407
VOCAB_SIZE = 49408

_TABLE = "bpe_simple_vocab_16e6.txt.gz"
_TABLE_SHA256 = "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"
_WORD_END = "</w>"
_WORDS = (
    r"(?i)<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
)
# The Rust library finds its special tokens anywhere in a text, but CLIP only where one of its words
# may begin: not inside a run of punctuation. So those are found here, and handed on as two control
# characters, which cannot be mistaken: the clean-up has removed all others.
_START_MARK, _END_MARK = "\x02", "\x03"
_SPECIALS = re.compile(r"(?<![^\w\s])(?<!_)(?:<\|(?:start|end)oftext\|>)+", re.IGNORECASE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipBpe:
    """The tokenizer of OpenAI's CLIP and of most OpenCLIP models.

    A row is the start token (49406), the text, the end token (49407) and zeros. The end token has
    the largest id, so `argmax` over a row finds it. As in the original, `<|endoftext|>` written
    out in a text is read as the end token itself.

    Source: Radford et al. 2021, arXiv:2103.00020, section 2.4.
    """

    context_length: int = 77
    """Tokens a text, the start and end token included; at least 2."""

    def __post_init__(self):
        if self.context_length < 2:
            raise ValueError(
                "ClipBpe.context_length must be at least 2 (start and end token), "
                f"got {self.context_length}"
            )

    def __getstate__(self) -> dict[str, Any]:
        """The fields alone: a copy or a worker process builds its own encoder."""
        return dataclasses.asdict(self)

    @property
    def vocab_size(self) -> int:
        """49,408."""
        return VOCAB_SIZE

    def tokenize(
        self, texts: Sequence[str]
    ) -> tuple[Int[np.ndarray, "B L"], Bool[np.ndarray, "B"]]:
        """Ids (int32, padded with 0), and True where a text was cut; see `Tokenizer.tokenize`."""
        cleaned = [_mark_specials(clean(text)) for text in check_texts(texts)]
        encoded = self._encoder.encode_batch_fast(cleaned, add_special_tokens=False)
        rows = [[START_ID, *text.ids, END_ID] for text in encoded]
        return pad_or_cut(rows, self.context_length, pad_id=PAD_ID)

    def __call__(self, texts: Sequence[str]) -> Int[np.ndarray, "B L"]:
        """The ids alone."""
        return self.tokenize(texts)[0]

    @functools.cached_property
    def _encoder(self) -> Any:
        asset = importlib.resources.files("clip_jax.tokenizers") / "assets" / _TABLE
        return _build_encoder(_read_merges(asset.read_bytes()))


def clean(text: str) -> str:
    """Mojibake and HTML entities repaired, white space collapsed, lower case."""
    # Printable ASCII without '&' holds nothing to repair, and most captions are just that.
    if not (text.isascii() and text.isprintable() and "&" not in text):
        text = _repair(text)
    return " ".join(text.split()).lower()


def _repair(text: str) -> str:
    import ftfy

    # Twice: "&amp;lt;" is common in text taken from web pages.
    return html.unescape(html.unescape(ftfy.fix_text(text)))


def _mark_specials(text: str) -> str:
    if "<|" not in text:
        return text
    return _SPECIALS.sub(
        lambda found: (
            found[0].replace("<|startoftext|>", _START_MARK).replace("<|endoftext|>", _END_MARK)
        ),
        text,
    )


def _read_merges(packed: bytes) -> list[tuple[str, str]]:
    """The merges of the published table, in order of rank.

    Raises:
      ValueError: the bytes are not the published file.
    """
    found = hashlib.sha256(packed).hexdigest()
    if found != _TABLE_SHA256:
        raise ValueError(
            f"{_TABLE} is damaged (sha256 {found}, not {_TABLE_SHA256}): install clip_jax again"
        )
    lines = gzip.decompress(packed).decode("utf-8").split("\n")
    count = VOCAB_SIZE - 2 * 256 - 2
    # The first line is a version; the file goes on beyond what CLIP uses.
    pairs = (line.split() for line in lines[1 : count + 1])
    return [(left, right) for left, right in pairs]


def _byte_letters() -> list[str]:
    """One visible character for each byte, in the order of the ids.

    Visible Latin-1 characters stand for themselves; the other bytes, in order, for those from 256.
    """
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(code) for code in visible] + [chr(256 + i) for i in range(256 - len(visible))]


def _build_encoder(merges: list[tuple[str, str]]) -> Any:
    import tokenizers
    from tokenizers import models, pre_tokenizers

    # Unless told otherwise the library starts threads, which do not survive a fork (some versions
    # print a warning then). One thread encodes a batch in milliseconds, and data workers are
    # parallel already.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    letters = _byte_letters()
    tokens = letters + [letter + _WORD_END for letter in letters]
    tokens += [left + right for left, right in merges] + [_START_MARK, _END_MARK]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    encoder = tokenizers.Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, end_of_word_suffix=_WORD_END)
    )
    words = pre_tokenizers.Split(tokenizers.Regex(_WORDS), behavior="removed", invert=True)
    as_letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    encoder.pre_tokenizer = pre_tokenizers.Sequence([words, as_letters])
    encoder.add_special_tokens([_START_MARK, _END_MARK])
    return encoder
