"""Training pictures a second on one core, against the loader that OpenCLIP builds.

    python benchmarks/loader.py [--interpolation opencv|bilinear|bicubic]

    (beside clip_jax: open_clip_torch, torchvision, braceexpand, pandas, webdataset==0.2.86, the
    last one that OpenCLIP works with; and opencv-python-headless)

Both read the same tar shards, made here: 2,000 JPEGs of 640 x 480 (quality 90, 4:2:0), each with a
caption. Both cut OpenCLIP's random crop (0.9 to 1 of the area) to 224 pixels, tokenize, and make
batches of 200, in one process and one thread on one core. OpenCLIP's loader is its own
`get_wds_dataset` with its own transform and tokenizer: webdataset, Pillow, bicubic, normalised
floats. Ours gives uint8, since it normalises on the device. The third measure is decoding and
nothing else: libjpeg-turbo on bytes in memory, at the scale that our loader decodes at (one half).

All take turns, in changing order; the first round does not count. Seconds are those of the core
that the process used, so that other programs disturb less. Prints the medians and, as the last
line, the ratio of our pictures per second to OpenCLIP's, and our share of bare decoding (medians of
the rounds' own): with the interpolation asked for, and with Pillow's bicubic, the default of
training.
"""

import argparse
import io
import json
import os
import pathlib
import statistics
import tarfile
import tempfile
import time
import types

import numpy as np

ROUNDS = 3
SHARDS, PER_SHARD = 8, 250
COUNT = SHARDS * PER_SHARD
BATCH, SIZE = 200, 224
HEIGHT, WIDTH = 480, 640
WORDS = ["a", "the", "dog", "cat", "red", "old", "city", "street", "two", "people", "ride", "near"]

_kept = []
"""The names of operators go when their library does."""


