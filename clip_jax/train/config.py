"""What a training run is made of, completely: the config of an experiment."""

import dataclasses
from collections.abc import Iterator

from clip_jax.checkpoint.store import CheckpointConfig
from clip_jax.data import DatasetConfig
from clip_jax.data.packing import Packing
from clip_jax.data.pipeline import Pipeline
from clip_jax.eval.suite import EvalConfig
from clip_jax.losses import LossConfig, Softmax
from clip_jax.models.clip import ClipConfig
from clip_jax.models.resnet import ResNetConfig
from clip_jax.optim.build import DType, OptimConfig
from clip_jax.preprocess.augment import Augment
from clip_jax.preprocess.recipe import Recipe
from clip_jax.sharding.mesh import MeshConfig
from clip_jax.sharding.rules import AxisRules
from clip_jax.tokenizers import ClipBpe, TokenizerConfig
from clip_jax.train.stage import Stage

MAY_DIFFER = (
    "run",
    "steps",
    "log_every",
    "checkpoint.*",
    "pipeline.*",
    "mesh.*",
    "rules.*",
    "loss.tile",
    "model.*.stack.remat",
    "model.*.stack.offload",
    "accumulate",
    "last.accumulate",
    "packing*",
    "last.packing*",
    "data.root",
    "data.path",
    "embeddings",
    "data.sources.*.0.root",
    "data.sources.*.0.path",
    "*.window.cache",
    "*.window.fetches",
    "evals*",
    "eval_batch",
)
"""Fields that only say how long, how often or where: a run may go on under other values."""

