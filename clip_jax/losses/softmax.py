"""The softmax contrastive loss of CLIP, in its obvious form."""

import jax.numpy as jnp
from jax.nn import logsumexp
from jaxtyping import Array, Float


def softmax_loss(
    image: Float[Array, "B D"], text: Float[Array, "B D"], scale: Float[Array, ""]
) -> Float[Array, ""]:
    """Symmetric cross-entropy over all B^2 pairs; row i's match is column i.

    Under `jax.jit` with batches sharded over a mesh, B is the global batch.

    Args:
      image, text: unit-norm embeddings, row i of one describing row i of the other.
      scale: one over the temperature.

    Returns:
      Mean loss per pair in nats; ln(B) when the embeddings carry no information.

    Source: Radford et al. 2021, arXiv:2103.00020, Figure 3.
    """
    # "highest": a float32 product is otherwise rounded to fewer bits on TPU and GPU.
    logits = jnp.matmul(scale * image, text.T, precision="highest")
    rows, columns = logsumexp(logits, axis=1), logsumexp(logits, axis=0)
    # Not the diagonal of `logits`: over a mesh that is a gather, with collectives of its own.
    matched = scale * jnp.sum(image * text, axis=1)
    return jnp.mean((rows + columns) / 2 - matched)


def batch_accuracy(image: Float[Array, "B D"], text: Float[Array, "B D"]) -> Float[Array, ""]:
    """Share of images whose own text is the nearest of the batch, strictly: a tie is a miss."""
    logits = image @ text.T
    own = jnp.eye(len(logits), dtype=bool)
    matched = jnp.where(own, logits, -jnp.inf).max(axis=1)
    others = jnp.where(own, -jnp.inf, logits).max(axis=1)
    return jnp.mean((matched > others).astype(jnp.float32))
