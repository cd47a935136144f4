"""OpenAI's CLIP ViT-L/14 at 336 pixels: one more epoch of a trained ViT-L/14.

    python train.py configs/clip_l14_336.py --data.root data/laion400m

Begins with runs/clip_l14, or with --start-from ViT-L-14/openai; positions are resampled. Rate 2e-5,
one epoch: Radford et al. 2021, arXiv:2103.00020, section 2.5 and table 20. Published, zero-shot on
ImageNet: 76.6% (OpenAI, on its own data); not yet repeated here. Ours: a warm-up of a tenth, half a
cosine, gradients clipped at a norm of 1, sharding, the loss in tiles, remat.
"""

import dataclasses

from clip_jax.data import TarShards
from clip_jax.train.config import TrainConfig
from clip_jax.train.recipes import LAION_400M, at_scale, contrastive


def get_config() -> TrainConfig:
    """ViT-L-14-336 from ViT-L-14."""
    epoch = LAION_400M // 32_768
    config = contrastive(
        "runs/clip_l14_336",
        TarShards(root="data/laion400m"),
        model="ViT-L-14-336-quickgelu",
        samples_seen=LAION_400M,
        batch=32_768,
        learning_rate=2e-5,
        warmup=epoch // 10,
    )
    return at_scale(dataclasses.replace(config, start_from="runs/clip_l14"), remat="nothing")
