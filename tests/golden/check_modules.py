"""Our towers with the weights of make_modules.py, beside what the originals computed."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from clip_jax.models.resnet import ResNet, ResNetConfig
from clip_jax.models.transformer import StackConfig
from clip_jax.models.vit import Patches, ViT, ViTConfig


def params(golden):
    """Our tree of float32 weights."""
    flat = {
        key.removeprefix("params/"): jnp.asarray(value, jnp.float32)
        for key, value in golden.items()
        if key.startswith("params/")
    }
    return traverse_util.unflatten_dict(flat, sep="/")


def resnet(golden):
    """Module, parameters and input."""
    tree, images = params(golden), jnp.asarray(golden["images"], jnp.float32)
    cfg = ResNetConfig(
        image_size=images.shape[1],
        layers=tuple(golden["layers"].tolist()),
        width=tree["stem"]["conv3"]["kernel"].shape[-1],
        heads=tree["attend_pool"]["query"]["kernel"].shape[1],
    )
    return ResNet(cfg, golden["embeddings"].shape[1]), tree, images


def naflex(golden):
    """Module, parameters and input."""
    tree = params(golden)
    blocks, width = tree["stack"]["blocks"], golden["embeddings"].shape[1]
    layers, _, _, heads, _ = blocks["attend"]["qkv"]["kernel"].shape
    patch = math.isqrt(golden["pixels"].shape[2] // 3)
    stack = StackConfig(
        width=width,
        layers=layers,
        heads=heads,
        mlp_width=blocks["mlp"]["up"]["kernel"].shape[-1],
        activation="gelu_tanh",
        norm_eps=1e-6,
    )
    cfg = ViTConfig(
        image_size=patch * math.isqrt(len(tree["positions"]["embedding"])),
        patch_size=patch,
        stack=stack,
        pool="map",
        positions="naflex",
        pre_norm=False,
        patch_bias=True,
        project=False,
    )
    pixels = jnp.asarray(golden["pixels"], jnp.float32)
    return ViT(cfg, width), tree, Patches(pixels, jnp.asarray(golden["grid"]))


def answers(module, tree, given):
    """Embeddings, and the gradient of their product with `direction` in make_modules.py."""
    patches = isinstance(given, Patches)

    def product(pixels, tree, grid):
        made = module.apply({"params": tree}, Patches(pixels, grid) if patches else pixels)
        direction = jnp.cos(jnp.arange(made.size, dtype=jnp.float32)).reshape(made.shape)
        return (made * direction).sum(), made

    call = jax.jit(jax.grad(product, has_aux=True))
    pixels, grid = given if patches else (given, None)
    gradient, made = call(pixels, tree, grid)
    return np.asarray(made), np.asarray(gradient if patches else gradient[:, ::2, ::2])


def differences(golden, answers):
    """Of embeddings, over their norm; of gradients, over the norm of the image's."""

    def difference(ours, theirs):
        ours, theirs = (a.astype(np.float64).reshape(len(a), -1) for a in (ours, theirs))
        gap = np.abs(ours - theirs).max(axis=1)
        return float(np.max(gap / np.linalg.norm(theirs, axis=1)))

    names = ("embeddings", "gradient")
    return [difference(a, golden[name]) for a, name in zip(answers, names, strict=True)]
