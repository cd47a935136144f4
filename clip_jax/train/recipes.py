"""Whole experiments that differ only in data and scale."""

from clip_jax.data import DatasetConfig
from clip_jax.models.presets import preset
from clip_jax.optim.build import AdamW, OptimConfig
from clip_jax.optim.schedule import Cosine
from clip_jax.preprocess.recipe import Recipe
from clip_jax.tokenizers import ClipBpe
from clip_jax.train.experiment import TrainConfig


def contrastive(
    run: str,
    data: DatasetConfig,
    *,
    model: str = "ViT-B-32",
    samples_seen: int,
    batch: int,
    learning_rate: float = 5e-4,
    warmup: int = 500,
    b2: float = 0.98,
) -> TrainConfig:
    """A published architecture trained from scratch as OpenCLIP and DataComp train it.

    AdamW with decay 0.2, linear warm-up and half a cosine, random square crops of 90% or more.

    Args:
      run: folder that everything is written to.
      model: a preset's name with CLIP's own vocabulary.
      samples_seen: pairs in all, repeats included; with `batch` it gives the steps.
      batch: pairs per update, over all devices.
      warmup: steps.

    Source: Gadre et al. 2023, arXiv:2304.14108, table 3; code of DataComp, scale_configs.py.
    """
    config = preset(model)
    return TrainConfig(
        run=run,
        steps=max(1, samples_seen // batch),
        batch=batch,
        data=data,
        recipe=Recipe(size=config.image.image_size),
        tokenizer=ClipBpe(context_length=config.text.context_length),
        model=config,
        optim=OptimConfig(
            method=AdamW(b2=b2), learning_rate=learning_rate, schedule=Cosine(warmup=warmup)
        ),
    )
