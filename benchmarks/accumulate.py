"""Time and memory of a training step that takes its batch in parts, against the whole batch.

    python benchmarks/accumulate.py [--parts 4] [--batch 64] [--width 256] [--layers 6]

Both are the step that train.py runs (towers, loss, optimizer) without remat, on one device of
this machine, in turn, in one process, in an order that is turned round every time. Prints the
medians, the compiler's figure for the memory beside state and batch, and as the last line the
ratio of the time in parts to the time undivided.
"""

import argparse
import json
import statistics
import time

from clip_jax.cli.process import use_huge_pages

ROUNDS = 7


def assembled(args: argparse.Namespace, accumulate: int):
    """The step of a model of the chosen size, on one device."""
    import jax

    from clip_jax.losses import Softmax
    from clip_jax.models.clip import ClipConfig
    from clip_jax.models.text import TextConfig
    from clip_jax.models.transformer import StackConfig
    from clip_jax.models.vit import ViTConfig
    from clip_jax.optim.build import OptimConfig
    from clip_jax.preprocess.recipe import Recipe
    from clip_jax.sharding.mesh import MeshConfig, build_mesh
    from clip_jax.sharding.rules import DATA_PARALLEL
    from clip_jax.train.assemble import assemble

    stack = StackConfig(width=args.width, layers=args.layers, heads=args.width // 64)
    return assemble(
        model=ClipConfig(
            image=ViTConfig(image_size=112, patch_size=16, stack=stack),
            text=TextConfig(context_length=32, vocab_size=1000, stack=stack),
            embed_dim=args.width,
        ),
        loss=Softmax(),
        optim=OptimConfig(learning_rate=1e-3),
        recipe=Recipe(size=112),
        rules=DATA_PARALLEL,
        mesh=build_mesh(MeshConfig(), jax.devices()[:1]),
        seed=0,
        steps=1000,
        accumulate=accumulate,
    )


def main() -> None:
    """Time both in turn."""
    import jax
    import numpy as np

    from clip_jax.sharding.place import place_batch

    parser = argparse.ArgumentParser()
    parser.add_argument("--parts", type=int, default=4)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    batch = {
        "images": rng.integers(0, 256, (args.batch, 112, 112, 3), np.uint8),
        "tokens": rng.integers(1, 1000, (args.batch, 32)).astype(np.int32),
    }
    steps, states, memory, seconds = {}, {}, {}, {}
    for accumulate in (1, args.parts):
        parts = assembled(args, accumulate)
        placed = place_batch(batch, parts.batch_sharding)
        states[accumulate] = parts.init()
        steps[accumulate] = parts.step.lower(parts.abstract, placed).compile()
        memory[accumulate] = steps[accumulate].memory_analysis().temp_size_in_bytes
        seconds[accumulate] = []
    for number in range(-1, ROUNDS):  # One round to warm up.
        for key in sorted(steps, reverse=number % 2 == 1):
            start = time.perf_counter()
            states[key], metrics = steps[key](states[key], placed)
            jax.block_until_ready(metrics)
            if number >= 0:
                seconds[key].append(time.perf_counter() - start)
    medians = {key: statistics.median(times) for key, times in seconds.items()}
    for key, median in medians.items():
        print(f"in {key} parts: {median:.3f} s a step, {memory[key] / 2**20:.0f} MiB")
    result = {
        "name": "accumulate",
        "ratio": round(medians[args.parts] / medians[1], 3),
        "better": "lower",
        "memory_ratio": round(memory[args.parts] / memory[1], 3),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    use_huge_pages()
    main()
