"""Texts to token ids: one protocol. The configs are the tokenizers; tables are loaded on use."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int

from clip_jax.tokenizers.clip_bpe import ClipBpe
from clip_jax.tokenizers.hub import HubTokenizer
from clip_jax.tokenizers.sentencepiece import SentencePiece

__all__ = ["ClipBpe", "HubTokenizer", "SentencePiece", "Tokenizer", "TokenizerConfig"]


@runtime_checkable
class Tokenizer(Protocol):
    """Anything that turns texts into ids; safe to call from several threads, and to pickle.

    On Python 3.11 `isinstance` reads `vocab_size`, which may load a file.
    """

    @property
    def context_length(self) -> int:
        """Tokens a text, special ones and padding included: L."""
        ...

    @property
    def vocab_size(self) -> int:
        """Ids are below this: the rows that an embedding table needs."""
        ...

    def tokenize(
        self, texts: Sequence[str]
    ) -> tuple[Int[np.ndarray, "B L"], Bool[np.ndarray, "B"]]:
        """Ids (int32, padded to `context_length`), and True where a text was cut to fit.

        A text that is cut keeps its end token, in the last place. An empty text has special
        tokens only.

        Raises:
          TypeError: one bare string instead of a list, or an entry that is no string.
        """
        ...

    def __call__(self, texts: Sequence[str]) -> Int[np.ndarray, "B L"]:
        """The ids alone."""
        ...


TokenizerConfig = ClipBpe | SentencePiece | HubTokenizer
