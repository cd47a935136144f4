"""A short last stage of a run under other settings, such as whole images after small ones."""

import dataclasses

from clip_jax.config import require
from clip_jax.data.packing import Packing
from clip_jax.models.clip import ClipConfig
from clip_jax.models.resnet import ResNetConfig
from clip_jax.optim.build import OptimConfig
from clip_jax.pretrained.resize import resized


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """What is other in the last updates of a run; all else stays.

    The parameters, and their average where there is one, go on, position tables resampled for the
    new sizes. The optimizer begins anew, as a run does that starts from another's parameters: its
    moments at zero, its schedule at the first of these updates. Random numbers and the data's
    order go on as if nothing had changed.

    Source: Li et al. 2023, arXiv:2305.07017, section 4; Li et al. 2022, arXiv:2212.00794 (FLIP),
    section 3, unmasked tuning.
    """

    steps: int
    """So many updates at the end of the run."""
    optim: OptimConfig
    """The rate and its schedule are those of these updates alone."""
    image_size: int | None = None
    """Height and width of images, in pixels; None: as before."""
    context_length: int | None = None
    """Tokens per caption, of tokenizer and text tower; None: as before."""
    train_length: int | None = None
    """As `TextConfig.train_length`; None: all tokens."""
    patch_dropout: float = 0.0
    """As `ViTConfig.patch_dropout`."""
    batch: int | None = None
    """Pairs per update; None: as before."""
    accumulate: int | None = None
    """Parts of each device's share of a batch; None: as before."""
    packing: Packing | None = None
    """As `TrainConfig.packing`; None: each caption in a row of its own."""

    def __post_init__(self) -> None:
        counts = ("batch", "accumulate", "image_size", "context_length")
        require(
            self,
            ("steps", self.steps >= 1, "at least 1"),
            *(
                (name, (n := getattr(self, name)) is None or n >= 1, "at least 1")
                for name in counts
            ),
        )

    def model(self, before: ClipConfig) -> ClipConfig:
        """The model of this stage, given that of the run so far.

        Raises:
          ValueError: it cannot have these sizes.
        """
        model = resized(before, image_size=self.image_size, context_length=self.context_length)
        image, text = model.image, model.text
        if not isinstance(image, ResNetConfig):
            image = dataclasses.replace(image, patch_dropout=self.patch_dropout)
        elif self.patch_dropout:
            raise ValueError("patch_dropout is not for a ResNet")
        text = dataclasses.replace(text, train_length=self.train_length)
        return dataclasses.replace(model, image=image, text=text)
