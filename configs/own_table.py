"""A table of your own: image paths and captions in CSV, TSV, parquet or JSON lines.

    python train.py configs/own_table.py --data.path pairs.csv

Columns are those of OpenCLIP, `filepath` and `title`; other names: --data.image-key, and
--data.caption-key. Relative paths are relative to the table. Fine-tunes published weights, which
takes far fewer pairs than training from scratch. Look first: clip-jax data pairs.csv
"""

import dataclasses

from clip_jax.data import Table
from clip_jax.train.config import TrainConfig
from clip_jax.train.recipes import contrastive


def get_config() -> TrainConfig:
    """LAION's ViT-B/32, 100,000 pairs seen."""
    config = contrastive(
        "runs/own_table",
        Table(path="pairs.csv"),
        samples_seen=100_000,
        batch=256,
        learning_rate=1e-5,
        warmup=50,
    )
    return dataclasses.replace(config, start_from="ViT-B-32/laion2b_s34b_b79k")
