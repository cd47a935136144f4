"""SigLIP B/16 at 224 pixels, from scratch.

    python train.py configs/siglip_b16.py --data.root data/pairs --tokenizer.model spiece.model

The vocabulary is that of the published models, `spiece.model` of the hub's
google/siglip-base-patch16-224. 40 billion pairs at a batch of 32,768, rate 1e-3 after a warm-up of
20,000 steps; sources of these and all other numbers are in train/recipes.sigmoid.
Published, zero-shot on ImageNet: 76.2% (Zhai et al. 2023, arXiv:2303.15343, table 3), on WebLI,
which is not public; not yet repeated here. Ours: sharding, the loss in tiles, remat.
"""

from clip_jax.data import TarShards
from clip_jax.train.config import TrainConfig
from clip_jax.train.recipes import at_scale, sigmoid


def get_config() -> TrainConfig:
    """ViT-B-16-SigLIP for 1.2 million steps."""
    config = sigmoid(
        "runs/siglip_b16",
        TarShards(root="data/pairs"),
        model="ViT-B-16-SigLIP",
        samples_seen=40_000_000_000,
        batch=32_768,
        warmup=20_000,
    )
    return at_scale(config, remat="products")
