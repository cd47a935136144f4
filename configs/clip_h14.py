"""OpenCLIP's ViT-H/14 from scratch, on LAION-2B or data of that size.

    python train.py configs/clip_h14.py --data.root data/laion2b

Batch 79,104, 34.7 billion pairs, rate 5e-4, warm-up 2,000 steps: Cherti et al. 2022,
arXiv:2212.07143, and its trained_models_info.csv; AdamW with b2 0.98 and decay 0.2, OpenCLIP's
defaults for ViTs. Published, zero-shot on ImageNet: 78.0%; not yet repeated here.
Ours: gradients clipped at a norm of 1, sharding, the loss in tiles, remat.
"""

from clip_jax.data import TarShards
from clip_jax.train.config import TrainConfig
from clip_jax.train.recipes import at_scale, contrastive


def get_config() -> TrainConfig:
    """ViT-H-14 in 256 parts of 135.6 million pairs, as it was trained."""
    config = contrastive(
        "runs/clip_h14",
        TarShards(root="data/laion2b"),
        model="ViT-H-14",
        samples_seen=256 * 135_646_078,
        batch=79_104,
        learning_rate=5e-4,
        warmup=2_000,
    )
    return at_scale(config, remat="nothing")
