import numpy as np
import pytest

from clip_jax.eval import checks


def test_good_input_passes():
    rows = np.zeros((3, 2, 2))
    checks.require_lengths(rows=rows, labels=[1, 2, 3])
    checks.require_finite("rows", rows)
    checks.require_indices("labels", np.array([0, 2]), 3)


def test_lengths_that_differ_are_named():
    message = r"^as many rows are needed in each, but a has 3, b has 3, c has 2$"
    with pytest.raises(ValueError, match=message):
        checks.require_lengths(a=np.ones(3), b=np.ones((3, 1)), c=[1, 2])
    with pytest.raises(ValueError, match=r"^a and b: no sample, so no figure is defined$"):
        checks.require_lengths(a=[], b=np.ones((0, 4)))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_first_row_that_is_not_finite_is_named(value):
    rows = np.zeros((4, 2, 2))
    rows[2:, 1, 0] = value
    message = r"^2 of 4 rows of embeddings are not finite; the first is row 2$"
    with pytest.raises(ValueError, match=message):
        checks.require_finite("embeddings", rows)


def test_the_first_number_out_of_range_is_named():
    message = r"^2 of 4 labels are not in 0 to 2; the first is 3 of row 1$"
    with pytest.raises(ValueError, match=message):
        checks.require_indices("labels", np.array([0, 3, 2, -1]), 3)
