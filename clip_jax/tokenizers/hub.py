"""Vocabularies as the Hugging Face hub keeps them: a `tokenizer.json`, or BERT's `vocab.txt`."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Bool, Int

from clip_jax.config import require
from clip_jax.tokenizers import storage
from clip_jax.tokenizers.batch import check_texts, rust
from clip_jax.tokenizers.clean import Clean, clean_text


@dataclasses.dataclass(frozen=True, kw_only=True)
class HubTokenizer:
    """A vocabulary and its rules, as a file states them.

    What the file says holds: how texts are normalised and cut into tokens, which special tokens
    are found in them, and which are put around them. A text that is cut keeps those around it. So
    the ids are those of transformers, whose tokenizers are this library's, and of OpenCLIP's
    `HFTokenizer`.
    """

    file: str
    """Path of a `tokenizer.json`, or of a `vocab.txt` (BERT's WordPiece, a token a line); local,
    gs:// or s3://."""
    context_length: int = 64
    """Tokens a text, the special ones included; at least as many as those are."""
    clean: Clean = "none"
    """What happens before the file's own rules; see `clip_jax.tokenizers.clean`."""
    lower: bool = False
    """Lower case as the first of the file's rules: SigLIP 2 in transformers. Unlike `clean`, it
    comes after the special tokens in a text are found. For a `vocab.txt`: an uncased one."""
    around: tuple[str, str] | None = None
    """The tokens before and after each text, "" for none: `("", "<eos>")`. None: as in the file."""
    names: bool = True
    """Whether the name of a special token, written out in a text, is read as the token."""
    blank_id: int | None = None
    """This id becomes 0 in all rows: of "[SEP]" for CLIPA (OpenCLIP's `strip_sep_token`)."""
    pad_id: int = 0
    """Fills up short rows, on the right."""

    def __post_init__(self):
        require(
            self,
            ("context_length", self.context_length > 0, "at least 1"),
            ("pad_id", self.pad_id >= 0, "at least 0"),
            ("blank_id", self.blank_id is None or self.blank_id >= 0, "at least 0, or None"),
        )

    def __getstate__(self) -> dict[str, Any]:
        """The fields alone: a copy or a worker process reads the file itself."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return 1 + max(self._encoder.get_vocab().values())

    def tokenize(
        self, texts: Sequence[str]
    ) -> tuple[Int[np.ndarray, "B L"], Bool[np.ndarray, "B"]]:
        """Ids (int32, padded with `pad_id`), and True where cut; see `Tokenizer.tokenize`.

        Raises:
          FileNotFoundError, ValueError: the file is missing, or no usable tokenizer.
        """
        cleaned = [clean_text(text, self.clean) for text in check_texts(texts)]
        rows = self._encoder.encode_batch_fast(cleaned)
        ids = np.array([row.ids for row in rows], np.int32).reshape(-1, self.context_length)
        if self.blank_id is not None:
            ids[ids == self.blank_id] = 0
        return ids, np.array([bool(row.overflowing) for row in rows], bool)

    def __call__(self, texts: Sequence[str]) -> Int[np.ndarray, "B L"]:
        """The ids alone."""
        return self.tokenize(texts)[0]

    @functools.cached_property
    def _encoder(self) -> Any:
        encoder = self.rules()
        special = encoder.num_special_tokens_to_add(False)
        faults = []
        if special > self.context_length:
            faults.append(
                f"context_length {self.context_length}: {special} tokens stand around each text"
            )
        for name, token in (("pad_id", self.pad_id), ("blank_id", self.blank_id)):
            if token is not None and encoder.id_to_token(token) is None:
                faults.append(f"{name} {token}: there are {encoder.get_vocab_size()} tokens")
        if faults:
            raise ValueError(f"HubTokenizer on {self.file}: {'; '.join(faults)}")
        encoder.enable_truncation(self.context_length)
        encoder.enable_padding(length=self.context_length, pad_id=self.pad_id)
        return encoder

    def rules(self) -> Any:
        """The library's own tokenizer, as the fields say, but with no fixed length.

        Raises:
          FileNotFoundError, ValueError: the file is missing, or no usable tokenizer.
        """
        packed = storage.read(self.file, "tokenizer file", (".json", ".txt"))
        parse = _word_piece if epath.Path(self.file).suffix == ".txt" else _tokenizer_json
        try:
            encoder = parse(packed, self.lower)
        except Exception as error:  # The library raises this very class.
            raise ValueError(f"{self.file} is no tokenizer file, or is damaged: {error}") from error
        encoder.encode_special_tokens = not self.names
        if self.around is not None:
            encoder.post_processor = self._template(encoder)
        return encoder

    def _template(self, encoder: Any) -> Any:
        tokens = [token for token in self.around or () if token]
        missing = [token for token in tokens if encoder.token_to_id(token) is None]
        if missing:
            raise ValueError(f"HubTokenizer.around: {self.file} has no token {', '.join(missing)}")
        start, end = self.around or ("", "")
        return rust().processors.TemplateProcessing(
            single=[part for part in (start, "$A", end) if part],
            special_tokens=[(token, encoder.token_to_id(token)) for token in tokens],
        )


def _tokenizer_json(packed: bytes, lower: bool) -> Any:
    library = rust()
    encoder = library.Tokenizer.from_buffer(packed)
    encoder.no_truncation()
    encoder.no_padding()
    if lower:
        first = library.normalizers.Lowercase()
        own = [encoder.normalizer] if encoder.normalizer else []
        encoder.normalizer = library.normalizers.Sequence([first, *own])
    return encoder


def _word_piece(packed: bytes, uncased: bool) -> Any:
    """BERT's tokenizer over a vocabulary of a token a line: [CLS], the text, [SEP]."""
    library = rust()
    tokens = packed.decode("utf-8").replace("\r\n", "\n").removesuffix("\n").split("\n")
    ids = {token: i for i, token in enumerate(tokens)}
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    if missing := [token for token in special[:4] if token not in ids]:
        raise ValueError(f"BERT's vocabulary needs {', '.join(missing)}")
    encoder = library.Tokenizer(library.models.WordPiece(ids, unk_token="[UNK]"))
    encoder.add_special_tokens([token for token in special if token in ids])
    encoder.normalizer = library.normalizers.BertNormalizer(lowercase=uncased)
    encoder.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
    encoder.post_processor = library.processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[(token, ids[token]) for token in ("[CLS]", "[SEP]")],
    )
    return encoder
