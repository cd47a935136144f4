"""CLIPA-L/16(I37,T8): a CLIP on 96 pixels and 8 tokens, for eight GPUs and three days.

    python train.py configs/clipa_l16.py --data.root data/laion400m
    python train.py configs/clipa_l16_224.py --data.root data/laion400m

The second command is the short stage at full size. Six epochs at a batch of 32,768, rate 1.024e-3
after 1,563 steps: Li et al. 2023, arXiv:2305.07017; its code, i37_t8_pretrain.sh; see
train/recipes.clipa. Captions are cut to 8 tokens. Published, zero-shot on ImageNet, after the
second stage: 69.3%; not yet repeated here. Ours: sharding, the loss in tiles, remat.
"""

from clip_jax.data import TarShards
from clip_jax.train.config import TrainConfig
from clip_jax.train.recipes import LAION_400M, at_scale, clipa


def get_config() -> TrainConfig:
    """37 image tokens in place of 197, 8 text tokens in place of 32."""
    config = clipa(
        "runs/clipa_l16",
        TarShards(root="data/laion400m"),
        image_size=96,
        context_length=8,
        samples_seen=6 * LAION_400M,
        batch=32_768,
        learning_rate=1.024e-3,
        warmup=1_563,
    )
    return at_scale(config, remat="nothing")
