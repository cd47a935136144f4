"""CLIPA-L/16(I37,T8): 96 pixels and 8 tokens, then a short stage at 224 pixels and 32 tokens.

    python train.py configs/clipa_l16.py --data.root data/laion400m

Six epochs at a batch of 32,768, rate 1.024e-3 after 1,563 steps; then 131 million pairs at a batch
of 7,168, rate 2.24e-5 after 3,571 steps, the optimizer begun anew: Li et al. 2023,
arXiv:2305.07017; its code, i37_t8_pretrain.sh and i37_t8_finetune.sh, where the image's positions
are also learned in the last stage; see train/recipes.clipa. Captions are cut to 8 tokens, and the
text's positions resampled for 32. Made for eight GPUs and three days.
Published, zero-shot on ImageNet: 69.3%; not yet repeated here.
Ours: sharding, the loss in tiles, remat.
"""

import dataclasses

from clip_jax.data import TarShards
from clip_jax.optim.schedule import Cosine
from clip_jax.train.config import TrainConfig
from clip_jax.train.recipes import LAION_400M, at_scale, clipa
from clip_jax.train.stage import Stage


def get_config() -> TrainConfig:
    """37 image tokens, then 197, and 8 text tokens, then 32."""
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
    optim = dataclasses.replace(config.optim, learning_rate=2.24e-5, schedule=Cosine(warmup=3_571))
    last = Stage(
        steps=131_072_000 // 7_168, optim=optim, image_size=224, context_length=32, batch=7_168
    )
    config = dataclasses.replace(config, steps=config.steps + last.steps, last=last)
    return at_scale(config, remat="nothing")
