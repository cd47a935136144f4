"""What all tokenizers share: the check of their input, and rows of ids made into one array."""

import itertools
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int


def check_texts(texts: Iterable[object]) -> list[str]:
    """The texts as a list.

    Raises:
      TypeError: a bare string in place of a list of them, or entries that are no strings (all of
        them are listed, by position).
    """
    if isinstance(texts, (str, bytes)):
        raise TypeError(f"texts must be a list of strings, got one string: write [{texts!r}]")
    texts = list(texts)
    wrong = [f"{i}: {type(t).__name__}" for i, t in enumerate(texts) if not isinstance(t, str)]
    if wrong:
        raise TypeError(f"{len(wrong)} of {len(texts)} texts are no strings: {', '.join(wrong)}")
    return [str(text) for text in texts]


def pad_or_cut(
    rows: Sequence[Sequence[int]], length: int, *, pad_id: int
) -> tuple[Int[np.ndarray, "B L"], Bool[np.ndarray, "B"]]:
    """Rows of ids of any lengths as one int32 array of `length` columns.

    Short rows are filled up with `pad_id` on the right. Long rows are cut, but keep their last id
    (the end token) in the last column.

    Returns:
      The ids, and True for each row that was cut.
    """
    given = np.array([len(row) for row in rows], int)
    kept = itertools.chain.from_iterable(
        row if len(row) <= length else [*row[: length - 1], row[-1]] for row in rows
    )
    ids = np.full((len(rows), length), pad_id, np.int32)
    # One assignment for all rows: a row at a time costs more than finding the ids.
    ids[np.arange(length) < given[:, None]] = np.fromiter(kept, np.int32)
    return ids, given > length


def rust() -> Any:
    """The `tokenizers` library, told to start no threads unless the user's environment says so.

    Its threads do not survive a fork (some versions print a warning then). One thread encodes a
    batch in milliseconds, and data workers are parallel already.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import tokenizers

    return tokenizers
