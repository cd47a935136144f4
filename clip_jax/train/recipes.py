"""Whole experiments that differ only in data and scale."""

import dataclasses

from clip_jax.data import DatasetConfig
from clip_jax.data.packing import Packing
from clip_jax.losses import Sigmoid, Softmax
from clip_jax.models.clip import ClipConfig
from clip_jax.models.presets import preset
from clip_jax.models.remat import Kept
from clip_jax.models.resnet import ResNetConfig
from clip_jax.optim.build import AdamW, OptimConfig
from clip_jax.optim.schedule import Cosine
from clip_jax.preprocess.augment import AreaCrop, Augment, Jitter
from clip_jax.preprocess.recipe import Recipe
from clip_jax.sharding.rules import FSDP
from clip_jax.tokenizers import ClipBpe, SentencePiece
from clip_jax.train.config import TrainConfig

LAION_400M = 407_332_084
"""Pairs of it that open_clip and CLIPA count as an epoch."""
WHOLE = Augment(crop=AreaCrop(area=(1.0, 1.0), ratio=(0.01, 100.0)))
"""No crop: the whole picture, squeezed to a square."""


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
    Captions are packed, which changes none of that: most need a fraction of the 77 tokens.

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
        packing=Packing(row=80, tokens_per_caption=32.0),
    )


def sigmoid(
    run: str, data: DatasetConfig, *, model: str, samples_seen: int, batch: int, warmup: int
) -> TrainConfig:
    """A SigLIP architecture trained from scratch, on the whole picture squeezed to a square.

    Adam at 1e-3 with b2 0.95 and decoupled decay 1e-4, gradients clipped at a norm of 1, linear
    warm-up and half a cosine; the bias starts at -10 and the temperature at 0.1.

    Args:
      run, data, samples_seen, batch, warmup: as in `contrastive`.
      model: name of a preset of SigLIP with its vocabulary of 32,000 pieces.

    Source: Zhai et al. 2023, arXiv:2303.15343 (loss, its starts, b2); Tschannen et al. 2025,
    arXiv:2502.14786, section 2 (all other numbers, for the same models). Epsilon is ours.
    """
    config = preset(model)
    half = (0.5, 0.5, 0.5)
    return TrainConfig(
        run=run,
        steps=max(1, samples_seen // batch),
        batch=batch,
        data=data,
        recipe=Recipe(size=config.image.image_size, resize="squash", mean=half, std=half),
        augment=WHOLE,
        tokenizer=SentencePiece(
            model="data/siglip/spiece.model",
            context_length=config.text.context_length,
            clean="lower_ascii",
        ),
        model=config,
        loss=Sigmoid(),
        optim=OptimConfig(
            method=AdamW(b2=0.95, eps=1e-8, weight_decay=1e-4),
            learning_rate=1e-3,
            schedule=Cosine(warmup=warmup),
        ),
    )


def clipa(
    run: str,
    data: DatasetConfig,
    *,
    image_size: int,
    context_length: int,
    samples_seen: int,
    batch: int,
    learning_rate: float,
    warmup: int,
) -> TrainConfig:
    """CLIPA's L/16 on images and captions of any length, AdamW with b2 0.95.

    Patches are averaged beside an idle class token (theirs counts it, too), at fixed sine
    positions. Crops have 40% or more of the area; brightness, contrast and saturation are
    changed, and a fifth of the pictures is grey. (Theirs are also shifted a little in hue.)

    Args:
      run, data, samples_seen, batch, warmup: as in `contrastive`.

    Source: Li et al. 2023, arXiv:2305.07017; its code, clipa_torch/scripts/exp/gpu/vit_l16.
    """
    config = contrastive(
        run,
        data,
        model="ViT-L-16",
        samples_seen=samples_seen,
        batch=batch,
        learning_rate=learning_rate,
        warmup=warmup,
        b2=0.95,
    )
    image, text = config.model.image, config.model.text
    assert not isinstance(image, ResNetConfig)
    image = dataclasses.replace(
        image,
        image_size=image_size,
        pool="mean",
        class_token=True,
        norm_after_pool=True,
        positions="sincos",
    )
    text = dataclasses.replace(text, context_length=context_length)
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, image=image, text=text),
        recipe=Recipe(size=image_size),
        augment=Augment(crop=AreaCrop(area=(0.4, 1.0)), jitter=Jitter(), gray=0.2),
        tokenizer=ClipBpe(context_length=context_length),
        packing=None,  # Captions are so short that they fill their rows.
    )


def at_scale(config: TrainConfig, *, remat: Kept | None = None) -> TrainConfig:
    """The same run for many devices: what is computed stays, its memory falls.

    Parameters are sharded (FSDP), the loss is made in tiles, and blocks keep of their
    activations what `remat` says.
    """
    loss = Sigmoid(tile=1024) if isinstance(config.loss, Sigmoid) else Softmax(tile=1024)
    model = config.model if remat is None else _keeping(config.model, remat)
    return dataclasses.replace(config, model=model, loss=loss, rules=FSDP)


def _keeping(model: ClipConfig, remat: Kept) -> ClipConfig:
    def change(tower):
        return dataclasses.replace(tower, stack=dataclasses.replace(tower.stack, remat=remat))

    image = model.image if isinstance(model.image, ResNetConfig) else change(model.image)
    return dataclasses.replace(model, image=image, text=change(model.text))
