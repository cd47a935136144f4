"""OpenAI's CLIP ViT-L/14 from scratch, on LAION-400M or data of that size.

    python train.py configs/clip_l14.py --data.root data/laion400m

Batch 32,768, 32 epochs, rate 4e-4, warm-up 2,000 steps, AdamW with b2 0.98 and decay
0.2: Radford et al. 2021, arXiv:2103.00020, tables 18 to 20.
Published, zero-shot on ImageNet: 75.5% (OpenAI, on its own data), 72.8% (OpenCLIP, LAION-400M,
batch 38,400); not yet repeated here.
Ours: gradients clipped at a norm of 1, sharding, the loss in tiles, remat.
Half the patches (FLIP), 53% of the arithmetic: --model.image.patch-dropout 0.5
"""

from clip_jax.data import TarShards
from clip_jax.train.config import TrainConfig
from clip_jax.train.recipes import LAION_400M, at_scale, contrastive


def get_config() -> TrainConfig:
    """ViT-L-14 as OpenAI trains it."""
    config = contrastive(
        "runs/clip_l14",
        TarShards(root="data/laion400m"),
        model="ViT-L-14-quickgelu",
        samples_seen=32 * LAION_400M,
        batch=32_768,
        learning_rate=4e-4,
        warmup=2_000,
    )
    return at_scale(config, remat="nothing")
