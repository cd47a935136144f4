"""Small towers of PyTorch with random weights, what they compute, and resized position tables.

Writes resnet.npz, naflex.npz and positions.npz beside this file; each holds weights under our own
paths, inputs and outputs. Needs torch, torchvision, open_clip and transformers:
`python -m tests.golden.make_modules` from the root of the repository.
"""

import math
import pathlib

import einops
import numpy as np
import torch

from tests.parity import peers

RESIZED = {
    (5, 5): [(7, 7), (3, 3), (8, 4), (1, 6), (5, 5)],
    (4, 7): [(4, 3), (9, 7), (2, 14), (1, 1)],
}
"""Grids and what they become."""
LENGTHS = [1, 3, 8, 11, 24]


def draw(model, rng):
    """Weights and statistics of ordinary size and few digits, which compress well."""

    def eighths(shape):
        return np.round(8 * rng.normal(size=shape)) / 8

    with torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            shape = tuple(value.shape)
            if name.endswith("num_batches_tracked"):
                continue
            if name.endswith("running_var"):
                drawn = 0.5 + np.abs(eighths(shape))
            elif name.endswith(("running_mean", "bias")):
                drawn = eighths(shape) / 4
            elif value.ndim == 1:
                drawn = 1 + eighths(shape) / 4
            elif "embedding" in name and "patch" not in name:
                drawn = eighths(shape) / 2
            else:
                drawn = eighths(shape) / 2 ** round(math.log2(math.prod(shape[1:])) / 2 - 0.25)
            value.copy_(torch.from_numpy(np.asarray(drawn, np.float32)))
    return model.eval()


def direction(shape):
    """What embeddings are multiplied with to get one number, whose gradient is compared."""
    return np.cos(np.arange(math.prod(shape), dtype=np.float32)).reshape(shape)


def answers(model, given, **others):
    """Embeddings, and the gradient of their product with `direction`."""
    given = torch.from_numpy(given).requires_grad_()
    made = model(given, **others)
    made = getattr(made, "pooler_output", made)
    (made * torch.from_numpy(direction(made.shape))).sum().backward()
    return made.detach().numpy(), given.grad.numpy()


def batch_norm(theirs, ours):
    parts = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
    return {f"{ours}/{part}": (f"{theirs}.{name}", "c -> c") for part, name in parts.items()}


def convolution(conv, norm, our_conv, our_norm):
    kernel = {f"{our_conv}/kernel": (f"{conv}.weight", "o i h w -> h w i o")}
    return kernel | batch_norm(norm, our_norm)


def resnet_names(layers):
    """Our path -> their name, and how the axes move."""
    table = {}
    for k in (1, 2, 3):
        table |= convolution(f"conv{k}", f"bn{k}", f"stem/conv{k}", f"stem/norm{k}")
    for stage, block in [(s, b) for s, count in enumerate(layers, 1) for b in range(count)]:
        theirs, ours = f"layer{stage}.{block}", f"stage{stage}/block{block}"
        for k in (1, 2, 3):
            to = f"{ours}/conv{k}", f"{ours}/norm{k}"
            table |= convolution(f"{theirs}.conv{k}", f"{theirs}.bn{k}", *to)
        if block == 0:
            short = f"{ours}/shortcut"
            down = f"{theirs}.downsample.0", f"{theirs}.downsample.1"
            table |= convolution(*down, f"{short}/conv", f"{short}/norm")
    pool = "attend_pool"
    table[f"{pool}/positions/embedding"] = ("attnpool.positional_embedding", "l w -> l w")
    for name in ("query", "key", "value"):
        theirs = f"attnpool.{name[0]}_proj"
        table[f"{pool}/{name}/kernel"] = (f"{theirs}.weight", "(n h) w -> w n h")
        table[f"{pool}/{name}/bias"] = (f"{theirs}.bias", "(n h) -> n h")
    table[f"{pool}/out/kernel"] = ("attnpool.c_proj.weight", "d (n h) -> n h d")
    table[f"{pool}/out/bias"] = ("attnpool.c_proj.bias", "d -> d")
    return table


