"""Contrastive losses, each a frozen config that can be called on a batch of embeddings."""

import dataclasses
from collections.abc import Callable

from jax.sharding import Mesh
from jaxtyping import Array, Float

from clip_jax.losses.ring import Tiling
from clip_jax.losses.sigmoid import sigmoid_loss
from clip_jax.losses.softmax import batch_accuracy, softmax_loss
from clip_jax.losses.tiled import tiled_sigmoid, tiled_softmax

Embeddings = Float[Array, "B D"]
Scalar = Float[Array, ""]
Objective = Callable[[Embeddings, Embeddings, Scalar, Scalar | None], tuple[Scalar, Scalar]]
"""`(image, text, scale, bias) -> (loss, accuracy)`; only the loss has a gradient."""


@dataclasses.dataclass(frozen=True)
class Softmax:
    """CLIP's loss: which text of the batch belongs to this image, and the reverse."""

    tile: int | None = None
    """Logits in training are made this many rows and columns at a time, in memory that grows
    with the batch and not with its square (1024 suits all devices); None: all at once."""

    def __post_init__(self) -> None:
        _check_tile(self.tile)

    def __call__(
        self, image: Embeddings, text: Embeddings, scale: Scalar, bias: Scalar | None
    ) -> Scalar:
        """See `softmax_loss`; a bias would cancel in the softmax and is not used."""
        return softmax_loss(image, text, scale)

    def on(self, mesh: Mesh, axes: tuple[str, ...]) -> Objective:
        """The loss as training computes it, for batches split over these axes of a mesh."""
        if self.tile is None:
            return lambda image, text, scale, bias: (
                self(image, text, scale, bias),
                batch_accuracy(image, text),
            )
        tiling = Tiling(mesh=mesh, axes=axes, tile=self.tile)
        return lambda image, text, scale, bias: tiled_softmax(tiling, image, text, scale)


@dataclasses.dataclass(frozen=True)
class Sigmoid:
    """SigLIP's loss: does this text belong to this image, asked of every pair."""

    tile: int | None = None
    """As in `Softmax`."""

    def __post_init__(self) -> None:
        _check_tile(self.tile)

    def __call__(
        self, image: Embeddings, text: Embeddings, scale: Scalar, bias: Scalar | None
    ) -> Scalar:
        """See `sigmoid_loss`.

        Raises:
          ValueError: the model has no bias.
        """
        return sigmoid_loss(image, text, scale, _needed(bias))

    def on(self, mesh: Mesh, axes: tuple[str, ...]) -> Objective:
        """The loss as training computes it, for batches split over these axes of a mesh.

        Raises, when it is called:
          ValueError: the model has no bias.
        """
        if self.tile is None:
            return lambda image, text, scale, bias: (
                self(image, text, scale, bias),
                batch_accuracy(image, text),
            )
        tiling = Tiling(mesh=mesh, axes=axes, tile=self.tile)
        return lambda image, text, scale, bias: tiled_sigmoid(
            tiling, image, text, scale, _needed(bias)
        )


LossConfig = Softmax | Sigmoid


def _check_tile(tile: int | None) -> None:
    if tile is not None and tile < 1:
        raise ValueError(f"loss.tile must be at least 1, or None for all logits at once: {tile}")


def _needed(bias: Scalar | None) -> Scalar:
    if bias is None:
        raise ValueError("the sigmoid loss needs a learned bias: set model.bias, e.g. -10")
    return bias
