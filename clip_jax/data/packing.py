"""Captions packed end to end on the host, so that the text tower computes hardly any padding."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Int

from clip_jax.models.text import PackedTokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class Packing:
    """Room for captions; exact, and a batch that needs more room gets it.

    Shapes must be few, as each is compiled once, in memory that grows with it: a batch takes the
    first that holds it of the room below, that and a quarter, and so on; a row per caption always
    does. Processes that train together take the largest room that one of them needs.
    """

    row: int = 64
    """Tokens a row (S); at least the context length."""
    tokens_per_caption: float = 16.0
    """Room per caption, on average over a batch; a little above what is needed."""

    def __post_init__(self) -> None:
        if self.row < 1 or self.tokens_per_caption <= 0:
            raise ValueError(f"packing needs room: row {self.row}, {self.tokens_per_caption}")

    def rows(self, captions: int, needed: int = 1) -> int:
        """Rows for so many captions, the first room of `needed` or more (at most one each)."""
        rows = math.ceil(captions * self.tokens_per_caption / self.row)
        while rows < min(needed, captions):
            rows = min(captions, math.ceil(rows * 1.25))
        return rows

    def __call__(
        self, batch: dict[str, Any], groups: int, agree: Callable[[int], int] = int
    ) -> dict[str, Any]:
        """The batch with its `tokens` packed; see `pack`."""
        return {**batch, "tokens": pack(batch["tokens"], groups, self, agree)}


def pack(
    tokens: Int[np.ndarray, "B L"],
    groups: int,
    packing: Packing,
    agree: Callable[[int], int] = int,
) -> PackedTokens:
    """Captions in rows, first fit by falling length, each of `groups` equal parts by itself.

    A caption ends with its highest id, which is CLIP's end of text; what follows is dropped.

    Args:
      agree: the rows a group that are taken, given those that these captions take: no fewer.

    Raises:
      ValueError: `groups` does not divide B, or a caption is longer than a row.
    """
    batch = len(tokens)
    if batch % groups:
        raise ValueError(f"{batch} captions do not split into {groups} groups")
    lengths = tokens.argmax(axis=1) + 1
    if lengths.max() > packing.row:
        raise ValueError(f"a caption of {lengths.max()} tokens does not fit rows of {packing.row}")
    each = batch // groups
    parts = [slice(g * each, (g + 1) * each) for g in range(groups)]
    plans = [_first_fit(lengths[part], packing.row) for part in parts]
    rows = agree(packing.rows(each, max(int(row.max()) + 1 for row, _ in plans)))
    laid = [
        _lay(tokens[part], lengths[part], *plan, (rows, packing.row))
        for part, plan in zip(parts, plans, strict=True)
    ]
    return PackedTokens(*map(np.stack, zip(*laid, strict=True)))


def _first_fit(lengths: Int[np.ndarray, "b"], size: int):
    """Row of each caption, and its offset there; the longest are laid first."""
    free = np.full(len(lengths), size)
    row, offset = np.zeros_like(lengths), np.zeros_like(lengths)
    for caption in np.argsort(-lengths, kind="stable"):
        row[caption] = np.argmax(free >= lengths[caption])
        offset[caption] = size - free[row[caption]]
        free[row[caption]] -= lengths[caption]
    return row, offset


def _lay(
    tokens: Int[np.ndarray, "b L"],
    lengths: Int[np.ndarray, "b"],
    row: Int[np.ndarray, "b"],
    offset: Int[np.ndarray, "b"],
    shape: tuple[int, int],
) -> tuple[np.ndarray, ...]:
    """The four arrays of `PackedTokens` for one group."""
    start = row * shape[1] + offset
    inside = np.arange(tokens.shape[1]) < lengths[:, None]
    where = (start[:, None] + np.arange(tokens.shape[1]))[inside]
    flat = np.zeros((3, shape[0] * shape[1]), np.int32)
    flat[0, where] = tokens[inside]
    flat[1, where] = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)[inside]
    flat[2, where] = np.repeat(np.arange(1, len(tokens) + 1), lengths)  # 0 is padding
    return (*flat.reshape(3, *shape), (start + lengths - 1).astype(np.int32))
