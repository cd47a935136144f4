"""Memory of the loader after 20,000 and after 200,000 samples of one run.

    python benchmarks/loader_memory.py

    (Linux; beside clip_jax: psutil)

Reads tar shards made here: 50,000 JPEGs of 64 to 96 pixels, each with a caption of its own, of a
vocabulary as uneven as that of a language. Once all are well, once 1% of them are broken (cut off,
no picture, or without a caption). Each is read by threads alone and by two worker processes, each
time by a Python of its own.

Memory is the proportional set size (pages that processes share count once), summed over the
process and all its descendants: the median over 20 batches from the 20,000th sample on, and over as
many up to the 200,000th. Prints both, and as the last line the largest of the four ratios: no more
than 1 if nothing piles up.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tarfile
import tempfile

import numpy as np

SHARDS, PER_SHARD = 50, 1000
BATCH, SIZE = 100, 64
FIRST, LAST, READINGS = 20_000, 200_000, 20
PICTURES = 500
WORDS = 30_000
MODES = {"threads": {"threads": 2}, "workers": {"threads": 1, "workers": 2}}


def make_shards(folder, broken):
    """Write the shards; of a hundred samples, so many are broken."""
    import simplejpeg

    rng = np.random.default_rng(0)
    vocabulary = ["".join(map(chr, 97 + rng.integers(0, 26, 3 + i % 8))) for i in range(WORDS)]
    jpegs = []
    for _ in range(PICTURES):
        height, width = rng.integers(64, 97, 2)
        small = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        pixels = np.ascontiguousarray(small.repeat(12, 0).repeat(12, 1)[:height, :width])
        jpegs.append(simplejpeg.encode_jpeg(pixels, quality=85, colorsubsampling="420"))
    for shard in range(SHARDS):
        ranks = np.minimum(rng.zipf(1.2, (PER_SHARD, 10)), WORDS) - 1
        with (folder / f"{shard:05d}.tar").open("wb") as tar:
            for i in range(PER_SHARD):
                image = jpegs[rng.integers(PICTURES)]
                caption = " ".join(vocabulary[rank] for rank in ranks[i]).encode()
                if i % 100 < broken:
                    kind = i // 100 % 3
                    image = (image[: len(image) // 2], b"no picture", image)[kind]
                    caption = caption if kind < 2 else b""
                for suffix, data in (("jpg", image), ("txt", caption)):
                    member = tarfile.TarInfo(f"{shard:05d}{i:04d}.{suffix}")
                    member.size = len(data)
                    tar.write(member.tobuf() + data + bytes(-len(data) % 512))
            tar.write(bytes(1024))


def memory():
    """Bytes of this process and all below it."""
    import psutil

    own = psutil.Process()
    return sum(each.memory_full_info().pss for each in [own, *own.children(recursive=True)])


def measure(folder, mode):
    """Read all; give both figures in bytes, and how many samples were skipped."""
    from clip_jax.data.pipeline import Pipeline, train_batches
    from clip_jax.data.tar_shards import TarShards
    from clip_jax.preprocess.augment import AreaCrop, Augment
    from clip_jax.preprocess.recipe import Recipe
    from clip_jax.tokenizers import ClipBpe

    batches = train_batches(
        TarShards(root=str(folder)).open("train"),
        batch=BATCH,
        seed=0,
        recipe=Recipe(size=SIZE),
        augment=Augment(crop=AreaCrop()),
        tokenizer=ClipBpe(),
        pipeline=Pipeline(**MODES[mode]),
    )
    marks = {"first": FIRST // BATCH + READINGS, "last": LAST // BATCH}
    readings, skipped = {name: [] for name in marks}, 0
    for number in range(1, marks["last"] + 1):
        skipped += len(next(batches)["skipped"])
        for name, mark in marks.items():
            if mark - READINGS < number <= mark:
                readings[name].append(memory())
    batches.close()
    return {name: statistics.median(found) for name, found in readings.items()}, skipped


def main() -> None:
    """Measure each mode in a process of its own."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--measure", nargs=2, help="for its own use: a folder and a mode")
    if given := parser.parse_args().measure:
        print(json.dumps(measure(*given)))
        return
    ratios = {}
    for broken in (0, 1):
        with tempfile.TemporaryDirectory() as folder:
            make_shards(pathlib.Path(folder), broken)
            for mode in MODES:
                command = [sys.executable, __file__, "--measure", folder, mode]
                answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                found, skipped = json.loads(answer.stdout.splitlines()[-1])
                name = mode + "_1%_broken" * broken
                ratios[name] = found["last"] / found["first"]
                print(
                    f"{name}: {found['first'] / 1e6:.1f} MB after {FIRST:,} samples, "
                    f"{found['last'] / 1e6:.1f} MB after {LAST:,}; {skipped:,} were skipped",
                    flush=True,
                )
    ratios = {name: round(ratio, 4) for name, ratio in ratios.items()}
    worst = max(ratios.values())
    print(json.dumps({"name": "loader_memory", "ratio": worst, "better": "lower", **ratios}))


if __name__ == "__main__":
    main()
