"""A small CLIP on real photographs with human captions: Flickr8k, 6,000 images of 96 pixels.

    python train.py configs/flickr8k.py --data.root PATH     tens of minutes on 2 CPU cores
    python eval.py runs/flickr8k

PATH holds webdataset shards: train/*.tar and test/*.tar, with .jpg and .txt (a caption a line)
or .json members. Expect recall@10 of about 10% both ways on the 1,000 test images.
"""

from clip_jax.checkpoint.store import CheckpointConfig
from clip_jax.data import TarShards
from clip_jax.data.packing import Packing
from clip_jax.data.pipeline import Pipeline
from clip_jax.eval.retrieval import Retrieval
from clip_jax.models.clip import ClipConfig
from clip_jax.models.text import TextConfig
from clip_jax.models.transformer import StackConfig
from clip_jax.models.vit import ViTConfig
from clip_jax.optim.build import AdamW, OptimConfig
from clip_jax.optim.schedule import Cosine
from clip_jax.preprocess.augment import Augment
from clip_jax.preprocess.recipe import Recipe
from clip_jax.tokenizers import ClipBpe
from clip_jax.train.config import TrainConfig

EPOCHS, IMAGES, BATCH = 30, 6000, 256


def get_config() -> TrainConfig:
    """15.1 million parameters, most of them in the token embedding."""
    stack = StackConfig(width=192, layers=6, heads=3, unroll=6)
    five_epochs = round(5 * IMAGES / BATCH)
    return TrainConfig(
        run="runs/flickr8k",
        steps=EPOCHS // 5 * five_epochs,
        batch=BATCH,
        data=TarShards(root="data/flickr8k", caption_key="captions"),
        recipe=Recipe(size=96),
        augment=Augment(min_crop=84 / 96, flip=True),
        tokenizer=ClipBpe(context_length=32),
        model=ClipConfig(
            image=ViTConfig(image_size=96, patch_size=16, stack=stack),
            text=TextConfig(context_length=32, stack=stack),
            embed_dim=192,
        ),
        pipeline=Pipeline(threads=1),
        packing=Packing(row=64, tokens_per_caption=16.0),
        optim=OptimConfig(
            method=AdamW(weight_decay=0.2), learning_rate=1e-3, schedule=Cosine(warmup=0.1)
        ),
        checkpoint=CheckpointConfig(every_steps=100),
        evals={"test": Retrieval(split="test", every_steps=five_epochs)},
    )
