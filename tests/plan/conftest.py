import pytest


@pytest.fixture(scope="session")
def small_run():
    """A config that the TPU compiler compiles in seconds; blocks are as wide as a TPU's tiles.

    Captions are packed, as in the configs of CLIP's recipes.
    """
    from clip_jax.data import Digits
    from clip_jax.data.packing import Packing
    from clip_jax.losses import Sigmoid
    from clip_jax.models.clip import ClipConfig
    from clip_jax.models.text import TextConfig
    from clip_jax.models.transformer import StackConfig
    from clip_jax.models.vit import ViTConfig
    from clip_jax.optim.build import AdamW, OptimConfig
    from clip_jax.preprocess.recipe import Recipe
    from clip_jax.sharding.rules import FSDP
    from clip_jax.tokenizers import ClipBpe
    from clip_jax.train.config import TrainConfig

    stack = StackConfig(width=128, layers=3, heads=2, remat="nothing")
    return TrainConfig(
        run="unused",
        steps=1000,
        batch=1024,
        data=Digits(),
        recipe=Recipe(size=32),
        tokenizer=ClipBpe(context_length=16),
        model=ClipConfig(
            image=ViTConfig(image_size=32, patch_size=8, stack=stack),
            text=TextConfig(context_length=16, vocab_size=512, stack=stack),
            embed_dim=128,
            bias=-10.0,
        ),
        loss=Sigmoid(tile=64),
        optim=OptimConfig(method=AdamW(moment_dtype="bfloat16"), learning_rate=1e-3),
        rules=FSDP,
        packing=Packing(row=32, tokens_per_caption=11.0),
    )


@pytest.fixture(scope="session")
def rehearsed(small_run):
    """Its plan for eight chips, compiled by the TPU compiler."""
    from clip_jax.plan.run import rehearse
    from clip_jax.plan.topology import parse

    return rehearse(small_run, parse("v5e:2x4"), price=2.0)
