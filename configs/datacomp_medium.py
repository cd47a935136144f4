"""DataComp's medium scale: ViT-B/32, 128 million pairs seen, batch 4,096.

    python download_upstream.py --scale medium --data_dir data/datacomp_medium   (of DataComp)
    python train.py configs/datacomp_medium.py --data.root data/datacomp_medium/shards

The folder holds the shards of your filtered pool. Published for the best filter: 29.7% zero-shot
accuracy on ImageNet (Gadre et al. 2023, arXiv:2304.14108, table 3); not yet repeated here.
"""

from clip_jax.data import TarShards
from clip_jax.train.config import TrainConfig
from clip_jax.train.recipes import contrastive


def get_config() -> TrainConfig:
    """The track's fixed recipe."""
    return contrastive(
        "runs/datacomp_medium",
        TarShards(root="data/datacomp_medium/shards"),
        samples_seen=128_000_000,
        batch=4096,
    )
