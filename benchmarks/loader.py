"""Training pictures a second on one core, against the loader that OpenCLIP builds.

    python benchmarks/loader.py [--interpolation opencv|bilinear|bicubic] [--workers N]

    (beside clip_jax: open_clip_torch, torchvision, braceexpand, pandas, webdataset==0.2.86, the
    last one that OpenCLIP works with; opencv-python-headless; with workers also psutil)

Both read the same tar shards, made here: 2,000 JPEGs of 640 x 480 (quality 90, 4:2:0), each with a
caption. Both cut OpenCLIP's random crop (0.9 to 1 of the area) to 224 pixels, tokenize, and make
batches of 200, in one process and one thread on one core. OpenCLIP's loader is its own
`get_wds_dataset` with its own transform and tokenizer: webdataset, Pillow, bicubic, normalised
floats. Ours gives uint8, since it normalises on the device. The third measure is decoding and
nothing else: libjpeg-turbo on bytes in memory, at the scale that our loader decodes at (one half).

All take turns, in changing order; the first round does not count. Seconds are those that the
processes had a core, so that other programs disturb less. Prints the medians and, as the last line,
the ratio of our pictures per second to OpenCLIP's, and our share of bare decoding (medians of the
rounds' own): with the interpolation asked for, and with Pillow's bicubic, the default of training.

With `--workers N`, both loaders have N worker processes on N cores. What they read ahead is counted
in the turn after which they read it. Ours is measured with N threads and no worker, too: what
handing over pictures costs.
"""

import argparse
import contextlib
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


def peer(folder, workers):
    """A function that runs an epoch of OpenCLIP's loader and counts its pictures."""
    open_clip, data = open_clip_parts()
    args = types.SimpleNamespace(
        train_data=str(folder / f"{{00000..{SHARDS - 1:05d}}}.tar"),
        train_num_samples=COUNT,
        train_data_upsampling_factors=None,
        dataset_resampled=False,
        seed=0,
        batch_size=BATCH,
        workers=workers,
        world_size=1,
    )
    transform = open_clip.image_transform(SIZE, is_train=True)
    tokenizer = open_clip.SimpleTokenizer()
    loader = data.get_wds_dataset(args, transform, True, tokenizer=tokenizer).dataloader

    def epoch():
        shapes = [tuple(images.shape) for images, tokens in loader if tokens.shape[1] == 77]
        # Each worker makes whole batches, so that there may be one more.
        assert set(shapes) == {(BATCH, 3, SIZE, SIZE)}, shapes
        return len(shapes) * BATCH

    return epoch


def ours(folder, interpolation, threads, workers, stack):
    """A function that runs an epoch of our loader, until the stack is left."""
    from clip_jax.data.pipeline import Pipeline, train_batches
    from clip_jax.data.tar_shards import TarShards
    from clip_jax.preprocess.augment import AreaCrop, Augment
    from clip_jax.preprocess.recipe import Recipe
    from clip_jax.tokenizers import ClipBpe

    source, tokenizer = TarShards(root=str(folder)).open("train"), ClipBpe(spelling="open_clip")

    batches = train_batches(
        source,
        batch=BATCH,
        seed=0,
        recipe=Recipe(size=SIZE),
        augment=Augment(crop=AreaCrop(), interpolation=interpolation),
        tokenizer=tokenizer,
        pipeline=Pipeline(threads=threads, workers=workers),
    )
    stack.callback(batches.close)

    def epoch():
        for _ in range(COUNT // BATCH):
            batch = next(batches)
            assert batch["images"].shape == (BATCH, SIZE, SIZE, 3) and not batch["skipped"]
        return COUNT

    return epoch


def bare(jpegs):
    """A function that decodes every picture at half its size."""
    import simplejpeg

    def epoch():
        for data in jpegs:
            simplejpeg.decode_jpeg(data, min_height=HEIGHT // 2, min_width=WIDTH // 2)
        return len(jpegs)

    return epoch


def used(workers):
    """Seconds that this process and its workers had a core; waits until the workers rest."""
    if not workers:
        return time.process_time()
    import psutil

    def seconds():
        children = psutil.Process().children(recursive=True)
        times = [child.cpu_times() for child in children]
        return time.process_time() + sum(each.user + each.system for each in times)

    before, now = -1.0, seconds()
    while now - before > 0.02:  # They tick every hundredth.
        time.sleep(0.5)
        before, now = now, seconds()
    return now


def prepare(folder, jpegs, chosen, workers, stack):
    """What takes turns, by name."""
    runs = {"OpenCLIP": peer(folder, workers), "bare decoding": bare(jpegs)}
    threads = min(workers, 1)
    for way in ("bicubic", chosen):
        runs[f"clip_jax, {way}"] = ours(folder, way, threads, workers, stack)
    if workers:
        runs["clip_jax, threads"] = ours(folder, chosen, workers, 0, stack)
    return runs


def main() -> None:
    """Time all in turn."""
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--interpolation", default="opencv", choices=["opencv", "bilinear", "bicubic"]
    )
    parser.add_argument("--workers", type=int, default=0)
    given = parser.parse_args()
    chosen, workers = given.interpolation, given.workers
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-max(workers, 1) :])
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = pathlib.Path(name)
        jpegs = make_shards(folder)
        runs = prepare(folder, jpegs, chosen, workers, stack)
        seconds = {label: [] for label in runs}
        for number in range(ROUNDS + 1):
            for label in sorted(runs, reverse=number % 2 == 1):
                start = used(workers)
                pictures = runs[label]()
                seconds[label].append((used(workers) - start) / pictures)
    rates = {label: 1 / statistics.median(times[1:]) for label, times in seconds.items()}
    print(f"{COUNT:,} JPEGs of {sum(map(len, jpegs)) / COUNT / 1000:.0f} kB; median of {ROUNDS}")
    for label, rate in rates.items():
        print(f"{label}: {rate:,.0f} pictures/s of a core")

    def share(mine, other):
        pairs = zip(seconds[f"clip_jax, {mine}"][1:], seconds[other][1:], strict=True)
        return round(statistics.median(theirs / own for own, theirs in pairs), 2)

    result = {
        "name": "loader_workers" if workers else "loader",
        "ratio": share(chosen, "OpenCLIP"),
        "better": "higher",
        "share_of_bare_decode": share(chosen, "bare decoding"),
        "interpolation": chosen,
        "bicubic_ratio": share("bicubic", "OpenCLIP"),
        "bicubic_share_of_bare_decode": share("bicubic", "bare decoding"),
    }
    if workers:
        result |= {"workers": workers, "share_of_threads": share(chosen, "clip_jax, threads")}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
