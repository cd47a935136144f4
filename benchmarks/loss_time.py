"""Time of the losses in tiles against the obvious losses, on one device of this machine.

    python benchmarks/loss_time.py [--batch 8192] [--width 512] [--tile 1024]

Each computes loss, batch accuracy and the gradients of image, text, scale and bias, jitted, as a
training step does; all in turn, in one process, in an order that is turned round every time. The
obvious losses run without the accuracy, too, which costs them a product of its own and the tiles
nothing. Prints the medians and, as the last line, the softmax's ratio of our time to theirs.
"""

import argparse
import json
import statistics
import time
from functools import partial

from clip_jax.cli.process import use_huge_pages

ROUNDS = 7


def contestants(tile: int):
    """Jitted functions by loss and form."""
    import jax

    from clip_jax.losses import Sigmoid, Softmax
    from clip_jax.sharding.mesh import MeshConfig, build_mesh

    def alone(loss, *given):
        return loss(*given), None

    mesh, axes = build_mesh(MeshConfig(), jax.devices()[:1]), ("replica", "data")
    forms = {}
    for name, kind in (("softmax", Softmax), ("sigmoid", Sigmoid)):
        forms[name, "obvious"] = kind().on(mesh, axes)
        forms[name, "obvious, no accuracy"] = partial(alone, kind())
        forms[name, "tiles"] = kind(tile=tile).on(mesh, axes)
    return {
        key: jax.jit(jax.value_and_grad(form, (0, 1, 2, 3), has_aux=True))
        for key, form in forms.items()
    }


def pairs(batch: int, width: int):
    """Embeddings of a model half way, with the scale and the bias of its logits."""
    import jax
    import jax.numpy as jnp

    image, text = jax.random.normal(jax.random.key(0), (2, batch, width))
    unit = [x / jnp.linalg.norm(x, axis=1, keepdims=True) for x in (image, text + 0.2 * image)]
    return *unit, jnp.float32(50.0), jnp.float32(-10.0)


def main() -> None:
    """Time all in turn."""
    import jax

    parser = argparse.ArgumentParser()
    parser.add_argument("--batch", type=int, default=8192)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--tile", type=int, default=1024)
    args = parser.parse_args()
    given, runs = pairs(args.batch, args.width), contestants(args.tile)
    seconds = {key: [] for key in runs}
    for number in range(-1, ROUNDS):  # One round to compile and to warm up.
        for key in sorted(runs, reverse=number % 2 == 1):
            start = time.perf_counter()
            jax.block_until_ready(runs[key](*given))
            if number >= 0:
                seconds[key].append(time.perf_counter() - start)
    ratios = {}
    for (name, form), times in seconds.items():
        own = seconds[name, "tiles"]
        ratio = statistics.median(a / b for a, b in zip(own, times, strict=True))
        ratios[name, form] = round(ratio, 3)
        print(f"{name}, {form}: {statistics.median(times):.3f} s; tiles take {ratio:.3f} of it")
    result = {
        "name": "loss_time",
        "ratio": ratios["softmax", "obvious"],
        "better": "lower",
        "sigmoid": ratios["sigmoid", "obvious"],
        "softmax_without_accuracy": ratios["softmax", "obvious, no accuracy"],
        "sigmoid_without_accuracy": ratios["sigmoid", "obvious, no accuracy"],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    use_huge_pages()
    main()
