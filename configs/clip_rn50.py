"""OpenAI's CLIP RN50 from scratch, on LAION-400M or data of that size.

    python train.py configs/clip_rn50.py --data.root data/laion400m

Batch 32,768, 32 epochs, rate 5e-4, warm-up 2,000 steps, AdamW with b2 0.999, epsilon 1e-8 and decay
0.2: Radford et al. 2021, arXiv:2103.00020, tables 18 to 20.
Published, zero-shot on ImageNet: 59.8% (OpenAI, on its own data); not yet repeated here.
Ours: batch norms look at the whole batch, not at one device's share of it; gradients clipped at a
norm of 1, sharding, the loss in tiles.
"""

import dataclasses

from clip_jax.data import TarShards
from clip_jax.models.resnet import ResNetConfig
from clip_jax.optim.build import AdamW
from clip_jax.train.config import TrainConfig
from clip_jax.train.recipes import LAION_400M, at_scale, contrastive


def get_config() -> TrainConfig:
    """RN50 as OpenAI trains it."""
    config = contrastive(
        "runs/clip_rn50",
        TarShards(root="data/laion400m"),
        model="RN50-quickgelu",
        samples_seen=32 * LAION_400M,
        batch=32_768,
        learning_rate=5e-4,
        warmup=2_000,
    )
    image = config.model.image
    assert isinstance(image, ResNetConfig)
    image = dataclasses.replace(image, batch_statistics=True)
    optim = dataclasses.replace(config.optim, method=AdamW(b2=0.999, eps=1e-8))
    model = dataclasses.replace(config.model, image=image)
    return at_scale(dataclasses.replace(config, model=model, optim=optim))
