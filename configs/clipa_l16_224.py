"""CLIPA-L/16 at full size: the short last stage after configs/clipa_l16.py.

    python train.py configs/clipa_l16_224.py --data.root data/laion400m

Begins with runs/clipa_l16; the text's positions are resampled. 131 million pairs at a batch of
7,168, rate 2.24e-5 after 3,571 steps: Li et al. 2023, arXiv:2305.07017; its code,
i37_t8_finetune.sh, where the image's positions are also learned from here on. Published, zero-shot
on ImageNet: 69.3%; not yet repeated here. Ours: sharding, the loss in tiles, remat.
"""

import dataclasses

from clip_jax.data import TarShards
from clip_jax.train.config import TrainConfig
from clip_jax.train.recipes import at_scale, clipa


def get_config() -> TrainConfig:
    """197 image tokens and 32 text tokens."""
    config = clipa(
        "runs/clipa_l16_224",
        TarShards(root="data/laion400m"),
        image_size=224,
        context_length=32,
        samples_seen=131_072_000,
        batch=7_168,
        learning_rate=2.24e-5,
        warmup=3_571,
    )
    return at_scale(dataclasses.replace(config, start_from="runs/clipa_l16"), remat="nothing")