def scene(rng):
    """A picture larger than the samples: structure of all scales, as in nature, and fine noise."""
    from PIL import Image

    height, width = HEIGHT * 3 // 2, WIDTH * 3 // 2
    total = np.full((height, width, 3), 128, np.float32)
    for cells, strength in ((6, 70), (20, 40), (80, 20), (240, 12)):
        grey = rng.normal(size=(cells * 3 // 4, cells, 1))
        waves = (0.75 * grey + 0.25 * rng.normal(size=(*grey.shape[:2], 3))).astype(np.float32)
        for channel in range(3):
            small = Image.fromarray(np.ascontiguousarray(waves[..., channel]))
            smooth = small.resize((width, height), Image.Resampling.BICUBIC)
            total[..., channel] += strength * np.asarray(smooth)
    total += rng.normal(size=(height, width, 1)) * 3
    return np.clip(total, 0, 255).astype(np.uint8)


def make_shards(folder):
    """Write the shards; give the JPEGs as well."""
    import simplejpeg

    rng = np.random.default_rng(0)
    scenes, jpegs = [scene(rng) for _ in range(24)], []
    for shard in range(SHARDS):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for i in range(PER_SHARD):
                view = scenes[rng.integers(len(scenes))]
                top, left = rng.integers(HEIGHT // 2), rng.integers(WIDTH // 2)
                part = np.ascontiguousarray(view[top : top + HEIGHT, left : left + WIDTH])
                jpegs.append(simplejpeg.encode_jpeg(part, quality=90, colorsubsampling="420"))
                caption = " ".join(rng.choice(WORDS, size=10)) + f" {i}"
                for suffix, data in (("jpg", jpegs[-1]), ("txt", caption.encode())):
                    member = tarfile.TarInfo(f"{shard:05d}{i:04d}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return jpegs


def open_clip_parts():
    """The modules of OpenCLIP that are used; its torchvision may not fit the installed torch."""
    import torch

    try:
        import torchvision  # noqa: F401
    except RuntimeError:  # It needs the names of operators that nothing here calls.
        _kept.append(torch.library.Library("torchvision", "DEF"))
        for name in ("nms", "qnms"):
            _kept[0].define(f"{name}(Tensor a, Tensor b, float c) -> Tensor")
    import open_clip
    from open_clip_train import data

    torch.set_num_threads(1)
    return open_clip, data


def peer(folder):
    """A function that runs an epoch of OpenCLIP's loader and counts its pictures."""
    open_clip, data = open_clip_parts()
    args = types.SimpleNamespace(
        train_data=str(folder / f"{{00000..{SHARDS - 1:05d}}}.tar"),
        train_num_samples=COUNT,
        train_data_upsampling_factors=None,
        dataset_resampled=False,
        seed=0,
        batch_size=BATCH,
        workers=0,
        world_size=1,
    )
    transform = open_clip.image_transform(SIZE, is_train=True)
    tokenizer = open_clip.SimpleTokenizer()

    def epoch():
        loader = data.get_wds_dataset(args, transform, True, tokenizer=tokenizer).dataloader
        shapes = [tuple(images.shape) for images, tokens in loader if tokens.shape[1] == 77]
        assert shapes == [(BATCH, 3, SIZE, SIZE)] * (COUNT // BATCH), shapes

    return epoch


def ours(folder, interpolation):
    """A function that runs an epoch of our loader."""
    from clip_jax.data.pipeline import Pipeline, train_batches
    from clip_jax.data.tar_shards import TarShards
    from clip_jax.preprocess.augment import AreaCrop, Augment
    from clip_jax.preprocess.recipe import Recipe
    from clip_jax.tokenizers import ClipBpe

    source, tokenizer = TarShards(root=str(folder)).open("train"), ClipBpe(spelling="open_clip")

    def epoch():
        batches = train_batches(
            source,
            batch=BATCH,
            seed=0,
            recipe=Recipe(size=SIZE),
            augment=Augment(crop=AreaCrop(), interpolation=interpolation),
            tokenizer=tokenizer,
            pipeline=Pipeline(threads=0, workers=0),
        )
        for _ in range(COUNT // BATCH):
            batch = next(batches)
            assert batch["images"].shape == (BATCH, SIZE, SIZE, 3) and not batch["skipped"]
        batches.close()

    return epoch


def bare(jpegs):
    """A function that decodes every picture at half its size."""
    import simplejpeg

    def epoch():
        for data in jpegs:
            simplejpeg.decode_jpeg(data, min_height=HEIGHT // 2, min_width=WIDTH // 2)

    return epoch


def main() -> None:
    """Time all in turn."""
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--interpolation", default="opencv", choices=["opencv", "bilinear", "bicubic"]
    )
    chosen = parser.parse_args().interpolation
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        jpegs = make_shards(folder)
        runs = {"OpenCLIP": peer(folder), "bare decoding": bare(jpegs)}
        runs |= {f"clip_jax, {way}": ours(folder, way) for way in ("bicubic", chosen)}
        seconds = {label: [] for label in runs}
        for number in range(ROUNDS + 1):
            for label in sorted(runs, reverse=number % 2 == 1):
                start = time.process_time()
                runs[label]()
                seconds[label].append(time.process_time() - start)
    rates = {label: COUNT / statistics.median(times[1:]) for label, times in seconds.items()}
    print(f"{COUNT:,} JPEGs of {sum(map(len, jpegs)) / COUNT / 1000:.0f} kB; median of {ROUNDS}")
    for label, rate in rates.items():
        print(f"{label}: {rate:,.0f} pictures/s")

    def share(mine, other):
        pairs = zip(seconds[f"clip_jax, {mine}"][1:], seconds[other][1:], strict=True)
        return round(statistics.median(theirs / own for own, theirs in pairs), 2)

    result = {
        "name": "loader",
        "ratio": share(chosen, "OpenCLIP"),
        "better": "higher",
        "share_of_bare_decode": share(chosen, "bare decoding"),
        "interpolation": chosen,
        "bicubic_ratio": share("bicubic", "OpenCLIP"),
        "bicubic_share_of_bare_decode": share("bicubic", "bare decoding"),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
