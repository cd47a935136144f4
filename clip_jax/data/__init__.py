"""Samples, the sources that hold them, and the pipeline that makes batches of them."""

from clip_jax.data.digits import Digits
from clip_jax.data.folder import Folder
from clip_jax.data.tar_shards import TarShards

__all__ = ["DatasetConfig", "Digits", "Folder", "TarShards"]

DatasetConfig = Digits | TarShards | Folder
"""Every data set that a config can name; a new one is a new member."""
