"""Softmax and sigmoid losses in memory that grows with the batch, not with its square.

Both equal the obvious losses up to rounding, on any mesh; see `ring.walk` for how. With them
comes `softmax.batch_accuracy`, which needs the same logits and has no gradient.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from clip_jax.losses.ring import Sums, Tile, Tiling, walk

Scalar = Float[Array, ""]
LOWEST = float(jnp.finfo(jnp.float32).min)
"""A maximum of nothing. Unlike -inf it can be subtracted from itself."""


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def tiled_softmax(
    tiling: Tiling, image: Float[Array, "B D"], text: Float[Array, "B D"], scale: Scalar
) -> tuple[Scalar, Scalar]:
    """`softmax_loss` and `batch_accuracy`.

    Forward, each logit is computed once, for the running maxima and sums of its row and its
    column; backward, once more. Four products of B x B x D against three of the obvious form,
    and four with its accuracy.

    Args:
      tiling: how the batch lies on the mesh.
      image, text: unit-norm embeddings, row i of one describing row i of the other.
      scale: one over the temperature.

    Returns:
      Mean loss per pair in nats, and the share of images nearest to their own text.
    """
    return _softmax_forward(tiling, image, text, scale)[0]


def _softmax_forward(
    tiling: Tiling, image: Float[Array, "B D"], text: Float[Array, "B D"], scale: Scalar
) -> tuple[tuple[Scalar, Scalar], tuple[Array, ...]]:
    lowest, none = jnp.full(len(image), LOWEST), jnp.zeros(len(image))
    rows, columns = (lowest, lowest, none), (jnp.stack([lowest, none]),)
    rows, columns = walk(_normalise, scale, (image,), (text,), rows, columns, tiling)
    others, highest, total = rows
    of_row = highest + jnp.log(total)
    of_column = columns[0][0] + jnp.log(columns[0][1])
    matched = scale * jnp.sum(image * text, axis=1)
    loss = jnp.mean((of_row + of_column) / 2 - matched)
    # The highest of all is above the highest of the others only if it is the own.
    accuracy = jnp.mean((highest > others).astype(jnp.float32))
    return (loss, accuracy), (image, text, scale, of_row, of_column)


def _normalise(tile: Tile, rows: Sums, columns: Sums) -> tuple[Sums, Sums]:
    """Highest logit and sum of exponentials below it; for rows, the highest of others, too."""
    logits = tile.logits
    others, row_highest, row_total = rows
    column_highest, column_total = columns[0]
    others = jnp.maximum(others, jnp.max(jnp.where(tile.own, -jnp.inf, logits), axis=1))
    highest = jnp.maximum(row_highest, jnp.max(logits, axis=1))
    row_total = row_total * jnp.exp(row_highest - highest)
    row_total += jnp.sum(jnp.exp(logits - highest[:, None]), axis=1)
    tallest = jnp.maximum(column_highest, jnp.max(logits, axis=0))
    column_total = column_total * jnp.exp(column_highest - tallest)
    column_total += jnp.sum(jnp.exp(logits - tallest[None]), axis=0)
    return (others, highest, row_total), (jnp.stack([tallest, column_total]),)


def _softmax_backward(
    tiling: Tiling, kept: tuple[Array, ...], cotangents: tuple[Scalar, Scalar]
) -> tuple[Array, Array, Scalar]:
    image, text, scale, of_row, of_column = kept
    rows, columns = (jnp.zeros_like(image),), (jnp.zeros_like(text.T),)
    images, texts = (image, of_row), (text, of_column)
    (for_image,), (for_text,) = walk(_softmax_slopes, scale, images, texts, rows, columns, tiling)
    each = cotangents[0] / len(image)
    for_image = for_image / 2 - text
    for_text = for_text.T / 2 - scale * image
    return each * scale * for_image, each * for_text, each * jnp.sum(image * for_image)


def _softmax_slopes(tile: Tile, rows: Sums, columns: Sums) -> tuple[Sums, Sums]:
    """Twice the loss's slope in each logit, but for the matched term, times the embeddings."""
    (image, of_row), (text, of_column) = tile.images, tile.texts
    slopes = jnp.exp(tile.logits - of_row[:, None]) + jnp.exp(tile.logits - of_column[None])
    return _products(slopes, image, text, rows[0], columns[0])


tiled_softmax.defvjp(_softmax_forward, _softmax_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def tiled_sigmoid(
    tiling: Tiling,
    image: Float[Array, "B D"],
    text: Float[Array, "B D"],
    scale: Scalar,
    bias: Scalar,
) -> tuple[Scalar, Scalar]:
    """`sigmoid_loss` and `batch_accuracy`.

    A pair's slope needs no other pair, so that the gradient is made on the same walk as the
    value: three products of B x B x D, each logit computed once in all; without a gradient, one.

    Args and returns: as `tiled_softmax`; `bias` is added to every logit.
    """
    return _sigmoid_forward(tiling, image, text, scale, bias)[0]


def _sigmoid_forward(
    tiling: Tiling,
    image: Float[Array, "B D"],
    text: Float[Array, "B D"],
    scale: Scalar,
    bias: Scalar,
) -> tuple[tuple[Scalar, Scalar], tuple[Array, ...]]:
    def ask(tile: Tile, rows: Sums, columns: Sums) -> tuple[Sums, Sums]:
        others, highest, total, slope, for_image = rows
        others = jnp.maximum(others, jnp.max(jnp.where(tile.own, -jnp.inf, tile.logits), axis=1))
        highest = jnp.maximum(highest, jnp.max(tile.logits, axis=1))
        biased = tile.logits + bias
        wrong = jnp.where(tile.own, -biased, biased)  # Log-odds that the answer is wrong.
        total = total + jnp.sum(jax.nn.softplus(wrong), axis=1)
        slopes = jax.nn.sigmoid(wrong)
        slopes = jnp.where(tile.own, -slopes, slopes)
        slope = slope + jnp.sum(slopes, axis=1)
        products = _products(slopes, tile.images[0], tile.texts[0], for_image, columns[0])
        return (others, highest, total, slope, *products[0]), products[1]

    lowest, none = jnp.full(len(image), LOWEST), jnp.zeros(len(image))
    rows = (lowest, lowest, none, none, jnp.zeros_like(image))
    rows, columns = walk(ask, scale, (image,), (text,), rows, (jnp.zeros_like(text.T),), tiling)
    others, highest, total, slope, for_image = rows
    accuracy = jnp.mean((highest > others).astype(jnp.float32))
    gradients = (scale * for_image, columns[0].T, jnp.sum(image * for_image), jnp.sum(slope))
    kept = jax.tree.map(lambda g: g / len(image), gradients)
    return (jnp.sum(total) / len(image), accuracy), kept


def _sigmoid_backward(
    tiling: Tiling, kept: tuple[Array, ...], cotangents: tuple[Scalar, Scalar]
) -> tuple[Array, ...]:
    return jax.tree.map(lambda g: cotangents[0] * g, kept)


tiled_sigmoid.defvjp(_sigmoid_forward, _sigmoid_backward)


def _products(
    slopes: Float[Array, "R C"],
    image: Float[Array, "D R"],
    text: Float[Array, "C D"],
    for_image: Float[Array, "R D"],
    for_text: Float[Array, "D C"],
) -> tuple[Sums, Sums]:
    """Both sums with this tile's share added."""
    for_image = for_image + jnp.matmul(slopes, text, precision="highest")
    return (for_image,), (for_text + jnp.matmul(image, slopes, precision="highest"),)
