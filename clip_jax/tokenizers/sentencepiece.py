"""SentencePiece vocabularies as SigLIP uses them, and how to train one from captions."""

import dataclasses
import difflib
import functools
import io
import os
import re
from collections.abc import Iterable, Sequence
from typing import Any, get_args

import numpy as np
from etils import epath
from jaxtyping import Bool, Int

from clip_jax.tokenizers import storage
from clip_jax.tokenizers.batch import check_texts, pad_or_cut
from clip_jax.tokenizers.clean import Clean, clean_text


@dataclasses.dataclass(frozen=True, kw_only=True)
class SentencePiece:
    """A vocabulary read from a `.model` file, with the rows laid out as SigLIP expects.

    A row is the text, the end token, and padding; a text that is cut keeps the end token in the
    last place. The text tower pools at the last position, so what stands there matters. SigLIP
    pads with the end token, so that every row ends in it; SigLIP 2 pads with 0.

    The name of a special token written out in a text is plain text, as in big_vision. (In
    transformers, only `split_special_tokens=True` reads it so.)

    The originals, on the published vocabularies:

    * SigLIP in big_vision: `clean="lower_ascii"`. In transformers (`SiglipTokenizer`):
      `clean="siglip"`. In OpenCLIP: `clean="open_clip_canonicalize"`, but it has no byte pieces,
      so in the multilingual models a character without a piece is unknown there.
    * SigLIP 2 in big_vision: `clean="lower_ascii", pad_id=0`. In transformers: `clean="lower",
      pad_id=0`. In OpenCLIP: `clean="open_clip_canonicalize", pad_id=0`.

    Source: Zhai et al. 2023, arXiv:2303.15343; Tschannen et al. 2025, arXiv:2502.14786
    (big_vision's "sticky" end token).
    """

    model: str
    """Path of the `.model` file; local, gs:// or s3://."""
    context_length: int = 64
    """Tokens a text, the end token included; at least 1."""
    clean: Clean = "none"
    """What happens before encoding; see `clip_jax.tokenizers.clean`."""
    pad_id: int | None = None
    """None: the model's end token, as in SigLIP. SigLIP 2 pads with 0."""

    def __post_init__(self):
        faults = []
        if self.context_length < 1:
            faults.append(f"context_length must be at least 1, got {self.context_length}")
        if self.clean not in get_args(Clean):
            near = difflib.get_close_matches(self.clean, get_args(Clean), n=1, cutoff=0.0)
            faults.append(
                f"clean {self.clean!r} (nearest: {near[0]!r}) is not in {get_args(Clean)}"
            )
        if self.pad_id is not None and self.pad_id < 0:
            faults.append(f"pad_id must not be negative, got {self.pad_id}")
        if faults:
            raise ValueError("SentencePiece: " + "; ".join(faults))

    def __getstate__(self) -> dict[str, Any]:
        """The fields alone: a copy or a worker process reads the file itself."""
        return dataclasses.asdict(self)

    @property
    def vocab_size(self) -> int:
        """Pieces in the model file."""
        return self._encoder.get_piece_size()

    def tokenize(
        self, texts: Sequence[str]
    ) -> tuple[Int[np.ndarray, "B L"], Bool[np.ndarray, "B"]]:
        """Ids (int32, padded with `pad_id`), and True where cut; see `Tokenizer.tokenize`.

        Raises:
          FileNotFoundError, ValueError: the model file is missing, or no usable model.
        """
        rows = self._rows([clean_text(text, self.clean) for text in check_texts(texts)])
        pad_id = self.end_id if self.pad_id is None else self.pad_id
        return pad_or_cut(rows, self.context_length, pad_id=pad_id)

    def __call__(self, texts: Sequence[str]) -> Int[np.ndarray, "B L"]:
        """The ids alone."""
        return self.tokenize(texts)[0]

    def _rows(self, cleaned: list[str]) -> list[list[int]]:
        # One thread: batches are small, and starting threads costs more than they save.
        encode = functools.partial(self._encoder.encode, num_threads=1)
        if self.clean != "siglip":
            return encode(cleaned, add_eos=True)
        # SiglipTokenizer writes the unknown token's name before a text and drops its pieces from
        # the result. That decides which of two equally good ways to cut "..." into pieces is taken.
        unknown = self._encoder.id_to_piece(self._encoder.unk_id())
        skipped = len(encode(unknown))
        rows = encode([f"{unknown}▁{text}" for text in cleaned], add_eos=True)
        return [row[skipped:] for row in rows]

    @property
    def end_id(self) -> int:
        """The end token's id."""
        return self._encoder.eos_id()

    def id_of(self, piece: str) -> int:
        """The id of a piece or special token.

        Raises:
          ValueError: the model has no such piece.
        """
        found = self._encoder.piece_to_id(piece)
        if self._encoder.id_to_piece(found) != piece:  # It says "unknown" instead.
            raise ValueError(f"{self.model} has no piece {piece!r}")
        return found

    @functools.cached_property
    def _encoder(self) -> Any:
        encoder = _load(epath.Path(self.model))
        if self.pad_id is not None and self.pad_id >= encoder.get_piece_size():
            raise ValueError(
                f"pad_id {self.pad_id}: {self.model} has only {encoder.get_piece_size()} pieces"
            )
        return encoder


