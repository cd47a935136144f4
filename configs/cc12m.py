"""CC12M as img2dataset writes it: up to 12 million web images with their alternative texts.

    img2dataset --url_list cc12m.tsv --input_format tsv --url_col url --caption_col caption \
        --output_format webdataset --image_size 256 --output_folder data/cc12m
    python train.py configs/cc12m.py --data.root data/cc12m

Look at the data first: clip-jax data configs/cc12m.py --limit 2000
"""

from clip_jax.data import TarShards
from clip_jax.train.config import TrainConfig
from clip_jax.train.recipes import contrastive


def get_config() -> TrainConfig:
    """ViT-B/32 at a batch of 4,096: 32 epochs of 10 million pairs."""
    return contrastive(
        "runs/cc12m",
        TarShards(root="data/cc12m"),
        samples_seen=32 * 10_000_000,
        batch=4096,
        warmup=2_000,
    )
