"""What a training step computes, counted from the config alone."""

import dataclasses

import jax

from clip_jax.models.clip import param_shapes
from clip_jax.models.flops import flops
from clip_jax.optim import masks
from clip_jax.train.config import TrainConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepCost:
    """Floating-point operations of one step on all devices, by `models.flops`."""

    image: float
    """Of the image tower's forward pass."""
    text: float
    logits: float
    """Of the products of all images with all texts."""
    trained: tuple[str, ...]
    """Towers that have a backward pass: of `image` and `text`, those not frozen as a whole."""

    @property
    def total(self) -> float:
        """Forward and backward once, without what `remat` and `accumulate` compute again.

        The backward pass of a tower is twice its forward pass, also where a part of the tower is
        frozen; the logits have one more product for each tower that it goes on to.
        """
        backward = sum(2 * getattr(self, tower) + self.logits for tower in self.trained)
        return self.image + self.text + self.logits + backward


def step_cost(config: TrainConfig) -> StepCost:
    """Of what training computes: padding of packed captions, what is dropped or cut, and what
    last blocks leave out do not count. Captions that need more room than `packing` has cost more.

    Raises:
      ValueError: a pattern in `optim.rates` matches no parameter.
    """
    model, batch, packed = config.model, config.batch, 1.0
    if config.packing is not None:
        row = config.packing.row
        text = dataclasses.replace(model.text, context_length=row, train_length=None)
        model = dataclasses.replace(model, text=text)
        packed = row / config.packing.tokens_per_caption
    towers = flops(model, train=True, packed=packed)
    shapes = param_shapes(config.model)
    frozen = masks.frozen(shapes, config.optim.rates)
    return StepCost(
        image=batch * towers.image if config.embeddings is None else 0.0,
        text=batch / packed * towers.text,
        logits=2.0 * batch**2 * model.embed_dim,
        trained=tuple(t for t in ("image", "text") if not all(jax.tree.leaves(frozen[t]))),
    )
