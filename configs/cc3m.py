"""CC3M as img2dataset writes it: 3 million web images with their alternative texts.

    img2dataset --url_list cc3m.tsv --input_format tsv --url_col url --caption_col caption \
        --output_format webdataset --image_size 256 --output_folder data/cc3m
    python train.py configs/cc3m.py --data.root "data/cc3m/{00000..00331}.tar"

A root without braces is a folder of shards. The schedule is 32 epochs of 2.9 million pairs.
Look at the data first: clip-jax data configs/cc3m.py --limit 2000
"""

from clip_jax.data import TarShards
from clip_jax.train.config import TrainConfig
from clip_jax.train.recipes import contrastive


def get_config() -> TrainConfig:
    """ViT-B/32 at a batch of 1,024."""
    return contrastive(
        "runs/cc3m",
        TarShards(root="data/cc3m"),
        samples_seen=32 * 2_900_000,
        batch=1024,
        warmup=10_000,
    )
