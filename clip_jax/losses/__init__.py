"""Contrastive losses, each a frozen config that can be called on a batch of embeddings."""

import dataclasses

from jaxtyping import Array, Float

from clip_jax.losses.sigmoid import sigmoid_loss
from clip_jax.losses.softmax import softmax_loss


@dataclasses.dataclass(frozen=True)
class Softmax:
    """CLIP's loss: which text of the batch belongs to this image, and the reverse."""

    def __call__(
        self,
        image: Float[Array, "B D"],
        text: Float[Array, "B D"],
        scale: Float[Array, ""],
        bias: Float[Array, ""] | None,
    ) -> Float[Array, ""]:
        """See `softmax_loss`; a bias would cancel in the softmax and is not used."""
        return softmax_loss(image, text, scale)


@dataclasses.dataclass(frozen=True)
class Sigmoid:
    """SigLIP's loss: does this text belong to this image, asked of every pair."""

    def __call__(
        self,
        image: Float[Array, "B D"],
        text: Float[Array, "B D"],
        scale: Float[Array, ""],
        bias: Float[Array, ""] | None,
    ) -> Float[Array, ""]:
        """See `sigmoid_loss`.

        Raises:
          ValueError: the model has no bias.
        """
        if bias is None:
            raise ValueError("the sigmoid loss needs a learned bias: set model.bias, e.g. -10")
        return sigmoid_loss(image, text, scale, bias)


LossConfig = Softmax | Sigmoid
