"""What every measure asks of its input; each fault is named by its first row and its count."""

from typing import Any

import numpy as np
from jaxtyping import Int

from clip_jax.data.sample import Sample


def require_lengths(**arrays: Any) -> None:
    """Check that arrays have a row for each sample, and that there is a sample.

    Raises:
      ValueError: lengths that differ, each with its name; or no row at all.
    """
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name} has {count}" for name, count in lengths.items())
        raise ValueError(f"as many rows are needed in each, but {listed}")
    if not next(iter(lengths.values())):
        raise ValueError(f"{' and '.join(lengths)}: no sample, so no figure is defined")


def require_finite(what: str, rows: np.ndarray) -> None:
    """Check that no row holds NaN or infinity.

    Raises:
      ValueError: how many rows do, and the first.
    """
    bad = np.flatnonzero(~np.isfinite(rows.reshape(len(rows), -1)).all(axis=1))
    if bad.size:
        raise ValueError(
            f"{bad.size} of {len(rows)} rows of {what} are not finite; the first is row {bad[0]}"
        )


def require_indices(what: str, indices: Int[np.ndarray, " n"], count: int) -> None:
    """Check that all numbers are in 0 to count - 1; `what` says what they number.

    Raises:
      ValueError: how many are not, and the first with its row.
    """
    bad = np.flatnonzero((indices < 0) | (indices >= count))
    if bad.size:
        raise ValueError(
            f"{bad.size} of {len(indices)} {what} are not in 0 to {count - 1}; "
            f"the first is {indices[bad[0]]} of row {bad[0]}"
        )


def require_every(steps: int | None) -> None:
    """Check the interval of an evaluation during training.

    Raises:
      ValueError: it is below 1.
    """
    if steps is not None and steps < 1:
        raise ValueError(f"every_steps must be at least 1, got {steps}")


def without_label(sample: Sample) -> str | None:
    """Why a sample cannot be classified, or None."""
    return "it has no label" if sample.label is None else None


def without_caption(sample: Sample) -> str | None:
    """Why a sample cannot be searched for, or None."""
    return None if any(text.strip() for text in sample.texts) else "it has no caption"
