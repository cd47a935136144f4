"""OpenAI's CLIP ViT-B/32 from scratch, on LAION-400M or data of that size.

    python train.py configs/clip_b32.py --data.root data/laion400m

Batch 32,768, 32 epochs, rate 5e-4, warm-up 2,000 steps, AdamW with b2 0.98 and decay
0.2: Radford et al. 2021, arXiv:2103.00020, tables 18 to 20.
Published, zero-shot on ImageNet: 63.3% (OpenAI, on its own data), 62.9% (OpenCLIP, LAION-400M,
batch 32,768); not yet repeated here.
Ours: gradients clipped at a norm of 1, sharding, the loss in tiles.
"""

from clip_jax.data import TarShards
from clip_jax.train.config import TrainConfig
from clip_jax.train.recipes import LAION_400M, at_scale, contrastive


def get_config() -> TrainConfig:
    """ViT-B-32 as OpenAI trains it."""
    config = contrastive(
        "runs/clip_b32",
        TarShards(root="data/laion400m"),
        model="ViT-B-32-quickgelu",
        samples_seen=32 * LAION_400M,
        batch=32_768,
        learning_rate=5e-4,
        warmup=2_000,
    )
    return at_scale(config)