LOCAL = ("run", "embeddings", "pipeline.*", "*.root", "*.path", "*.window.cache")
"""Fields that may differ between the processes of one run: where a machine has its files."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One experiment, completely."""

    run: str
    """Run folder: everything that is written goes there."""
    start_from: str | None = None
    """What a fresh run's parameters begin as: a run or checkpoint, or published weights as
    `clip_jax.load` takes them (`hf-hub:org/name`, `ViT-B-32/openai`); None: random ones."""
    seed: int = 0
    """All random numbers follow from it."""
    steps: int
    """Updates in all."""
    batch: int
    """Pairs per update, over all devices (B)."""
    accumulate: int = 1
    """Parts into which each device divides its share of a batch for the towers, one after the
    other, in the memory of one; the loss is that of all pairs. The result is the same but for
    rounding, at the cost of one more forward pass.

    Source: Gao et al. 2021, arXiv:2101.06983, section 3.2; Pham et al. 2021, arXiv:2111.10050,
    section 4."""
    ema: float | None = None
    """Decay of a moving average of the parameters, in (0, 1), e.g. 0.9999; early on the smaller
    (1 + step) / (10 + step). The average is what is evaluated, and what others load. None: no
    average."""
    param_dtype: DType = "float32"
    """Type of the matrices that the model computes with. The parameters themselves, their
    gradients once summed, and all of the optimizer's arithmetic are float32.

    Source: Micikevicius et al. 2018, arXiv:1710.03740, section 3.1."""
    data: DatasetConfig
    """Where the pairs are; its split 'train' is trained on."""
    recipe: Recipe
    """Image size, resize mode and normalisation, in training and in use."""
    augment: Augment = Augment()
    """Random changes of training images."""
    embeddings: str | None = None
    """Table of embeddings of the training images, as `clip-jax embed` writes it with the model
    that `start_from` names. The image tower, which must be locked (`rates={"image/*": 0}`), then
    runs in evaluations alone, and `augment` has no use. Captions come from `data` as ever.

    Source: Zhai et al. 2022, arXiv:2111.07991 (LiT), section 3 and appendix."""
    tokenizer: TokenizerConfig
    model: ClipConfig
    loss: LossConfig = Softmax()
    optim: OptimConfig
    last: Stage | None = None
    """Other settings for the last updates; all fields here then are those of the updates before
    them, but for `steps`. The checkpoint at the border holds the end of the first stage."""
    mesh: MeshConfig = MeshConfig()
    """Devices along each mesh axis."""
    rules: AxisRules = AxisRules()
    """Mesh axes of each logical axis: data-parallel, or sharding.rules.FSDP."""
    pipeline: Pipeline = Pipeline()
    """How samples are read and prepared on the host."""
    streams: int = 1
    """Equal groups of rows of each batch, with a part of each epoch for each, so that a process
    reads only its own part: 1, or a multiple of the processes. It changes the order."""
    packing: Packing | None = None
    """Captions end to end, so that padding costs nothing; for causal text towers."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    evals: dict[str, EvalConfig] = dataclasses.field(default_factory=dict)
    """Evaluations by name; all run at the end (of each stage), some every so many steps."""
    eval_batch: int = 64
    """Images, or texts, per call while evaluating."""
    log_every: int = 10
    """Steps between two lines of metrics."""

    def __post_init__(self) -> None:
        faults = [
            f"{name} must be at least 1, got {value}"
            for name in ("steps", "batch", "accumulate", "eval_batch", "log_every")
            if (value := getattr(self, name)) < 1
        ]
        if self.ema is not None and not 0 < self.ema < 1:
            faults.append(f"ema must be above 0 and below 1, or None, got {self.ema}")
        for name, ours, theirs in (
            ("image size", self.recipe.size, self.model.image.image_size),
            ("context length", self.tokenizer.context_length, self.model.text.context_length),
        ):
            if ours != theirs:
                faults.append(f"{name}: {ours} in the data, {theirs} in the model")
        if self.accumulate > 1 and getattr(self.model.image, "batch_statistics", False):
            faults.append(
                "accumulate needs batch norms that do not look at the batch: "
                "image.batch_statistics is of a whole one"
            )
        faults += [*self._text_faults(), *self._best_faults(), *self._embedding_faults()]
        if "://" in self.run:
            faults.append(f"run {self.run!r}: a run folder lies on a local (or mounted) disk")
        faults = faults or list(self._last_faults())
        if faults:
            raise ValueError("; ".join(faults))

    def stages(self) -> tuple["TrainConfig", ...]:
        """Runs that make up this one, each without a `last` and with `steps` of its own."""
        last = self.last
        if last is None:
            return (self,)
        first = dataclasses.replace(self, last=None, steps=self.steps - last.steps)
        length = last.context_length or self.tokenizer.context_length
        return first, dataclasses.replace(
            first,
            steps=last.steps,
            optim=last.optim,
            batch=last.batch or self.batch,
            accumulate=last.accumulate or self.accumulate,
            packing=last.packing,
            model=last.model(self.model),
            recipe=dataclasses.replace(self.recipe, size=last.image_size or self.recipe.size),
            tokenizer=dataclasses.replace(self.tokenizer, context_length=length),
        )

    def _last_faults(self) -> Iterator[str]:
        """Why there cannot be such a last stage."""
        if self.last and self.last.steps >= self.steps:
            yield f"last.steps {self.last.steps} must be below steps {self.steps}"
            return
        try:
            self.stages()
        except ValueError as error:
            yield f"last: {error}"

    def _embedding_faults(self) -> Iterator[str]:
        """What would be ignored, or be wrong, where the image tower does not run in training."""
        if self.embeddings is None:
            return
        if self.start_from is None:
            yield "embeddings needs start_from: the model that they are of"
        if [*self.optim.rates.items()][-1:] != [("image/*", 0)]:  # The last that matches counts.
            yield "embeddings needs a locked image tower: optim.rates={..., 'image/*': 0.0}"
        if self.augment != Augment():
            yield "augment changes nothing with embeddings: leave it out"
        image, last = self.model.image, self.last
        dropped = not isinstance(image, ResNetConfig) and (image.patch_dropout, image.stack.dropout)
        if dropped and any(dropped):
            yield "dropout in the image tower changes nothing with embeddings: leave it out"
        if last and (last.patch_dropout or last.image_size not in (None, self.recipe.size)):
            yield "last: images of another kind need embeddings of their own"

    def _text_faults(self) -> Iterator[str]:
        """What in tokenizer, text tower and packing does not fit together."""
        text = self.model.text
        highest = text.pool == "eot" and text.eot_id is None
        if highest and not isinstance(self.tokenizer, ClipBpe):
            yield (
                "model.text.pool 'eot' takes the highest id for the end of text, which only "
                "ClipBpe gives: name it with eot_id, or set pool='last' and causal=False"
            )
        if self.packing and not highest:
            yield "packing needs a causal text tower with pool 'eot' and no eot_id"
        if self.packing and self.packing.row < text.context_length:
            yield f"packing.row {self.packing.row} is below context_length {text.context_length}"

    def _best_faults(self) -> Iterator[str]:
        """Why the best checkpoint could not be kept."""
        best, every = self.checkpoint.best, self.checkpoint.every_steps
        if best is None:
            return
        of = [e for name, e in self.evals.items() if best.startswith(f"{e.task}/{name}/")]
        if not of:
            yield f"checkpoint.best {best!r} is no figure of the evals {sorted(self.evals)}"
        elif not of[0].every_steps or every % of[0].every_steps:
            yield (
                f"checkpoint.every_steps {every} must be a multiple of every_steps of the "
                f"evaluation that checkpoint.best names ({of[0].every_steps})"
            )


def check_vocabulary(config: TrainConfig) -> None:
    """Raises ValueError if the tokenizer has ids that the model has no embedding for."""
    ids, rows = config.tokenizer.vocab_size, config.model.text.vocab_size
    if ids > rows:
        raise ValueError(f"the tokenizer has {ids} ids, model.text.vocab_size is {rows}")
