"""The sigmoid contrastive loss of SigLIP, in its obvious form."""

import jax.numpy as jnp
from jax.nn import log_sigmoid
from jaxtyping import Array, Float


def sigmoid_loss(
    image: Float[Array, "B D"],
    text: Float[Array, "B D"],
    scale: Float[Array, ""],
    bias: Float[Array, ""],
) -> Float[Array, ""]:
    """Every one of the B^2 pairs is its own yes-or-no question; only the diagonal is yes.

    Under `jax.jit` with batches sharded over a mesh, B is the global batch.

    Args:
      image, text: unit-norm embeddings, row i of one describing row i of the other.
      scale: one over the temperature.
      bias: added to every logit.

    Returns:
      Sum over pairs divided by B, in nats.

    Source: Zhai et al. 2023, arXiv:2303.15343, Algorithm 1.
    """
    # "highest": a float32 product is otherwise rounded to fewer bits on TPU and GPU.
    logits = jnp.matmul(scale * image, text.T, precision="highest") + bias
    labels = 2 * jnp.eye(len(logits), dtype=logits.dtype) - 1
    return -jnp.sum(log_sigmoid(labels * logits)) / len(logits)