def train(
    texts: Iterable[str],
    out: epath.PathLike,
    vocab_size: int,
    *,
    context_length: int = 64,
    clean: Clean = "none",
    character_coverage: float = 0.9995,
) -> SentencePiece:
    """Make a vocabulary (unigram model) from captions and write it to `out`, whole or not at all.

    Ids as in T5 and SigLIP: 0 padding, 1 end, 2 unknown, then pieces by falling probability. The
    same texts give the same file. All texts are held in memory.

    Args:
      texts: captions; empty ones are ignored.
      out: the `.model` file; folders are made, an older file is replaced.
      vocab_size: pieces, the three special ones included.
      context_length: of the tokenizer that is returned.
      clean: of the tokenizer that is returned; training sees the texts cleaned in this way.
      character_coverage: share of all characters that must have a piece; the rest is unknown.

    Raises:
      ValueError: no text, or `vocab_size` is too large or too small for them (with the limit).
      OSError: the file cannot be written.
    """
    path = epath.Path(out).expanduser()
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: name a file for the model")
    tokenizer = SentencePiece(model=os.fspath(out), context_length=context_length, clean=clean)
    cleaned = [kept for text in check_texts(texts) if (kept := clean_text(text, clean).strip())]
    if not cleaned:
        raise ValueError(
            "no text to train a vocabulary from: all texts are empty, or there is none"
        )
    storage.write_whole(path, _trained(cleaned, vocab_size, character_coverage))
    return tokenizer


def _trained(texts: list[str], vocab_size: int, character_coverage: float) -> bytes:
    """A model file's content."""
    import sentencepiece

    written = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=written,
            model_type="unigram",
            vocab_size=vocab_size,
            character_coverage=character_coverage,
            max_sentence_length=max(len(text.encode()) for text in texts) + 1,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ValueError(_why(str(error), vocab_size, len(texts))) from error
    return written.getvalue()


def _why(message: str, vocab_size: int, texts: int) -> str:
    if limit := re.search(r"too high .*<= (\d+)", message):
        return f"vocab_size {vocab_size} is too large for {texts} texts: at most {limit[1]}"
    if limit := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return f"vocab_size {vocab_size} is too small for the characters used: at least {limit[1]}"
    return f"no vocabulary of {vocab_size} pieces could be trained from {texts} texts: {message}"


def _load(path: epath.Path) -> Any:
    import sentencepiece

    packed = storage.read(path, "SentencePiece model", (".model",))
    encoder = sentencepiece.SentencePieceProcessor()
    try:
        encoder.LoadFromSerializedProto(packed)
    except RuntimeError as error:
        raise ValueError(f"{path} is not a SentencePiece model, or is damaged: {error}") from error
    if encoder.eos_id() < 0:
        raise ValueError(f"{path} has no end token (</s>), which every row must end in")
    return encoder
