"""DataComp's small scale: ViT-B/32, 12.8 million pairs seen, batch 4,096.

    python download_upstream.py --scale small --data_dir data/datacomp_small     (of DataComp)
    python train.py configs/datacomp_small.py --data.root data/datacomp_small/shards

The folder holds the shards of your filtered pool. Published for the best filter: 3.9% zero-shot
accuracy on ImageNet (Gadre et al. 2023, arXiv:2304.14108, table 3); not yet repeated here.
"""

from clip_jax.data import TarShards
from clip_jax.train.config import TrainConfig
from clip_jax.train.recipes import contrastive


def get_config() -> TrainConfig:
    """The track's fixed recipe."""
    return contrastive(
        "runs/datacomp_small",
        TarShards(root="data/datacomp_small/shards"),
        samples_seen=12_800_000,
        batch=4096,
    )