def params(table, state, heads):
    """Weights under our paths; every weight of the original must have been used."""
    used = {name for name, _ in table.values()}
    left = {n for n in state if not n.endswith("num_batches_tracked")} - used
    assert not left, left
    arrays = {}
    for path, (name, pattern) in table.items():
        sizes = {"n": heads} if "(n h)" in pattern else {}
        arrays[f"params/{path}"] = einops.rearrange(state[name].numpy(), pattern, **sizes)
    return arrays


def resnet(*, width, layers=(2, 1, 1, 1), heads=4, embed_dim=12, size=64, seed=0):
    """open_clip's ModifiedResNet on two images; of the gradient every second row and column."""
    library, rng = peers.open_clip(), np.random.default_rng(seed)
    model = library.modified_resnet.ModifiedResNet(layers, embed_dim, heads, size, width)
    draw(model, rng)
    # Squares of one colour with noise: noise alone would not get through the averages.
    squares = rng.normal(size=(2, size // 8, size // 8, 3)).repeat(8, axis=1).repeat(8, axis=2)
    images = squares + rng.normal(scale=0.5, size=squares.shape)
    images = np.round(4 * images).astype(np.float32) / 4
    made, gradient = answers(model, np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    return {
        **params(resnet_names(layers), model.state_dict(), heads),
        "layers": np.array(layers),
        "images": images,
        "embeddings": made,
        "gradient": gradient.transpose(0, 2, 3, 1)[:, ::2, ::2],
    }


def naflex_names(layers):
    """Our path -> their name, and how the axes move; `{i}` is the number of the block."""

    def norm(theirs, ours):
        return {
            f"{ours}/{to}": (f"{theirs}.{name}", "w -> w")
            for to, name in (("scale", "weight"), ("bias", "bias"))
        }

    def dense(theirs, ours, kernel="o i -> i o"):
        return {
            f"{ours}/kernel": (f"{theirs}.weight", kernel),
            f"{ours}/bias": (f"{theirs}.bias", "o -> o"),
        }

    table = {
        **dense("embeddings.patch_embedding", "patch"),
        "positions/embedding": ("embeddings.position_embedding.weight", "l w -> l w"),
        **norm("post_layernorm", "norm"),
        "pool/probe": ("head.probe", "1 p w -> p w"),
        "pool/in/kernel": ("head.attention.in_proj_weight", "o w -> w o"),
        "pool/in/bias": ("head.attention.in_proj_bias", "o -> o"),
        **dense("head.attention.out_proj", "pool/out", "w (n h) -> n h w"),
        **norm("head.layernorm", "pool/norm"),
        **dense("head.mlp.fc1", "pool/mlp/up"),
        **dense("head.mlp.fc2", "pool/mlp/down"),
    }
    for i in range(layers):
        theirs, ours = f"encoder.layers.{i}", f"layer{i}"
        for name in ("q", "k", "v"):
            projection = f"{theirs}.self_attn.{name}_proj"
            table[f"{ours}/{name}/kernel"] = (f"{projection}.weight", "(n h) w -> w n h")
            table[f"{ours}/{name}/bias"] = (f"{projection}.bias", "(n h) -> n h")
        table |= dense(f"{theirs}.self_attn.out_proj", f"{ours}/attend/out", "w (n h) -> n h w")
        table |= norm(f"{theirs}.layer_norm1", f"{ours}/norm_attend")
        table |= norm(f"{theirs}.layer_norm2", f"{ours}/norm_mlp")
        table |= dense(f"{theirs}.mlp.fc1", f"{ours}/mlp/up")
        table |= dense(f"{theirs}.mlp.fc2", f"{ours}/mlp/down")
    return table


def fused(arrays, layers, heads):
    """What we keep in one array: query, key and value, and every parameter of all blocks."""
    arrays = dict(arrays)
    kernel, bias = arrays.pop("params/pool/in/kernel"), arrays.pop("params/pool/in/bias")
    kernel = einops.rearrange(kernel, "w (s n h) -> w s n h", s=3, n=heads)
    bias = einops.rearrange(bias, "(s n h) -> s n h", s=3, n=heads)
    for ours, which in (("query", 0), ("key_value", slice(1, 3))):
        arrays[f"params/pool/{ours}/kernel"] = kernel[:, which]
        arrays[f"params/pool/{ours}/bias"] = bias[which]
    for what, axis in (("kernel", 1), ("bias", 0)):
        for i in range(layers):
            parts = [arrays.pop(f"params/layer{i}/{name}/{what}") for name in "qkv"]
            arrays[f"params/layer{i}/attend/qkv/{what}"] = np.stack(parts, axis)
    for path in [path for path in arrays if path.startswith("params/layer0/")]:
        parts = [arrays.pop(path.replace("layer0", f"layer{i}")) for i in range(layers)]
        arrays[path.replace("layer0", "stack/blocks")] = np.stack(parts)
    return arrays


def naflex(*, width=16, layers=2, heads=2, patch=2, grids=((3, 5), (6, 2), (2, 8)), seed=1):
    """transformers' Siglip2VisionModel on images of different proportions, rubbish as padding."""
    library, rng = peers.transformers(), np.random.default_rng(seed)
    config = library.Siglip2VisionConfig(
        **{"hidden_size": width, "intermediate_size": width + 8, "num_attention_heads": heads},
        **{"num_hidden_layers": layers, "num_patches": 16, "patch_size": patch},
    )
    model = draw(library.Siglip2VisionModel(config), rng)
    length = max(rows * columns for rows, columns in grids)
    shape = (len(grids), length, 3 * patch**2)
    pixels = np.round(8 * rng.normal(size=shape)).astype(np.float32) / 8
    grid = np.array(grids, np.int32)
    mask = np.arange(length)[None] < grid.prod(axis=1)[:, None]
    made, gradient = answers(
        model,
        pixels,
        pixel_attention_mask=torch.from_numpy(mask.astype(np.int64)),
        spatial_shapes=torch.from_numpy(grid.astype(np.int64)),
    )
    weights = params(naflex_names(layers), model.state_dict(), heads)
    return {
        **fused(weights, layers, heads),
        **{"pixels": pixels, "grid": grid, "embeddings": made, "gradient": gradient},
    }


def positions():
    """Tables and what F.interpolate makes of them; keys hold grid, method and new grid."""
    rng, arrays = np.random.default_rng(2), {}
    for grid, new_grids in RESIZED.items():
        table = rng.normal(size=(*grid, 3)).astype(np.float32)
        arrays[f"{grid[0]}x{grid[1]}"] = table.reshape(-1, 3)
        picture = torch.from_numpy(table).permute(2, 0, 1)[None]
        for method in ("bicubic", "bilinear"):
            for new in new_grids:
                made = torch.nn.functional.interpolate(
                    picture, size=new, mode=method, antialias=True, align_corners=False
                )
                key = f"{grid[0]}x{grid[1]}/{method}/{new[0]}x{new[1]}"
                arrays[key] = made[0].permute(1, 2, 0).reshape(-1, 3).numpy()
    text = arrays["text"] = rng.normal(size=(8, 3)).astype(np.float32)
    for length in LENGTHS:
        row = torch.from_numpy(text).T[None]
        made = torch.nn.functional.interpolate(row, size=length, mode="linear", align_corners=False)
        arrays[f"text/{length}"] = made[0].T.numpy()
    return arrays


def smaller(array):
    """The same numbers as float16 where it holds them."""
    half = array.astype(np.float16)
    return half if array.dtype == np.float32 and np.array_equal(half, array) else array


def main():
    """Make them all."""
    folder = pathlib.Path(__file__).parent
    made = {"resnet": resnet(width=4), "naflex": naflex(), "positions": positions()}
    for name, arrays in made.items():
        arrays = {key: smaller(array) for key, array in arrays.items()}
        np.savez_compressed(folder / f"{name}.npz", **arrays)


if __name__ == "__main__":
    main()
