"""The text tower of OpenAI's ViT-B/32 tuned to captions of one's own; the image tower is locked.

    clip-jax embed data/photos/train data/photos.parquet --model ViT-B-32/openai
    python train.py configs/locked_b32.py --data.root data/photos

The first command runs the image tower once over the pictures (data/photos/train, with a text file
of captions beside each); the second never runs it in training, so that large batches are cheap.
Pictures have one view each: resized, cut to the square in the middle. The checkpoints hold the
whole model. Locked-image tuning: Zhai et al. 2022, arXiv:2111.07991 (LiT); the rate, the batch and
the number of steps are ours, for about 100,000 pictures, and not yet tried out here.
"""

import dataclasses

from clip_jax.data import Folder
from clip_jax.train.config import TrainConfig
from clip_jax.train.recipes import contrastive


def get_config() -> TrainConfig:
    """Ten epochs of 100,000 pictures."""
    config = contrastive(
        "runs/locked_b32",
        Folder(root="data/photos"),
        model="ViT-B-32-quickgelu",
        samples_seen=1_000_000,
        batch=4_096,
        learning_rate=1e-5,
        warmup=20,
    )
    return dataclasses.replace(
        config,
        start_from="ViT-B-32/openai",
        embeddings="data/photos.parquet",
        optim=dataclasses.replace(config.optim, rates={"image/*": 0.0}),
    )
