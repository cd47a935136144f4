"""Samples, the sources that hold them, and the pipeline that makes batches of them."""

from clip_jax.data.array_records import ArrayRecords
from clip_jax.data.digits import Digits
from clip_jax.data.folder import Folder
from clip_jax.data.mixture import Mixture, Single
from clip_jax.data.synthetic import Synthetic
from clip_jax.data.table import Table
from clip_jax.data.tar_shards import TarShards
from clip_jax.data.tfds import Tfds
from clip_jax.data.windows import Window

__all__ = [
    "ArrayRecords",
    "DatasetConfig",
    "Digits",
    "Folder",
    "Mixture",
    "Synthetic",
    "Table",
    "TarShards",
    "Tfds",
    "Window",
]

DatasetConfig = Single | Mixture
"""Every data set that a config can name; a new one is a new member."""
