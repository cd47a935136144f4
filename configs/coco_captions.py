"""MS COCO's captions through tensorflow-datasets, fine-tuning OpenAI's ViT-B/32.

    tfds build coco_captions --file_format=array_record      (once; this needs TensorFlow)
    python train.py configs/coco_captions.py --data.data-dir ~/tensorflow_datasets

Training reads the prepared files without TensorFlow. The data set's `val` is used as "test".
"""

import dataclasses

from clip_jax.data import Tfds
from clip_jax.eval.retrieval import Retrieval
from clip_jax.train.config import TrainConfig
from clip_jax.train.recipes import contrastive


def get_config() -> TrainConfig:
    """Five epochs of 82,783 images at a small rate, from published weights."""
    data = Tfds(name="coco_captions", image="image", text="captions.text", splits={"test": "val"})
    config = contrastive(
        "runs/coco_captions",
        data,
        model="ViT-B-32-quickgelu",
        samples_seen=5 * 82_783,
        batch=256,
        learning_rate=1e-5,
        warmup=100,
    )
    return dataclasses.replace(
        config,
        start_from="ViT-B-32/openai",
        evals={"test": Retrieval(split="test", every_steps=500)},
    )
