"""What all tokenizers share: the check of their input, and rows of ids made into one array."""

from collections.abc import Iterable, Sequence

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
    ids = np.full((len(rows), length), pad_id, np.int32)
    cut = np.array([len(row) > length for row in rows], bool)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row[:length]
        if cut[i]:
            ids[i, -1] = row[-1]
    return ids, cut
