"""CLIP's byte-pair encoding: 49,408 tokens, lower case only, words closed by an end mark."""

import dataclasses
import functools
import gzip
import hashlib
import importlib.resources
import itertools
import re
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Int

from clip_jax.tokenizers.batch import check_texts, pad_or_cut, rust
from clip_jax.tokenizers.clean import OpenClipClean, clean_text

PAD_ID = 0
START_ID = 49406
END_ID = 49407
VOCAB_SIZE = 49408
MERGES = VOCAB_SIZE - 2 * 256 - 2
SPELLINGS = {
    "openai": ("<|startoftext|>", "<|endoftext|>"),
    "open_clip": ("<start_of_text>", "<end_of_text>"),
}
"""The start and the end token as a text may name them."""

_TABLE = "bpe_simple_vocab_16e6.txt.gz"
_TABLE_SHA256 = "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"
_WORD_END = "</w>"
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
# The Rust library finds its special tokens anywhere in a text, but CLIP only where one of its words
# may begin: not inside a run of punctuation. So those are found here, and handed on as two control
# characters, which cannot be mistaken: the clean-up has removed all others.
_MARKS = ("\x02", "\x03")
_KEPT_WORDS = 2**16
_KEPT_LENGTH = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipBpe:
    """The tokenizer of OpenAI's CLIP and of most OpenCLIP models.

    A row is the start token (49406), the text, the end token (49407) and zeros. The end token has
    the largest id, so `argmax` over a row finds it. As in the originals, the end token's name
    written out in a text is read as the token itself.

    Mojibake and HTML entities are repaired first, as in the originals. transformers'
    `CLIPTokenizer` does not do that (it composes accents instead), finds special tokens anywhere
    and pads with 49407: its ids are these on plain text, up to the end token.

    Source: Radford et al. 2021, arXiv:2103.00020, section 2.4.
    """

    context_length: int = 77
    """Tokens a text, the start and end token included; at least 2."""
    spelling: Literal["openai", "open_clip"] = "openai"
    """How a text names the special tokens: `<|endoftext|>`, or `<end_of_text>` as in OpenCLIP's
    own tokenizer, with which its models were trained. No other text is read differently."""
    clean: OpenClipClean = "open_clip_lower"
    """CLIP's own clean-up, or another one of OpenCLIP's; see `clip_jax.tokenizers.clean`."""

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
        split = [clean_text(text, self.clean).split() for text in check_texts(texts)]
        ids = self._ids_of(set(itertools.chain.from_iterable(split))).__getitem__
        chain = itertools.chain.from_iterable
        rows = [[START_ID, *chain(map(ids, words)), END_ID] for words in split]
        return pad_or_cut(rows, self.context_length, pad_id=PAD_ID)

    def __call__(self, texts: Sequence[str]) -> Int[np.ndarray, "B L"]:
        """The ids alone."""
        return self.tokenize(texts)[0]

    def _ids_of(self, words: set[str]) -> dict[str, list[int]]:
        """A table with the ids of these words, and maybe of others.

        No token spans white space, so a text's ids are its words' ids in a row; and words recur
        where captions do not, so most are encoded once.
        """
        kept = self._kept
        new = [word for word in words.difference(kept) if len(word) <= _KEPT_LENGTH]
        kept.update(zip(new, self._encode(new), strict=True))
        if len(kept) > _KEPT_WORDS:
            # Dropped, not emptied: other threads may be reading it.
            self.__dict__.pop("_kept", None)
        if long := [word for word in words if len(word) > _KEPT_LENGTH]:
            return kept | dict(zip(long, self._encode(long), strict=True))
        return kept

    def _encode(self, words: list[str]) -> list[list[int]]:
        marked = [self._mark_specials(word) for word in words]
        found = self._encoder.encode_batch_fast(marked, add_special_tokens=False)
        return [word.ids for word in found]

    def _mark_specials(self, word: str) -> str:
        return _specials(self.spelling).sub(self._marks, word) if "<" in word else word

    def _marks(self, found: re.Match[str]) -> str:
        start, end = SPELLINGS[self.spelling]
        return found[0].replace(start, _MARKS[0]).replace(end, _MARKS[1])

    @functools.cached_property
    def _kept(self) -> dict[str, list[int]]:
        return {}

    @functools.cached_property
    def _encoder(self) -> Any:
        return _build_encoder(self.spelling)


def vocabulary(merges: Sequence[tuple[str, str]], specials: Sequence[str]) -> dict[str, int]:
    """Each token's id: 256 bytes, 256 bytes that end a word, the merges by rank, the specials."""
    letters = _byte_letters()
    tokens = letters + [letter + _WORD_END for letter in letters]
    tokens += [left + right for left, right in merges] + list(specials)
    return {token: i for i, token in enumerate(tokens)}


def pattern(spelling: str) -> str:
    """The regular expression of CLIP's words, in the Rust library's dialect; ignores case."""
    return "|".join([*map(re.escape, SPELLINGS[spelling]), _WORDS])


def read_merges() -> list[tuple[str, str]]:
    """The 48,894 merges of the published table, in order of rank.

    Raises:
      ValueError: the file in the package is not the published one.
    """
    asset = importlib.resources.files("clip_jax.tokenizers") / "assets" / _TABLE
    return _parse_merges(asset.read_bytes())


def _parse_merges(packed: bytes) -> list[tuple[str, str]]:
    found = hashlib.sha256(packed).hexdigest()
    if found != _TABLE_SHA256:
        raise ValueError(
            f"{_TABLE} is damaged (sha256 {found}, not {_TABLE_SHA256}): install clip_jax again"
        )
    lines = gzip.decompress(packed).decode("utf-8").split("\n")
    # The first line is a version; the file goes on beyond what CLIP uses.
    pairs = (line.split() for line in lines[1 : MERGES + 1])
    return [(left, right) for left, right in pairs]


def _byte_letters() -> list[str]:
    """One visible character for each byte, in the order of the ids.

    Visible Latin-1 characters stand for themselves; the other bytes, in order, for those from 256.
    """
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(code) for code in visible] + [chr(256 + i) for i in range(256 - len(visible))]


@functools.cache
def _specials(spelling: str) -> re.Pattern[str]:
    names = "|".join(map(re.escape, SPELLINGS[spelling]))
    return re.compile(rf"(?<![^\w\s])(?<!_)(?:{names})+", re.IGNORECASE)


@functools.cache
def _build_encoder(spelling: str) -> Any:
    library, merges = rust(), read_merges()
    encoder = library.Tokenizer(
        library.models.BPE(
            vocab=vocabulary(merges, _MARKS), merges=merges, end_of_word_suffix=_WORD_END
        )
    )
    encoder.pre_tokenizer = library.pre_tokenizers.Sequence(
        [
            library.pre_tokenizers.Split(
                library.Regex("(?i)" + pattern(spelling)), "removed", True
            ),
            library.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    encoder.add_special_tokens(list(_MARKS))
    return encoder
